//! The loop of a rank's thread: what it is told, a step of the engine, one frame to each link.
//!
//! It never waits for a front end: while a link's stream is full, what it has to say is merged into one
//! pending frame, which is bounded by what the link's legs may still produce.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc as std_mpsc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use ractor::ActorRef;
use rustc_hash::FxHashMap;
use tokio::sync::mpsc::error::TrySendError;

use super::kv::KvOut;
use super::stream::{Stream, tell};
use super::thread::{Command, Tells, panicked};
use super::{Msg, Progress};
use crate::actors::link::{Frame, LinkId, Report};
use crate::actors::transfer::Leases;
use crate::actors::tree::Counters;
use crate::engine::{Engine, EngineError, Leg, Load, PrefixCache, StepOutput};
use crate::ids::{LegId, RankIndex};
use crate::metrics::{Queued, TransferMetrics, WorkerMetrics};

/// How soon a full stream is tried again while the engine has nothing to do: at first, and at last.
/// A worker may have a thousand ranks: all of them would keep the stream's writer from the CPU.
const RETRY_STREAM: [Duration; 2] = [Duration::from_millis(1), Duration::from_millis(64)];

/// Where the loop shows what it does.
pub(super) struct Shows {
    pub(super) progress: Arc<Progress>,
    pub(super) metrics: Arc<WorkerMetrics>,
    pub(super) counters: Counters,
    pub(super) transfers: Arc<TransferMetrics>,
}

/// The loop's memory.
pub(super) struct Steps {
    pub(super) engine: Box<dyn Engine>,
    inbox: std_mpsc::Receiver<(Command, Queued)>,
    index: RankIndex,
    life: u32,
    pub(super) rank: ActorRef<Msg>,
    pub(super) shows: Shows,
    /// Most legs in the engine, running or waiting.
    max_legs: usize,
    tells: Tells,
    streams: Vec<Stream>,
    /// Which stream each live leg's rows go to.
    legs: FxHashMap<LegId, LinkId>,
    pub(super) step: StepOutput,
    pub(super) ended: Vec<LegId>,
    load: Load,
    /// What others may fetch, on a rank with a role for that.
    pub(super) leases: Option<Leases>,
    /// The next wait for a full stream.
    retry: Duration,
}

/// Blocks that one frame lends, and one row more: some bytes each.
const LENT: usize = 1 << 15;

/// Whether the loop goes on.
enum Flow {
    On,
    Stop,
}

impl Steps {
    pub(super) fn new(
        engine: Box<dyn Engine>,
        inbox: std_mpsc::Receiver<(Command, Queued)>,
        (index, life, rank): (RankIndex, u32, ActorRef<Msg>),
        shows: Shows,
        tells: Tells,
        leases: Option<Leases>,
    ) -> Self {
        let description = tells.described(&*engine);
        let cache = description.prefix_cache == PrefixCache::Told;
        Self {
            max_legs: description.max_running + description.max_waiting,
            tells: Tells { cache, ..tells },
            engine,
            inbox,
            index,
            life,
            rank,
            shows,
            streams: Vec::new(),
            legs: FxHashMap::default(),
            step: StepOutput::default(),
            ended: Vec::new(),
            load: Load::default(),
            leases,
            retry: RETRY_STREAM[0],
        }
    }

