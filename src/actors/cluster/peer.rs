//! `PeerLink`: keeps this node connected to the one at an address: dials, and dials again.

use std::sync::Arc;
use std::time::Duration;

use ractor::concurrency::JoinHandle;
use ractor::{Actor, ActorProcessingErr, ActorRef, MessagingErr, SupervisionEvent};
use ractor_cluster::RactorMessage;
use tracing::{debug, info, warn};

use super::Door;
use super::hello::{HelloError, Purpose};
use super::members::Dialler;
use super::redial::backoff;
use super::transport::{Connection, Transport};
use crate::actors::context::NodeContext;
use crate::actors::tree::{Card, CardId, Label};
use crate::config::Redial;
use crate::ids::NodeId;

/// What a `PeerLink` answers to.
#[derive(RactorMessage)]
pub enum Msg {
    /// The node was lost: dial soon.
    Lost,
    /// Internal: time to look, and to dial if the node is not connected.
    Look,
    /// Internal: what dialling came to.
    Dialled(Result<Connection, HelloError>),
}

/// What a `PeerLink` starts from.
pub struct Args {
    /// The node.
    pub node: Arc<NodeContext>,
    /// The card of the `Cluster`.
    pub parent: CardId,
    /// The `Cluster`; it gets the connections.
    pub cluster: ActorRef<super::Msg>,
    /// Who is connected.
    pub door: Arc<Door>,
    /// How to dial.
    pub transport: Arc<Transport>,
    /// Where.
    pub address: String,
    /// When to try again.
    pub redial: Redial,
}

/// A `PeerLink`'s memory.
pub struct State {
    args: Args,
    /// Failed attempts since the last success.
    attempts: u32,
    /// Who answered there last.
    reached: Option<NodeId>,
    dialling: bool,
    timer: Option<JoinHandle<Result<(), MessagingErr<Msg>>>>,
    card: Card,
}

impl State {
    /// Looks again after a while, once, whatever was scheduled before.
    fn look_after(&mut self, myself: &ActorRef<Msg>, wait: Duration) {
        if let Some(timer) = self.timer.replace(myself.send_after(wait, || Msg::Look)) {
            timer.abort();
        }
    }

    fn failed(&mut self) {
        self.attempts += 1;
        self.card.add(1, 1);
    }

    fn look(&mut self, myself: &ActorRef<Msg>) {
        if self.dialling {
            return;
        }
        let door = &self.args.door;
        let is_there = self.reached.as_ref().is_some_and(|node| door.is_connected(node));
        if is_there || door.is_connected_at(&self.args.address) {
            self.card.state("connected");
            self.args.node.admit_node(&self.args.address);
            self.look_after(myself, self.args.redial.max);
            return;
        }
        self.card.state("dialling");
        self.dialling = true;
        let (transport, address) = (self.args.transport.clone(), self.args.address.clone());
        let actor = myself.clone();
        tokio::spawn(async move {
            let outcome = transport.dial(&address, Purpose::Control).await;
            let _ = actor.cast(Msg::Dialled(outcome)); // not wanted any more
        });
    }

    /// Takes in what dialling came to; says whether to go on.
    fn dialled(&mut self, myself: &ActorRef<Msg>, outcome: Result<Connection, HelloError>) -> bool {
        self.dialling = false;
        let address = &self.args.address;
        match outcome {
            Ok(connection) => {
                debug!(peer = %connection.peer.node, address, "reached");
                self.attempts = 0;
                self.card.add(0, 1);
                self.reached = Some(connection.peer.node.clone());
                let message = super::Msg::Connected(connection, Dialler::Me);
                let _ = self.args.cluster.cast(message); // ending with it
                self.look_after(myself, self.args.redial.max); // it needs a moment to take it
                return true;
            }
            Err(HelloError::Refused { by: Some(node), why }) => {
                if node == self.args.transport.me.node {
                    let _ = self.args.cluster.cast(super::Msg::OwnAddress(address.clone()));
                    return false;
                }
                if !self.args.door.is_connected(&node) {
                    info!(peer = %node, address, why, "refused by the peer");
                    self.args.node.refuse_node(address, why);
                }
                self.reached = Some(node);
                self.failed();
            }
            Err(error) => {
                // Once loudly, then as a reminder: a node that is away stays away for a while.
                if self.attempts.is_power_of_two() || self.attempts == 0 {
                    warn!(address, %error, attempt = self.attempts + 1, "cannot reach a peer");
                }
                if matches!(
                    error,
                    HelloError::Cookie | HelloError::Protocol { .. } | HelloError::Refused { .. }
                ) {
                    self.args.node.refuse_node(address, error.to_string());
                }
                self.card.state("waiting to dial");
                self.failed();
            }
        }
        self.look_after(myself, backoff(self.attempts, &self.args.redial));
        true
    }
}

/// See the module's description.
pub struct PeerLink;

impl Actor for PeerLink {
    type Msg = Msg;
    type State = State;
    type Arguments = Args;

    async fn pre_start(
        &self,
        myself: ActorRef<Msg>,
        args: Args,
    ) -> Result<State, ActorProcessingErr> {
        let label = Label {
            kind: "PeerLink",
            name: args.address.clone(),
            generation: 1,
            counters: &["reached", "failed"],
        };
        let card = args.node.board.hang(args.parent, label, myself.get_cell());
        myself.cast(Msg::Look)?;
        Ok(State { args, attempts: 0, reached: None, dialling: false, timer: None, card })
    }

    async fn handle(
        &self,
        myself: ActorRef<Msg>,
        message: Msg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Msg::Lost => state.look_after(&myself, state.args.redial.first),
            Msg::Look => state.look(&myself),
            Msg::Dialled(outcome) => {
                if !state.dialled(&myself, outcome) {
                    myself.stop(Some("it is this node's own address".to_string()));
                }
            }
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<Msg>,
        _: SupervisionEvent,
        _: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        Ok(()) // it has no children
    }
}
