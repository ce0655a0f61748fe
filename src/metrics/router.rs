//! What is counted for the router of each model.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use super::Adder;
use super::histogram::{Histogram, Seconds};

/// Bounds in microseconds: 1 µs to 10 ms.
const DECISION: &[u64] = &[1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000];

/// Bounds in microseconds: 1 ms to 10 min.
const WAIT: &[u64] = &[
    1_000,
    5_000,
    10_000,
    50_000,
    100_000,
    500_000,
    1_000_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    600_000_000,
];

/// Handles of one model's series.
#[derive(Debug)]
pub struct RouterMetrics {
    /// Time to choose a rank among several.
    pub decision: Histogram<Seconds>,
    /// KV blocks in the index; one that many ranks hold counts once.
    pub blocks: Gauge,
    /// KV blocks that are guessed to be cached.
    pub predicted_blocks: Gauge,
    /// Requests that wait for a rank with room.
    pub queue: Gauge,
    /// How long requests stood in line, until a rank took them or in vain.
    pub queue_wait: Histogram<Seconds>,
    /// Sessions that are remembered.
    pub sessions: Gauge,
    /// Full blocks of all legs that were routed by prefix.
    pub blocks_asked: Counter,
    /// Those of them that the chosen rank was thought to have cached.
    pub blocks_expected: Counter,
    /// News of ranks that did not follow those before: all was asked for again.
    pub gaps: Counter,
}

/// Which of a model's ranks a router chooses among.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pool {
    /// Those that decode.
    Decode,
    /// Those that only prefill.
    Prefill,
}

impl Pool {
    fn text(self) -> &'static str {
        match self {
            Self::Decode => "decode",
            Self::Prefill => "prefill",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    model: String,
    pool: &'static str,
}

/// The families behind all models' handles.
pub(super) struct Families {
    decision: Family<Labels, Histogram<Seconds>>,
    blocks: Family<Labels, Gauge>,
    predicted_blocks: Family<Labels, Gauge>,
    queue: Family<Labels, Gauge>,
    queue_wait: Family<Labels, Histogram<Seconds>>,
    sessions: Family<Labels, Gauge>,
    blocks_asked: Family<Labels, Counter>,
    blocks_expected: Family<Labels, Counter>,
    gaps: Family<Labels, Counter>,
}

impl Families {
    pub(super) fn register(add: &mut Adder<'_>) -> Self {
        Self {
            decision: add.histogram(
                "router_decision_seconds",
                "Time to choose a rank among several",
                || Histogram::new(DECISION),
            ),
            blocks: add.family("router_blocks", "KV blocks in the router's index"),
            predicted_blocks: add
                .family("router_predicted_blocks", "KV blocks that are guessed to be cached"),
            queue: add.family("router_queue", "Requests that wait for a rank with room"),
            queue_wait: add.histogram(
                "router_queue_seconds",
                "Time that requests stood in line, until a rank took them or in vain",
                || Histogram::new(WAIT),
            ),
            sessions: add.family("router_sessions", "Sessions whose rank is remembered"),
            blocks_asked: add
                .family("router_blocks_asked", "Full KV blocks of all legs routed by prefix"),
            blocks_expected: add.family(
                "router_blocks_expected",
                "Those that the chosen rank was thought to have cached",
            ),
            gaps: add.family("router_gaps", "News of ranks that did not follow those before"),
        }
    }

    pub(super) fn handles(&self, model: &str, pool: Pool) -> RouterMetrics {
        let labels = Labels { model: model.to_owned(), pool: pool.text() };
        RouterMetrics {
            decision: self.decision.get_or_create_owned(&labels),
            blocks: self.blocks.get_or_create_owned(&labels),
            predicted_blocks: self.predicted_blocks.get_or_create_owned(&labels),
            queue: self.queue.get_or_create_owned(&labels),
            queue_wait: self.queue_wait.get_or_create_owned(&labels),
            sessions: self.sessions.get_or_create_owned(&labels),
            blocks_asked: self.blocks_asked.get_or_create_owned(&labels),
            blocks_expected: self.blocks_expected.get_or_create_owned(&labels),
            gaps: self.gaps.get_or_create_owned(&labels),
        }
    }
}
