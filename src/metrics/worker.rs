//! What is counted for each rank of each worker.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use super::Adder;
use super::histogram::{Count, Histogram, Seconds};
use crate::engine::Load;
use crate::ids::{Generation, RankIndex};

/// Bounds in microseconds: 100 µs to 60 s.
const STEP: &[u64] = &[
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 5_000_000, 20_000_000, 60_000_000,
];

/// Bounds in tokens.
const STEP_TOKENS: &[u64] =
    &[1, 4, 16, 32, 64, 128, 256, 512, 1_024, 2_048, 4_096, 8_192, 16_384, 65_536];

/// Handles of one rank's series.
#[derive(Debug)]
pub struct WorkerMetrics {
    /// KV blocks that live legs hold.
    pub kv_blocks_used: Gauge,
    /// KV blocks that nobody holds but that can still be found.
    pub kv_blocks_cached: Gauge,
    /// KV blocks in the pool.
    pub kv_blocks_total: Gauge,
    /// KV blocks in the host tier.
    pub kv_blocks_in_host: Gauge,
    /// Legs in the batch.
    pub running: Gauge,
    /// Legs in the queue.
    pub waiting: Gauge,
    /// How often the worker was started.
    pub generation: Gauge,
    /// Steps of the engine.
    pub steps: Counter,
    /// Time of each step.
    pub step: Histogram<Seconds>,
    /// Prompt and output tokens of each step.
    pub step_tokens: Histogram<Count>,
    /// Time that loading took the last time, in seconds.
    pub load_seconds: Gauge<f64, AtomicU64>,
    /// How often news began to wait because a token stream was full.
    pub stream_full: Counter,
    /// Legs put back into the queue because blocks ran out.
    pub preemptions: Counter,
    /// Engines lost.
    pub engine_failures: Counter,
    /// How often a front end was sent the whole prefix cache anew.
    pub kv_snapshots: Counter,
    /// Processes of engines that have not ended.
    pub engine_processes: Gauge,
    /// Processes of engines that were started.
    pub engine_process_starts: Counter,
    /// Engines of this rank that stand still and could not be ended.
    pub hung_engines: Gauge,
}

impl WorkerMetrics {
    /// Exports the pressure that an engine is under. `before` is what the engine said the last
    /// time, or the default for a new engine: preemptions are counted by their difference.
    pub fn set_load(&self, load: &Load, before: &Load) {
        self.kv_blocks_used.set(load.blocks_used.into());
        self.kv_blocks_cached.set(load.blocks_cached.into());
        self.kv_blocks_total.set(load.blocks_total.into());
        self.kv_blocks_in_host.set(load.blocks_in_host.into());
        self.running.set(load.running.into());
        self.waiting.set(load.waiting.into());
        self.preemptions.inc_by(load.preemptions.saturating_sub(before.preemptions));
    }

    /// Exports the worker's generation.
    pub fn set_generation(&self, generation: Generation) {
        self.generation.set(generation.0.into());
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    worker: String,
    rank: u16,
}

/// The families behind all ranks' handles.
pub(super) struct Families {
    kv_blocks_used: Family<Labels, Gauge>,
    kv_blocks_cached: Family<Labels, Gauge>,
    kv_blocks_total: Family<Labels, Gauge>,
    kv_blocks_in_host: Family<Labels, Gauge>,
    running: Family<Labels, Gauge>,
    waiting: Family<Labels, Gauge>,
    generation: Family<Labels, Gauge>,
    steps: Family<Labels, Counter>,
    step: Family<Labels, Histogram<Seconds>>,
    step_tokens: Family<Labels, Histogram<Count>>,
    load_seconds: Family<Labels, Gauge<f64, AtomicU64>>,
    stream_full: Family<Labels, Counter>,
    preemptions: Family<Labels, Counter>,
    engine_failures: Family<Labels, Counter>,
    kv_snapshots: Family<Labels, Counter>,
    engine_processes: Family<Labels, Gauge>,
    engine_process_starts: Family<Labels, Counter>,
    hung_engines: Family<Labels, Gauge>,
}

impl Families {
    pub(super) fn register(add: &mut Adder<'_>) -> Self {
        Self {
            kv_blocks_used: add.family("kv_blocks_used", "KV blocks that live legs hold"),
            kv_blocks_cached: add
                .family("kv_blocks_cached", "KV blocks that nobody holds but that can be found"),
            kv_blocks_total: add.family("kv_blocks_total", "KV blocks in the pool"),
            kv_blocks_in_host: add.family(
                "kv_blocks_in_host",
                "KV blocks in the host tier, which hold nothing of the pool",
            ),
            running: add.family("running", "Legs in the batch"),
            waiting: add.family("waiting", "Legs in the rank's queue"),
            generation: add.family("generation", "How often the worker was started"),
            steps: add.family("steps", "Steps of the engine"),
            step: add.histogram("step_seconds", "Time of one step", || Histogram::new(STEP)),
            step_tokens: add.histogram(
                "step_tokens",
                "Prompt and output tokens of one step",
                || Histogram::new(STEP_TOKENS),
            ),
            load_seconds: add.family("load_seconds", "Time that loading took the last time"),
            stream_full: add.family(
                "stream_full",
                "How often news began to wait because a token stream was full",
            ),
            preemptions: add
                .family("preemptions", "Legs put back into the queue because blocks ran out"),
            engine_failures: add.family("engine_failures", "Engines lost"),
            kv_snapshots: add.family(
                "kv_snapshots",
                "How often a front end was sent the whole prefix cache anew",
            ),
            engine_processes: add
                .family("engine_processes", "Processes of engines that have not ended"),
            engine_process_starts: add
                .family("engine_process_starts", "Processes of engines that were started"),
            hung_engines: add
                .family("hung_engines", "Engines that stand still and could not be ended"),
        }
    }

    pub(super) fn handles(&self, worker: &str, rank: RankIndex) -> WorkerMetrics {
        let labels = Labels { worker: worker.to_owned(), rank: rank.0 };
        WorkerMetrics {
            kv_blocks_used: self.kv_blocks_used.get_or_create_owned(&labels),
            kv_blocks_cached: self.kv_blocks_cached.get_or_create_owned(&labels),
            kv_blocks_total: self.kv_blocks_total.get_or_create_owned(&labels),
            kv_blocks_in_host: self.kv_blocks_in_host.get_or_create_owned(&labels),
            running: self.running.get_or_create_owned(&labels),
            waiting: self.waiting.get_or_create_owned(&labels),
            generation: self.generation.get_or_create_owned(&labels),
            steps: self.steps.get_or_create_owned(&labels),
            step: self.step.get_or_create_owned(&labels),
            step_tokens: self.step_tokens.get_or_create_owned(&labels),
            load_seconds: self.load_seconds.get_or_create_owned(&labels),
            stream_full: self.stream_full.get_or_create_owned(&labels),
            preemptions: self.preemptions.get_or_create_owned(&labels),
            engine_failures: self.engine_failures.get_or_create_owned(&labels),
            kv_snapshots: self.kv_snapshots.get_or_create_owned(&labels),
            engine_processes: self.engine_processes.get_or_create_owned(&labels),
            engine_process_starts: self.engine_process_starts.get_or_create_owned(&labels),
            hung_engines: self.hung_engines.get_or_create_owned(&labels),
        }
    }
}
