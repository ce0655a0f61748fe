//! The table of all keys: parsing, suggestions, limits and the reference come from here.

mod cluster;
mod router;
mod transfer;
mod worker;

use super::schema::Preset::{Is, Words};
use super::schema::TimeUnit::Millis;
use super::schema::{Key, Kind, MODEL, frontend, seconds, whole};

const MIB: u64 = 1 << 20;
const DAY_S: f64 = 86_400.0;
const CORES: &str = "the number of cores";

/// All keys, in the order of the reference.
pub(super) fn keys() -> impl Iterator<Item = &'static Key> {
    [
        FRONTEND,
        router::KEYS,
        transfer::FRONTEND,
        worker::KEYS,
        transfer::WORKER,
        cluster::KEYS,
        SUPERVISION_AND_FAULTS,
    ]
    .into_iter()
    .flatten()
}

/// `node:`, `log:` and `frontend:`.
const FRONTEND: &[Key] = &[
    Key::new("node.name", Kind::Text, Words("the host's name"), "name in the tree and in traces"),
    Key::new(
        "node.drain_timeout_s",
        seconds(0.0, DAY_S),
        Is("30"),
        "how long running requests may go on after SIGTERM",
    )
    .metric("cuelight_requests_active")
    .limit(|c| Some(c.node.drain_timeout.as_secs_f64())),
    Key::new(
        "node.stop_timeout_s",
        seconds(0.0, 3600.0),
        Is("2"),
        "how long the end may take after that: last writes, the entry in discovery, the tree",
    )
    .metric("cuelight_http_connections")
    .limit(|c| Some(c.node.stop_timeout.as_secs_f64())),
    Key::new("node.runtime_threads", whole(1, 1024), Words(CORES), "threads that serve clients")
        .advice("leave it out to follow the number of cores")
        .metric("process_threads")
        .limit(|c| Some(c.node.runtime_threads as f64)),
    Key::new(
        "node.admin",
        Kind::Address,
        Words("nowhere"),
        "address for `/live`, `/health`, `/metrics` and `/cluster/tree` on a node of any kind",
    ),
    Key::new("log.format", Kind::Choice(&["text", "json"]), Is("text"), "how log lines look"),
    Key::new("log.level", Kind::Filter, Is("info"), "least level, or a filter by module"),
    Key::new(
        "log.otlp_endpoint",
        Kind::Url,
        Words("nowhere"),
        "where spans go by OTLP over HTTP; `/v1/traces` is added if there is no path",
    ),
    Key::new(
        "log.otlp_sample",
        Kind::Decimal { min: 0.0, max: 1.0 },
        Is("1.0"),
        "share of requests that are traced",
    )
    .advice("0.01 traces one request in a hundred"),
    Key::new(
        "log.otlp_queue",
        whole(1, 1_000_000),
        Is("2048"),
        "spans that wait to be sent; more are dropped",
    )
    .metric("cuelight_spans_waiting")
    .limit(|c| Some(c.log.otlp_queue as f64)),
    Key::new(
        "frontend.http",
        Kind::Address,
        Is("127.0.0.1:8000"),
        "address to listen on; 0.0.0.0 is every IPv4 address of the host",
    ),
    Key::new(
        "frontend.models",
        Kind::List(MODEL),
        Words("the worker's model, or the shipped one"),
        "models that this front end offers, as DIRECTORY or NAME=DIRECTORY; workers compute them, \
         here only the tokenizer and the chat template are read",
    ),
    Key::new(
        "frontend.max_context",
        whole(1, 1 << 30),
        Words("`worker.max_context`, or the model's own"),
        "cap on the models' context in tokens; must be what the workers have",
    )
    .metric("cuelight_request_prompt_tokens")
    .limit(|c| c.frontend.as_ref()?.max_context.map(|tokens| tokens as f64)),
    Key::new(
        "frontend.tls.cert",
        Kind::Path,
        Words("none: plain HTTP"),
        "PEM file with the certificate chain; needs `frontend.tls.key`",
    ),
    Key::new(
        "frontend.tls.key",
        Kind::Path,
        Words("none: plain HTTP"),
        "PEM file with the private key; needs `frontend.tls.cert`",
    ),
    Key::new(
        "frontend.api_keys",
        Kind::ApiKeys,
        Words("none: no key is asked for"),
        "accepted API keys: `sha256:…` as `cuelight hash-key` prints it, or `env:NAME` for a key in \
         the environment",
    )
    .advice("`cuelight hash-key` prints the digest of a key"),
    Key::new(
        "frontend.max_connections",
        whole(1, 1_000_000),
        Is("20000"),
        "open client connections; one more gets 429 and is closed",
    )
    .metric("cuelight_http_connections")
    .limit(|c| frontend(c, |f| f.max_connections as f64)),
    Key::new(
        "frontend.max_turned_away",
        whole(1, 1_000_000),
        Is("64"),
        "connections over `frontend.max_connections` that are told so at a time; further ones wait in \
         the kernel's backlog",
    )
    .metric("cuelight_http_turned_away")
    .limit(|c| frontend(c, |f| f.max_turned_away as f64)),
    Key::new(
        "frontend.max_requests",
        whole(1, 1_000_000),
        Is("4096"),
        "requests in flight; one more gets 429",
    )
    .metric("cuelight_requests_active")
    .limit(|c| frontend(c, |f| f.max_requests as f64)),
    Key::new(
        "frontend.max_body_bytes",
        whole(1024, 1024 * MIB),
        Is("8388608"),
        "largest request body; a larger one gets 413",
    )
    .advice("8388608 is 8 MiB")
    .metric("cuelight_http_refused_total")
    .limit(|c| frontend(c, |f| f.max_body_bytes as f64)),
    Key::new(
        "frontend.max_choices",
        whole(1, 65_535),
        Is("128"),
        "largest `n` times the number of prompts of one request",
    )
    .metric("cuelight_request_choices")
    .limit(|c| frontend(c, |f| f.max_choices as f64)),
    Key::new(
        "frontend.header_timeout_s",
        seconds(0.01, DAY_S),
        Is("30"),
        "how long a client may take over its headers and, again, over its body",
    )
    .metric("cuelight_http_refused_total")
    .limit(|c| frontend(c, |f| f.header_timeout.as_secs_f64())),
    Key::new(
        "frontend.request_timeout_s",
        seconds(0.01, 30.0 * DAY_S),
        Is("600"),
        "longest life of a request, and how long a client may take nothing of what is sent to it",
    )
    .metric("cuelight_request_duration_seconds")
    .limit(|c| frontend(c, |f| f.request_timeout.as_secs_f64())),
    Key::new(
        "frontend.stream_buffer_bytes",
        whole(4096, 1024 * MIB),
        Is("1048576"),
        "unread bytes of one stream before its client is cut off",
    )
    .advice("1048576 is 1 MiB")
    .metric("cuelight_stream_backlog_bytes")
    .limit(|c| frontend(c, |f| f.stream_buffer_bytes as f64)),
    Key::new(
        "frontend.backlog",
        whole(1, 65_535),
        Is("4096"),
        "connections that wait in the kernel to be accepted; `net.core.somaxconn` caps it",
    )
    .metric("process_network_listen_overflows_total")
    .limit(|c| frontend(c, |f| f.backlog.into())),
    Key::new(
        "frontend.admit_timeout_s",
        seconds(0.01, 3600.0),
        Is("10"),
        "how long admission may take before the request gets 503",
    )
    .metric("cuelight_mailbox_deepest")
    .limit(|c| frontend(c, |f| f.admit_timeout.as_secs_f64())),
    Key::new(
        "frontend.offers",
        whole(1, 1000),
        Is("3"),
        "full ranks that a new choice is offered to before its request gets 429",
    )
    .metric("cuelight_http_refused_total")
    .limit(|c| frontend(c, |f| f.offers.into())),
    Key::new(
        "frontend.retry_after_s",
        seconds(0.0, DAY_S),
        Is("1"),
        "what 429 and 503 advise in `Retry-After`, rounded up to whole seconds",
    ),
    Key::new(
        "frontend.no_rank_wait_s",
        seconds(0.0, DAY_S),
        Is("10"),
        "how long a request whose rank was lost, or that names one that restarts, waits for a rank",
    )
    .metric("cuelight_requests_without_rank")
    .limit(|c| frontend(c, |f| f.no_rank_wait.as_secs_f64())),
    Key::new(
        "frontend.migration_limit",
        whole(0, 1000),
        Is("3"),
        "ranks that may be lost after they had taken on one choice; and ranks in a row that were lost before",
    )
    .metric("cuelight_migrations_total")
    .limit(|c| frontend(c, |f| f.migration_limit.into())),
    Key::new(
        "frontend.tokenizer_threads",
        whole(1, 1024),
        Words("half the number of cores, at least 1"),
        "threads for long prompts",
    )
    .advice("leave it out to follow the number of cores")
    .metric("cuelight_tokenizer_queue")
    .limit(|c| frontend(c, |f| f.tokenizer_threads as f64)),
    Key::new(
        "frontend.tokenizer_queue",
        whole(1, 1_000_000),
        Is("1024"),
        "long prompts that wait for such a thread; one more gets 429",
    )
    .metric("cuelight_tokenizer_queue")
    .limit(|c| frontend(c, |f| f.tokenizer_queue as f64)),
    Key::new(
        "frontend.tokenizer_cached_words",
        whole(0, 16 * MIB),
        Is("65536"),
        "words whose tokens are kept, at 64 bytes each; 0 for none",
    )
    .metric("cuelight_tokenizer_cached_words")
    .limit(|c| frontend(c, |f| f.tokenizer_cached_words as f64)),
    Key::new(
        "frontend.tokenizer_cached_mib",
        whole(0, 16_384),
        Is("32"),
        "MiB for each model that keep parts of long prompts and their tokens, for prompts that begin alike; 0 for none",
    )
    .metric("cuelight_tokenizer_cached_bytes")
    .limit(|c| frontend(c, |f| f.tokenizer_cached_bytes as f64 / MIB as f64)),
    Key::new(
        "frontend.template_fuel",
        whole(1000, 1_000_000_000_000),
        Is("5000000"),
        "instructions that a chat template may run",
    )
    .metric("cuelight_chat_template_most_fuel")
    .limit(|c| frontend(c, |f| f.template_fuel as f64)),
];

const SUPERVISION_AND_FAULTS: &[Key] = &[
    Key::new(
        "supervision.restarts",
        whole(0, 1000),
        Is("3"),
        "restarts of one part within the window before its supervisor gives up",
    )
    .metric("cuelight_restarts_total")
    .limit(|c| Some(c.supervision.restarts as f64)),
    Key::new("supervision.window_s", seconds(0.1, DAY_S), Is("60"), "the window"),
    Key::new(
        "supervision.delay_ms",
        Kind::Time { unit: Millis, min: 0.0, max: 60_000.0 },
        Is("50"),
        "wait before the first restart; doubles with each one in the window",
    ),
    Key::new(
        "faults.enabled",
        Kind::Switch,
        Is("false"),
        "whether `/debug/faults` exists; for tests only",
    ),
];
