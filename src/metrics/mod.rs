//! What this process counts, and its text for Prometheus.
//!
//! Whoever counts on a hot path asks once for a handle ([`Metrics::model`], [`Metrics::worker`]) and
//! then only adds to atomics: no lookup, no lock, no allocation.

mod cluster;
mod histogram;
mod labels;
mod mailbox;
mod model;
mod process;
mod router;
mod spans;
mod transfer;
mod worker;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Metric, Registry};

pub use cluster::ClusterMetrics;
pub use histogram::{Count, Histogram, Seconds, Unit};
pub use labels::{
    Cancellation, Counters, Fetched, LabelValue, Migration, Outcome, PrefillPlace, Refusal, Turned,
};
pub use mailbox::{Depth, Mailboxes, Queued};
pub use model::{ModelMetrics, TextMetrics};
pub use router::{Pool, RouterMetrics};
pub use spans::{SPANS, SpanCounts};
pub use transfer::TransferMetrics;
pub use worker::WorkerMetrics;

use crate::ids::RankIndex;

/// The `Content-Type` of [`Metrics::encode`]'s text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All metrics of one process.
pub struct Metrics {
    /// The HTTP side.
    pub http: HttpMetrics,
    /// Queues without a bound of their own.
    pub mailboxes: Arc<Mailboxes>,
    cluster: Arc<ClusterMetrics>,
    registry: Registry,
    /// Identifies this life of the node; larger for a later one.
    pub incarnation: Gauge,
    restarts: Family<PartLabels, Counter>,
    limits: Family<KeyLabels, Gauge<f64, std::sync::atomic::AtomicU64>>,
    model_families: model::Families,
    models: Mutex<HashMap<String, Arc<ModelMetrics>>>,
    router_families: router::Families,
    routers: Mutex<HashMap<(String, Pool), Arc<RouterMetrics>>>,
    worker_families: worker::Families,
    workers: Mutex<HashMap<(String, u16), Arc<WorkerMetrics>>>,
    transfer_families: transfer::Families,
    transfers: Mutex<HashMap<(String, u16), Arc<TransferMetrics>>>,
}

/// What the HTTP side counts.
pub struct HttpMetrics {
    /// Open client connections.
    pub connections: Gauge,
    /// Connections beyond `frontend.max_connections` that are being told so.
    pub turned_away: Gauge,
    /// Requests admitted and not yet ended.
    pub requests_active: Gauge,
    /// Bytes of streams that wait for their clients to read.
    pub stream_backlog_bytes: Gauge,
    /// Long prompts that wait for a tokenizer thread.
    pub tokenizer_queue: Gauge,
    /// Connections ended because their clients took nothing any more.
    pub stalled: Counter,
    /// Requests refused, by reason.
    pub refused: Counters<Refusal>,
    requests: Family<RouteLabels, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabels {
    route: &'static str,
    method: &'static str,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PartLabels {
    part: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KeyLabels {
    key: &'static str,
}

impl HttpMetrics {
    /// Counts one answered request. `route` is the pattern, never the path a client sent: paths are
    /// without number, series must not be.
    pub fn answered(&self, route: &'static str, method: &'static str, status: u16) {
        self.requests.get_or_create(&RouteLabels { route, method, status }).inc();
    }
}

impl Metrics {
    /// Empty metrics, with those of the process itself.
    pub fn new() -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(process::Process));
        registry.register_collector(Box::new(spans::Spans));
        let mut add = Adder(registry.sub_registry_with_prefix("cuelight"));
        add.add(
            "build",
            "The build that runs",
            Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        );
        let stalled = Counter::default();
        add.add(
            "http_stalled",
            "Connections ended because their clients took nothing for frontend.request_timeout_s",
            stalled.clone(),
        );
        let refused = add.family("http_refused", "Requests refused, by reason");
        let http = HttpMetrics {
            connections: add.gauge("http_connections", "Open client connections"),
            turned_away: add
                .gauge("http_turned_away", "Connections over the limit that are told so"),
            requests_active: add.gauge("requests_active", "Requests admitted and not yet ended"),
            stream_backlog_bytes: add
                .gauge("stream_backlog_bytes", "Bytes of streams that clients have not read yet"),
            tokenizer_queue: add
                .gauge("tokenizer_queue", "Long prompts that wait for a tokenizer thread"),
            stalled,
            refused: Counters::new(&refused, |reason| ReasonLabels { reason }),
            requests: add.family("http_requests", "Answered HTTP requests"),
        };
        Self {
            http,
            mailboxes: Arc::new(Mailboxes::register(&mut add)),
            cluster: Arc::new(ClusterMetrics::register(&mut add)),
            incarnation: add.gauge(
                "incarnation",
                "When this life of the node began, in microseconds since 1970",
            ),
            restarts: add.family("restarts", "Restarts of a part of the tree"),
            limits: add.family("limit", "Configured limits, by key"),
            model_families: model::Families::register(&mut add),
            models: Mutex::default(),
            router_families: router::Families::register(&mut add),
            routers: Mutex::default(),
            worker_families: worker::Families::register(&mut add),
            workers: Mutex::default(),
            transfer_families: transfer::Families::register(&mut add),
            transfers: Mutex::default(),
            registry,
        }
    }

