//! The configuration: one YAML file, `--set key=value` over it, everything checked at once.
//!
//! Only [`load`] and its like make a [`Config`], so holding one is proof that it was checked. Every
//! limit lives here with its default; docs and README list the same keys (a test compares them).

mod build;
mod cluster;
mod error;
mod files;
mod host;
mod keys;
mod nodes;
mod read;
mod reference;
mod router;
mod schema;
mod transfer;
pub mod trtllm;
mod value;
mod yaml;

#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bincode::{Decode, Encode};

pub use crate::actors::cluster::discovery::Discovery;
pub use error::{ConfigErrors, Origin, Problem};
pub use read::{Profile, load, load_all, load_node};
pub use reference::reference;
pub use transfer::{Disaggregation, Transfer, TransportKind};
pub use trtllm::{TrtllmMode, TrtllmOptions, TrtllmSettings};

use crate::engine::processors::Wanted;
use crate::engine::sim::Timing;
use crate::router::{Affinity, Mode, Policy, Role, Weights};

/// What may run.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// `node:`
    pub node: Node,
    /// `log:`
    pub log: Log,
    /// `frontend:`; absent on a node without a front end.
    pub frontend: Option<Frontend>,
    /// `worker:`; absent on a node without a worker.
    pub worker: Option<Worker>,
    /// `cluster:`; absent on a node that stands alone.
    pub cluster: Option<Cluster>,
    /// `supervision:`
    pub supervision: Supervision,
    /// `faults:`
    pub faults: Faults,
}

impl Config {
    /// Every configured limit that holds: key and value in the key's own unit, for
    /// [`crate::metrics::Metrics::set_limits`].
    pub fn limits(&self) -> impl Iterator<Item = (&'static str, f64)> + '_ {
        schema::keys().filter_map(|key| Some((key.name, (key.limit?)(self)?)))
    }
}

/// `node:` the process.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Node {
    /// `node.name`: shown in the tree. Default: the host's name.
    pub name: String,
    /// `node.drain_timeout_s`: how long running requests may go on after SIGTERM. Default 30 s.
    pub drain_timeout: Duration,
    /// `node.stop_timeout_s`: how long the end may take after that. Default 2 s.
    pub stop_timeout: Duration,
    /// `node.runtime_threads`: tokio threads that serve clients. Default: the number of cores.
    pub runtime_threads: usize,
    /// `node.admin`: address for health, metrics and the tree. Default: nowhere.
    pub admin: Option<SocketAddr>,
}

