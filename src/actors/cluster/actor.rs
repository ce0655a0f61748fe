//! The `Cluster` actor: takes connections in, tells nodes about each other, notices who is gone.

use std::collections::{HashMap, HashSet};
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, RpcReplyPort, SupervisionEvent};
use ractor_cluster::{NodeServerMessage, RactorMessage};
use tokio::sync::oneshot;
use tracing::{debug, info, warn};

use super::card::{NodeCard, WorkerCard, changes};
use super::control::{self, NodeControl, RemoteControl};
use super::discovery::{self, Announcement, Following};
use super::door::{self, Door};
use super::frontend_link::{self, FrontendLink};
use super::hello::Purpose;
use super::members::{Dialler, SessionId};
use super::peer::{self, PeerLink};
use super::pipe;
use super::sessions::{remote_worker, serve_sessions};
use super::standstill;
use super::transport::{Connection, Transport};
use crate::actors::context::NodeContext;
use crate::actors::restart::ended;
use crate::actors::root;
use crate::actors::tree::{Card, CardId, Label, Snapshot};
use crate::actors::worker::WorkerUp;
use crate::config;
use crate::ids::{Generation, NodeId, WorkerId};
use crate::metrics::ClusterMetrics;
use crate::task::Task;

/// How often what should be there is compared with what is.
const TICK: Duration = Duration::from_secs(1);

/// What a `Cluster` answers to.
#[derive(RactorMessage)]
pub enum Msg {
    /// A connection to or from a node that has proved who it is.
    Connected(Connection, Dialler),
    /// From a node: who it is and what it serves.
    Card(NodeCard),
    /// From the root: this node's worker is up, or gone.
    Worker(Option<WorkerUp>),
    /// From the root: this node takes no new work. Dropped once discovery has heard.
    Drain(oneshot::Sender<()>),
    /// What lives on the other nodes.
    Trees(RpcReplyPort<Vec<Snapshot>>),
    /// Internal: the session with the node of this name can be used.
    Ready(String),
    /// Internal: a control connection ended, for this reason.
    SessionEnded(SessionId, String),
    /// From a `PeerLink`: the address is this node's own.
    OwnAddress(String),
    /// Internal: time to look after the peers.
    Tick,
}

/// What a `Cluster` starts from.
pub struct Args {
    /// The node.
    pub node: Arc<NodeContext>,
    /// The card of the `NodeRoot`.
    pub parent: CardId,
    /// The `NodeRoot`; it hears which workers are up elsewhere.
    pub root: ActorRef<root::Msg>,
    /// How to connect.
    pub transport: Arc<Transport>,
    /// Where others connect.
    pub listener: Arc<TcpListener>,
    /// Which start of this actor this is.
    pub generation: u32,
    /// This node's worker, if it is up.
    pub worker: Option<WorkerUp>,
}

/// Why a `Cluster` ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("its {part} was lost: {why}")]
pub struct ClusterError {
    part: &'static str,
    why: String,
}

/// One control connection.
struct Session {
    node: NodeId,
    address: String,
    control: Option<RemoteControl>,
    _pipe: Task,
}

/// A `Cluster`'s memory; dropping it ends all its sessions.
pub struct State {
    args: Args,
    config: config::Cluster,
    metrics: Arc<ClusterMetrics>,
    door: Arc<Door>,
    server: ActorRef<NodeServerMessage>,
    control: ActorRef<control::Msg>,
    sessions: HashMap<SessionId, Session>,
    cards: HashMap<NodeId, NodeCard>,
    peers: HashMap<String, ActorRef<peer::Msg>>,
    /// Addresses that turned out to be this node's own.
    own: HashSet<String>,
    frontends: HashMap<ActorId, (Generation, ActorRef<frontend_link::Msg>)>,
    /// `None` once the node drains: nobody should look for it.
    following: Option<Following>,
    draining: bool,
    card: Card,
    _accept: Task,
    _watch: Task,
}

