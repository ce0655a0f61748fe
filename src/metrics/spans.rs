//! Spans on their way to a collector: counted for the whole process, as they are sent for it.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// The spans of this process.
pub static SPANS: SpanCounts =
    SpanCounts { waiting: AtomicU64::new(0), dropped: AtomicU64::new(0) };

/// How many spans wait, and how many will never be sent.
#[derive(Debug)]
pub struct SpanCounts {
    waiting: AtomicU64,
    dropped: AtomicU64,
}

impl SpanCounts {
    /// One more waits, of `limit` at most; `false` if it is dropped instead.
    pub fn wait(&self, limit: u64) -> bool {
        let has_room = self.waiting.fetch_add(1, Relaxed) < limit;
        if !has_room {
            self.waiting.fetch_sub(1, Relaxed);
            self.drop(1);
        }
        has_room
    }

    /// So many wait no longer.
    pub fn taken(&self, spans: u64) {
        self.waiting.fetch_sub(spans, Relaxed);
    }

    /// So many will not be sent.
    pub fn drop(&self, spans: u64) {
        self.dropped.fetch_add(spans, Relaxed);
    }

    /// Spans that were not sent so far.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }
}

/// Exports [`SPANS`].
#[derive(Debug)]
pub(super) struct Spans;

impl Collector for Spans {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let waiting = ConstGauge::new(SPANS.waiting.load(Relaxed) as f64);
        let help = "Spans that wait to be sent to the collector.";
        let kind = waiting.metric_type();
        waiting.encode(encoder.encode_descriptor("cuelight_spans_waiting", help, None, kind)?)?;
        let dropped = ConstCounter::new(SPANS.dropped());
        let help =
            "Spans that were dropped: the queue was full, or the collector did not take them.";
        let kind = dropped.metric_type();
        dropped.encode(encoder.encode_descriptor("cuelight_spans_dropped", help, None, kind)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_finds_no_room_is_dropped_and_counted() {
        let spans = SpanCounts { waiting: AtomicU64::new(0), dropped: AtomicU64::new(0) };
        assert!(spans.wait(2) && spans.wait(2) && !spans.wait(2));
        spans.taken(1);
        assert!(spans.wait(2) && !spans.wait(2));
        assert_eq!((spans.waiting.load(Relaxed), spans.dropped()), (2, 2));
    }
}
