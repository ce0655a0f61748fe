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
mod mute;
mod rank_link;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use ractor::ActorRef;
use rustc_hash::FxHashMap;

use super::cluster::stream::ToWorker;
use super::inbox::{Inbox, LegEvent, Lost};
use super::rank::{self, RankRef};
use super::router::{Calls, ModelRouter, Seat};
use super::worker::WorkerUp;
use crate::engine::{EngineError, Leg, PrefixCache, Started, TokenOut};
use crate::ids::{Generation, LegId, RankIndex, WorkerId};
use crate::kvxfer::{KvBlocks, KvOffer};
use crate::metrics::Depth;
use crate::router::{KvNews, Role, Verdict};

pub use actor::{Args, Msg, State, WorkerLink};
pub use frame::{FetchEnd, Frame, Lent, LinkId, Report};
pub use rank_link::RankLink;

/// Where a leg's events go, and which rank it is on.
struct Placed {
    inbox: Arc<dyn Inbox>,
    rank: usize,
    /// The tokens that it will have to compute, until it starts.
    pending: Option<u32>,
    /// Whether it has at least one full block.
    fills: bool,
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
    Local { link: LinkId, ranks: Vec<RankRef>, depth: Arc<Depth> },
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
    /// Tokens in one of its KV blocks.
    pub block_tokens: usize,
    /// What it tells of its prefix cache.
    pub prefix_cache: PrefixCache,
    /// Whether its engines move prompts' KV by themselves.
    pub hands_over: bool,
    /// What its ranks do.
    pub role: Role,
    router: Arc<ModelRouter>,
    /// Requests on their way to its room.
    calls: Calls,
    actor: ActorRef<Msg>,
    road: Road,
    closing: AtomicBool,
    table: Mutex<Table>,
}

