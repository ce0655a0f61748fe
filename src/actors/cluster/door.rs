//! Who may come in: the listener's accept loop and what it knows of the node.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ractor::ActorRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tracing::{debug, warn};

use super::Msg;
use super::frontend_link::Ranks;
use super::hello::{HelloError, Identity, Purpose};
use super::members::{Dialler, Members, SessionId, Taken, Unwanted};
use super::transport::Transport;
use crate::actors::context::NodeContext;
use crate::actors::worker::{Way, WorkerUp};
use crate::ids::{Generation, NodeId};
use crate::metrics::Turned;

/// How long the listener rests when the system refuses it a connection.
const REST: Duration = Duration::from_millis(100);

struct Inside {
    members: Members,
    worker: Option<WorkerUp>,
}

/// What the accept loop, the dialling links and the `Cluster` share.
pub struct Door {
    me: NodeId,
    inside: Mutex<Inside>,
}

impl Door {
    /// Nobody is in yet.
    pub fn new(me: NodeId) -> Self {
        let members = Members::new(me.clone());
        Self { me, inside: Mutex::new(Inside { members, worker: None }) }
    }

    /// Whether this incarnation is connected.
    pub fn is_connected(&self, node: &NodeId) -> bool {
        self.inside().members.is_connected(node)
    }

    /// Whether the node that says it is at this address is connected.
    pub fn is_connected_at(&self, address: &str) -> bool {
        self.inside().members.is_connected_at(address)
    }

    pub(super) fn take(&self, peer: &Identity, dialler: Dialler) -> Result<Taken, Unwanted> {
        self.inside().members.take(&peer.node, &peer.address, dialler)
    }

    pub(super) fn ended(&self, session: SessionId) {
        self.inside().members.ended(session);
    }

    pub(super) fn set_worker(&self, worker: Option<WorkerUp>) {
        self.inside().worker = worker;
    }

    pub(super) fn worker(&self) -> Option<WorkerUp> {
        self.inside().worker.clone()
    }

    /// The ranks of this generation of the worker, if it is the one that is up.
    pub(super) fn ranks(&self, worker: &str, generation: Generation) -> Option<Ranks> {
        let inside = self.inside();
        let up = inside.worker.as_ref()?;
        let is_it = &*up.id.worker == worker && up.generation == generation;
        match &up.way {
            Way::Local(ranks) if is_it => Some(ranks.clone()),
            _ => None,
        }
    }

    fn judge(&self, peer: &Identity, purpose: &Purpose) -> Result<(), String> {
        match purpose {
            Purpose::Control => {
                let judged = self.inside().members.judge(&peer.node, Dialler::Peer);
                judged.map(drop).map_err(|unwanted| unwanted.to_string())
            }
            Purpose::Tokens { node, .. } if *node != self.me => {
                Err(format!("expected {node} here, this is {}", self.me))
            }
            Purpose::Tokens { worker, generation, .. } => match self.ranks(worker, *generation) {
                Some(_) => Ok(()),
                None => Err(format!("generation {generation} of worker {worker} is not up here")),
            },
        }
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes connections in, each in its own time, at most `limit` of them that have not said who they
/// are. A stranger costs one of these places until the handshake's time is over, and nothing else.
pub(super) async fn accept(
    listener: TcpListener,
    transport: Arc<Transport>,
    door: Arc<Door>,
    cluster: ActorRef<Msg>,
    node: Arc<NodeContext>,
    limit: usize,
) {
    let places = Arc::new(Semaphore::new(limit));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((tcp, _)) => {
                let (transport, door) = (transport.clone(), door.clone());
                let (cluster, node) = (cluster.clone(), node.clone());
                tokio::spawn(async move {
                    let _place = place;
                    welcome(tcp, &transport, &door, &cluster, &node).await;
                });
            }
            Err(error) => {
                warn!(%error, "cannot accept a node's connection");
                tokio::time::sleep(REST).await;
            }
        }
    }
}

async fn welcome(
    tcp: TcpStream,
    transport: &Transport,
    door: &Door,
    cluster: &ActorRef<Msg>,
    node: &NodeContext,
) {
    let metrics = node.metrics.cluster();
    let from = tcp.peer_addr().map(|address| address.to_string()).unwrap_or_default();
    // Its port is another one each time.
    let host = from.rsplit_once(':').map_or(&*from, |(host, _)| host);
    match transport.accept(tcp, |peer, purpose| door.judge(peer, purpose)).await {
        Ok(connection) => {
            node.admit_node(host);
            let _ = cluster.cast(Msg::Connected(connection, Dialler::Peer)); // ending with it
        }
        Err(error) => {
            let turned = turned(&error);
            metrics.turned_away.inc(turned);
            match turned {
                Turned::Cookie | Turned::Protocol => {
                    warn!(from, %error, "turned a node away");
                    node.refuse_node(host, error.to_string());
                }
                Turned::Unwanted | Turned::Stranger => debug!(from, %error, "turned away"),
            }
        }
    }
}

fn turned(error: &HelloError) -> Turned {
    match error {
        HelloError::Cookie => Turned::Cookie,
        HelloError::Protocol { .. } => Turned::Protocol,
        HelloError::Unwanted(_) | HelloError::Refused { .. } => Turned::Unwanted,
        HelloError::Stranger
        | HelloError::TimedOut { .. }
        | HelloError::Read(_)
        | HelloError::Io(_) => Turned::Stranger,
    }
}
