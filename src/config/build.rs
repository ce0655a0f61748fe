//! From checked values to a [`Config`]: defaults, rules between keys, files that must be there.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::host::Host;
use super::read::{Profile, Values};
use super::schema::{self, Preset};
use super::value::{self, Value};
use super::yaml::{Body, Node};
use super::{
    Config, EngineKind, Faults, Frontend, Log, LogFormat, Node as NodeConfig, OfferedModel,
    Precision, Sim, Supervision, Tls, Worker, files,
};
use crate::engine::processors::{Processors, Wanted};
use crate::engine::sim::{Formula, Law, Table, Timing};
use crate::router::Role;

/// Builds what the values say, and complains in `values` about what they must not say together.
/// `None`: it is not even known what should run.
pub(super) fn config(values: &mut Values, profile: Profile, host: &Host) -> Option<Config> {
    let has = |section| profile == Profile::Serve || values.has_section(section);
    let (has_frontend, has_worker) = (has("frontend"), has("worker"));
    if !has_frontend && !has_worker {
        values
            .complain_of_all("has neither `frontend` nor `worker`; add a section, may it be empty");
        return None;
    }
    Some(Config {
        node: NodeConfig {
            name: values.text("node.name").unwrap_or_else(|| host.name.clone()),
            drain_timeout: values.time("node.drain_timeout_s"),
            stop_timeout: values.time("node.stop_timeout_s"),
            runtime_threads: values.maybe_size("node.runtime_threads").unwrap_or(host.cores),
            admin: values.maybe_address("node.admin"),
        },
        log: log(values),
        frontend: has_frontend.then(|| frontend(values, host, has_worker)),
        worker: has_worker.then(|| worker(values, host)),
        cluster: values.has_section("cluster").then(|| super::cluster::cluster(values)),
        supervision: Supervision {
            restarts: values.size("supervision.restarts"),
            window: values.time("supervision.window_s"),
            delay: values.time("supervision.delay_ms"),
        },
        faults: Faults { enabled: values.switch("faults.enabled") },
    })
}

fn log(values: &Values) -> Log {
    Log {
        format: match values.text("log.format").as_deref() {
            Some("json") => LogFormat::Json,
            _ => LogFormat::Text,
        },
        level: values.text("log.level").unwrap_or_default(),
        otlp_endpoint: values.text("log.otlp_endpoint"),
        otlp_sample: values.decimal("log.otlp_sample"),
        otlp_queue: values.size("log.otlp_queue"),
    }
}

fn frontend(values: &mut Values, host: &Host, has_worker: bool) -> Frontend {
    Frontend {
        http: values.address("frontend.http"),
        models: offered(values, host, has_worker),
        max_context: values.maybe_size("frontend.max_context"),
        tls: tls(values),
        api_keys: match values.said("frontend.api_keys").map(|said| &said.value) {
            Some(Value::ApiKeys(keys)) => keys.clone(),
            _ => Vec::new(),
        },
        max_connections: values.size("frontend.max_connections"),
        max_turned_away: values.size("frontend.max_turned_away"),
        max_requests: values.size("frontend.max_requests"),
        max_body_bytes: values.size("frontend.max_body_bytes"),
        max_choices: values.size("frontend.max_choices"),
        header_timeout: values.time("frontend.header_timeout_s"),
        request_timeout: values.time("frontend.request_timeout_s"),
        stream_buffer_bytes: values.size("frontend.stream_buffer_bytes"),
        backlog: values.size("frontend.backlog") as u32,
        admit_timeout: values.time("frontend.admit_timeout_s"),
        offers: values.size("frontend.offers") as u16,
        retry_after: values.time("frontend.retry_after_s"),
        no_rank_wait: values.time("frontend.no_rank_wait_s"),
        migration_limit: values.size("frontend.migration_limit") as u16,
        tokenizer_threads: values
            .maybe_size("frontend.tokenizer_threads")
            .unwrap_or_else(|| (host.cores / 2).max(1)),
        tokenizer_queue: values.size("frontend.tokenizer_queue"),
        tokenizer_cached_words: values.size("frontend.tokenizer_cached_words"),
        tokenizer_cached_bytes: values.size("frontend.tokenizer_cached_mib") << 20,
        template_fuel: values.size("frontend.template_fuel") as u64,
        router: super::router::router(values),
        disaggregation: super::transfer::disaggregation(values),
    }
}

