//! Makes simulated steps take their time.

use std::thread;
use std::time::{Duration, Instant};

use super::timing::{Timing, Work};
use crate::engine::model::Batch;

/// A step this late starts a new beat instead of catching up with the old one.
const CATCH_UP: Duration = Duration::from_millis(2);

/// Makes steps take their time. Deadlines follow each other exactly while steps follow each other:
/// what one sleep takes too long, the next takes less.
#[derive(Debug)]
pub(super) struct Pace {
    timing: Timing,
    /// When the current step started; then, when it ended.
    beat: Option<Instant>,
}

impl Pace {
    pub(super) fn new(timing: Timing) -> Self {
        Self { timing, beat: None }
    }

    pub(super) fn start(&mut self) {
        if self.timing.is_instant() {
            return;
        }
        let now = Instant::now();
        let on_time = |end: &Instant| now.saturating_duration_since(*end) < CATCH_UP;
        self.beat = Some(self.beat.filter(on_time).unwrap_or(now));
    }

    pub(super) fn wait(&mut self, batch: &Batch) {
        let Some(start) = self.beat else { return };
        let end = start + self.timing.of(&Work::of(batch));
        let left = end.saturating_duration_since(Instant::now());
        if !left.is_zero() {
            thread::sleep(left);
        }
        self.beat = Some(end);
    }
}
