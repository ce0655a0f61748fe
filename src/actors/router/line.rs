//! Requests that stand in line for a rank with room.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ractor::ActorRef;

use crate::actors::request;
use crate::metrics::RouterMetrics;
use crate::router::{Claim, Full, Policy, Queue, Ticket};

/// Somebody in line.
type Who = ActorRef<request::Msg>;

/// The line of one model.
pub struct Line {
    queue: Mutex<Queue<Who>>,
    /// How many stand in it: most of the time none, and then nobody looks further.
    waiting: AtomicUsize,
    limit: usize,
    wait: Duration,
    metrics: Arc<RouterMetrics>,
}

/// A place in line, or a turn; it is given up when this is dropped.
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

impl Line {
    pub(super) fn new(
        limit: usize,
        wait: Duration,
        policy: Policy,
        metrics: Arc<RouterMetrics>,
    ) -> Arc<Self> {
        let queue = Mutex::new(Queue::new(limit, policy));
        Arc::new(Self { queue, waiting: AtomicUsize::new(0), limit, wait, metrics })
    }

    /// Whether requests may wait at all.
    pub fn is_open(&self) -> bool {
        self.limit > 0
    }

    /// Whether somebody waits: who comes now goes behind them.
    pub fn has_waiting(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    /// How long one may stand in it.
    pub fn wait(&self) -> Duration {
        self.wait
    }

    /// Stands in line; `turn` if it was this request's turn already. Who waits for one rank in
    /// particular goes to the end after its turn: others can use the room that there is.
    ///
    /// # Errors
    /// As many stand there as may.
    pub fn stand(
        self: &Arc<Self>,
        who: Who,
        claim: Claim,
        turn: Option<Turn>,
        is_particular: bool,
    ) -> Result<Place, Full> {
        let ticket = self.change(|queue| match turn {
            Some(Turn { since, .. }) if is_particular => queue.push(claim, since, who),
            Some(Turn { ticket, claim, since }) => {
                queue.again(ticket, claim, since, who);
                Ok(ticket)
            }
            None => queue.push(claim, Instant::now(), who),
        })?;
        Ok(Place { line: self.clone(), ticket })
    }

    /// There is room for so many legs: tells those whose turn it is.
    pub fn call(&self, room: usize) {
        for _ in 0..room {
            let Some((ticket, claim, since, who)) = self.change(Queue::pop) else { return };
            // It has ended meanwhile: the next one's turn comes with the next call.
            let _ = who.cast(request::Msg::Turn(Turn { ticket, claim, since }));
        }
    }

    /// Sends away who has waited too long.
    pub(super) fn expire(&self, now: Instant) {
        if self.has_waiting() {
            for who in self.change(|queue| queue.expire(self.wait, now)) {
                let _ = who.cast(request::Msg::WaitedTooLong); // it has ended: as good
            }
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
}