    /// All metrics in the OpenMetrics text format; see [`CONTENT_TYPE`].
    pub fn encode(&self) -> String {
        let mut text = String::with_capacity(32 << 10);
        text::encode(&mut text, &self.registry).expect("writing to a String cannot fail");
        text
    }

    /// The metrics of one served model: ask once, keep the handle. Only for names that are served,
    /// never for what a client asked for.
    pub fn model(&self, name: &str) -> Arc<ModelMetrics> {
        let mut models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || Arc::new(self.model_families.handles(name));
        models.entry(name.to_owned()).or_insert_with(new).clone()
    }

    /// The metrics of a router of one served model: ask once, keep the handle.
    pub fn router(&self, model: &str, pool: Pool) -> Arc<RouterMetrics> {
        let mut routers = self.routers.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || Arc::new(self.router_families.handles(model, pool));
        routers.entry((model.to_owned(), pool)).or_insert_with(new).clone()
    }

    /// What is counted of the KV blocks of one rank: ask once, keep the handle.
    pub fn transfer(&self, worker: &str, rank: RankIndex) -> Arc<TransferMetrics> {
        let mut transfers = self.transfers.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || Arc::new(self.transfer_families.handles(worker, rank));
        transfers.entry((worker.to_owned(), rank.0)).or_insert_with(new).clone()
    }

    /// The metrics of one rank of a worker: ask once, keep the handle.
    pub fn worker(&self, worker: &str, rank: RankIndex) -> Arc<WorkerMetrics> {
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || Arc::new(self.worker_families.handles(worker, rank));
        workers.entry((worker.to_owned(), rank.0)).or_insert_with(new).clone()
    }

    /// What is counted about the other nodes.
    pub fn cluster(&self) -> Arc<ClusterMetrics> {
        self.cluster.clone()
    }

    /// Counts one restart of a part of the tree, such as `worker`.
    pub fn restarted(&self, part: &str) {
        self.restarts.get_or_create(&PartLabels { part: part.to_owned() }).inc();
    }

    /// Exports configured limits as `cuelight_limit{key="…"}`; see `Config::limits`.
    pub fn set_limits(&self, limits: impl IntoIterator<Item = (&'static str, f64)>) {
        for (key, limit) in limits {
            self.limits.get_or_create(&KeyLabels { key }).set(limit);
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics(..)")
    }
}

/// Registers a metric and hands it back.
struct Adder<'a>(&'a mut Registry);

impl Adder<'_> {
    fn add<M: Metric>(&mut self, name: &str, help: &str, metric: M) {
        self.0.register(name, help, metric);
    }

    fn gauge(&mut self, name: &str, help: &str) -> Gauge {
        let gauge = Gauge::default();
        self.add(name, help, gauge.clone());
        gauge
    }

    fn family<S, M>(&mut self, name: &str, help: &str) -> Family<S, M>
    where
        S: Clone + std::hash::Hash + Eq,
        M: Default,
        Family<S, M>: Metric,
    {
        let family = Family::default();
        self.add(name, help, family.clone());
        family
    }

    fn histogram<S, U: Unit>(
        &mut self,
        name: &str,
        help: &str,
        new: fn() -> Histogram<U>,
    ) -> Family<S, Histogram<U>>
    where
        S: Clone + std::hash::Hash + Eq,
        Family<S, Histogram<U>>: Metric,
    {
        let family = Family::new_with_constructor(new);
        self.add(name, help, family.clone());
        family
    }
}

#[cfg(test)]
mod tests;