/// Models by `frontend.models`. Without it a node with a worker offers what that computes, and one
/// without offers the shipped model.
fn offered(values: &mut Values, host: &Host, has_worker: bool) -> Vec<OfferedModel> {
    const KEY: &str = "frontend.models";
    let mut offered: Vec<OfferedModel> = Vec::new();
    for text in values.list(KEY) {
        let (name, dir) = match text.split_once('=') {
            Some((name, dir)) => (name.to_string(), PathBuf::from(dir)),
            None => (name_of(Path::new(&text)), PathBuf::from(&text)),
        };
        if let Err(rule) = files::model(&dir) {
            values.complain(KEY, rule);
        }
        if offered.iter().any(|known| known.name == name) {
            values.complain(KEY, format!("names {name} twice; give each model a name of its own"));
        }
        offered.push(OfferedModel { name, dir });
    }
    if offered.is_empty() && !has_worker && !values.is_broken(KEY) {
        match files::shipped_model(&host.models) {
            Ok(dir) => offered.push(OfferedModel { name: name_of(&dir), dir }),
            Err(rule) => values.complain(KEY, rule),
        }
    }
    offered
}

/// The name of a model after its directory.
fn name_of(dir: &Path) -> String {
    let whole = dir.canonicalize().ok();
    let name = dir.file_name().or_else(|| whole.as_deref()?.file_name());
    name.map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned())
}

fn tls(values: &mut Values) -> Option<Tls> {
    const FILES: [(&str, &str, &str); 2] = [
        ("frontend.tls.cert", "frontend.tls.key", "CERTIFICATE"),
        ("frontend.tls.key", "frontend.tls.cert", "PRIVATE KEY"),
    ];
    for (key, other, what) in FILES {
        let Some(path) = values.text(key) else { continue };
        if let Err(rule) = files::pem(Path::new(&path), what) {
            values.complain(key, rule);
        }
        if values.said(other).is_none() && !values.is_broken(other) {
            values.complain(key, format!("needs {other} as well; give both or neither"));
        }
    }
    let path = |key| values.text(key).map(PathBuf::from);
    Some(Tls { cert: path("frontend.tls.cert")?, key: path("frontend.tls.key")? })
}

fn worker(values: &mut Values, host: &Host) -> Worker {
    pool_rule(values);
    batch_rule(values);
    process_rule(values);
    let model = model(values, host);
    let by_directory = || name_of(&model);
    Worker {
        served_name: values.text("worker.served_name").unwrap_or_else(by_directory),
        engine: match values.text("worker.engine").as_deref() {
            Some("sim") => EngineKind::Sim,
            Some("trtllm") => EngineKind::Trtllm,
            _ => EngineKind::Native,
        },
        threads: values.maybe_size("worker.threads").unwrap_or(host.cores),
        precision: match values.text("worker.precision").as_deref() {
            Some("f32") => Precision::F32,
            _ => Precision::Weights,
        },
        block_tokens: values.size("worker.block_tokens"),
        kv_blocks: values.maybe_size("worker.kv_blocks").map(|blocks| blocks as u32),
        kv_memory_bytes: (values.size("worker.kv_memory_mib") as u64) << 20,
        max_context: values.maybe_size("worker.max_context"),
        max_running: values.size("worker.max_running"),
        max_waiting: values.size("worker.max_waiting"),
        max_batch_tokens: values.size("worker.max_batch_tokens"),
        prefix_cache: values.switch("worker.prefix_cache"),
        processors: processors(values, host),
        kv_events: values.switch("worker.kv_events"),
        kv_event_buffer: values.size("worker.kv_event_buffer"),
        report_interval: values.time("worker.report_ms"),
        dp_size: values.size("worker.dp_size") as u16,
        stream_frames: values.size("worker.stream_frames"),
        step_timeout: values.time("worker.step_timeout_s"),
        load_timeout: values.time("worker.load_timeout_s"),
        max_hung_engines: values.size("worker.max_hung_engines"),
        process_command: process_command(values),
        process: values.switch("worker.process")
            || values.text("worker.engine").as_deref() == Some("trtllm"),
        process_silence: values.time("worker.process_silence_s"),
        process_stop: values.time("worker.process_stop_s"),
        sim: sim(values),
        trtllm: super::trtllm::settings(values),
        role: values.text("worker.role").and_then(|name| Role::named(&name)).unwrap_or_default(),
        transfer: super::transfer::transfer(values),
        model,
    }
}

