//! What a run has measured so far, in memory that does not grow with the run.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::answer::Complete;
use super::client::Failure;
use super::draw::{Draw, Stream};
use super::histogram::Histogram;
use super::slo::Slo;

/// Most buckets of time; when they are full, each two become one.
const MOST_BUCKETS: usize = 600;
/// Width of a bucket at first.
const BUCKET: Duration = Duration::from_millis(100);
/// Most points of a plot.
const MOST_POINTS: usize = 4000;

/// Failures of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Failed {
    pub(super) count: u64,
    /// What the first one said.
    pub(super) example: String,
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct Record {
    slo: Option<Slo>,
    pub(super) started: Instant,
    /// Of complete requests.
    pub(super) ttft: Histogram,
    /// Each time between two events with tokens, of all requests.
    pub(super) itl: Histogram,
    /// The mean of each complete request.
    pub(super) tpot: Histogram,
    pub(super) e2e: Histogram,
    /// How much later than planned requests were sent.
    pub(super) late: Histogram,
    pub(super) sent: u64,
    pub(super) complete: u64,
    /// Complete and within the objective.
    pub(super) met: u64,
    /// Over the limit of requests in flight.
    pub(super) not_sent: u64,
    pub(super) failed: BTreeMap<String, Failed>,
    /// Of complete requests, as all tokens here.
    pub(super) input_tokens: u64,
    pub(super) cached_tokens: u64,
    pub(super) output_tokens: u64,
    /// Events with tokens, of all requests.
    pub(super) events: u64,
    /// Of complete requests.
    complete_events: u64,
    /// Complete with more or fewer tokens than asked for.
    pub(super) other_length: u64,
    /// Complete, but without `usage`.
    pub(super) without_usage: u64,
    pub(super) over_time: OverTime,
    /// When a request was sent, and its time to the first token.
    pub(super) points: Points,
}

impl Record {
    pub(super) fn new(slo: Option<Slo>, seed: u64) -> Self {
        Self {
            slo,
            started: Instant::now(),
            ttft: Histogram::default(),
            itl: Histogram::default(),
            tpot: Histogram::default(),
            e2e: Histogram::default(),
            late: Histogram::default(),
            sent: 0,
            complete: 0,
            met: 0,
            not_sent: 0,
            failed: BTreeMap::new(),
            input_tokens: 0,
            cached_tokens: 0,
            output_tokens: 0,
            events: 0,
            complete_events: 0,
            other_length: 0,
            without_usage: 0,
            over_time: OverTime::default(),
            points: Points::new(seed),
        }
    }

    pub(super) fn failures(&self) -> u64 {
        self.failed.values().map(|failed| failed.count).sum()
    }

    /// Tokens that have come, also for requests without an end.
    pub(super) fn received_tokens(&self) -> u64 {
        self.output_tokens + (self.events - self.complete_events.min(self.events))
    }

    /// `count` events with tokens have come at once, `gap` after the one before if there was one.
    pub(super) fn tokens(&mut self, now: Instant, gap: Option<Duration>, count: u64) {
        if let Some(gap) = gap {
            self.itl.record(gap);
        }
        if count > 1 {
            self.itl.record_many(Duration::ZERO, count - 1);
        }
        self.events += count;
        self.over_time.bucket(now - self.started).events += count;
    }

    /// A request of `asked` tokens has its whole answer.
    pub(super) fn complete(&mut self, complete: &Complete, asked: u32) {
        let times = &complete.times;
        self.ttft.record(times.ttft);
        self.e2e.record(times.e2e);
        if complete.output_tokens() > 1 {
            self.tpot.record(times.tpot);
        }
        self.complete += 1;
        self.met += u64::from(self.slo.is_some_and(|slo| slo.is_met(times)));
        let usage = complete.usage.unwrap_or_default();
        self.without_usage += u64::from(complete.usage.is_none());
        self.other_length += u64::from(complete.output_tokens() != u64::from(asked));
        self.input_tokens += usage.prompt_tokens;
        self.cached_tokens += usage.cached_tokens();
        self.output_tokens += complete.output_tokens();
        self.complete_events += complete.events;
        let at = complete.sent.saturating_duration_since(self.started);
        self.over_time.bucket(at + times.e2e).complete += 1;
        self.points.add(at, times.ttft);
    }

