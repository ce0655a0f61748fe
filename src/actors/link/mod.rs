//! `WorkerLink`: the front end's link to one worker, here or remote: its token stream and its loss.
//!
//! A request places legs through the [`Link`]; the worker's frames come back on one bounded stream,
//! one frame a step, and are dealt out to the inboxes. However the link ends (the stream ends, the
//! actor is killed), every leg that is still on it hears [`LegEvent::Lost`] exactly once, and the
//! worker, whose side of the stream closes, ends the legs on its side.
//!
//! To a worker of this process the stream is a channel; to one elsewhere it is a connection of its
//! own (`cluster::stream`). Everything else is the same code.

mod actor;
mod frame;

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use ractor::ActorRef;
use rustc_hash::FxHashMap;

use super::cluster::stream::ToWorker;
use super::inbox::{Inbox, LegEvent, Lost};
use super::rank;
use super::worker::WorkerUp;
use crate::engine::{EngineError, Leg, Started, TokenOut};
use crate::ids::{Generation, LegId, RankIndex, WorkerId};
use crate::metrics::Depth;

pub use actor::{Args, Msg, State, WorkerLink};
pub use frame::{Frame, LinkId, Report};

/// A rank as a router sees it.
pub struct RankLink {
    /// Its index in the worker.
    pub index: RankIndex,
    /// Legs placed by this front end that have not ended.
    placed: AtomicU32,
    /// Legs the rank last reported as running and waiting, over all front ends.
    reported: AtomicU32,
    /// Most legs that this front end may have there.
    credit: AtomicU32,
}

impl RankLink {
    fn new(index: RankIndex, credit: u32) -> Self {
        let (placed, reported) = (AtomicU32::new(0), AtomicU32::new(0));
        Self { index, placed, reported, credit: AtomicU32::new(credit) }
    }

    /// Legs on this rank, as far as this front end knows: its own, or the last report if larger.
    pub fn legs(&self) -> u32 {
        self.placed().max(self.reported.load(Ordering::Relaxed))
    }

    /// Legs of this front end on this rank.
    pub fn placed(&self) -> u32 {
        self.placed.load(Ordering::Relaxed)
    }

    /// Most legs that this front end may have there.
    pub fn credit(&self) -> u32 {
        self.credit.load(Ordering::Relaxed)
    }

    fn hear(&self, report: Report) {
        self.reported.store(report.load.running + report.load.waiting, Ordering::Relaxed);
        self.credit.store(report.credit, Ordering::Relaxed);
    }

    /// No more until the rank reports again: it has just refused a leg.
    fn exhaust(&self) {
        self.credit.store(0, Ordering::Relaxed);
    }
}

/// Where a leg's events go, and which rank it is on.
struct Placed {
    inbox: Arc<dyn Inbox>,
    rank: usize,
}

/// A step's events on their way to the inboxes; kept for its memory.
#[derive(Default)]
struct Burst {
    events: Vec<(Arc<dyn Inbox>, LegId, LegEvent)>,
    touched: Vec<Arc<dyn Inbox>>,
}

impl Burst {
    fn deal(&mut self) {
        for (inbox, leg, event) in self.events.drain(..) {
            if inbox.put(leg, event) {
                self.touched.push(inbox);
            }
        }
        let now = Instant::now();
        self.touched.drain(..).for_each(|inbox| inbox.flush(now));
    }
}

/// `None` once the link has ended.
type Table = Option<FxHashMap<LegId, Placed>>;

/// How legs get to the worker's ranks.
enum Road {
    Local { link: LinkId, ranks: Vec<ActorRef<rank::Msg>>, depth: Arc<Depth> },
    Remote(ToWorker),
}

/// The way to one worker; shared by the actor, the router's view and the requests.
pub struct Link {
    /// The worker.
    pub worker: WorkerId,
    /// The worker's generation.
    pub generation: Generation,
    /// The model it serves.
    pub model: Arc<str>,
    /// Workers with the same one compute the same tokens.
    pub fingerprint: u64,
    /// Its ranks.
    pub ranks: Vec<RankLink>,
    actor: ActorRef<Msg>,
    road: Road,
    closing: AtomicBool,
    table: Mutex<Table>,
}

impl Link {
    fn new(up: &WorkerUp, actor: ActorRef<Msg>, road: Road) -> Self {
        let room = up.description.max_running + up.description.max_waiting;
        let credit = u32::try_from(room).unwrap_or(u32::MAX);
        Self {
            worker: up.id.clone(),
            generation: up.generation,
            model: up.model.clone(),
            fingerprint: up.description.fingerprint,
            ranks: up.ranks.iter().map(|index| RankLink::new(*index, credit)).collect(),
            actor,
            road,
            closing: AtomicBool::new(false),
            table: Mutex::new(Some(FxHashMap::default())),
        }
    }