impl State {
    async fn connected(
        &mut self,
        myself: &ActorRef<Msg>,
        connection: Connection,
        dialler: Dialler,
    ) -> Result<(), ActorProcessingErr> {
        match connection.purpose.clone() {
            Purpose::Control => self.session(myself, connection, dialler),
            Purpose::Tokens { worker, generation, .. } => {
                // Lost since the greeting: closing the connection says so.
                let Some(ranks) = self.door.ranks(&worker, generation) else { return Ok(()) };
                let args = frontend_link::Args {
                    node: self.args.node.clone(),
                    parent: self.card.id(),
                    pulse: self.args.transport.pulse.clone(),
                    generation,
                    ranks,
                    connection,
                };
                let spawned = Actor::spawn_linked(None, FrontendLink, args, myself.get_cell());
                // Its ranks have just ended: the connection is closed with its arguments.
                let Ok((link, _)) = spawned.await else { return Ok(()) };
                if self.draining {
                    let _ = link.cast(frontend_link::Msg::Drain); // ended already
                }
                self.frontends.insert(link.get_id(), (generation, link));
                self.show();
                Ok(())
            }
        }
    }

    fn session(
        &mut self,
        myself: &ActorRef<Msg>,
        connection: Connection,
        dialler: Dialler,
    ) -> Result<(), ActorProcessingErr> {
        let (node, address) = (connection.peer.node.clone(), connection.peer.address.clone());
        let taken = match self.door.take(&connection.peer, dialler) {
            Ok(taken) => taken,
            Err(unwanted) => {
                debug!(peer = %node, %unwanted, "closing a connection");
                return Ok(());
            }
        };
        let is_same = |old: &SessionId| self.sessions.get(old).is_some_and(|s| s.node == node);
        match taken.replaces {
            // The same life of the node on another connection: what it serves has not changed.
            Some(old) if is_same(&old) => drop(self.sessions.remove(&old)),
            Some(old) => self.forget(old, "a later incarnation connected"),
            None => {}
        }
        info!(peer = %node, address, "connected");
        let (end, work) = pipe::lay(connection, self.args.transport.pulse.clone());
        let is_server = dialler == Dialler::Peer;
        let stream = Box::new(end);
        self.server.cast(NodeServerMessage::ConnectionOpenedExternal { stream, is_server })?;
        let (actor, session) = (myself.clone(), taken.session);
        let _pipe = Task::spawn(async move {
            let why = work.await;
            let _ = actor.cast(Msg::SessionEnded(session, why)); // ending with it
        });
        self.sessions.insert(session, Session { node, address, control: None, _pipe });
        self.show();
        Ok(())
    }

    fn ready(&mut self, name: &str) {
        let of = |session: &&mut Session| session.node.to_string() == name;
        let Some(session) = self.sessions.values_mut().find(of) else { return };
        session.control = RemoteControl::find(&session.node);
        if session.control.is_none() {
            warn!(peer = %session.node, "the peer shows no control actor");
        }
        self.tell_all();
    }

    /// Tells every node about this one.
    fn tell_all(&self) {
        let me = &self.args.transport.me;
        let peers = self.sessions.values().map(|s| (s.node.clone(), s.address.clone()));
        let card = NodeCard {
            node: me.node.clone(),
            address: me.address.clone(),
            workers: self.door.worker().iter().map(WorkerCard::of).collect(),
            peers: peers.collect(),
        };
        for control in self.sessions.values().filter_map(|session| session.control.as_ref()) {
            control.tell(&card);
        }
    }

    async fn card(
        &mut self,
        myself: &ActorRef<Msg>,
        card: NodeCard,
    ) -> Result<(), ActorProcessingErr> {
        if !self.door.is_connected(&card.node) {
            return Ok(()); // said before its connection ended
        }
        let changed = changes(self.cards.get(&card.node), &card);
        for (worker, generation) in changed.down {
            let why = "its node says that it is down".to_string();
            self.args.root.cast(root::Msg::RemoteDown { worker, generation, why })?;
        }
        for up in changed.up {
            let depth = self.args.node.metrics.mailboxes.streams.clone();
            let up = remote_worker(&self.args.transport, depth, &card, up);
            self.args.root.cast(root::Msg::RemoteUp(up))?;
        }
        for (node, address) in &card.peers {
            if *node != self.args.transport.me.node && !self.door.is_connected(node) {
                self.keep_peer(myself, address.clone()).await?;
            }
        }
        self.cards.insert(card.node.clone(), card);
        Ok(())
    }

