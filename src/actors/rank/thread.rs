//! A rank's own thread: loads the engine, and runs its steps (`steps`).

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc as std_mpsc;
use std::time::{Duration, Instant};

use ractor::ActorRef;
use tokio::sync::mpsc;
use tracing::info;

use super::steps::{Shows, Steps};
use super::{Args, Launch, Msg};
use crate::actors::context::NodeContext;
use crate::actors::link::{FetchEnd, Frame, LinkId};
use crate::actors::transfer::{Leases, Mover};
use crate::actors::tree::Counters;
use crate::engine::{Description, Engine, EngineError, Leg, PrefixCache};
use crate::ids::{LegId, RankIndex};
use crate::metrics::{Depth, Queued, TransferMetrics};
use crate::router::Role;

/// What the thread is told. Short without a limit of its own: each request in flight has at most
/// one unanswered command for each of its choices, and an abort after it.
pub(super) enum Command {
    Attach { link: LinkId, frames: mpsc::Sender<Frame> },
    Detach { link: LinkId },
    Snapshot { link: LinkId },
    Admit { leg: Leg, link: LinkId, state: Option<Arc<[u8]>> },
    Refused { leg: LegId, link: LinkId, error: EngineError },
    Abort(LegId),
    NotGiven(LegId),
    Pulled { leg: LegId, have: u32, end: FetchEnd },
    Lost { leg: LegId, link: LinkId },
    Ready, // the engine has something to tell
    Stop,
}

/// The way to the thread.
#[derive(Clone)]
pub(super) struct Commands {
    to: std_mpsc::Sender<(Command, Queued)>,
    depth: Arc<Depth>,
}

impl Commands {
    pub(super) fn send(&self, command: Command) {
        // A thread that is gone has reported why, and holds nothing that could be freed.
        let _ = self.to.send((command, self.depth.put()));
    }
}

/// The handle that a `Rank` holds; dropping it ends the thread after the step it is in.
pub(super) struct Thread {
    commands: Commands,
    max_legs: usize,
}

impl Thread {
    pub(super) fn start(
        rank: ActorRef<Msg>,
        args: &Args,
        name: String,
        counters: Counters,
    ) -> std::io::Result<Self> {
        let (to, inbox) = std_mpsc::channel();
        let commands = Commands { to, depth: args.node.metrics.mailboxes.engines.clone() };
        let worker = args.node.config.worker.as_ref();
        let max_legs = worker.map_or(0, |worker| worker.max_running + worker.max_waiting);
        let tells = Tells {
            cache: worker.is_some_and(|worker| worker.kv_events),
            buffer: worker.map_or(0, |worker| worker.kv_event_buffer),
            interval: worker.map_or(Duration::ZERO, |worker| worker.report_interval),
        };
        let metrics = args.node.metrics.worker(&args.worker_name, args.index);
        metrics.set_generation(args.generation);
        let failures = metrics.clone();
        let wake = commands.clone();
        let (index, life) = (args.index, args.life);
        let (launch, progress) = (args.launch.clone(), args.progress.clone());
        let transfers = args.node.metrics.transfer(&args.worker_name, args.index);
        let node = args.node.clone();
        std::thread::Builder::new().name(format!("rank-{name}")).spawn(move || {
            progress.turn();
            let began = Instant::now();
            let loaded = load(&launch, index);
            metrics.load_seconds.set(began.elapsed().as_secs_f64());
            progress.turn();
            let end = match loaded {
                Ok(mut engine) => {
                    engine.on_ready(Arc::new(move || wake.send(Command::Ready)));
                    let description = tells.described(&*engine);
                    let leases = lending(&*engine, &node, &rank, transfers.clone());
                    leases.and_then(|leases| {
                        let mover = leases.as_ref().map(Leases::mover);
                        // A rank that is gone has told us to stop, which ends the loop.
                        let _ = rank.cast(Msg::Loaded(description, mover));
                        let shows = Shows { progress, metrics, counters, transfers };
                        let who = (index, life, rank.clone());
                        Steps::new(engine, inbox, who, shows, tells, leases).run()
                    })
                }
                Err(error) => Err(error),
            };
            if let Err(error) = end {
                failures.engine_failures.inc();
                let _ = rank.cast(Msg::EngineLost(error)); // already gone: nobody to tell
            }
        })?;
        Ok(Self { commands, max_legs })
    }

    pub(super) fn commands(&self) -> Commands {
        self.commands.clone()
    }

    pub(super) fn send(&self, command: Command) {
        self.commands.send(command);
    }

    /// Whether one more leg may be queued next to `live` ones.
    pub(super) fn has_room(&self, live: usize) -> Result<(), EngineError> {
        if live < self.max_legs {
            return Ok(());
        }
        Err(EngineError::QueueFull { waiting: live, limit: self.max_legs })
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.commands.send(Command::Stop);
    }
}

fn load(launch: &Launch, rank: RankIndex) -> Result<Box<dyn Engine>, EngineError> {
    catch_unwind(AssertUnwindSafe(|| launch(rank)))
        .unwrap_or_else(|panic| Err(panicked("load", &*panic)))
}

/// Makes the engine's pool known to a transport, if the worker has a role that needs it.
fn lending(
    engine: &dyn Engine,
    node: &NodeContext,
    rank: &ActorRef<Msg>,
    metrics: Arc<TransferMetrics>,
) -> Result<Option<Leases>, EngineError> {
    let worker = node.config.worker.as_ref().filter(|worker| worker.role != Role::Aggregated);
    let Some(worker) = worker else { return Ok(None) };
    if engine.describe().hands_over {
        info!(role = worker.role.name(), "the engine hands KV over by itself");
        return Ok(None);
    }
    let lost = |detail: String| EngineError::Lost { during: "loading".into(), detail };
    let pool = engine.kv_pool().ok_or_else(|| {
        lost("KV blocks of this engine cannot be moved; set worker.role to aggregated".to_owned())
    })?;
    let rank = rank.clone();
    // A rank that is gone has nothing to be told.
    let hear = move |moved| drop(rank.cast(Msg::Moved(moved)));
    let mover = Mover::start(&worker.transfer, pool, hear).map_err(|e| lost(e.to_string()))?;
    info!(role = worker.role.name(), transport = mover.name(), "KV blocks can be moved");
    Ok(Some(Leases::new(Arc::new(mover), worker.transfer.lease, metrics)))
}

pub(super) fn panicked(during: &'static str, panic: &(dyn std::any::Any + Send)) -> EngineError {
    let text = panic
        .downcast_ref::<&str>()
        .map(ToString::to_string)
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without text".to_string());
    EngineError::Lost { during: during.into(), detail: format!("panicked: {text}") }
}

/// What front ends are told besides the rows of their legs.
#[derive(Clone, Copy)]
pub(super) struct Tells {
    /// Whether they hear what is cached, and how many changes may wait for one.
    pub(super) cache: bool,
    pub(super) buffer: usize,
    /// How often those without legs hear of a load that changes.
    pub(super) interval: Duration,
}

impl Tells {
    /// The engine, as front ends know it.
    pub(super) fn described(self, engine: &dyn Engine) -> Description {
        let mut description = engine.describe();
        if !self.cache && description.prefix_cache == PrefixCache::Told {
            description.prefix_cache = PrefixCache::Silent;
        }
        description
    }
}
