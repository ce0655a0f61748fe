//! Requests that stand in line for a rank with room.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ractor::ActorRef;

use super::Seat;
use crate::actors::request;
use crate::metrics::RouterMetrics;
use crate::router::{Claim, Full, Policy, Queue, Ticket};

/// Finding out whose turn it is takes its time, which a link's tokens must not wait for.
const CALLS: usize = 32;

/// Somebody in line.
struct Who {
    request: ActorRef<request::Msg>,
    /// The rank that it waits for; `None`: any will do.
    wants: Option<Seat>,
}

/// A request that has begun and waits for room.
struct First {
    request: ActorRef<request::Msg>,
    /// It has been told of room, and has not come back.
    told: bool,
}

/// The line of one model. Requests that have begun do not stand in it: they go before it.
pub struct Line {
    queue: Mutex<Queue<Who>>,
    /// How many stand in it: most of the time none, and then nobody looks further.
    waiting: AtomicUsize,
    /// In the order in which they came.
    begun: Mutex<BTreeMap<u64, First>>,
    begun_waiting: AtomicUsize,
    /// Requests whose turn it is and that have not used it yet, over all links.
    called: Calls,
    limit: usize,
    wait: Duration,
    metrics: Arc<RouterMetrics>,
}

/// A place in line; it is given up when this is dropped.
pub struct Place {
    line: Arc<Line>,
    ticket: Ticket,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.line.change(|queue| queue.remove(self.ticket));
    }
}

/// It is a request's turn: what it needs to go back to its place if that comes to nothing.
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    ticket: Ticket,
    claim: Claim,
    since: Instant,
}

/// How many turns are under way.
pub type Calls = Arc<AtomicUsize>;

/// A turn is under way until this is dropped: for the line, and for the link that has the room.
pub struct Called([Calls; 2]);

impl Called {
    fn new(calls: [&Calls; 2]) -> Self {
        Self(calls.map(|calls| {
            calls.fetch_add(1, Ordering::Relaxed);
            calls.clone()
        }))
    }
}

impl Drop for Called {
    fn drop(&mut self) {
        for calls in &self.0 {
            calls.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// A request that has begun waits for room; new ones stand back until this is dropped.
pub struct Begun {
    line: Arc<Line>,
    number: u64,
}

impl Begun {
    /// The room that it was told of was gone.
    pub fn wait_on(&self) {
        if let Some(first) = self.line.begun().get_mut(&self.number) {
            first.told = false;
        }
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        let mut begun = self.line.begun();
        begun.remove(&self.number);
        self.line.begun_waiting.store(begun.len(), Ordering::Relaxed);
    }
}

impl Line {
    pub(super) fn new(
        limit: usize,
        wait: Duration,
        policy: Policy,
        metrics: Arc<RouterMetrics>,
    ) -> Arc<Self> {
        Arc::new(Self {
            queue: Mutex::new(Queue::new(limit, policy)),
            waiting: AtomicUsize::new(0),
            begun: Mutex::default(),
            begun_waiting: AtomicUsize::new(0),
            called: Calls::default(),
            limit,
            wait,
            metrics,
        })
    }

    /// Whether requests may wait at all.
    pub fn is_open(&self) -> bool {
        self.limit > 0
    }

    /// Whether somebody waits for room.
    pub fn has_waiting(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0 || self.begun_waiting() > 0
    }

    /// Whether who comes now goes behind somebody.
    pub fn is_in_use(&self) -> bool {
        self.is_open() && (self.has_waiting() || self.called.load(Ordering::Relaxed) > 0)
    }

    /// How many that have begun wait for room.
    pub fn begun_waiting(&self) -> usize {
        self.begun_waiting.load(Ordering::Relaxed)
    }

    /// It was this request's turn, and it has used it.
    pub fn used(&self, turn: Turn) {
        self.metrics.queue_wait.observe(turn.since.elapsed());
    }

    /// How long one may stand in it.
    pub fn wait(&self) -> Duration {
        self.wait
    }

    /// Stands in line, for one rank or for any; `turn` if it was this request's turn already, which
    /// came to nothing: it goes back to its place, and `claim` is not asked.
    ///
    /// # Errors
    /// As many stand there as may.
    pub fn stand(
        self: &Arc<Self>,
        request: ActorRef<request::Msg>,
        turn: Option<Turn>,
        claim: impl FnOnce() -> Claim,
        wants: Option<Seat>,
    ) -> Result<Place, Full> {
        let who = Who { request, wants };
        let ticket = match turn {
            Some(Turn { ticket, claim, since }) => {
                self.change(|queue| queue.again(ticket, claim, since, who));
                ticket
            }
            None => {
                let claim = claim();
                self.change(|queue| queue.push(claim, Instant::now(), who))?
            }
        };
        Ok(Place { line: self.clone(), ticket })
    }

    /// A request that has begun waits for room, before all that stand in line.
    pub fn go_first(self: &Arc<Self>, request: ActorRef<request::Msg>) -> Begun {
        let mut begun = self.begun();
        let number = begun.last_key_value().map_or(0, |(last, _)| last + 1);
        begun.insert(number, First { request, told: false });
        self.begun_waiting.store(begun.len(), Ordering::Relaxed);
        drop(begun);
        Begun { line: self.clone(), number }
    }

    /// A link has room for so many legs, and on those ranks; `calls` counts its turns under way. Tells
    /// those whose turn it is, not too many at once.
    pub fn call(self: &Arc<Self>, room: usize, calls: &Calls, has_room: impl Fn(Seat) -> bool) {
        let mut first = 0;
        if self.begun_waiting() > 0 {
            let mut begun = self.begun();
            for one in begun.values_mut().filter(|one| !one.told).take(room.min(CALLS)) {
                one.told = true;
                let _ = one.request.cast(request::Msg::Room); // it has ended: it leaves soon
            }
            first = begun.len();
        }
        let taken = first + calls.load(Ordering::Relaxed);
        for _ in taken..room.min(taken + CALLS) {
            let can = |who: &Who| who.wants.is_none_or(&has_room);
            let Some((ticket, claim, since, who)) = self.change(|queue| queue.pop(can)) else {
                return;
            };
            let turn = Turn { ticket, claim, since };
            let called = Called::new([&self.called, calls]);
            // It has ended meanwhile: the next one's turn comes with the next call.
            let _ = who.request.cast(request::Msg::Turn(turn, called));
        }
    }

    /// Sends away who has waited too long. Who waits for a rank that `is_gone` takes any.
    pub(super) fn tidy(&self, now: Instant, is_gone: impl Fn(Seat) -> bool) {
        let late = self.change(|queue| {
            queue.forget_idle();
            for who in queue.iter_mut().filter(|who| who.wants.is_some_and(&is_gone)) {
                who.wants = None;
            }
            queue.expire(self.wait, now)
        });
        for who in late {
            self.metrics.queue_wait.observe(self.wait);
            let _ = who.request.cast(request::Msg::WaitedTooLong); // it has ended: as good
        }
    }

    fn change<T>(&self, change: impl FnOnce(&mut Queue<Who>) -> T) -> T {
        let mut queue: MutexGuard<'_, _> =
            self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut queue);
        self.waiting.store(queue.len(), Ordering::Relaxed);
        self.metrics.queue.set(queue.len() as i64);
        result
    }

    fn begun(&self) -> MutexGuard<'_, BTreeMap<u64, First>> {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
