//! A rank's own thread: loads the engine, runs its steps, sends one frame a step to each link.
//!
//! The thread never waits for a front end: while a link's stream is full, what it has to say is
//! merged into one pending frame, which is bounded by what the link's legs may still produce.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc as std_mpsc;
use std::time::{Duration, Instant};

use ractor::ActorRef;
use rustc_hash::FxHashMap;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::{Args, Launch, Msg};
use crate::actors::link::{Frame, LinkId, Report};
use crate::actors::tree::Counters;
use crate::engine::{Engine, EngineError, Leg, Load, StepOutput};
use crate::ids::{LegId, RankIndex};
use crate::metrics::{Mailboxes, WorkerMetrics};

/// How soon a full stream is tried again while the engine has nothing to do.
const RETRY_STREAM: Duration = Duration::from_millis(1);

/// What the thread is told. Short without a limit of its own: each request in flight has at most
/// one unanswered command for each of its choices, and an abort after it.
pub(super) enum Command {
    Attach { link: LinkId, frames: mpsc::Sender<Frame> },
    Detach { link: LinkId },
    Admit { leg: Leg, link: LinkId },
    Refused { leg: LegId, link: LinkId, error: EngineError },
    Abort(LegId),
    Lost { leg: LegId, link: LinkId },
    Stop,
}

/// The way to the thread.
#[derive(Clone)]
pub struct Commands {
    to: std_mpsc::Sender<Command>,
    mailboxes: Arc<Mailboxes>,
}

impl Commands {
    pub(super) fn send(&self, command: Command) {
        // A thread that is gone has reported why, and holds nothing that could be freed.
        self.mailboxes.ranks.put();
        if self.to.send(command).is_err() {
            self.mailboxes.ranks.taken();
        }
    }
}

/// Whether the thread makes progress, for its `Worker` to watch.
pub struct Progress {
    epoch: Instant,
    /// Milliseconds after `epoch` at which the step under way began, plus one; 0 between steps.
    busy_since: AtomicU64,
}

impl Default for Progress {
    fn default() -> Self {
        Self { epoch: Instant::now(), busy_since: AtomicU64::new(0) }
    }
}

impl Progress {
    fn begin(&self) {
        let since = self.epoch.elapsed().as_millis() as u64 + 1;
        self.busy_since.store(since, Ordering::Relaxed);
    }

    fn end(&self) {
        self.busy_since.store(0, Ordering::Relaxed);
    }

