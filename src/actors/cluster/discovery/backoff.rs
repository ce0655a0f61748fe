//! How long to wait before the next attempt: longer each time, and never the same for all nodes.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::time::Duration;

/// Delays that double from `least` to `most`, each cut by chance by up to a half.
pub(super) struct Backoff {
    least: Duration,
    most: Duration,
    failures: u32,
    /// Its keys are random: nodes that lost the service together do not come back together.
    chance: RandomState,
}

impl Backoff {
    /// `most` below `least` counts as `least`.
    pub(super) fn new(least: Duration, most: Duration) -> Self {
        Self { least, most: most.max(least), failures: 0, chance: RandomState::new() }
    }

    /// The delay after one more failure.
    pub(super) fn next(&mut self) -> Duration {
        let factor = 1_u32.checked_shl(self.failures).unwrap_or(u32::MAX);
        let full = self.least.saturating_mul(factor).min(self.most);
        self.failures = self.failures.saturating_add(1);
        let share = self.chance.hash_one(self.failures) >> 11; // 53 bits: exact as f64
        full.mul_f64(0.5 + 0.5 * share as f64 / (1_u64 << 53) as f64)
    }

    /// Starts over after a success.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_limit_and_differ_between_nodes() {
        let ms = Duration::from_millis;
        let mut first = Backoff::new(ms(100), ms(1000));
        let mut second = Backoff::new(ms(100), ms(1000));
        let mut delays = Vec::new();
        for full in [100, 200, 400, 800, 1000, 1000] {
            let delay = first.next();
            assert!(delay >= ms(full) / 2 && delay <= ms(full), "{delay:?} of {full} ms");
            delays.push((delay, second.next()));
        }
        assert!(delays.iter().any(|(a, b)| a != b), "the same delays for both: {delays:?}");
        (0..100).for_each(|_| assert!(first.next() <= ms(1000)));
        first.reset();
        assert!(first.next() <= ms(100));
    }
}