/// `log:` what is written to standard error, and traces.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
#[non_exhaustive]
pub struct Log {
    /// `log.format`: `text` or `json`. Default `text`.
    pub format: LogFormat,
    /// `log.level`: a level or a filter such as `info,cuelight::engine=debug`. Default `info`.
    pub level: String,
    /// `log.otlp_endpoint`: where to send spans by OTLP over HTTP. Default: nowhere.
    pub otlp_endpoint: Option<String>,
    /// `log.otlp_sample`: share of requests that are traced, `0.0..=1.0`. Default 1.0.
    pub otlp_sample: f64,
    /// `log.otlp_queue`: spans that wait to be sent; more are dropped. Default 2,048.
    pub otlp_queue: usize,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

/// `frontend:` the HTTP side.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Frontend {
    /// `frontend.http`: address to listen on. Default `127.0.0.1:8000`.
    pub http: SocketAddr,
    /// `frontend.models`: what this front end offers. Default: the worker's model, or the shipped
    /// one.
    pub models: Vec<OfferedModel>,
    /// `frontend.max_context`: cap on the models' context in tokens. Default: the worker's, or the
    /// model's own.
    pub max_context: Option<usize>,
    /// `frontend.tls.cert` and `frontend.tls.key` (PEM files); both or none. Default none.
    pub tls: Option<Tls>,
    /// `frontend.api_keys`: SHA-256 digests of accepted keys, `sha256:<64 hex digits>`, or
    /// `env:NAME` for a key in the environment. Default: no key is asked for.
    pub api_keys: Vec<ApiKey>,
    /// `frontend.max_connections`: open client connections; one more gets 429 and is closed.
    /// Default 20,000.
    pub max_connections: usize,
    /// `frontend.max_turned_away`: connections over these that are told so at a time. Default 64.
    pub max_turned_away: usize,
    /// `frontend.max_requests`: requests in flight; one more gets 429. Default 4,096.
    pub max_requests: usize,
    /// `frontend.max_body_bytes`: largest request body; more gets 413. Default 8 MiB.
    pub max_body_bytes: usize,
    /// `frontend.max_choices`: largest `n`, times the prompts of one request. Default 128.
    pub max_choices: usize,
    /// `frontend.header_timeout_s`: how long a client may take over its headers and, again, over
    /// its body. Default 30 s.
    pub header_timeout: Duration,
    /// `frontend.request_timeout_s`: longest life of a request, and of a write of which its client
    /// takes nothing. Default 600 s.
    pub request_timeout: Duration,
    /// `frontend.stream_buffer_bytes`: unread bytes of one stream before its client is cut off.
    /// Default 1 MiB.
    pub stream_buffer_bytes: usize,
    /// `frontend.backlog`: connections that wait in the kernel to be accepted. Default 4,096.
    pub backlog: u32,
    /// `frontend.admit_timeout_s`: how long admission may take. Default 10 s.
    pub admit_timeout: Duration,
    /// `frontend.offers`: full ranks that a new choice is offered to. Default 3.
    pub offers: u16,
    /// `frontend.retry_after_s`: what 429 and 503 advise. Default 1 s.
    pub retry_after: Duration,
    /// `frontend.no_rank_wait_s`: how long a request whose rank was lost, or that names one
    /// that restarts, waits for a rank. Default 10 s.
    pub no_rank_wait: Duration,
    /// `frontend.migration_limit`: how often one choice may be placed again. Default 3.
    pub migration_limit: u16,
    /// `frontend.tokenizer_threads`: threads for long prompts. Default: half the cores, at least 1.
    pub tokenizer_threads: usize,
    /// `frontend.tokenizer_queue`: long prompts that wait for such a thread; one more gets 429.
    /// Default 1,024.
    pub tokenizer_queue: usize,
    /// `frontend.tokenizer_cached_words`: words whose tokens are kept, at 64 bytes each; 0 for none.
    /// Default 65,536.
    pub tokenizer_cached_words: usize,
    /// `frontend.tokenizer_cached_mib`: memory for parts of long prompts and their tokens, which
    /// prompts that begin alike need not compute. Default 32 MiB.
    pub tokenizer_cached_bytes: usize,
    /// `frontend.template_fuel`: instructions that a chat template may run. Default 5,000,000.
    pub template_fuel: u64,
    /// `frontend.router:`
    pub router: Router,
    /// `frontend.disaggregation:`
    pub disaggregation: Disaggregation,
}

/// A model as a front end offers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OfferedModel {
    /// The name clients ask for.
    pub name: String,
    /// Directory with its tokenizer and configuration.
    pub dir: PathBuf,
}

/// Certificate and key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// PEM file with the certificate chain.
    pub cert: PathBuf,
    /// PEM file with the private key.
    pub key: PathBuf,
}

/// SHA-256 of an accepted API key.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(pub [u8; 32]);

impl ApiKey {
    /// The digest by which this key is known.
    pub fn of(key: &str) -> Self {
        value::hash(key)
    }
}

impl std::fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ApiKey(..)")
    }
}

/// `frontend.router:` how a rank is chosen.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Router {
    /// `frontend.router.mode`. Default `kv`.
    pub mode: Mode,
    /// `frontend.router.modes`: by model's name. Default none.
    pub modes: Vec<(String, Mode)>,
    /// The weights of mode `kv`.
    pub weights: Weights,
    /// `frontend.router.predicted_ttl_s`: how long a prompt counts as cached on the rank it was sent
    /// to. Default 5 s.
    pub predicted_ttl: Duration,
    /// `frontend.router.silent_ttl_s`: the same for ranks that tell nothing. Default 120 s.
    pub silent_ttl: Duration,
    /// `frontend.router.predicted_blocks`: KV blocks that may count so. Default 1,048,576.
    pub predicted_blocks: usize,
    /// `frontend.router.queue`: requests that wait while all ranks are full. Default 0.
    pub queue: usize,
    /// `frontend.router.queue_wait_s`: how long they wait. Default 30 s.
    pub queue_wait: Duration,
    /// `frontend.router.queue_policy`: which of a client's goes first. Default `fcfs`.
    pub queue_policy: Policy,
    /// `frontend.router.affinity`: whether sessions stay on their ranks. Default `off`.
    pub affinity: Affinity,
    /// `frontend.router.affinity_ttl_s`: how long a session is remembered. Default 600 s.
    pub affinity_ttl: Duration,
    /// `frontend.router.affinity_sessions`: how many are. Default 65,536.
    pub affinity_sessions: usize,
}

