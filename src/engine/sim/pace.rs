//! How long a simulated step takes.

use std::thread;
use std::time::{Duration, Instant};

use crate::engine::model::Batch;

/// A step this late starts a new beat instead of catching up with the old one.
const CATCH_UP: Duration = Duration::from_millis(2);

/// The time a step takes; all 0 is as fast as possible.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Timing {
    /// Microseconds for every step.
    pub step_us: f64,
    /// Microseconds for every prompt token.
    pub prefill_us_per_token: f64,
    /// Microseconds for every leg that decodes.
    pub decode_us_per_leg: f64,
    /// How many times faster than that it really runs.
    pub speedup: f64,
}

impl Default for Timing {
    fn default() -> Self {
        Self { step_us: 0.0, prefill_us_per_token: 0.0, decode_us_per_leg: 0.0, speedup: 1.0 }
    }
}

impl Timing {
    /// The time this batch takes.
    pub fn of(&self, batch: &Batch) -> Duration {
        let decoding = batch.spans.iter().filter(|span| span.rows == 1 && span.start > 0).count();
        let prefill = (batch.tokens.len() - decoding) as f64 * self.prefill_us_per_token;
        let decode = decoding as f64 * self.decode_us_per_leg;
        let us = (self.step_us + prefill + decode) / self.speedup;
        Duration::try_from_secs_f64(us / 1e6).unwrap_or_default()
    }

    fn is_instant(&self) -> bool {
        self.step_us == 0.0 && self.prefill_us_per_token == 0.0 && self.decode_us_per_leg == 0.0
    }
}

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
        let end = start + self.timing.of(batch);
        let left = end.saturating_duration_since(Instant::now());
        if !left.is_zero() {
            thread::sleep(left);
        }
        self.beat = Some(end);
    }
}
