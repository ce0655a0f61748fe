//! When to try to reach a node again: a growing wait, spread so that many do not come at once.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use crate::config::Redial;

/// The wait before attempt number `attempt`, from 0: doubles from `first` to `max`, less up to a
/// quarter.
pub fn backoff(attempt: u32, redial: &Redial) -> Duration {
    let grown = redial.first.saturating_mul(1 << attempt.min(16)).min(redial.max);
    let spread = RandomState::new().hash_one(attempt) % 256; // keyed by the system's random numbers
    grown - grown / 4 * spread as u32 / 256
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_up_to_its_limit_and_is_spread_by_at_most_a_quarter() {
        let redial = Redial { first: Duration::from_millis(50), max: Duration::from_secs(1) };
        for (attempt, ms) in [(0, 50), (1, 100), (3, 400), (5, 1000), (60, 1000)] {
            let whole = Duration::from_millis(ms);
            for _ in 0..100 {
                let wait = backoff(attempt, &redial);
                assert!(wait <= whole && wait >= whole * 3 / 4, "{attempt}: {wait:?}");
            }
        }
    }
}
