//! `NodeRoot`: the process. Supervises the front end and the worker; starts the next generation of
//! what failed, within a budget, and gives up beyond it (the process then ends with exit code 70).

use std::collections::{HashMap, HashSet};
use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, RpcReplyPort, SupervisionEvent};
use ractor_cluster::RactorMessage;
use tokio::sync::oneshot;
use tracing::{error, info, warn};

use super::cluster::transport::Transport;
use super::cluster::{self, Cluster};
use super::context::NodeContext;
use super::frontend::{self, FrontendActor};
use super::handle::Shared;
use super::rank::Launch;
use super::restart::{RestartBudget, Verdict, ended};
use super::tree::{Card, CardId, Label, Snapshot};
use super::worker::{self, Worker, WorkerUp};
use crate::ids::{Generation, WorkerId};
use crate::router::Role;

/// What `NodeRoot` answers to.
#[derive(RactorMessage)]
pub enum Msg {
    /// From a worker: all its ranks are loaded.
    WorkerUp(WorkerUp),
    /// From the cluster: a worker of another node is up.
    RemoteUp(WorkerUp),
    /// From the cluster: a worker of another node is gone.
    RemoteDown {
        /// The worker.
        worker: WorkerId,
        /// Its generation; a later one stays.
        generation: Generation,
        /// Why, for people.
        why: String,
    },
    /// What lives on the other nodes.
    Trees(RpcReplyPort<Vec<Snapshot>>),
    /// The node stops: take no new work from other nodes. Dropped once discovery has heard.
    Drain(oneshot::Sender<()>),
    /// From the cluster: this process stood still for so long that the others have given it up.
    StoodStill(Duration),
    /// The drain time is over: end the requests that still run.
    CutOff,
    /// Internal: the delay before a restart is over.
    Respawn(Part),
    /// Internal: a restarted cluster had time to find these workers again.
    Confirm(HashSet<WorkerId>),
}

/// A child of the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The other nodes.
    Cluster,
    /// The front end.
    Frontend,
    /// The worker.
    Worker,
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Self::Cluster => "cluster",
            Self::Frontend => "frontend",
            Self::Worker => "worker",
        }
    }
}

/// The worker that this node runs.
#[derive(Clone)]
pub struct WorkerSpec {
    /// Its name.
    pub name: String,
    /// Makes a rank's engine.
    pub launch: Launch,
    /// A step that takes longer loses the worker.
    pub step_timeout: Duration,
    /// Loading that takes longer does, too.
    pub load_timeout: Duration,
    /// Hash of the model's tokenizer.
    pub tokenizer: u64,
    /// What its ranks do.
    pub role: Role,
}

/// How this node meets others.
#[derive(Clone)]
pub struct ClusterSpec {
    /// How it connects.
    pub transport: Arc<Transport>,
    /// Where others connect.
    pub listener: Arc<TcpListener>,
}

/// What `NodeRoot` starts from.
pub struct Args {
    /// The node.
    pub node: Arc<NodeContext>,
    /// The other nodes, if it is to meet them.
    pub cluster: Option<ClusterSpec>,
    /// The front end, if this node has one.
    pub frontend: Option<Arc<Shared>>,
    /// The worker, if this node has one.
    pub worker: Option<WorkerSpec>,
}

/// Why a node gave up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the {} never came up, or failed more than {limit} times within the window \
     (supervision.restarts), or its engine hangs; the last time: {last}",
    part.name()
)]
pub struct GaveUp {
    part: Part,
    limit: usize,
    last: String,
}

/// One child: which start of it lives, and how often it may be started again.
struct Child {
    starts: u32,
    budget: RestartBudget,
    actor: Option<ActorId>,
}

impl Child {
    fn new(node: &NodeContext) -> Self {
        let budget = RestartBudget::new(&node.config.supervision);
        Self { starts: 0, budget, actor: None }
    }
}