    /// How long the step under way has taken so far.
    pub fn stuck_for(&self) -> Option<Duration> {
        let since = self.busy_since.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.epoch.elapsed().saturating_sub(Duration::from_millis(since)))
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
        let (commands, inbox) = std_mpsc::channel();
        let worker = args.node.config.worker.as_ref();
        let max_legs = worker.map_or(0, |worker| worker.max_running + worker.max_waiting);
        let metrics = args.node.metrics.worker(&args.worker_name, args.index);
        metrics.set_generation(args.generation);
        let failures = metrics.clone();
        let mailboxes = args.node.metrics.mailboxes.clone();
        let shown = mailboxes.clone();
        let (index, launch, progress) = (args.index, args.launch.clone(), args.progress.clone());
        std::thread::Builder::new().name(format!("rank-{name}")).spawn(move || {
            let end = match load(&launch) {
                Ok(engine) => {
                    let description = engine.describe();
                    // A rank that is gone closes our inbox, which ends the loop.
                    let _ = rank.cast(Msg::Loaded(description));
                    let shows = Shows { progress, metrics, counters, mailboxes: shown };
                    Steps::new(engine, inbox, index, rank.clone(), shows, max_legs).run()
                }
                Err(error) => Err(error),
            };
            if let Err(error) = end {
                failures.engine_failures.inc();
                let _ = rank.cast(Msg::EngineLost(error)); // already gone: nobody to tell
            }
        })?;
        Ok(Self { commands: Commands { to: commands, mailboxes }, max_legs })
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

fn load(launch: &Launch) -> Result<Box<dyn Engine>, EngineError> {
    catch_unwind(AssertUnwindSafe(|| launch()))
        .unwrap_or_else(|panic| Err(panicked("load", &*panic)))
}

fn panicked(during: &'static str, panic: &(dyn std::any::Any + Send)) -> EngineError {
    let text = panic
        .downcast_ref::<&str>()
        .map(ToString::to_string)
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without text".to_string());
    EngineError::Lost { during: during.into(), detail: format!("panicked: {text}") }
}

/// One front end's stream and what could not be sent yet.
struct Stream {
    link: LinkId,
    frames: mpsc::Sender<Frame>,
    pending: Frame,
}

/// Where the loop shows what it does.
struct Shows {
    progress: Arc<Progress>,
    metrics: Arc<WorkerMetrics>,
    counters: Counters,
    mailboxes: Arc<Mailboxes>,
}

/// The loop's memory.
struct Steps {
    engine: Box<dyn Engine>,
    inbox: std_mpsc::Receiver<Command>,
    index: RankIndex,
    rank: ActorRef<Msg>,
    shows: Shows,
    /// Legs that all front ends together may have here.
    max_legs: usize,
    streams: Vec<Stream>,
    /// Which stream each live leg's rows go to.
    legs: FxHashMap<LegId, LinkId>,
    step: StepOutput,
    ended: Vec<LegId>,
    load: Load,
}

/// Whether the loop goes on.
enum Flow {
    On,
    Stop,
}

impl Steps {
    fn new(
        engine: Box<dyn Engine>,
        inbox: std_mpsc::Receiver<Command>,
        index: RankIndex,
        rank: ActorRef<Msg>,
        shows: Shows,
        max_legs: usize,
    ) -> Self {
        Self {
            engine,
            inbox,
            index,
            rank,
            shows,
            max_legs,
            streams: Vec::new(),
            legs: FxHashMap::default(),
            step: StepOutput::default(),
            ended: Vec::new(),
            load: Load::default(),
        }
    }

    fn run(&mut self) -> Result<(), EngineError> {
        self.show_load(); // what an earlier generation showed is gone with it
        loop {
            if let Flow::Stop = self.obey() {
                return Ok(());
            }
            if self.engine.has_work() {
                self.step()?;
            }
            self.send();
        }
    }

    /// Takes in all commands that wait; waits for one if there is nothing else to do.
    fn obey(&mut self) -> Flow {
        if !self.engine.has_work() {
            let unsent = self.streams.iter().any(|stream| !stream.pending.is_empty());
            let first = if unsent {
                self.inbox.recv_timeout(RETRY_STREAM).ok()
            } else {
                match self.inbox.recv() {
                    Ok(command) => Some(command),
                    Err(_) => return Flow::Stop,
                }
            };
            if let Some(Flow::Stop) = first.map(|command| self.apply(command)) {
                return Flow::Stop;
            }
        }
        while let Ok(command) = self.inbox.try_recv() {
            if let Flow::Stop = self.apply(command) {
                return Flow::Stop;
            }
        }
        self.send(); // what was accepted or refused must not wait for a long step
        Flow::On
    }

    fn apply(&mut self, command: Command) -> Flow {
        self.shows.mailboxes.ranks.taken();
        match command {
            Command::Attach { link, frames } => {
                self.streams.push(Stream { link, frames, pending: Frame::default() });
                self.grant();
            }
            Command::Detach { link } => self.detach(link),
            Command::Admit { leg, link } => self.admit(leg, link),
            Command::Refused { leg, link, error } => {
                self.say(link, |frame| frame.failed.push((leg, error)));
            }
            Command::Abort(leg) => {
                if self.legs.remove(&leg).is_some() {
                    self.engine.abort(leg);
                    self.show_load();
                    self.grant(); // who places legs should know that there is room
                }
            }
            Command::Lost { leg, link } => self.say(link, |frame| frame.lost.push(leg)),
            Command::Stop => return Flow::Stop,
        }
        Flow::On
    }

    fn detach(&mut self, link: LinkId) {
        self.streams.retain(|stream| stream.link != link);
        self.grant();
    }

