//! What a child's end means and how often it may be restarted: the same for every supervisor.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use ractor::{ActorCell, SupervisionEvent};

use crate::config::Supervision;

/// The child that ended and why, if that is what the event says. However a child ends that nobody
/// asked to (an error, a panic, a kill, a stop), it is a loss to its supervisor.
pub fn ended(event: SupervisionEvent) -> Option<(ActorCell, String)> {
    match event {
        SupervisionEvent::ActorFailed(child, why) => Some((child, why.to_string())),
        SupervisionEvent::ActorTerminated(child, _, reason) => {
            Some((child, reason.unwrap_or_else(|| "stopped".to_string())))
        }
        _ => None,
    }
}

/// What to do about a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Start it again after this delay.
    After(Duration),
    /// It failed too often: the supervisor must fail itself, so that its own decides.
    Escalate,
}

/// Counts restarts of one part within a sliding window.
#[derive(Clone, Debug)]
pub struct RestartBudget {
    restarts: usize,
    window: Duration,
    delay: Duration,
    recent: VecDeque<Instant>,
}

impl RestartBudget {
    /// `limits.restarts` within `limits.window`; the delay doubles with each one in the window.
    pub fn new(limits: &Supervision) -> Self {
        Self {
            restarts: limits.restarts,
            window: limits.window,
            delay: limits.delay,
            recent: VecDeque::new(),
        }
    }

    /// Records a failure at `now` and decides.
    pub fn record(&mut self, now: Instant) -> Verdict {
        while self.recent.front().is_some_and(|&at| now.duration_since(at) >= self.window) {
            self.recent.pop_front();
        }
        if self.recent.len() >= self.restarts {
            return Verdict::Escalate;
        }
        let doublings = self.recent.len().min(10) as u32;
        self.recent.push_back(now);
        Verdict::After((self.delay * 2u32.pow(doublings)).min(self.window))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_that_fails_too_often_within_the_window_is_given_up() {
        use Verdict::{After, Escalate};
        let ms = Duration::from_millis;
        // (seconds at which it fails, the verdict on the last failure)
        let cases: [(&[u64], Verdict); 5] = [
            (&[0], After(ms(50))),
            (&[0, 10], After(ms(100))),
            (&[0, 10, 20], After(ms(200))),
            (&[0, 10, 20, 30], Escalate),
            (&[0, 10, 20, 60], After(ms(200))), // the one at 0 has just left the window
        ];
        let limits = Supervision { restarts: 3, window: Duration::from_secs(60), delay: ms(50) };
        let start = Instant::now();
        for (failures, want) in cases {
            let mut budget = RestartBudget::new(&limits);
            let verdicts: Vec<_> =
                failures.iter().map(|&s| budget.record(start + Duration::from_secs(s))).collect();
            assert_eq!(verdicts.last(), Some(&want), "{failures:?}");
        }
    }
}