impl Link {
    fn new(up: &WorkerUp, router: Arc<ModelRouter>, actor: ActorRef<Msg>, road: Road) -> Self {
        let room = up.description.max_running + up.description.max_waiting;
        let credit = u32::try_from(room).unwrap_or(u32::MAX);
        let rank = |index: &RankIndex| RankLink::new(*index, credit, router.join(&up.description));
        Self {
            worker: up.id.clone(),
            generation: up.generation,
            model: up.model.clone(),
            fingerprint: up.description.fingerprint,
            ranks: up.ranks.iter().map(rank).collect(),
            block_tokens: up.description.block_tokens,
            prefix_cache: up.description.prefix_cache,
            hands_over: up.description.hands_over,
            role: up.role,
            router,
            calls: Calls::default(),
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

    /// Whether legs that decode may be placed.
    pub fn decodes(&self) -> bool {
        self.takes_work() && self.role != Role::Prefill
    }

    /// No new legs from now on; those that run go on.
    pub fn close(&self) {
        self.closing.store(true, Ordering::Relaxed);
    }

    /// Sends a leg, of which the rank should have `cached` tokens and can fetch what is offered, to a
    /// rank; its events go to `inbox` from now on.
    ///
    /// # Errors
    /// [`Lost::Worker`]: the link has ended; the inbox will not hear of this leg.
    pub fn place(
        &self,
        rank: usize,
        (leg, offer): (Leg, Option<KvOffer>),
        cached: usize,
        inbox: Arc<dyn Inbox>,
    ) -> Result<(), Lost> {
        let (id, offer) = (leg.id, offer.map(Box::new));
        let own = u32::try_from(leg.tokens.len().saturating_sub(cached)).unwrap_or(u32::MAX);
        let fills = leg.tokens.len() >= self.block_tokens;
        let placed = Placed { inbox, rank, pending: Some(own), fills };
        {
            // Under the lock: whoever takes it out again finds it counted.
            let mut table = self.table();
            table.as_mut().ok_or(Lost::Worker)?.insert(id, placed);
            self.ranks[rank].placed.fetch_add(1, Ordering::Relaxed);
            self.ranks[rank].pending.fetch_add(1, Ordering::Relaxed);
            self.ranks[rank].pending_tokens.fetch_add(own.into(), Ordering::Relaxed);
        }
        let sent = match &self.road {
            Road::Local { link, ranks, depth } => {
                let message = rank::Msg::Admit { leg, offer, link: *link, queued: depth.put() };
                ranks[rank].admit(*link, message)
            }
            Road::Remote(worker) => worker.admit(self.ranks[rank].index, leg, offer),
        };
        if !sent {
            self.forget(id);
            return Err(Lost::Worker);
        }
        Ok(())
    }

    /// Tells a leg that more can be fetched than it was offered; `None`: nothing more will come.
    pub fn more(&self, rank: usize, leg: LegId, more: Option<KvBlocks>) {
        let heard = match &self.road {
            Road::Local { ranks, depth, .. } => {
                ranks[rank].cast(rank::Msg::More { leg, more, queued: depth.put() });
                true // a rank that is gone has lost the leg
            }
            Road::Remote(worker) => worker.more(self.ranks[rank].index, leg, more),
        };
        if !heard {
            // The leg would wait for ever.
            let _ = self.actor.cast(Msg::Ended("the worker does not read".to_string()));
        }
    }

    /// Ends a leg: no more events of it, and its rank frees what it holds.
    pub fn cancel(&self, leg: LegId) {
        if let Some(rank) = self.forget(leg) {
            self.end_there(rank, leg);
        }
    }

    fn end_there(&self, rank: usize, leg: LegId) {
        match &self.road {
            // A rank that is gone has nothing to free.
            Road::Local { ranks, depth, .. } => {
                ranks[rank].cast(rank::Msg::Cancel { leg, queued: depth.put() });
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

    /// A life of a rank is gone, though its worker is not: every leg on it hears of its loss.
    fn rank_lost(&self, index: RankIndex, life: u32) {
        let Some(at) = self.ranks.iter().position(|rank| rank.index == index) else { return };
        let rank = &self.ranks[at];
        rank.end(life);
        self.router.forget(rank.seat);
        let mut burst = Burst::default();
        if let Some(table) = self.table().as_mut() {
            let on_it = table.iter().filter(|(_, placed)| placed.rank == at).map(|(leg, _)| *leg);
            for leg in on_it.collect::<Vec<_>>() {
                let inbox = self.ended(table, leg).map(|placed| placed.inbox);
                burst.events.extend(inbox.map(|i| (i, leg, LegEvent::Lost(Lost::Rank))));
            }
        }
        for (_, leg, _) in &burst.events {
            self.end_there(at, *leg); // it may have come to the next life
        }
        burst.deal();
    }

    /// Deals a frame out to the inboxes; `false` if the link has ended. Rows of legs that were
    /// cancelled meanwhile are dropped.
    fn deal(&self, mut frame: Frame, burst: &mut Burst) -> bool {
        if let Some((rank, life)) = frame.rank_lost {
            self.rank_lost(rank, life);
        }
        let of = |index| self.ranks.iter().position(|rank| rank.index == index);
        let reporter = frame.report.and_then(|report| Some((of(report.rank)?, report)));
        let has_ended = reporter.is_some_and(|(at, said)| self.ranks[at].has_ended(said.life));
        // Of a life that has ended; its legs are not in the table any more either.
        let news = frame.kv.take().filter(|_| !has_ended);
        if let Some((at, news)) = news.and_then(|news| Some((of(news.rank)?, news))) {
            self.hear(at, &news);
        }
        if let (Some((at, report)), false) = (reporter, has_ended) {
            self.ranks[at].hear(report);
            self.check(at, report.kv_number);
        }
        // Inboxes are not called under this lock: they take their own, under which requests call us.
        let live = self.table().as_mut().map(|table| self.sort(frame, table, burst)).is_some();
        burst.deal();
        self.call_waiting();
        live
    }

    /// Tells requests that wait for room of the room that there is.
    pub fn call_waiting(&self) {
        let line = &self.router.line;
        if line.has_waiting() && self.takes_work() {
            line.call(self.room(), &self.calls, |seat| self.has_room(seat));
        }
    }

    /// Legs that this front end may still place here.
    fn room(&self) -> usize {
        self.ranks.iter().filter(|rank| rank.is_up()).map(RankLink::room).sum()
    }

    /// Whether the rank in this seat is one of this link, and may be given one more leg.
    fn has_room(&self, seat: Seat) -> bool {
        let rank = self.ranks.iter().find(|rank| rank.seat == seat);
        rank.is_some_and(|rank| rank.is_up() && rank.room() > 0)
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
        for Started { leg, cached_tokens, fetches } in frame.started {
            if let Some(placed) = table.get_mut(&leg) {
                self.started(placed);
                put(Some(placed), leg, LegEvent::Started { cached_tokens, fetches });
            }
        }
        for Lent { leg, source, blocks } in frame.lent {
            if let (Some(placed), Some(_)) = (table.get(&leg), &source) {
                self.computed(placed);
            }
            put(table.get(&leg), leg, LegEvent::Lent { source, blocks });
        }
        for (leg, end) in frame.fetched {
            put(table.get(&leg), leg, LegEvent::Fetched(end));
        }
        for TokenOut { leg, token, logprobs, finish } in frame.tokens {
            let event = LegEvent::Token { token, logprobs, finish };
            match finish {
                None => put(table.get(&leg), leg, event),
                Some(_) => {
                    let placed = self.ended(table, leg);
                    placed.iter().for_each(|placed| self.computed(placed));
                    put(placed.as_ref(), leg, event);
                }
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

    /// What a rank says of its prefix cache.
    fn hear(&self, at: usize, news: &KvNews) {
        let verdict = self.router.hear(self.ranks[at].seat, news);
        self.ranks[at].heard(news, verdict);
        self.ask_for_all(at, verdict);
    }

    /// A rank's last news have this number.
    fn check(&self, at: usize, number: u64) {
        if self.ranks[at].misses(number) {
            let verdict = self.router.hear_number(self.ranks[at].seat, number);
            self.ask_for_all(at, verdict);
        }
    }

    fn ask_for_all(&self, at: usize, verdict: Verdict) {
        if verdict != Verdict::Ask {
            return;
        }
        match &self.road {
            // A rank that is gone has nothing to tell.
            Road::Local { link, ranks, .. } => {
                ranks[at].cast(rank::Msg::Snapshot { link: *link });
            }
            // A stream that is not read any more ends.
            Road::Remote(worker) => drop(worker.snapshot(self.ranks[at].index)),
        }
    }

    /// The prompt of a leg has been computed: its rank should have told of blocks.
    fn computed(&self, placed: &Placed) {
        if placed.fills && self.prefix_cache == PrefixCache::Told {
            self.ranks[placed.rank].mute.computed();
        }
    }

    /// The ranks that say that they tell what they have cached, and do not.
    pub fn mute_ranks(&self) -> Vec<String> {
        let mute = |at: &usize| self.ranks[*at].mute.is_mute();
        (0..self.ranks.len()).filter(mute).map(|at| self.rank_name(at)).collect()
    }

    /// The leg has left the queue: what it has still to compute is in the rank's reports.
    fn started(&self, placed: &mut Placed) {
        if let Some(own) = placed.pending.take() {
            self.ranks[placed.rank].pending.fetch_sub(1, Ordering::Relaxed);
            self.ranks[placed.rank].pending_tokens.fetch_sub(own.into(), Ordering::Relaxed);
        }
    }

    fn ended(&self, table: &mut FxHashMap<LegId, Placed>, leg: LegId) -> Option<Placed> {
        let mut placed = table.remove(&leg)?;
        self.started(&mut placed);
        self.ranks[placed.rank].placed.fetch_sub(1, Ordering::Relaxed);
        Some(placed)
    }

    /// Ends the link: every leg on it hears of its loss, once.
    pub fn end(&self) {
        self.close();
        let Some(table) = self.table().take() else { return };
        self.ranks.iter().for_each(|rank| self.router.leave(rank.seat));
        if let Road::Local { link, ranks, .. } = &self.road {
            ranks.iter().for_each(|rank| rank.detach(*link));
        }
        let lost =
            |(leg, placed): (LegId, Placed)| (placed.inbox, leg, LegEvent::Lost(Lost::Worker));
        Burst { events: table.into_iter().map(lost).collect(), touched: Vec::new() }.deal();
    }
}
