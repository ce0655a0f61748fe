//! `Worker`: one engine instance, a failure domain with a generation number. Supervises its ranks;
//! when one of them fails or makes no progress, the whole worker fails and `NodeRoot` starts the
//! next generation.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use ractor_cluster::RactorMessage;

use super::cluster::stream::RemoteWorker;
use super::context::NodeContext;
use super::rank::{self, Launch, Patience, Progress, Rank};
use super::restart::ended;
use super::root;
use super::tree::{Card, CardId, Label};
use crate::engine::Description;
use crate::ids::{Generation, RankIndex, WorkerId};

/// How often progress is looked at.
const WATCH: Duration = Duration::from_millis(100);

/// A worker whose ranks are all loaded, as front ends see it.
#[derive(Clone)]
pub struct WorkerUp {
    /// The worker.
    pub id: WorkerId,
    /// The name of the model it serves.
    pub model: Arc<str>,
    /// Which start of the worker this is.
    pub generation: Generation,
    /// Its ranks.
    pub ranks: Vec<RankIndex>,
    /// Its engine.
    pub description: Description,
    /// Hash of its tokenizer: front ends with another one would speak another language.
    pub tokenizer: u64,
    /// How it is reached.
    pub way: Way,
}

/// How a front end reaches a worker's ranks.
#[derive(Clone)]
pub enum Way {
    /// They are actors of this process, in the order of [`WorkerUp::ranks`].
    Local(Vec<ActorRef<rank::Msg>>),
    /// They are on another node.
    Remote(Arc<RemoteWorker>),
}

/// What a `Worker` answers to.
#[derive(RactorMessage)]
pub enum Msg {
    /// From a rank: its engine is loaded.
    RankLoaded {
        /// The rank.
        index: RankIndex,
        /// Its engine.
        description: Description,
    },
    /// Internal: time to look at the ranks' progress.
    Watch,
}

/// What a `Worker` starts from.
pub struct Args {
    /// The node.
    pub node: Arc<NodeContext>,
    /// The card of the `NodeRoot`.
    pub parent: CardId,
    /// The `NodeRoot`; it hears when the worker is up.
    pub root: ActorRef<root::Msg>,
    /// The worker's name.
    pub name: String,
    /// Which start of the worker this is.
    pub generation: Generation,
    /// Makes a rank's engine.
    pub launch: Launch,
    /// A step that takes longer loses the worker.
    pub step_timeout: Duration,
    /// Loading that takes longer does, too.
    pub load_timeout: Duration,
    /// Hash of the model's tokenizer.
    pub tokenizer: u64,
}

/// Why a worker ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WorkerError {
    /// A rank ended.
    #[error("rank {} failed: {why}", rank.0)]
    RankLost {
        /// The rank.
        rank: RankIndex,
        /// For people.
        why: String,
    },
    /// A rank did not load in time.
    #[error("rank {} is not loaded after {:.1} s (worker.load_timeout_s)", rank.0, limit.as_secs_f64())]
    NotLoaded {
        /// The rank.
        rank: RankIndex,
        /// The limit.
        limit: Duration,
    },
    /// A rank's step took too long.
    #[error(
        "rank {} made no progress for {:.1} s (worker.step_timeout_s = {})",
        rank.0, stuck.as_secs_f64(), limit.as_secs_f64()
    )]
    Stuck {
        /// The rank.
        rank: RankIndex,
        /// How long its step has taken.
        stuck: Duration,
        /// The limit.
        limit: Duration,
    },
}

struct RankSlot {
    index: RankIndex,
    rank: ActorRef<rank::Msg>,
    progress: Arc<Progress>,
    patience: Patience,
    description: Option<Description>,
}

/// A `Worker`'s memory.
pub struct State {
    args: Args,
    /// When the ranks were last looked at.
    looked: Instant,
    ranks: Vec<RankSlot>,
    card: Card,
}