    pub(super) fn fail(&mut self, failure: &Failure) {
        let failed = self.failed.entry(failure.kind()).or_default();
        failed.count += 1;
        if failed.count == 1 {
            failed.example = failure.to_string();
        }
    }
}

/// What happened in one stretch of time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Bucket {
    /// Events with tokens.
    pub(super) events: u64,
    /// Requests that were complete.
    pub(super) complete: u64,
}

/// Buckets of equal width since the start.
#[derive(Clone, Debug)]
pub(super) struct OverTime {
    pub(super) width: Duration,
    pub(super) buckets: Vec<Bucket>,
}

impl Default for OverTime {
    fn default() -> Self {
        Self { width: BUCKET, buckets: Vec::new() }
    }
}

impl OverTime {
    fn bucket(&mut self, at: Duration) -> &mut Bucket {
        let index = |width: Duration| (at.as_nanos() / width.as_nanos()) as usize;
        while index(self.width) >= MOST_BUCKETS {
            self.width *= 2;
            let pairs = self.buckets.chunks(2).map(|pair| Bucket {
                events: pair.iter().map(|bucket| bucket.events).sum(),
                complete: pair.iter().map(|bucket| bucket.complete).sum(),
            });
            self.buckets = pairs.collect();
        }
        let index = index(self.width);
        if index >= self.buckets.len() {
            self.buckets.resize(index + 1, Bucket::default());
        }
        &mut self.buckets[index]
    }
}

/// A fair sample of points.
#[derive(Debug)]
pub(super) struct Points {
    draw: Draw,
    seen: u64,
    /// Seconds since the start, milliseconds.
    pub(super) kept: Vec<(f64, f64)>,
}

impl Points {
    fn new(seed: u64) -> Self {
        Self { draw: Draw::new(seed, Stream::Sample, 0), seen: 0, kept: Vec::new() }
    }

    fn add(&mut self, at: Duration, value: Duration) {
        let point = (at.as_secs_f64(), value.as_secs_f64() * 1e3);
        self.seen += 1;
        if self.kept.len() < MOST_POINTS {
            self.kept.push(point);
        } else if let Some(slot) = self.kept.get_mut(self.draw.below(self.seen) as usize) {
            *slot = point;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_that_come_together_have_no_gap_between_them() {
        let mut record = Record::new(None, 0);
        let now = Instant::now();
        record.tokens(now, None, 3);
        record.tokens(now, Some(Duration::from_millis(8)), 2);
        assert_eq!((record.events, record.itl.count()), (5, 4));
        assert!((record.itl.mean_ms() - 2.0).abs() < 1e-9);
    }

    #[test]
    fn time_keeps_all_counts_in_few_buckets() {
        let mut time = OverTime::default();
        for second in 0..1000 {
            time.bucket(Duration::from_secs(second)).events += 2;
        }
        assert!(time.buckets.len() <= MOST_BUCKETS, "{}", time.buckets.len());
        assert_eq!(time.width, Duration::from_millis(3200));
        assert_eq!(time.buckets.iter().map(|bucket| bucket.events).sum::<u64>(), 2000);
        assert_eq!(time.buckets[0].events, 8);
    }

    #[test]
    fn points_are_a_fair_sample() {
        let mut points = Points::new(3);
        let count = 10 * MOST_POINTS as u64;
        (0..count).for_each(|at| points.add(Duration::from_secs(at), Duration::ZERO));
        assert_eq!(points.kept.len(), MOST_POINTS);
        let mean = points.kept.iter().map(|point| point.0).sum::<f64>() / MOST_POINTS as f64;
        assert!((mean / (count as f64 / 2.0) - 1.0).abs() < 0.05, "{mean}");
    }

    #[test]
    fn the_first_failure_of_a_kind_is_the_example() {
        let mut record = Record::new(None, 0);
        for status in [429, 503, 429] {
            record.fail(&Failure::Status(status, format!("{}", record.failures())));
        }
        assert_eq!(record.failures(), 3);
        assert_eq!(record.failed["http_429"], Failed { count: 2, example: "0".into() });
    }
}