    /// A rank of it, as people read it: `node/worker/rank`.
    pub fn rank_name(&self, rank: usize) -> String {
        format!("{}/{}", self.worker, self.ranks[rank].index.0)
    }

    /// Whether new legs may be placed: it has not ended, and its worker does not drain.
    pub fn takes_work(&self) -> bool {
        !self.closing.load(Ordering::Relaxed)
    }

    /// No new legs from now on; those that run go on.
    pub fn close(&self) {
        self.closing.store(true, Ordering::Relaxed);
    }

    /// Sends a leg to a rank; its events go to `inbox` from now on.
    ///
    /// # Errors
    /// [`Lost::Worker`]: the link has ended; the inbox will not hear of this leg.
    pub fn place(&self, rank: usize, leg: Leg, inbox: Arc<dyn Inbox>) -> Result<(), Lost> {
        let id = leg.id;
        self.table().as_mut().ok_or(Lost::Worker)?.insert(id, Placed { inbox, rank });
        self.ranks[rank].placed.fetch_add(1, Ordering::Relaxed);
        let sent = match &self.road {
            Road::Local { link, ranks, depth } => {
                ranks[rank].cast(rank::Msg::Admit { leg, link: *link, queued: depth.put() }).is_ok()
            }
            Road::Remote(worker) => worker.admit(self.ranks[rank].index, leg),
        };
        if !sent {
            self.forget(id);
            return Err(Lost::Worker);
        }
        Ok(())
    }

    /// Ends a leg: no more events of it, and its rank frees what it holds.
    pub fn cancel(&self, leg: LegId) {
        let Some(rank) = self.forget(leg) else { return };
        match &self.road {
            // A rank that is gone has nothing to free.
            Road::Local { ranks, depth, .. } => {
                drop(ranks[rank].cast(rank::Msg::Cancel { leg, queued: depth.put() }));
            }
            Road::Remote(worker) => {
                if !worker.cancel(self.ranks[rank].index, leg) {
                    // What cannot be told to end must end with the stream. If the actor has ended,
                    // so has the stream.
                    let _ = self.actor.cast(Msg::Ended("the worker does not read".to_string()));
                }
            }
        }
    }

    fn forget(&self, leg: LegId) -> Option<usize> {
        self.ended(self.table().as_mut()?, leg).map(|placed| placed.rank)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Deals a frame out to the inboxes; `false` if the link has ended. Rows of legs that were
    /// cancelled meanwhile are dropped.
    fn deal(&self, frame: Frame, burst: &mut Burst) -> bool {
        if let Some(report) = frame.report
            && let Some(rank) = self.ranks.iter().find(|rank| rank.index == report.rank)
        {
            rank.hear(report);
        }
        // Inboxes are not called under this lock: they take their own, under which requests call us.
        let live = self.table().as_mut().map(|table| self.sort(frame, table, burst)).is_some();
        burst.deal();
        live
    }

    /// Finds the inbox of each row; a leg that has ended leaves the table.
    fn sort(&self, frame: Frame, table: &mut FxHashMap<LegId, Placed>, burst: &mut Burst) {
        let events = &mut burst.events;
        let mut put = |placed: Option<&Placed>, leg, event| {
            events.extend(placed.map(|placed| (placed.inbox.clone(), leg, event)));
        };
        for leg in frame.accepted {
            put(table.get(&leg), leg, LegEvent::Accepted);
        }
        for Started { leg, cached_tokens } in frame.started {
            put(table.get(&leg), leg, LegEvent::Started { cached_tokens });
        }
        for TokenOut { leg, token, logprobs, finish } in frame.tokens {
            let event = LegEvent::Token { token, logprobs, finish };
            match finish {
                None => put(table.get(&leg), leg, event),
                Some(_) => put(self.ended(table, leg).as_ref(), leg, event),
            }
        }
        for (leg, error) in frame.failed {
            let placed = self.ended(table, leg);
            if let (EngineError::QueueFull { .. }, Some(placed)) = (&error, &placed) {
                self.ranks[placed.rank].exhaust();
            }
            put(placed.as_ref(), leg, LegEvent::Failed(error));
        }
        for leg in frame.lost {
            put(self.ended(table, leg).as_ref(), leg, LegEvent::Lost(Lost::Sequence));
        }
    }

    fn ended(&self, table: &mut FxHashMap<LegId, Placed>, leg: LegId) -> Option<Placed> {
        let placed = table.remove(&leg)?;
        self.ranks[placed.rank].placed.fetch_sub(1, Ordering::Relaxed);
        Some(placed)
    }

    /// Ends the link: every leg on it hears of its loss, once.
    pub fn end(&self) {
        self.close();
        let Some(table) = self.table().take() else { return };
        let lost =
            |(leg, placed): (LegId, Placed)| (placed.inbox, leg, LegEvent::Lost(Lost::Worker));
        Burst { events: table.into_iter().map(lost).collect(), touched: Vec::new() }.deal();
    }
}
