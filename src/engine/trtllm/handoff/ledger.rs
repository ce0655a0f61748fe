//! KV that stays pinned in an engine that prefills until another one has pulled it. TensorRT-LLM tells nobody
//! when that is, notices it only while it computes, and cannot take it back.

use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;

use crate::ids::LegId;

/// How long is waited for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// For somebody to want a prompt (`worker.transfer.lease_s`).
    pub lease: Duration,
    /// For the executor to let go of one that was pulled or that nobody wants any more.
    pub grace: Duration,
    /// For the executor to drop by itself what nobody pulls (`kv_transfer_timeout_ms`); `None`: it never does.
    pub kept: Option<Duration>,
    /// Between two requests that only make the executor look.
    pub poke: Duration,
}

/// See the module's description.
#[derive(Debug)]
pub struct Ledger {
    limits: Limits,
    /// Prompts that wait to be pulled: since when, and their KV blocks.
    waiting: FxHashMap<LegId, (Instant, u64)>,
    released: Option<Released>,
    poked: Option<Instant>,
}

/// Prompts that nobody wants any more; whether they were pulled is not known.
#[derive(Clone, Copy, Debug)]
struct Released {
    since: Instant,
    count: usize,
    /// Until when the executor may keep the last of them.
    kept: Instant,
}

impl Ledger {
    /// With nothing in it.
    pub fn new(limits: Limits) -> Self {
        Self { limits, waiting: FxHashMap::default(), released: None, poked: None }
    }

    /// A prompt of so many KV blocks waits to be pulled.
    pub fn lend(&mut self, leg: LegId, blocks: u64, now: Instant) {
        self.waiting.insert(leg, (now, blocks));
    }

    /// Its leg has ended: pulled, or not wanted any more. Whether it was here.
    pub fn release(&mut self, leg: LegId, now: Instant) -> bool {
        let Some((lent, _)) = self.waiting.remove(&leg) else { return false };
        let kept = self.limits.kept.map_or(now, |kept| lent + kept);
        let released = self.released.get_or_insert(Released { since: now, count: 0, kept });
        (released.count, released.kept) = (released.count + 1, released.kept.max(kept));
        true
    }

    /// Prompts that have waited too long; they count as released.
    pub fn expired(&mut self, now: Instant) -> Vec<LegId> {
        let over = self.waiting.iter().filter(|(_, (lent, _))| *lent + self.limits.lease <= now);
        let legs: Vec<LegId> = over.map(|(leg, _)| *leg).collect();
        for leg in &legs {
            self.release(*leg, now);
        }
        legs
    }

    /// Prompts whose KV may be pinned.
    pub fn outstanding(&self) -> usize {
        self.waiting.len() + self.released.map_or(0, |released| released.count)
    }

    /// Whether the executor, which has nothing to compute, must be given something so that it looks.
    pub fn wants_poke(&mut self, now: Instant) -> bool {
        let due = self.poked.is_none_or(|at| now >= at + self.limits.poke);
        let wants = self.released.is_some() && due;
        if wants {
            self.poked = Some(now);
        }
        wants
    }

    /// The executor has other things to do: what it says of its blocks proves nothing.
    pub fn defer(&mut self, now: Instant) {
        if let Some(released) = &mut self.released {
            released.since = now;
        }
    }

    /// What an executor without live requests says of its KV blocks: those that are held.
    pub fn idle_with(&mut self, used: u64) {
        let lent: u64 = self.waiting.values().map(|(_, blocks)| blocks).sum();
        if used <= lent {
            self.released = None;
        }
    }

    /// How many prompts the executor has not let go of in time: they will stay for ever.
    pub fn stuck(&self, now: Instant) -> Option<usize> {
        let released = self.released?;
        let from = released.since.max(released.kept);
        (now >= from + self.limits.grace).then_some(released.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::RequestId;

    const LIMITS: Limits = Limits {
        lease: Duration::from_secs(60),
        grace: Duration::from_secs(10),
        poke: Duration::from_secs(1),
        kept: None,
    };

    fn leg(request: u64) -> LegId {
        LegId { request: RequestId(request), choice: 0, attempt: 0 }
    }

    #[test]
    fn what_was_pulled_is_gone_once_an_idle_engine_says_so() {
        let (mut ledger, now) = (Ledger::new(LIMITS), Instant::now());
        ledger.lend(leg(1), 4, now);
        ledger.lend(leg(2), 6, now);
        assert!(!ledger.wants_poke(now), "nobody is done with them");
        assert!(ledger.release(leg(1), now) && !ledger.release(leg(1), now));
        assert_eq!(ledger.outstanding(), 2);
        assert!(ledger.wants_poke(now) && !ledger.wants_poke(now));
        assert!(ledger.wants_poke(now + LIMITS.poke));
        ledger.idle_with(10);
        assert_eq!(ledger.outstanding(), 2, "all of it is still pinned");
        ledger.idle_with(6);
        assert_eq!((ledger.outstanding(), ledger.stuck(now + LIMITS.grace)), (1, None));
    }

    #[test]
    fn what_is_not_let_go_of_is_stuck_after_the_grace() {
        let (mut ledger, now) = (Ledger::new(LIMITS), Instant::now());
        ledger.lend(leg(1), 4, now);
        ledger.release(leg(1), now);
        ledger.idle_with(4);
        assert_eq!(ledger.stuck(now + LIMITS.grace - Duration::from_millis(1)), None);
        assert_eq!(ledger.stuck(now + LIMITS.grace), Some(1));
        ledger.defer(now + LIMITS.grace);
        assert_eq!(ledger.stuck(now + LIMITS.grace), None, "it had other things to do");
        assert_eq!(ledger.stuck(now + 2 * LIMITS.grace), Some(1));
    }

    #[test]
    fn what_the_executor_drops_by_itself_has_until_then() {
        let kept = Duration::from_secs(30);
        let limits = Limits { kept: Some(kept), ..LIMITS };
        let (mut ledger, now) = (Ledger::new(limits), Instant::now());
        ledger.lend(leg(1), 4, now);
        ledger.release(leg(1), now + LIMITS.poke);
        ledger.idle_with(4);
        assert!(ledger.wants_poke(now + LIMITS.poke));
        assert_eq!(ledger.stuck(now + kept + LIMITS.grace - Duration::from_millis(1)), None);
        assert_eq!(ledger.stuck(now + kept + LIMITS.grace), Some(1));
        ledger.lend(leg(2), 4, now + kept);
        ledger.release(leg(2), now + kept);
        assert_eq!(ledger.stuck(now + kept + LIMITS.grace), None, "the second has its own time");
    }

    #[test]
    fn a_prompt_that_nobody_wants_runs_out() {
        let (mut ledger, now) = (Ledger::new(LIMITS), Instant::now());
        ledger.lend(leg(1), 4, now);
        ledger.lend(leg(2), 4, now + LIMITS.poke);
        assert_eq!(ledger.expired(now + LIMITS.lease), [leg(1)]);
        assert_eq!(ledger.expired(now + LIMITS.lease), []);
        assert_eq!(ledger.outstanding(), 2);
        assert!(ledger.wants_poke(now + LIMITS.lease));
    }
}