/// The memory of `NodeRoot`.
pub struct State {
    args: Args,
    cluster: Option<ActorRef<cluster::Msg>>,
    frontend: Option<ActorRef<frontend::Msg>>,
    cluster_child: Child,
    frontend_child: Child,
    worker_child: Child,
    /// The worker's living generation, once it is loaded.
    up: Option<WorkerUp>,
    /// Workers of other nodes that are up.
    remote: HashMap<WorkerId, WorkerUp>,
    /// Those of them that the living cluster has told of.
    confirmed: HashSet<WorkerId>,
    /// The cluster was stopped so that the node joins the others again as a new incarnation.
    renewing: bool,
    /// Whether any generation of the worker was loaded.
    ever_up: bool,
    card: Card,
}

impl State {
    async fn spawn(
        &mut self,
        myself: &ActorRef<Msg>,
        part: Part,
    ) -> Result<(), ActorProcessingErr> {
        match part {
            Part::Cluster => self.spawn_cluster(myself).await,
            Part::Frontend => self.spawn_frontend(myself).await,
            Part::Worker => self.spawn_worker(myself).await,
        }
    }

    async fn spawn_cluster(&mut self, myself: &ActorRef<Msg>) -> Result<(), ActorProcessingErr> {
        let Some(spec) = &mut self.args.cluster else { return Ok(()) };
        self.cluster_child.starts += 1;
        if self.cluster_child.starts > 1 {
            // What others still hear of the life before must not count as said in this one.
            let transport = Arc::make_mut(&mut spec.transport);
            transport.me.node = self.args.node.next_life(&transport.me.node);
        }
        let spec = spec.clone();
        let args = cluster::Args {
            node: self.args.node.clone(),
            parent: self.card.id(),
            root: myself.clone(),
            transport: spec.transport,
            listener: spec.listener,
            generation: self.cluster_child.starts,
            worker: self.up.clone(),
        };
        let spawned = Actor::spawn_linked(None, Cluster, args, myself.get_cell()).await?;
        self.cluster_child.actor = Some(spawned.0.get_id());
        self.cluster = Some(spawned.0);
        Ok(())
    }

    async fn spawn_frontend(&mut self, myself: &ActorRef<Msg>) -> Result<(), ActorProcessingErr> {
        let Some(shared) = self.args.frontend.clone() else { return Ok(()) };
        self.frontend_child.starts += 1;
        let args = frontend::Args {
            shared,
            parent: self.card.id(),
            generation: self.frontend_child.starts,
            workers: self.up.iter().chain(self.remote.values()).cloned().collect(),
        };
        let spawned = Actor::spawn_linked(None, FrontendActor, args, myself.get_cell()).await?;
        self.frontend_child.actor = Some(spawned.0.get_id());
        self.frontend = Some(spawned.0);
        Ok(())
    }

    async fn spawn_worker(&mut self, myself: &ActorRef<Msg>) -> Result<(), ActorProcessingErr> {
        let Some(spec) = self.args.worker.clone() else { return Ok(()) };
        self.worker_child.starts += 1;
        let generation = Generation(self.worker_child.starts);
        info!(worker = spec.name, generation = generation.0, "starting the worker");
        let args = worker::Args {
            node: self.args.node.clone(),
            parent: self.card.id(),
            root: myself.clone(),
            name: spec.name,
            generation,
            launch: spec.launch,
            step_timeout: spec.step_timeout,
            load_timeout: spec.load_timeout,
            tokenizer: spec.tokenizer,
            role: spec.role,
        };
        let spawned = Actor::spawn_linked(None, Worker, args, myself.get_cell()).await?;
        self.worker_child.actor = Some(spawned.0.get_id());
        Ok(())
    }

    fn worker_up(&mut self, up: WorkerUp) {
        if self.worker_child.actor.is_none() || up.generation.0 != self.worker_child.starts {
            return; // said by a generation that has failed since
        }
        info!(worker = %up.id, generation = up.generation.0, "the worker is up");
        self.args.node.set_worker_up(true);
        self.ever_up = true;
        self.up = Some(up.clone());
        self.tell_cluster(cluster::Msg::Worker(self.up.clone()));
        self.tell_frontend(frontend::Msg::WorkerUp(up));
    }