fn process_command(values: &mut Values) -> Vec<String> {
    const KEY: &str = "worker.process_command";
    let command = values.list(KEY);
    let is_trtllm = values.text("worker.engine").as_deref() == Some("trtllm");
    if !command.is_empty() && !is_trtllm && !values.switch("worker.process") {
        values.complain(
            KEY,
            "is for engines in processes of their own: set worker.process, or remove it",
        );
    }
    command
}

/// What is always on.
fn processors(values: &mut Values, host: &Host) -> Vec<Wanted> {
    const KEY: &str = "worker.logits_processors";
    let mut wanted: Vec<_> = values.list(KEY).iter().map(|text| Wanted::named(text)).collect();
    let is_sim = values.text("worker.engine").as_deref() == Some("sim");
    if is_sim && !wanted.is_empty() {
        values.complain(KEY, "needs worker.engine native: the sim engine computes no logits");
    } else if let Err(error) = Processors::new(|_| Ok(Vec::new())).chain(&wanted) {
        values.complain(KEY, format!("must name what there is: {error}"));
    }
    if !is_sim && (host.env)("CUELIGHT_TEST_LOGITS_PROCESSOR").as_deref() == Some("1") {
        let is_trtllm = values.text("worker.engine").as_deref() == Some("trtllm");
        if is_trtllm && values.text("worker.trtllm.mode").as_deref() == Some("orchestrator") {
            let rule = "cannot be switched on by CUELIGHT_TEST_LOGITS_PROCESSOR=1 with worker.trtllm.mode orchestrator, \
                        whose engine computes in other processes; take it out of the environment";
            values.complain(KEY, rule);
        }
        wanted.push(Wanted::named("forced_text"));
    }
    wanted
}

fn sim(values: &mut Values) -> Sim {
    const TABLE: &str = "worker.sim.table";
    const TERMS: [&str; 6] = [
        "worker.sim.step_us",
        "worker.sim.prefill_us_per_token",
        "worker.sim.prefill_ns_per_pair",
        "worker.sim.decode_us_per_leg",
        "worker.sim.decode_ns_per_pair",
        "worker.sim.decode_ns_per_context_token",
    ];
    let micros = |key| values.time(key).as_secs_f64() * 1e6;
    let formula = Formula {
        step_us: micros(TERMS[0]),
        prefill_us_per_token: micros(TERMS[1]),
        prefill_ns_per_pair: values.decimal(TERMS[2]),
        decode_us_per_leg: micros(TERMS[3]),
        decode_ns_per_pair: values.decimal(TERMS[4]),
        decode_ns_per_context_token: values.decimal(TERMS[5]),
    };
    let mut law = Law::Formula(formula);
    if let Some(path) = values.text(TABLE) {
        match Table::read(Path::new(&path)) {
            Ok(table) => law = Law::Table(table.into()),
            Err(error) => values.complain(TABLE, error.to_string()),
        }
        if let Some(term) = TERMS.into_iter().find(|term| values.said(term).is_some()) {
            values.complain(term, format!("{TABLE} says how long steps take; keep one of them"));
        }
    }
    let load_us_per_block = values.time("worker.sim.load_us_per_block").as_secs_f64() * 1e6;
    let timing = Timing { law, load_us_per_block, speedup: values.decimal("worker.sim.speedup") };
    Sim {
        timing,
        seed: values.size("worker.sim.seed") as u64,
        host_blocks: values.size("worker.sim.host_blocks") as u32,
        attend: values.switch("worker.sim.attend"),
    }
}

fn model(values: &mut Values, host: &Host) -> PathBuf {
    const KEY: &str = "worker.model";
    if let Some(dir) = values.text(KEY).map(PathBuf::from) {
        if let Err(rule) = files::model(&dir) {
            values.complain(KEY, rule);
        }
        return dir;
    }
    let found = files::shipped_model(&host.models);
    if !values.is_broken(KEY)
        && let Err(rule) = &found
    {
        values.complain(KEY, rule.as_str());
    }
    found.unwrap_or_default()
}

