//! A histogram that many threads fill without a lock: one search and two relaxed additions.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::{MetricType, TypedMetric};

/// What a histogram counts, and how that is kept as an integer.
pub trait Unit: fmt::Debug + Send + Sync + 'static {
    /// What is observed.
    type Value;
    /// Integer steps in one exported unit.
    const STEPS: f64;
    /// The value in integer steps.
    fn steps(value: Self::Value) -> u64;
}

/// Times, kept in microseconds and exported in seconds.
#[derive(Debug)]
pub struct Seconds;

/// Counts of tokens, legs, pieces.
#[derive(Debug)]
pub struct Count;

impl Unit for Seconds {
    type Value = Duration;
    const STEPS: f64 = 1e6;
    fn steps(value: Duration) -> u64 {
        // Microseconds: nanoseconds of 10,000 requests at once would wrap a u64 in three weeks.
        let micros = u64::from(value.subsec_nanos() + 500) / 1000;
        value.as_secs().saturating_mul(1_000_000).saturating_add(micros)
    }
}

impl Unit for Count {
    type Value = u64;
    const STEPS: f64 = 1.0;
    fn steps(value: u64) -> u64 {
        value
    }
}

/// A histogram with fixed buckets; a clone is another handle of the same one.
#[derive(Debug)]
pub struct Histogram<U>(Arc<Inner>, PhantomData<U>);

#[derive(Debug)]
struct Inner {
    /// Upper bounds (inclusive) in steps, ascending.
    bounds: &'static [u64],
    /// Observations by bucket; the last one is above all bounds.
    counts: Box<[AtomicU64]>,
    /// Of all observations, in steps.
    sum: AtomicU64,
}

impl<U> Clone for Histogram<U> {
    fn clone(&self) -> Self {
        Self(self.0.clone(), PhantomData)
    }
}

impl<U: Unit> Histogram<U> {
    /// An empty histogram; `bounds` are inclusive upper bounds in steps of `U`, ascending.
    pub(super) fn new(bounds: &'static [u64]) -> Self {
        let counts = bounds.iter().map(|_| 0).chain([0]).map(AtomicU64::new).collect();
        Self(Arc::new(Inner { bounds, counts, sum: AtomicU64::new(0) }), PhantomData)
    }

    /// Counts one value.
    pub fn observe(&self, value: U::Value) {
        let steps = U::steps(value);
        let bucket = self.0.bounds.partition_point(|bound| *bound < steps);
        self.0.counts[bucket].fetch_add(1, Relaxed);
        self.0.sum.fetch_add(steps, Relaxed);
    }

    /// How many values were counted.
    pub fn count(&self) -> u64 {
        self.0.counts.iter().map(|count| count.load(Relaxed)).sum()
    }
}

impl<U: Unit> EncodeMetric for Histogram<U> {
    fn encode(&self, mut encoder: MetricEncoder) -> Result<(), fmt::Error> {
        let bounds = self.0.bounds.iter().map(|bound| *bound as f64 / U::STEPS);
        let counts = self.0.counts.iter().map(|count| count.load(Relaxed));
        let buckets: Vec<_> = bounds.chain([f64::INFINITY]).zip(counts).collect();
        // The count comes from the same loads as the buckets, so that a scrape never contradicts
        // itself; the sum may be an observation ahead or behind.
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = self.0.sum.load(Relaxed) as f64 / U::STEPS;
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

impl<U> TypedMetric for Histogram<U> {
    const TYPE: MetricType = MetricType::Histogram;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_lands_in_the_first_bucket_that_is_not_below_it() {
        let histogram = Histogram::<Count>::new(&[1, 8, 64]);
        for (value, bucket) in [(0, 0), (1, 0), (2, 1), (8, 1), (9, 2), (64, 2), (65, 3)] {
            let before = histogram.0.counts[bucket].load(Relaxed);
            histogram.observe(value);
            assert_eq!(histogram.0.counts[bucket].load(Relaxed), before + 1, "{value}");
        }
        assert_eq!(histogram.count(), 7);
        assert_eq!(histogram.0.sum.load(Relaxed), 149);
    }

    #[test]
    fn times_are_rounded_to_the_nearest_microsecond() {
        for (nanos, micros) in [(0, 0), (499, 0), (500, 1), (1_499, 1), (999_999_999, 1_000_000)] {
            assert_eq!(Seconds::steps(Duration::from_nanos(nanos)), micros, "{nanos}");
        }
        assert_eq!(Seconds::steps(Duration::MAX), u64::MAX);
    }

    #[test]
    fn threads_lose_no_observation() {
        let histogram = Histogram::<Count>::new(&[10, 100]);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..10_000).for_each(|value| histogram.observe(value % 200)));
            }
        });
        assert_eq!(histogram.count(), 40_000);
    }
}