    fn remote_up(&mut self, up: WorkerUp) {
        let is_earlier = |id: &&WorkerId| id.node.name == up.id.node.name && id.node < up.id.node;
        let earlier: Vec<_> = self.remote.keys().filter(is_earlier).cloned().collect();
        for worker in earlier {
            let why = "a later incarnation of its node is up".to_string();
            self.remote_down(worker, Generation(u32::MAX), why);
        }
        self.confirmed.insert(up.id.clone());
        self.remote.insert(up.id.clone(), up.clone());
        self.card.count(1, self.remote.len() as u64);
        self.tell_frontend(frontend::Msg::WorkerUp(up));
    }

    fn remote_down(&mut self, worker: WorkerId, generation: Generation, why: String) {
        if self.remote.get(&worker).is_some_and(|up| up.generation <= generation) {
            self.remote.remove(&worker);
            self.confirmed.remove(&worker);
            self.card.count(1, self.remote.len() as u64);
        }
        self.tell_frontend(frontend::Msg::WorkerDown { worker, generation, why });
    }

    /// Workers of other nodes that the cluster knew before it was lost and has not found again.
    fn drop_unconfirmed(&mut self, unheard: &HashSet<WorkerId>) {
        let gone: Vec<_> = unheard.difference(&self.confirmed).cloned().collect();
        for worker in gone {
            self.args.node.metrics.cluster().unconfirmed.inc();
            let why = "its node did not come back".to_string();
            self.remote_down(worker, Generation(u32::MAX), why);
        }
    }

    /// Others have ended all connections with this node, or are about to: so does it.
    fn stood_still(&mut self, stood: Duration) {
        let Some(cluster) = self.cluster.as_ref().filter(|_| !self.renewing) else { return };
        warn!(?stood, "this process stood still and was given up: joining again");
        self.renewing = true;
        cluster.stop(Some("this process stood still".to_string()));
    }

    fn tell_cluster(&self, message: cluster::Msg) {
        if let Some(cluster) = &self.cluster {
            let _ = cluster.cast(message); // being restarted, it will start from what is up then
        }
    }

    fn tell_frontend(&self, message: frontend::Msg) {
        if let Some(frontend) = &self.frontend {
            let _ = frontend.cast(message); // being restarted, it will start from what is up then
        }
    }

    fn restarts(&self, part: Part) {
        self.args.node.metrics.restarted(part.name());
        self.card.add(0, 1);
    }

    fn take_part(&mut self, actor: ActorId) -> Option<Part> {
        if self.cluster_child.actor == Some(actor) {
            self.cluster_child.actor = None;
            self.cluster = None;
            return Some(Part::Cluster);
        }
        if self.frontend_child.actor == Some(actor) {
            self.frontend_child.actor = None;
            self.frontend = None;
            return Some(Part::Frontend);
        }
        if self.worker_child.actor == Some(actor) {
            self.worker_child.actor = None;
            return Some(Part::Worker);
        }
        None
    }

    fn worker_down(&mut self, why: &str) {
        self.up = None;
        self.args.node.set_worker_up(false);
        let generation = Generation(self.worker_child.starts);
        if let Some(spec) = &self.args.worker {
            let (worker, next) = (self.args.node.worker_id(&spec.name), generation.0 + 1);
            let why = format!("its worker was lost ({why}); starting generation {next}");
            self.tell_cluster(cluster::Msg::Worker(None));
            self.tell_frontend(frontend::Msg::WorkerDown { worker, generation, why });
        }
    }