impl Router {
    /// How a rank is chosen for this model.
    pub fn mode_of(&self, model: &str) -> Mode {
        let own = self.modes.iter().find(|(name, _)| name == model);
        own.map_or(self.mode, |(_, mode)| *mode)
    }
}

/// `worker:` the engine side.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
#[non_exhaustive]
pub struct Worker {
    /// `worker.model`: directory of a Hugging Face checkpoint. Default: the shipped model.
    pub model: PathBuf,
    /// `worker.served_name`: the name clients ask for. Default: the directory's name.
    pub served_name: String,
    /// `worker.engine`: `native`, `sim` or `trtllm`. Default `native`.
    pub engine: EngineKind,
    /// `worker.threads`: threads that compute. Default: the number of cores.
    pub threads: usize,
    /// `worker.precision`: what matrix products multiply. Default: the weights' own numbers.
    pub precision: Precision,
    /// `worker.block_tokens`: tokens in a KV block, a multiple of 16. Default 16.
    pub block_tokens: usize,
    /// `worker.kv_blocks`: KV blocks in the pool; or `worker.kv_memory_mib`, not both.
    /// Default: by memory.
    pub kv_blocks: Option<u32>,
    /// `worker.kv_memory_mib`: memory of the pool. Default 1,024 MiB.
    pub kv_memory_bytes: u64,
    /// `worker.max_context`: cap on the model's context in tokens. Default: the model's own.
    pub max_context: Option<usize>,
    /// `worker.max_running`: legs in one step. Default 256.
    pub max_running: usize,
    /// `worker.max_waiting`: legs in the rank's queue; one more is refused. Default 4,096.
    pub max_waiting: usize,
    /// `worker.max_batch_tokens`: prompt and output tokens in one step. Default 512.
    pub max_batch_tokens: usize,
    /// `worker.prefix_cache`: whether KV blocks are found again by their tokens. Default true.
    pub prefix_cache: bool,
    /// `worker.logits_processors`: those that are on for every request. Default: none.
    pub processors: Vec<Wanted>,
    /// `worker.kv_events`: whether front ends are told which KV blocks are cached. Default true.
    pub kv_events: bool,
    /// `worker.kv_event_buffer`: changes of the prefix cache that wait for one front end. Default
    /// 65,536.
    pub kv_event_buffer: usize,
    /// `worker.report_ms`: how often front ends without legs hear of a load that changes. Default
    /// 50 ms.
    pub report_interval: Duration,
    /// `worker.dp_size`: data-parallel ranks. Default 1.
    pub dp_size: u16,
    /// `worker.stream_frames`: step frames of each rank that a token stream may hold before the next
    /// ones are merged. Default 16.
    pub stream_frames: usize,
    /// `worker.step_timeout_s`: a step that takes longer loses the worker. Default 60 s.
    pub step_timeout: Duration,
    /// `worker.load_timeout_s`: loading that takes longer loses the worker. Default 1,800 s.
    pub load_timeout: Duration,
    /// `worker.max_hung_engines`: engines that stand still and are left behind in a process that also
    /// has a front end. Default 1.
    pub max_hung_engines: usize,
    /// `worker.process_command`: words before the program of an engine's process. Default: none.
    pub process_command: Vec<String>,
    /// `worker.process`: whether each rank's engine is a process of its own. Default false.
    pub process: bool,
    /// `worker.process_silence_s`: such a process that says nothing for this long is lost. Default 10 s.
    pub process_silence: Duration,
    /// `worker.process_stop_s`: how long its end may take. Default 5 s.
    pub process_stop: Duration,
    /// `worker.sim`: timing of the `sim` engine.
    pub sim: Sim,
    /// `worker.trtllm`: what an engine `trtllm` is opened with.
    pub trtllm: TrtllmSettings,
    /// `worker.role`: what its ranks do. Default: prefill and decode.
    pub role: Role,
    /// `worker.transfer`: how their KV blocks travel.
    pub transfer: Transfer,
}