fn pool_rule(values: &mut Values) {
    const KEYS: [&str; 2] = ["worker.kv_blocks", "worker.kv_memory_mib"];
    let [Some(blocks), Some(memory)] = KEYS.map(|key| values.said(key)) else { return };
    let late = KEYS[usize::from(memory.origin >= blocks.origin)];
    values.complain(late, format!("{} and {} exclude each other; keep one", KEYS[0], KEYS[1]));
}

fn process_rule(values: &mut Values) {
    let role = values.text("worker.role").and_then(|name| Role::named(&name));
    let is_own = values.text("worker.engine").as_deref() == Some("trtllm"); // it moves KV by itself
    if values.switch("worker.process") && !is_own && role.unwrap_or_default() != Role::Aggregated {
        let why = "KV blocks of an engine in a process of its own cannot be moved";
        values.complain("worker.process", format!("needs worker.role aggregated: {why}"));
    }
}

fn batch_rule(values: &mut Values) {
    let [batch, running] = ["worker.max_batch_tokens", "worker.max_running"];
    if values.is_broken(batch) || values.is_broken(running) {
        return;
    }
    let (tokens, legs) = (values.size(batch), values.size(running));
    if tokens >= legs {
        return;
    }
    // Complain where something was said: of the two keys, the one that is not at its default.
    if values.said(batch).is_some() {
        let why = "each running leg may need a token in every step; raise it or lower";
        values.complain(batch, format!("must be at least {running} ({legs}): {why} {running}"));
    } else {
        let why = "each running leg may need a token in every step; lower it or raise";
        values.complain(running, format!("must be at most {batch} ({tokens}): {why} {batch}"));
    }
}

/// Typed access. Asking for another type than the schema gives is a mistake of this file, which
/// any test that loads a configuration finds.
impl Values {
    /// What was said, or else the default if it is a plain value.
    fn get(&self, name: &str) -> Option<Value> {
        if let Some(said) = self.said(name) {
            return Some(said.value.clone());
        }
        let key = schema::key(name).unwrap_or_else(|| panic!("the schema lacks {name}"));
        let Preset::Is(text) = key.default else { return None };
        let node = Node { line: 1, body: Body::Scalar { text: text.into(), plain: true } };
        value::parse(key, &node, |_| None).ok()
    }

    pub(super) fn maybe_size(&self, key: &str) -> Option<usize> {
        match self.get(key)? {
            Value::Whole(value) => Some(usize::try_from(value).unwrap_or(usize::MAX)),
            other => panic!("the schema makes {key} {other:?}"),
        }
    }

    pub(super) fn size(&self, key: &str) -> usize {
        self.maybe_size(key).unwrap_or_else(|| panic!("the schema gives {key} no default"))
    }

    pub(super) fn text(&self, key: &str) -> Option<String> {
        match self.get(key)? {
            Value::Text(text) => Some(text),
            other => panic!("the schema makes {key} {other:?}"),
        }
    }

    pub(super) fn time(&self, key: &str) -> Duration {
        match self.get(key) {
            Some(Value::Time(time)) => time,
            other => panic!("the schema makes {key} {other:?}"),
        }
    }

    pub(super) fn decimal(&self, key: &str) -> f64 {
        match self.get(key) {
            Some(Value::Decimal(value)) => value,
            other => panic!("the schema makes {key} {other:?}"),
        }
    }

    pub(super) fn switch(&self, key: &str) -> bool {
        match self.get(key) {
            Some(Value::Switch(on)) => on,
            other => panic!("the schema makes {key} {other:?}"),
        }
    }

    pub(super) fn maybe_address(&self, key: &str) -> Option<SocketAddr> {
        match self.get(key)? {
            Value::Address(address) => Some(address),
            other => panic!("the schema makes {key} {other:?}"),
        }
    }

    pub(super) fn address(&self, key: &str) -> SocketAddr {
        self.maybe_address(key).unwrap_or_else(|| panic!("the schema gives {key} no default"))
    }

    pub(super) fn list(&self, key: &str) -> Vec<String> {
        match self.get(key) {
            Some(Value::List(texts)) => texts,
            None => Vec::new(),
            Some(other) => panic!("the schema makes {key} {other:?}"),
        }
    }
}
