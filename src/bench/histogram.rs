//! A histogram of durations whose memory does not grow with their number.
//!
//! Each power of two is cut into 64 buckets of equal width, so that a value is known to 1/128 of itself.

use std::time::Duration;

/// Binary logarithm of the buckets of one power of two.
const BITS: u32 = 6;
const PER_OCTAVE: usize = 1 << BITS;

/// Counts of durations by their size. 30 KiB at most.
#[derive(Clone, Debug, Default)]
pub(super) struct Histogram {
    /// Grows to the largest bucket that was hit.
    buckets: Vec<u64>,
    count: u64,
    sum_ns: u128,
    max_ns: u64,
}

/// Which bucket a value is in.
fn bucket(ns: u64) -> usize {
    let octave = (u64::BITS - ns.leading_zeros()).saturating_sub(BITS + 1);
    ((octave as usize) << BITS) + (ns >> octave) as usize
}

/// The middle of a bucket.
fn middle(bucket: usize) -> f64 {
    let octave = (bucket >> BITS).saturating_sub(1);
    let low = (bucket - (octave << BITS)) as f64;
    let width = (octave as f64).exp2();
    if octave == 0 { low } else { (low + 0.5) * width }
}

impl Histogram {
    pub(super) fn record(&mut self, value: Duration) {
        self.record_many(value, 1);
    }

    pub(super) fn record_many(&mut self, value: Duration, times: u64) {
        let ns = u64::try_from(value.as_nanos()).unwrap_or(u64::MAX);
        let bucket = bucket(ns);
        if bucket >= self.buckets.len() {
            self.buckets.resize((bucket + 1).next_multiple_of(PER_OCTAVE), 0);
        }
        self.buckets[bucket] += times;
        self.count += times;
        self.sum_ns += u128::from(ns) * u128::from(times);
        self.max_ns = self.max_ns.max(ns);
    }

    pub(super) fn count(&self) -> u64 {
        self.count
    }

    pub(super) fn max_ms(&self) -> f64 {
        self.max_ns as f64 / 1e6
    }

    /// 0 without values.
    pub(super) fn mean_ms(&self) -> f64 {
        if self.count == 0 { 0.0 } else { self.sum_ns as f64 / self.count as f64 / 1e6 }
    }

    /// The value that this share of the values does not exceed, by nearest rank; 0 without values.
    pub(super) fn quantile_ms(&self, share: f64) -> f64 {
        let rank = (self.count as f64 * share).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (bucket, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return middle(bucket).min(self.max_ns as f64) / 1e6;
            }
        }
        0.0
    }

    /// The distribution: values in milliseconds with the share of values that do not exceed them.
    pub(super) fn curve(&self) -> Vec<(f64, f64)> {
        let mut seen = 0;
        let hit = self.buckets.iter().enumerate().filter(|(_, count)| **count > 0);
        hit.map(|(bucket, count)| {
            seen += count;
            (middle(bucket).min(self.max_ns as f64) / 1e6, seen as f64 / self.count as f64)
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_known_to_one_percent() {
        let mut ns = 1_u64;
        while ns < 1 << 60 {
            for value in [ns, ns + ns / 3, ns * 2 - 1] {
                let found = middle(bucket(value));
                let error = (found - value as f64).abs() / value as f64;
                assert!(error <= 1.0 / 128.0, "{value}: {found}");
            }
            ns *= 2;
        }
        assert_eq!(bucket(0), 0);
        assert!(bucket(u64::MAX) * size_of::<u64>() < 30 << 10);
        let ascending: Vec<_> = (0..100_000).map(bucket).collect();
        assert!(ascending.is_sorted());
    }

    #[test]
    fn quantiles_are_those_of_the_sorted_values() {
        let mut histogram = Histogram::default();
        assert_eq!((histogram.quantile_ms(0.5), histogram.mean_ms()), (0.0, 0.0));
        for ms in (1..=1000).rev() {
            histogram.record(Duration::from_millis(ms));
        }
        for (share, exact) in [(0.0, 1.0), (0.5, 500.0), (0.9, 900.0), (0.99, 990.0), (1.0, 1000.0)]
        {
            let found = histogram.quantile_ms(share);
            assert!((found / exact - 1.0).abs() < 0.01, "{share}: {found}");
        }
        assert_eq!((histogram.mean_ms(), histogram.max_ms()), (500.5, 1000.0));
        let curve = histogram.curve();
        assert!(curve.is_sorted() && curve.last().unwrap().1 == 1.0);
    }

    #[test]
    fn many_at_once_count_as_many() {
        let (mut one, mut all) = (Histogram::default(), Histogram::default());
        (0..5).for_each(|_| one.record(Duration::from_micros(7)));
        all.record_many(Duration::from_micros(7), 5);
        assert_eq!((one.curve(), one.count()), (all.curve(), all.count()));
    }
}
