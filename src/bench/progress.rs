//! How far a run is: a bar that is drawn again on a terminal, a line now and then elsewhere.

use std::io::Write;
use std::time::{Duration, Instant};

use super::options::Options;
use super::record::Record;

/// Between two lines where there is no terminal.
const LINES: Duration = Duration::from_secs(5);
/// Characters of the bar.
const BAR: usize = 24;

/// See the module's description.
pub(super) struct Progress<'a> {
    err: &'a mut dyn Write,
    terminal: bool,
    requests: Option<u64>,
    duration: Option<Duration>,
    shown: Instant,
    /// When the last figure was taken, and the events until then.
    before: (Instant, u64),
}

impl<'a> Progress<'a> {
    pub(super) fn new(options: &Options, err: &'a mut dyn Write) -> Self {
        let now = Instant::now();
        Self {
            err,
            terminal: options.terminal,
            requests: [options.requests, options.workload.len()].into_iter().flatten().min(),
            duration: options.duration,
            shown: now,
            before: (now, 0),
        }
    }

    /// Shows how far it is, if it is time to.
    pub(super) fn show(&mut self, record: &Record, in_flight: u64) {
        let now = Instant::now();
        if !self.terminal && now - self.shown < LINES {
            return;
        }
        self.shown = now;
        let rate = self.rate(now, record.events);
        let line = line(record, in_flight, rate, self.share(record), now - record.started);
        // Progress that nobody can see is not worth a failure.
        let _ = if self.terminal {
            write!(self.err, "\r\x1b[2K{line}").and_then(|()| self.err.flush())
        } else {
            writeln!(self.err, "{line}")
        };
    }

    /// Removes the bar.
    pub(super) fn clear(&mut self) {
        if self.terminal {
            let _ = write!(self.err, "\r\x1b[2K").and_then(|()| self.err.flush());
        }
    }

    /// Events a second since the last time.
    fn rate(&mut self, now: Instant, events: u64) -> f64 {
        let (then, before) = std::mem::replace(&mut self.before, (now, events));
        let seconds = (now - then).as_secs_f64();
        if seconds == 0.0 { 0.0 } else { events.saturating_sub(before) as f64 / seconds }
    }

    /// The part that is done, from 0 to 1; what ends the run first counts.
    fn share(&self, record: &Record) -> Option<f64> {
        let done = record.complete + record.failures() + record.not_sent;
        let by_requests = self.requests.map(|all| done as f64 / all.max(1) as f64);
        let by_time = self.duration.map(|all| record.started.elapsed().div_duration_f64(all));
        let share = [by_requests, by_time].into_iter().flatten().reduce(f64::max);
        share.map(|share| share.min(1.0))
    }
}

fn line(record: &Record, in_flight: u64, rate: f64, share: Option<f64>, ran: Duration) -> String {
    let bar = share.map_or(String::new(), |share| {
        let full = (share * BAR as f64) as usize;
        format!("[{}{}] {:3.0} %  ", "#".repeat(full), ".".repeat(BAR - full), share * 100.0)
    });
    format!(
        "{bar}{:.1} s  {} done  {in_flight} in flight  {} failed  {rate:.0} tokens/s  ttft p50 {:.1} ms",
        ran.as_secs_f64(),
        record.complete,
        record.failures(),
        record.ttft.quantile_ms(0.5),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_far_it_is() {
        let record = Record::new(None, 0);
        let ran = Duration::from_millis(1200);
        let shown = line(&record, 3, 99.6, Some(0.5), ran);
        assert_eq!(
            shown,
            "[############............]  50 %  1.2 s  0 done  3 in flight  0 failed  100 tokens/s  \
             ttft p50 0.0 ms"
        );
        assert!(line(&record, 3, 0.0, None, ran).starts_with("1.2 s  0 done"));
    }
}