    /// A node is gone, and with it all that it served.
    fn forget(&mut self, session: SessionId, why: &str) {
        let Some(Session { node, address, .. }) = self.sessions.remove(&session) else { return };
        self.door.ended(session);
        info!(peer = %node, why, "disconnected");
        self.metrics.lost.inc();
        if let Some(card) = self.cards.remove(&node) {
            for worker in card.workers {
                let id = WorkerId { node: node.clone(), worker: worker.worker };
                let why = format!("node {} was lost: {why}", node.name);
                let generation = worker.generation;
                let down = root::Msg::RemoteDown { worker: id, generation, why };
                let _ = self.args.root.cast(down); // ending with it
            }
        }
        if let Some(peer) = self.peers.get(&address) {
            let _ = peer.cast(peer::Msg::Lost); // it comes back with the next tick
        }
        self.show();
        self.tell_all(); // so that nobody else dials whom we would name
    }

    async fn keep_peer(
        &mut self,
        myself: &ActorRef<Msg>,
        address: String,
    ) -> Result<(), ActorProcessingErr> {
        let known = self.peers.contains_key(&address) || self.own.contains(&address);
        if known || address == self.args.transport.me.address {
            return Ok(());
        }
        let args = peer::Args {
            node: self.args.node.clone(),
            parent: self.card.id(),
            cluster: myself.clone(),
            door: self.door.clone(),
            transport: self.args.transport.clone(),
            address: address.clone(),
            redial: self.config.redial,
        };
        let (peer, _) = Actor::spawn_linked(None, PeerLink, args, myself.get_cell()).await?;
        self.peers.insert(address, peer);
        Ok(())
    }

    /// Dials who was discovered or named by a peer, and gives up whom nobody knows any more.
    async fn tick(&mut self, myself: &ActorRef<Msg>) -> Result<(), ActorProcessingErr> {
        let Some(following) = &self.following else { return Ok(()) };
        let known = following.known.borrow().clone();
        let discovered = known.peers.into_iter().map(|found| found.address);
        let named = self.cards.values().flat_map(|card| &card.peers).map(|(_, at)| at.clone());
        let connected = self.sessions.values().map(|session| session.address.clone());
        let wanted: HashSet<_> = discovered.chain(named).collect();
        let kept: HashSet<_> = wanted.iter().cloned().chain(connected).collect();
        for (_, peer) in self.peers.extract_if(|address, _| !kept.contains(address)) {
            peer.stop(Some("nobody knows this address any more".to_string()));
        }
        for address in wanted {
            self.keep_peer(myself, address).await?;
        }
        Ok(())
    }

    /// This node's worker is up, or gone. Streams to a generation that is gone end now: a rank whose
    /// step hangs would not end them.
    fn worker(&mut self, worker: Option<WorkerUp>) {
        let up = worker.as_ref().map(|up| up.generation);
        for (_, link) in self.frontends.values().filter(|(of, _)| Some(*of) != up) {
            link.stop(Some("the worker was lost".to_string()));
        }
        self.door.set_worker(worker);
        self.tell_all();
    }

    fn drain(&mut self, left: oneshot::Sender<()>) {
        self.draining = true;
        self.card.state("draining");
        if let Some(following) = self.following.take() {
            tokio::spawn(async move {
                following.leave().await;
                drop(left);
            });
        }
        for (_, link) in self.frontends.values() {
            let _ = link.cast(frontend_link::Msg::Drain); // ended already
        }
        self.tell_all();
    }

    fn trees(&self, reply: RpcReplyPort<Vec<Snapshot>>) {
        let (wait, metrics) = (self.config.tree_timeout, self.metrics.clone());
        let controls: Vec<_> =
            self.sessions.values().filter_map(|session| session.control.clone()).collect();
        tokio::spawn(async move {
            let asked =
                controls.into_iter().map(|node| tokio::spawn(async move { node.tree(wait).await }));
            let asked: Vec<_> = asked.collect();
            let mut trees = Vec::new();
            for tree in asked {
                let tree = tree.await.ok().flatten();
                if tree.is_none() {
                    metrics.trees_missed.inc();
                }
                trees.extend(tree);
            }
            trees.sort_by(|a: &Snapshot, b: &Snapshot| a.name.cmp(&b.name));
            let _ = reply.send(trees); // asked too long ago
        });
    }