    /// Schedules the next generation, or fails so that the process ends.
    fn failed(
        &mut self,
        myself: &ActorRef<Msg>,
        actor: ActorId,
        why: String,
    ) -> Result<(), GaveUp> {
        let Some(part) = self.take_part(actor) else { return Ok(()) };
        if part == Part::Cluster {
            // What goes away while nobody listens is never told of.
            let unheard = std::mem::take(&mut self.confirmed);
            let wait =
                self.args.node.config.cluster.as_ref().map(|cluster| cluster.confirm_timeout);
            myself.send_after(wait.unwrap_or_default(), move || Msg::Confirm(unheard));
            if std::mem::take(&mut self.renewing) {
                self.restarts(part);
                let _ = myself.cast(Msg::Respawn(part)); // ending
                return Ok(());
            }
        }
        self.part_failed(myself, part, why)
    }

    fn part_failed(
        &mut self,
        myself: &ActorRef<Msg>,
        part: Part,
        why: String,
    ) -> Result<(), GaveUp> {
        let budget = match part {
            Part::Cluster => &mut self.cluster_child.budget,
            Part::Frontend => &mut self.frontend_child.budget,
            Part::Worker => &mut self.worker_child.budget,
        };
        let mut verdict = budget.record(Instant::now());
        if part == Part::Worker {
            self.worker_down(&why);
            // What cannot be loaded once will not be loaded later.
            if !self.ever_up || self.args.node.spoil() {
                verdict = Verdict::Escalate;
            }
        }
        match verdict {
            Verdict::After(delay) => {
                warn!(part = part.name(), why, ?delay, "lost, restarting");
                self.restarts(part);
                myself.send_after(delay, move || Msg::Respawn(part));
                Ok(())
            }
            Verdict::Escalate => {
                error!(part = part.name(), why, "giving up");
                let limit = self.args.node.config.supervision.restarts;
                Err(GaveUp { part, limit, last: why })
            }
        }
    }
}

/// See the module's description.
pub struct NodeRoot;

impl Actor for NodeRoot {
    type Msg = Msg;
    type State = State;
    type Arguments = Args;

    async fn pre_start(
        &self,
        myself: ActorRef<Msg>,
        args: Args,
    ) -> Result<State, ActorProcessingErr> {
        let label = Label {
            kind: "NodeRoot",
            name: args.node.config.node.name.clone(),
            generation: 1,
            counters: &["restarts", "remote_workers"],
        };
        let card = args.node.board.hang(CardId::TOP, label, myself.get_cell());
        card.state("running");
        args.node.set_root(myself.clone());
        let child = || Child::new(&args.node);
        let (cluster_child, frontend_child, worker_child) = (child(), child(), child());
        let mut state = State {
            args,
            cluster: None,
            frontend: None,
            cluster_child,
            frontend_child,
            worker_child,
            up: None,
            remote: HashMap::new(),
            confirmed: HashSet::new(),
            renewing: false,
            ever_up: false,
            card,
        };
        state.spawn(&myself, Part::Frontend).await?;
        state.spawn(&myself, Part::Cluster).await?;
        state.spawn(&myself, Part::Worker).await?;
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<Msg>,
        message: Msg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Msg::WorkerUp(up) => state.worker_up(up),
            Msg::RemoteUp(up) => state.remote_up(up),
            Msg::RemoteDown { worker, generation, why } => {
                state.remote_down(worker, generation, why);
            }
            Msg::Trees(reply) => state.tell_cluster(cluster::Msg::Trees(reply)),
            Msg::Drain(left) => {
                state.card.state("draining");
                state.tell_cluster(cluster::Msg::Drain(left));
            }
            Msg::StoodStill(stood) => state.stood_still(stood),
            Msg::CutOff => {
                state.card.state("stopping");
                state.tell_frontend(frontend::Msg::CutOff);
            }
            Msg::Respawn(part) => {
                if let Err(error) = state.spawn(&myself, part).await {
                    state.part_failed(&myself, part, error.to_string())?;
                }
            }
            Msg::Confirm(unheard) => state.drop_unconfirmed(&unheard),
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Msg>,
        event: SupervisionEvent,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        if let Some((child, why)) = ended(event) {
            state.failed(&myself, child.get_id(), why)?;
        }
        Ok(())
    }
}