    pub(super) fn run(&mut self) -> Result<(), EngineError> {
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
            let unsent = self.streams.iter().any(Stream::has_unsent);
            let first = match self.patience(unsent) {
                Some(wait) => self.inbox.recv_timeout(wait),
                None => self.inbox.recv().map_err(RecvTimeoutError::from),
            };
            let flow = match first {
                Ok(command) => self.apply(command),
                Err(RecvTimeoutError::Timeout) => {
                    if unsent {
                        self.retry = (2 * self.retry).min(RETRY_STREAM[1]);
                    }
                    Flow::On
                }
                Err(RecvTimeoutError::Disconnected) => Flow::Stop,
            };
            if let Flow::Stop = flow {
                return Flow::Stop;
            }
        }
        while let Ok(command) = self.inbox.try_recv() {
            if let Flow::Stop = self.apply(command) {
                return Flow::Stop;
            }
        }
        self.end_leases();
        self.send(); // what was accepted or refused must not wait for a long step
        Flow::On
    }

    /// How long it may wait for a command while the engine has nothing to do; `None`: for ever.
    fn patience(&self, unsent: bool) -> Option<Duration> {
        let lease = self.leases.as_ref().and_then(Leases::next_end);
        let lease = lease.map(|end| end.saturating_duration_since(Instant::now()));
        let retry = unsent.then_some(self.retry);
        lease.into_iter().chain(retry).min()
    }

    fn apply(&mut self, (command, _): (Command, Queued)) -> Flow {
        match command {
            Command::Attach { link, frames } => {
                let kv = self.tells.cache.then(|| KvOut::new(self.tells.buffer));
                self.streams.push(Stream::new(link, frames, kv));
            }
            Command::Detach { link } => self.detach(link),
            Command::Snapshot { link } => {
                let stream = self.stream(link);
                if let Some(kv) = stream.and_then(|stream| stream.kv.as_mut()) {
                    kv.restart();
                    self.shows.metrics.kv_snapshots.inc();
                }
            }
            Command::Admit { leg, link, state } => self.admit(leg, link, state),
            Command::Refused { leg, link, error } => {
                self.say(link, |frame| frame.failed.push((leg, error)));
            }
            Command::Abort(leg) => {
                if self.forget(leg) {
                    self.abort(leg);
                    self.show_load();
                }
            }
            Command::NotGiven(leg) => self.engine.not_given(leg),
            Command::Pulled { leg, have, end } => {
                self.engine.pulled(leg, have);
                self.say_of(leg, |frame| frame.fetched.push((leg, end)));
                self.show_load(); // of a leg that has left, its blocks are free now: no step will say so
            }
            Command::Lost { leg, link } => self.say(link, |frame| frame.lost.push(leg)),
            Command::Ready => {} // its step follows
            Command::Stop => return Flow::Stop,
        }
        Flow::On
    }

    fn detach(&mut self, link: LinkId) {
        self.streams.retain(|stream| stream.link != link);
    }

    fn stream(&mut self, link: LinkId) -> Option<&mut Stream> {
        self.streams.iter_mut().find(|stream| stream.link == link)
    }

    /// The leg has ended; `false` if it had before.
    pub(super) fn forget(&mut self, leg: LegId) -> bool {
        let Some(link) = self.legs.remove(&leg) else { return false };
        if let Some(stream) = self.stream(link) {
            stream.legs -= 1;
        }
        true
    }

    fn admit(&mut self, leg: Leg, link: LinkId, state: Option<Arc<[u8]>>) {
        let (id, later) = (leg.id, self.engine.accepts_later());
        let admitted = match state {
            Some(state) => self.engine.admit_handed(leg, state),
            None => self.engine.admit(leg),
        };
        match admitted {
            Ok(()) => {
                // The same leg may be admitted twice, and is one.
                let is_new = self.legs.insert(id, link).is_none();
                if let Some(stream) = self.stream(link) {
                    stream.legs += usize::from(is_new);
                    if !later {
                        stream.pending.accepted.push(id);
                    }
                }
            }
            Err(error) => {
                self.ended.push(id);
                self.say(link, |frame| frame.failed.push((id, error)));
            }
        }
    }

    fn say(&mut self, link: LinkId, add: impl FnOnce(&mut Frame)) {
        if let Some(stream) = self.stream(link) {
            add(&mut stream.pending);
        }
    }

    fn step(&mut self) -> Result<(), EngineError> {
        let span = tracing::debug_span!("step", rank = self.index.0, legs = self.legs.len());
        let _entered = span.enter();
        let began = Instant::now();
        self.shows.progress.turn();
        let (engine, out) = (&mut self.engine, &mut self.step);
        let done = catch_unwind(AssertUnwindSafe(|| engine.step(out)));
        self.shows.progress.turn();
        done.unwrap_or_else(|panic| Err(panicked("step", &*panic)))?;
        self.shows.metrics.steps.inc();
        self.shows.metrics.step.observe(began.elapsed());
        self.shows.metrics.step_tokens.observe(self.step.computed_tokens as u64);
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
        for leg in std::mem::take(&mut self.step.accepted) {
            self.say_of(leg, |frame| frame.accepted.push(leg));
        }
        self.deal_parts();
        for row in self.step.tokens.iter().filter(|row| row.finish.is_some()) {
            self.ended.push(row.leg);
        }
        self.ended.extend(self.step.failed.iter().map(|(leg, _)| *leg));
        for kv in self.streams.iter_mut().filter_map(|stream| stream.kv.as_mut()) {
            kv.add(&self.step.kv_events);
        }
        if let [only] = self.streams.as_mut_slice() {
            only.pending.append_step(&mut self.step);
        } else {
            self.deal_to_many();
        }
        let ended = std::mem::take(&mut self.ended);
        for leg in &ended {
            self.forget(*leg);
        }
        self.ended = ended;
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

    pub(super) fn say_of(&mut self, leg: LegId, add: impl FnOnce(&mut Frame)) {
        if let Some(link) = self.legs.get(&leg) {
            self.say(*link, add);
        }
    }

    /// Sends what is pending to every stream that has room, and tells the rank which legs ended.
    fn send(&mut self) {
        if !self.ended.is_empty() {
            // Before the frames: who hears of an end may place the next leg at once.
            let _ = self.rank.cast(Msg::Ended(std::mem::take(&mut self.ended)));
        }
        let mut closed = Vec::new();
        let load = self.engine.load();
        let free = self.max_legs.saturating_sub(self.legs.len());
        let report = Report { rank: self.index, life: self.life, load, credit: 0, kv_number: 0 };
        let links = self.streams.len();
        for stream in &mut self.streams {
            if stream.frames.is_closed() {
                closed.push(stream.link);
                continue;
            }
            if !stream.report(report, free, links, self.tells.interval) {
                continue;
            }
            match stream.frames.try_reserve() {
                Ok(place) => {
                    let cached = |blocks: &mut Vec<_>| self.engine.cached_blocks(blocks);
                    if let Some(kv) = &mut stream.kv {
                        tell(kv, &mut stream.pending, self.index, cached);
                    }
                    let later = stream.pending.split_lent(LENT);
                    let next = Frame { lent: later, ..Frame::default() };
                    place.send(std::mem::replace(&mut stream.pending, next));
                    (self.retry, stream.is_full) = (RETRY_STREAM[0], false);
                }
                // Merged into the next frame.
                Err(TrySendError::Full(())) if stream.is_full => {}
                Err(TrySendError::Full(())) => {
                    stream.is_full = true;
                    self.shows.metrics.stream_full.inc();
                }
                Err(TrySendError::Closed(())) => closed.push(stream.link),
            }
        }
        for link in closed {
            self.detach(link);
            let _ = self.rank.cast(Msg::LinkClosed(link)); // a rank that is gone has ended its legs
        }
    }
}