    fn show(&self) {
        self.metrics.nodes.set(self.sessions.len() as i64);
        self.metrics.frontends.set(self.frontends.len() as i64);
        self.card.count(0, self.sessions.len() as u64);
        self.card.count(1, self.frontends.len() as u64);
    }

    /// A child has ended. A peer or front end may; the rest the cluster cannot do without.
    fn lost(&mut self, child: ActorId, why: String) -> Result<(), ClusterError> {
        if child == self.server.get_id() {
            return Err(ClusterError { part: "session server", why });
        }
        if child == self.control.get_id() {
            return Err(ClusterError { part: "control actor", why });
        }
        if self.frontends.remove(&child).is_some() {
            info!(why, "a front end's stream ended");
            self.show();
            return Ok(());
        }
        let address = self.peers.iter().find(|(_, p)| p.get_id() == child).map(|(a, _)| a.clone());
        if let Some(address) = address {
            self.peers.remove(&address); // the next tick starts it again if it is wanted
        }
        Ok(())
    }
}

/// See the module's description.
pub struct Cluster;

impl Actor for Cluster {
    type Msg = Msg;
    type State = State;
    type Arguments = Args;

    async fn pre_start(
        &self,
        myself: ActorRef<Msg>,
        args: Args,
    ) -> Result<State, ActorProcessingErr> {
        let config = args.node.config.cluster.clone();
        let config = config.ok_or("the configuration has no cluster section")?;
        let me = args.transport.me.clone();
        let label = Label {
            kind: "Cluster",
            name: me.address.clone(),
            generation: args.generation,
            counters: &["nodes", "frontends"],
        };
        let card = args.node.board.hang(args.parent, label, myself.get_cell());
        let door = Arc::new(Door::new(me.node.clone()));
        door.set_worker(args.worker.clone());
        let (node, parent) = (args.node.clone(), card.id());
        let control = control::Args { node, me: me.node.clone(), parent, cluster: myself.clone() };
        let (control, _) =
            Actor::spawn_linked(None, NodeControl, control, myself.get_cell()).await?;
        let server = serve_sessions(&myself, &me.node, &args.transport).await?;
        let listener = args.listener.try_clone()?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let metrics = args.node.metrics.cluster();
        let _accept = Task::spawn(door::accept(
            listener,
            args.transport.clone(),
            door.clone(),
            myself.clone(),
            args.node.clone(),
            config.max_handshakes,
        ));
        let (name, incarnation) = (me.node.name.to_string(), me.node.boot);
        let own = Announcement { name, incarnation, address: me.address };
        let draining = args.node.draining(); // a restart must not make it forget that
        let following = (!draining).then(|| discovery::follow(config.discovery.clone(), own));
        let _watch = standstill::watch(config.failure_detection, args.root.clone());
        myself.cast(Msg::Tick)?;
        myself.send_interval(TICK, || Msg::Tick);
        card.state("serving");
        Ok(State {
            args,
            config,
            metrics,
            door,
            server,
            control,
            sessions: HashMap::new(),
            cards: HashMap::new(),
            peers: HashMap::new(),
            own: HashSet::new(),
            frontends: HashMap::new(),
            following,
            draining,
            card,
            _accept,
            _watch,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<Msg>,
        message: Msg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Msg::Connected(connection, by) => state.connected(&myself, connection, by).await?,
            Msg::Card(card) => state.card(&myself, card).await?,
            Msg::Worker(worker) => state.worker(worker),
            Msg::Drain(left) => state.drain(left),
            Msg::Trees(reply) => state.trees(reply),
            Msg::Ready(name) => state.ready(&name),
            Msg::SessionEnded(session, why) => state.forget(session, &why),
            Msg::OwnAddress(address) => drop(state.own.insert(address)),
            Msg::Tick => state.tick(&myself).await?,
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<Msg>,
        event: SupervisionEvent,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        if let Some((child, why)) = ended(event) {
            state.lost(child.get_id(), why)?;
        }
        Ok(())
    }
}
