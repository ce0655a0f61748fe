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

use ractor::ActorRef;
use rustc_hash::FxHashMap;

use super::cluster::stream::ToWorker;
use super::inbox::{Inbox, LegEvent, Lost};
use super::rank;
use super::worker::WorkerUp;
use crate::engine::{EngineError, Leg, Started, TokenOut};
use crate::ids::{Generation, LegId, RankIndex, WorkerId};

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
    inbox: Arc<Inbox>,
    rank: usize,
}

/// `None` once the link has ended.
type Table = Option<FxHashMap<LegId, Placed>>;

/// How legs get to the worker's ranks.
enum Road {
    Local { link: LinkId, ranks: Vec<ActorRef<rank::Msg>> },
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
    /// Its ranks.
    pub ranks: Vec<RankLink>,
    road: Road,
    closing: AtomicBool,
    table: Mutex<Table>,
}

impl Link {
    fn new(up: &WorkerUp, road: Road) -> Self {
        let room = up.description.max_running + up.description.max_waiting;
        let credit = u32::try_from(room).unwrap_or(u32::MAX);
        Self {
            worker: up.id.clone(),
            generation: up.generation,
            model: up.model.clone(),
            ranks: up.ranks.iter().map(|index| RankLink::new(*index, credit)).collect(),
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
    pub fn place(&self, rank: usize, leg: Leg, inbox: Arc<Inbox>) -> Result<(), Lost> {
        let id = leg.id;
        self.table().as_mut().ok_or(Lost::Worker)?.insert(id, Placed { inbox, rank });
        self.ranks[rank].placed.fetch_add(1, Ordering::Relaxed);
        let sent = match &self.road {
            Road::Local { link, ranks } => {
                ranks[rank].cast(rank::Msg::Admit { leg, link: *link }).is_ok()
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
            Road::Local { ranks, .. } => drop(ranks[rank].cast(rank::Msg::Cancel { leg })),
            Road::Remote(worker) => {
                if !worker.cancel(self.ranks[rank].index, leg) {
                    self.end(); // what cannot be told to end must end with the stream
                }
            }
        }
    }

    fn forget(&self, leg: LegId) -> Option<usize> {
        let placed = self.table().as_mut()?.remove(&leg)?;
        self.ranks[placed.rank].placed.fetch_sub(1, Ordering::Relaxed);
        Some(placed.rank)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Deals a frame out to the inboxes; `false` if the link has ended. Rows of legs that were
    /// cancelled meanwhile are dropped.
    fn deal(&self, frame: Frame) -> bool {
        let mut guard = self.table();
        let Some(table) = guard.as_mut() else { return false };
        if let Some(report) = frame.report
            && let Some(rank) = self.ranks.iter().find(|rank| rank.index == report.rank)
        {
            rank.hear(report);
        }
        for leg in frame.accepted {
            if let Some(placed) = table.get(&leg) {
                placed.inbox.put(leg, LegEvent::Accepted);
            }
        }
        for Started { leg, cached_tokens } in frame.started {
            if let Some(placed) = table.get(&leg) {
                placed.inbox.put(leg, LegEvent::Started { cached_tokens });
            }
        }
        for TokenOut { leg, token, logprobs, finish } in frame.tokens {
            let event = LegEvent::Token { token, logprobs, finish };
            if finish.is_some() {
                self.last_event(table, leg, event);
            } else if let Some(placed) = table.get(&leg) {
                placed.inbox.put(leg, event);
            }
        }
        for (leg, error) in frame.failed {
            if let (EngineError::QueueFull { .. }, Some(placed)) = (&error, table.get(&leg)) {
                self.ranks[placed.rank].exhaust();
            }
            self.last_event(table, leg, LegEvent::Failed(error));
        }
        for leg in frame.lost {
            self.last_event(table, leg, LegEvent::Lost(Lost::Sequence));
        }
        true
    }

    fn last_event(&self, table: &mut FxHashMap<LegId, Placed>, leg: LegId, event: LegEvent) {
        if let Some(placed) = table.remove(&leg) {
            self.ranks[placed.rank].placed.fetch_sub(1, Ordering::Relaxed);
            placed.inbox.put(leg, event);
        }
    }

    /// Ends the link: every leg on it hears of its loss, once.
    pub fn end(&self) {
        self.close();
        let Some(table) = self.table().take() else { return };
        for (leg, placed) in table {
            placed.inbox.put(leg, LegEvent::Lost(Lost::Worker));
        }
    }
}
