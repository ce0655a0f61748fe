//! Whether a rank's thread makes progress: shown by the thread, judged by its `Worker`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What the thread shows: odd while it computes.
#[derive(Debug, Default)]
pub struct Progress(AtomicU64);

impl Progress {
    /// Loading or a step begins or ends.
    pub(super) fn turn(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Identifies what is being computed, if anything is.
    pub fn now(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Relaxed)).filter(|turns| turns % 2 == 1)
    }
}

/// What its `Worker` knows of it. Only time between looks counts, and of that no more than is usual:
/// while the whole process stands still, nobody is stuck.
#[derive(Debug, Default)]
pub struct Patience {
    seen: Option<u64>,
    since: Duration,
}

impl Patience {
    /// Looks again, `elapsed` after the last time; how long it has been the same computation.
    pub fn look(&mut self, now: Option<u64>, elapsed: Duration, usual: Duration) -> Duration {
        let same = now.is_some() && now == self.seen;
        self.since = if same { self.since + elapsed.min(2 * usual) } else { Duration::ZERO };
        self.seen = now;
        self.since
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_and_the_same_step_makes_a_rank_look_stuck() {
        let (progress, mut patience) = (Progress::default(), Patience::default());
        let tick = Duration::from_millis(100);
        let mut look = |progress: &Progress| patience.look(progress.now(), tick, tick);
        assert_eq!(look(&progress), Duration::ZERO);
        progress.turn();
        assert_eq!(
            [look(&progress), look(&progress), look(&progress)],
            [0, 1, 2].map(|n| n * tick)
        );
        for _ in 0..2 {
            progress.turn();
        }
        assert_eq!([look(&progress), look(&progress)], [Duration::ZERO, tick]);
        progress.turn();
        assert_eq!(look(&progress), Duration::ZERO);
    }

    #[test]
    fn a_process_that_stood_still_has_no_stuck_rank() {
        let (progress, mut patience) = (Progress::default(), Patience::default());
        let tick = Duration::from_millis(100);
        progress.turn();
        patience.look(progress.now(), tick, tick);
        let hour = Duration::from_secs(3600);
        assert_eq!(patience.look(progress.now(), hour, tick), 2 * tick);
    }
}
