//! `Worker`: one or more data-parallel ranks of one model, a failure domain with a generation number.
//! Supervises its ranks. One of several that fails is started again alone; the last one, one that
//! makes no progress, or one that fails too often takes the whole worker with it, and `NodeRoot`
//! starts the next generation.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};
use ractor_cluster::RactorMessage;
use tracing::warn;

use super::cluster::stream::RemoteWorker;
use super::context::NodeContext;
use super::rank::{self, Launch, Patience, Progress, Rank, RankRef};
use super::restart::{RestartBudget, Verdict, ended};
use super::root;
use super::tree::{Card, CardId, Label};
use crate::config::Supervision;
use crate::engine::Description;
use crate::ids::{Generation, RankIndex, WorkerId};
use crate::router::Role;

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
    /// What its ranks do.
    pub role: Role,
    /// How it is reached.
    pub way: Way,
}

/// How a front end reaches a worker's ranks.
#[derive(Clone)]
pub enum Way {
    /// They are actors of this process, in the order of [`WorkerUp::ranks`].
    Local(Vec<RankRef>),
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
        /// Which of its lives.
        life: u32,
        /// Its engine.
        description: Description,
    },
    /// Internal: the delay before a rank's next life is over.
    Respawn(RankIndex),
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
    /// What the ranks do.
    pub role: Role,
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
    rank: RankRef,
    /// The life that there is now.
    actor: Option<ActorId>,
    lives: u32,
    budget: RestartBudget,
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
    /// Whether the root knows that all ranks were loaded.
    is_up: bool,
    card: Card,
}

impl Drop for State {
    fn drop(&mut self) {
        self.ranks.iter().for_each(|slot| slot.rank.end());
    }
}

impl RankSlot {
    fn new(index: RankIndex, config: &Supervision) -> Self {
        Self {
            rank: RankRef::new(index),
            actor: None,
            lives: 0,
            budget: RestartBudget::new(config),
            progress: Arc::default(),
            patience: Patience::default(),
            description: None,
        }
    }
}

impl State {
    /// Begins a rank's next life.
    async fn spawn(
        &mut self,
        myself: &ActorRef<Msg>,
        index: RankIndex,
    ) -> Result<(), ActorProcessingErr> {
        let Some(slot) = self.ranks.iter_mut().find(|slot| slot.rank.index == index) else {
            return Ok(());
        };
        slot.lives += 1;
        (slot.progress, slot.patience) = (Arc::default(), Patience::default());
        let args = rank::Args {
            node: self.args.node.clone(),
            parent: self.card.id(),
            worker: myself.clone(),
            worker_name: self.args.name.clone(),
            generation: Generation(self.args.generation.0 + slot.lives - 1),
            index,
            life: slot.lives,
            launch: self.args.launch.clone(),
            progress: slot.progress.clone(),
        };
        let (rank, _) = Actor::spawn_linked(None, Rank, args, myself.get_cell()).await?;
        slot.actor = Some(rank.get_id());
        slot.rank.open(rank, slot.lives);
        Ok(())
    }

    /// A rank has ended. Others of this worker go on, if there are any.
    fn lost(
        &mut self,
        myself: &ActorRef<Msg>,
        actor: ActorId,
        why: String,
    ) -> Result<(), WorkerError> {
        let alone = self.ranks.len() == 1;
        let Some(slot) = self.ranks.iter_mut().find(|slot| slot.actor == Some(actor)) else {
            return Ok(());
        };
        let rank = slot.rank.index;
        (slot.actor, slot.description) = (None, None);
        let verdict = match alone || !self.is_up {
            true => Verdict::Escalate,
            false => slot.budget.record(Instant::now()),
        };
        let Verdict::After(delay) = verdict else {
            return Err(WorkerError::RankLost { rank, why });
        };
        warn!(rank = rank.0, why, ?delay, "a rank was lost, restarting it");
        slot.rank.lost();
        self.args.node.metrics.restarted("rank");
        self.count();
        myself.send_after(delay, move || Msg::Respawn(rank));
        Ok(())
    }

    fn count(&self) {
        let loaded = self.ranks.iter().filter(|slot| slot.description.is_some()).count();
        self.card.count(0, loaded as u64);
    }

    /// Notes a loaded rank; says so to the root once all of them are.
    fn loaded(
        &mut self,
        index: RankIndex,
        life: u32,
        description: Description,
    ) -> Option<WorkerUp> {
        let lives = |slot: &&mut RankSlot| slot.actor.is_some() && slot.lives == life;
        let slot = self.ranks.iter_mut().find(|slot| slot.rank.index == index).filter(lives)?;
        slot.description = Some(description);
        slot.rank.loaded();
        self.count();
        let loaded = self.ranks.iter().all(|slot| slot.description.is_some());
        if !loaded || std::mem::replace(&mut self.is_up, true) {
            return None;
        }
        self.card.state(match self.args.role {
            Role::Aggregated => "serving",
            Role::Prefill => "serving: prefill",
            Role::Decode => "serving: decode",
        });
        Some(WorkerUp {
            id: self.args.node.worker_id(&self.args.name),
            model: self.args.name.as_str().into(),
            generation: self.args.generation,
            ranks: self.ranks.iter().map(|slot| slot.rank.index).collect(),
            description: self.ranks.first()?.description.clone()?,
            tokenizer: self.args.tokenizer,
            role: self.args.role,
            way: Way::Local(self.ranks.iter().map(|slot| slot.rank.clone()).collect()),
        })
    }

    fn watch(&mut self) -> Result<(), WorkerError> {
        let (args, now) = (&self.args, Instant::now());
        let elapsed = now - std::mem::replace(&mut self.looked, now);
        for slot in self.ranks.iter_mut().filter(|slot| slot.actor.is_some()) {
            let stuck = slot.patience.look(slot.progress.now(), elapsed, WATCH);
            let is_loaded = slot.description.is_some();
            let limit = if is_loaded { args.step_timeout } else { args.load_timeout };
            if stuck <= limit {
                let metrics = args.node.metrics.worker(&args.name, slot.rank.index);
                metrics.hung_engines.set(args.node.hung_engines() as i64);
                continue;
            }
            args.node.leave_behind(&slot.progress);
            let rank = slot.rank.index;
            return Err(match is_loaded {
                true => WorkerError::Stuck { rank, stuck, limit },
                false => WorkerError::NotLoaded { rank, limit },
            });
        }
        Ok(())
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
        let config = &args.node.config;
        let size = config.worker.as_ref().map_or(1, |worker| worker.dp_size);
        let ranks = (0..size).map(|i| RankSlot::new(RankIndex(i), &config.supervision)).collect();
        let mut state = State { args, looked: Instant::now(), ranks, is_up: false, card };
        for index in 0..size {
            state.spawn(&myself, RankIndex(index)).await?;
        }
        myself.send_interval(WATCH, || Msg::Watch);
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<Msg>,
        message: Msg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Msg::Respawn(index) => state.spawn(&myself, index).await?,
            Msg::RankLoaded { index, life, description } => {
                if let Some(up) = state.loaded(index, life, description) {
                    state.args.root.cast(root::Msg::WorkerUp(up))?;
                }
            }
            Msg::Watch => state.watch()?,
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
            state.lost(&myself, child.get_id(), why)?;
        }
        Ok(())
    }
}
