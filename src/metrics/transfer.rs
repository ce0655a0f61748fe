//! What is counted of the KV blocks that come to a rank and go from it.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use super::Adder;
use super::histogram::{Count, Histogram, Seconds};
use super::labels::{Counters, Fetched};
use crate::ids::RankIndex;

/// Bounds in microseconds: 100 µs to 60 s.
const PULL: &[u64] = &[
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 5_000_000, 20_000_000, 60_000_000,
];

/// Bounds of the runs of one pull.
const RUNS: &[u64] = &[1, 4, 16, 64, 256, 1_024, 4_096, 16_384, 65_536, 1_048_576];

/// Handles of one rank's series.
#[derive(Debug)]
pub struct TransferMetrics {
    /// Prefilled prompts that are kept for others.
    pub leases: Gauge,
    /// Those that nobody had fetched in time.
    pub leases_expired: Counter,
    /// Pulls that have not ended.
    pub pulls: Gauge,
    /// Sequences whose KV was to be fetched.
    pub fetches: Counters<Fetched>,
    /// Bytes that have come.
    pub pulled_bytes: Counter,
    /// Runs of bytes that lie side by side, of each pull.
    pub runs: Histogram<Count>,
    /// From the reservation of a sequence's blocks until its KV is there, or is not to be had.
    pub pull: Histogram<Seconds>,
    /// Blocks that may still be written although their pull has failed.
    pub quarantined: Gauge,
    /// 0: few of them; 1: the alarm; 2: the limit.
    pub quarantine_level: Gauge,
    /// Ranks that were lost while they were connected.
    pub peers_lost: Counter,
    /// Blocks that were not what was prefilled.
    pub mismatches: Counter,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    worker: String,
    rank: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    worker: String,
    rank: u16,
    outcome: &'static str,
}

/// The families behind all ranks' handles.
pub(super) struct Families {
    leases: Family<Labels, Gauge>,
    leases_expired: Family<Labels, Counter>,
    pulls: Family<Labels, Gauge>,
    fetches: Family<OutcomeLabels, Counter>,
    pulled_bytes: Family<Labels, Counter>,
    runs: Family<Labels, Histogram<Count>>,
    pull: Family<Labels, Histogram<Seconds>>,
    quarantined: Family<Labels, Gauge>,
    quarantine_level: Family<Labels, Gauge>,
    peers_lost: Family<Labels, Counter>,
    mismatches: Family<Labels, Counter>,
}

impl Families {
    pub(super) fn register(add: &mut Adder<'_>) -> Self {
        Self {
            leases: add.family("kv_leases", "Prefilled prompts that are kept for other ranks"),
            leases_expired: add
                .family("kv_leases_expired", "Prefilled prompts that nobody had fetched in time"),
            pulls: add.family("kv_pulls_in_flight", "Pulls of KV blocks that have not ended"),
            fetches: add.family("kv_fetches", "Sequences whose KV was to be fetched, by outcome"),
            pulled_bytes: add.family("kv_pulled_bytes", "Bytes of KV blocks that have come"),
            runs: add.histogram(
                "kv_pull_runs",
                "Runs of bytes that lie side by side, of each pull",
                || Histogram::new(RUNS),
            ),
            pull: add.histogram(
                "kv_pull_seconds",
                "Time to fetch the KV of one sequence, or to find that it is not to be had",
                || Histogram::new(PULL),
            ),
            quarantined: add.family(
                "kv_blocks_quarantined",
                "KV blocks that may still be written although their pull has failed",
            ),
            quarantine_level: add.family(
                "kv_quarantine_level",
                "1: KV blocks in quarantine are over the alarm; 2: over the limit",
            ),
            peers_lost: add
                .family("kv_peers_lost", "Ranks that were lost while connected for KV blocks"),
            mismatches: add.family(
                "kv_checksum_mismatches",
                "Fetched KV blocks that were not what was prefilled",
            ),
        }
    }

    pub(super) fn handles(&self, worker: &str, rank: RankIndex) -> TransferMetrics {
        let labels = Labels { worker: worker.to_owned(), rank: rank.0 };
        let outcome = |outcome| OutcomeLabels { worker: worker.to_owned(), rank: rank.0, outcome };
        TransferMetrics {
            leases: self.leases.get_or_create_owned(&labels),
            leases_expired: self.leases_expired.get_or_create_owned(&labels),
            pulls: self.pulls.get_or_create_owned(&labels),
            fetches: Counters::new(&self.fetches, outcome),
            pulled_bytes: self.pulled_bytes.get_or_create_owned(&labels),
            runs: self.runs.get_or_create_owned(&labels),
            pull: self.pull.get_or_create_owned(&labels),
            quarantined: self.quarantined.get_or_create_owned(&labels),
            quarantine_level: self.quarantine_level.get_or_create_owned(&labels),
            peers_lost: self.peers_lost.get_or_create_owned(&labels),
            mismatches: self.mismatches.get_or_create_owned(&labels),
        }
    }
}