impl State {
    /// Notes a loaded rank; says so to the root once all of them are.
    fn loaded(&mut self, index: RankIndex, description: Description) -> Option<WorkerUp> {
        let slot = self.ranks.iter_mut().find(|slot| slot.index == index)?;
        slot.description = Some(description);
        let loaded = self.ranks.iter().filter(|slot| slot.description.is_some()).count();
        self.card.count(0, loaded as u64);
        if loaded < self.ranks.len() {
            return None;
        }
        self.card.state("serving");
        Some(WorkerUp {
            id: self.args.node.worker_id(&self.args.name),
            model: self.args.name.as_str().into(),
            generation: self.args.generation,
            ranks: self.ranks.iter().map(|slot| slot.index).collect(),
            description: self.ranks.first()?.description.clone()?,
            tokenizer: self.args.tokenizer,
            way: Way::Local(self.ranks.iter().map(|slot| slot.rank.clone()).collect()),
        })
    }

    fn watch(&mut self) -> Result<(), WorkerError> {
        let (args, now) = (&self.args, Instant::now());
        let elapsed = now - std::mem::replace(&mut self.looked, now);
        for slot in &mut self.ranks {
            let stuck = slot.patience.look(slot.progress.now(), elapsed, WATCH);
            let is_loaded = slot.description.is_some();
            let limit = if is_loaded { args.step_timeout } else { args.load_timeout };
            if stuck <= limit {
                let metrics = args.node.metrics.worker(&args.name, slot.index);
                metrics.hung_engines.set(args.node.hung_engines() as i64);
                continue;
            }
            args.node.leave_behind(&slot.progress);
            let rank = slot.index;
            return Err(match is_loaded {
                true => WorkerError::Stuck { rank, stuck, limit },
                false => WorkerError::NotLoaded { rank, limit },
            });
        }
        Ok(())
    }

    fn rank_of(&self, cell: &ractor::ActorCell) -> RankIndex {
        let slot = self.ranks.iter().find(|slot| slot.rank.get_id() == cell.get_id());
        slot.map_or(RankIndex(0), |slot| slot.index)
    }
}

/// See the module's description.
pub struct Worker;

impl Actor for Worker {
    type Msg = Msg;
    type State = State;
    type Arguments = Args;

    async fn pre_start(
        &self,
        myself: ActorRef<Msg>,
        args: Args,
    ) -> Result<State, ActorProcessingErr> {
        let label = Label {
            kind: "Worker",
            name: args.name.clone(),
            generation: args.generation.0,
            counters: &["ranks_loaded"],
        };
        let card = args.node.board.hang(args.parent, label, myself.get_cell());
        card.state("loading");
        let index = RankIndex(0);
        let progress = Arc::new(Progress::default());
        let rank_args = rank::Args {
            node: args.node.clone(),
            parent: card.id(),
            worker: myself.clone(),
            worker_name: args.name.clone(),
            generation: args.generation,
            index,
            launch: args.launch.clone(),
            progress: progress.clone(),
        };
        let (rank, _) = Actor::spawn_linked(None, Rank, rank_args, myself.get_cell()).await?;
        myself.send_interval(WATCH, || Msg::Watch);
        let ranks = vec![RankSlot {
            index,
            rank,
            progress,
            patience: Patience::default(),
            description: None,
        }];
        Ok(State { args, looked: Instant::now(), ranks, card })
    }

    async fn handle(
        &self,
        _: ActorRef<Msg>,
        message: Msg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Msg::RankLoaded { index, description } => {
                if let Some(up) = state.loaded(index, description) {
                    state.args.root.cast(root::Msg::WorkerUp(up))?;
                }
            }
            Msg::Watch => state.watch()?,
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<Msg>,
        event: SupervisionEvent,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let Some((child, why)) = ended(event) else { return Ok(()) };
        Err(WorkerError::RankLost { rank: state.rank_of(&child), why }.into())
    }
}