    /// Shares what the rank can hold among the links, and tells each of them.
    fn grant(&mut self) {
        let report = self.report();
        for stream in &mut self.streams {
            stream.pending.report = Some(report);
        }
    }

    fn report(&self) -> Report {
        let share = self.max_legs / self.streams.len().max(1);
        Report { rank: self.index, load: self.load, credit: share.max(1) as u32 }
    }

    fn admit(&mut self, leg: Leg, link: LinkId) {
        let id = leg.id;
        match self.engine.admit(leg) {
            Ok(()) => {
                self.legs.insert(id, link);
                self.say(link, |frame| frame.accepted.push(id));
            }
            Err(error) => {
                self.ended.push(id);
                self.say(link, |frame| frame.failed.push((id, error)));
            }
        }
    }

    fn say(&mut self, link: LinkId, add: impl FnOnce(&mut Frame)) {
        if let Some(stream) = self.streams.iter_mut().find(|stream| stream.link == link) {
            add(&mut stream.pending);
        }
    }

    fn step(&mut self) -> Result<(), EngineError> {
        let span = tracing::debug_span!("step", rank = self.index.0, legs = self.legs.len());
        let _entered = span.enter();
        let began = Instant::now();
        self.shows.progress.begin();
        let (engine, out) = (&mut self.engine, &mut self.step);
        let done = catch_unwind(AssertUnwindSafe(|| engine.step(out)));
        self.shows.progress.end();
        done.unwrap_or_else(|panic| Err(panicked("step", &*panic)))?;
        self.shows.metrics.steps.inc();
        self.shows.metrics.step.observe(began.elapsed());
        self.show_load();
        self.shows.counters.add(1, 1);
        self.shows.counters.add(2, self.step.tokens.len() as u64);
        self.deal();
        Ok(())
    }

    fn show_load(&mut self) {
        let load = self.engine.load();
        self.shows.metrics.set_load(&load, &self.load);
        self.load = load;
    }

    /// Sorts the step's rows into the streams of their front ends.
    fn deal(&mut self) {
        for row in self.step.tokens.iter().filter(|row| row.finish.is_some()) {
            self.ended.push(row.leg);
        }
        self.ended.extend(self.step.failed.iter().map(|(leg, _)| *leg));
        if let [only] = self.streams.as_mut_slice() {
            only.pending.append_step(&mut self.step);
        } else {
            self.deal_to_many();
        }
        for leg in &self.ended {
            self.legs.remove(leg);
        }
        self.step.clear();
    }

    fn deal_to_many(&mut self) {
        for started in std::mem::take(&mut self.step.started) {
            self.say_of(started.leg, |frame| frame.started.push(started));
        }
        for token in std::mem::take(&mut self.step.tokens) {
            self.say_of(token.leg, |frame| frame.tokens.push(token));
        }
        for (leg, error) in std::mem::take(&mut self.step.failed) {
            self.say_of(leg, |frame| frame.failed.push((leg, error)));
        }
    }

    fn say_of(&mut self, leg: LegId, add: impl FnOnce(&mut Frame)) {
        if let Some(link) = self.legs.get(&leg) {
            self.say(*link, add);
        }
    }

    /// Sends what is pending to every stream that has room, and tells the rank which legs ended.
    fn send(&mut self) {
        let mut closed = Vec::new();
        let report = self.report();
        for stream in &mut self.streams {
            if stream.frames.is_closed() {
                closed.push(stream.link);
                continue;
            }
            if stream.pending.is_empty() {
                continue;
            }
            match stream.frames.try_reserve() {
                Ok(place) => {
                    stream.pending.report = Some(report);
                    place.send(std::mem::take(&mut stream.pending));
                }
                Err(TrySendError::Full(())) => {} // merged into the next frame
                Err(TrySendError::Closed(())) => closed.push(stream.link),
            }
        }
        for link in closed {
            self.detach(link);
            let _ = self.rank.cast(Msg::LinkClosed(link)); // a rank that is gone has ended its legs
        }
        if !self.ended.is_empty() {
            let _ = self.rank.cast(Msg::Ended(std::mem::take(&mut self.ended)));
        }
    }
}