/// Which engine a worker runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum EngineKind {
    /// The embedded CPU engine.
    Native,
    /// Computed tokens, configured timing, no weights.
    Sim,
    /// TensorRT-LLM's C++ Executor, in builds that have it.
    Trtllm,
}

/// What numbers matrix products multiply; they are summed in F32 in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Precision {
    /// Those of the weights: where they are BF16, activations are rounded to BF16 as well.
    Weights,
    /// F32.
    F32,
}

/// `worker.sim:` how long things take in the `sim` engine, and what it says.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
#[non_exhaustive]
pub struct Sim {
    /// `worker.sim.step_us`, `prefill_us_per_token`, `prefill_ns_per_pair`, `decode_us_per_leg`,
    /// `decode_ns_per_pair`, `decode_ns_per_context_token`: default 0; or `table`;
    /// `load_us_per_block`; and `speedup`, by
    /// which all times are divided: default 1.0.
    pub timing: Timing,
    /// `worker.sim.seed`: of the tokens. Default 0.
    pub seed: u64,
    /// `worker.sim.host_blocks`: KV blocks that a host tier below the pool has room for. Default 0.
    pub host_blocks: u32,
    /// `worker.sim.attend`: whether tokens follow from all KV blocks before them. Default false.
    pub attend: bool,
}

/// `cluster:` the other nodes.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Cluster {
    /// `cluster.listen`: where other nodes connect. Default `127.0.0.1:7000`.
    pub listen: SocketAddr,
    /// `cluster.advertise`: what they dial. Default: `cluster.listen`.
    pub advertise: Option<String>,
    /// `cluster.cookie`: the secret that all nodes share.
    pub cookie: String,
    /// `cluster.failure_detection_ms`: how soon a silent node is taken for lost. Default 2 s.
    pub failure_detection: Duration,
    /// `cluster.tree_timeout_ms`: how long another node may take to show its tree. Default 1 s.
    pub tree_timeout: Duration,
    /// `cluster.confirm_timeout_s`: how long a restarted `Cluster` may take to find the workers that
    /// it knew. Default 10 s.
    pub confirm_timeout: Duration,
    /// `cluster.handshake_timeout_s`: for both ends to know each other. Default 5 s.
    pub handshake_timeout: Duration,
    /// `cluster.max_handshakes`: connections that have not proved who they are. Default 64.
    pub max_handshakes: usize,
    /// `cluster.max_refused`: nodes that cannot join and are shown in `/health`. Default 64.
    pub max_refused: usize,
    /// `cluster.max_frame_bytes`: largest message between nodes. Default 16 MiB.
    pub max_frame: usize,
    /// `cluster.redial_ms` and `cluster.redial_max_ms`. Default 50 ms to 1 s.
    pub redial: Redial,
    /// `cluster.tls`: all or none of it. Default none.
    pub tls: Option<ClusterTls>,
    /// `cluster.discovery` and what it needs. Default: `cluster.seeds`.
    pub discovery: Discovery,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Cluster({})", self.listen) // the cookie is nobody's business
    }
}

/// When to try to reach a node again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Redial {
    /// The first wait; it doubles with each attempt.
    pub first: Duration,
    /// The longest wait.
    pub max: Duration,
}

/// TLS between nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterTls {
    /// This node's certificate and key.
    pub own: Tls,
    /// PEM file with the authority that signs all nodes' certificates.
    pub ca: PathBuf,
    /// DNS name that every certificate carries.
    pub name: String,
}

/// `supervision:` how often a part may fail.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Supervision {
    /// `supervision.restarts`: restarts of one part within the window before its supervisor gives
    /// up. Default 3.
    pub restarts: usize,
    /// `supervision.window_s`: the window. Default 60 s.
    pub window: Duration,
    /// `supervision.delay_ms`: before the first restart; doubles with each one in the window.
    /// Default 50 ms.
    pub delay: Duration,
}

/// `faults:` fault injection.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Faults {
    /// `faults.enabled`: whether `/debug/faults` exists. Default false.
    pub enabled: bool,
}
