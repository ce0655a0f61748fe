//! What each key changes, and which files are read; `golden` has what is refused.

mod cluster;
mod garbage;
mod golden;
mod nodes;

use std::path::{Path, PathBuf};

use expect_test::{Expect, expect};

use crate::config::host::Host;
use crate::config::read::{check, load_all_on, load_on};
use crate::config::schema::{self, Kind, Preset, keys};
use crate::config::*;

const MODEL: &str = "models/cuelight-tiny";

/// A host that is the same everywhere.
fn host() -> Host {
    let env = |name: &str| match name {
        "KEY" => Some("secret\n".into()),
        "COOKIE" | "CUELIGHT_COOKIE" => Some("a long secret\n".into()),
        "EMPTY" => Some(" ".into()),
        _ => None,
    };
    Host { env, cores: 8, name: "here".into(), models: vec![MODEL.into()] }
}

fn errors(text: &str, sets: &[&str], profile: Profile) -> String {
    let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
    let file = Some(PathBuf::from("node.yaml"));
    match check(&host(), text, &sets, profile) {
        Ok(config) => format!("accepted: {config:?}"),
        Err(problems) => ConfigErrors { file, problems }.to_string(),
    }
}

fn accepted(text: &str, sets: &[&str]) -> Config {
    let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
    check(&host(), text, &sets, Profile::Serve).unwrap_or_else(|p| panic!("{text} {sets:?}: {p:?}"))
}

#[test]
fn set_overrides_the_file_and_the_last_one_wins() {
    let config = accepted(
        "frontend: {http: '[::1]:1'}\nlog: {level: warn}",
        &["frontend.http=127.0.0.1:0", "worker.threads=2", "worker.threads=3"],
    );
    assert_eq!(config.frontend.unwrap().http, "127.0.0.1:0".parse().unwrap());
    assert_eq!(config.worker.unwrap().threads, 3);
    assert_eq!(config.log.level, "warn");
}

#[test]
fn a_node_runs_what_its_file_mentions() {
    let parts = |text: &str| {
        let config = check(&host(), text, &[], Profile::Node).unwrap();
        (config.frontend.is_some(), config.worker.is_some())
    };
    assert_eq!(parts("frontend:"), (true, false));
    assert_eq!(parts("worker: {}"), (false, true));
    assert_eq!(parts("frontend.http: 127.0.0.1:1\nworker.sim.seed: 1"), (true, true));
    let empty = ["", "# nothing\n", "log: {level: info}"];
    let errors = empty.map(|text| errors(text, &[], Profile::Node)).join("\n");
    expect![[r#"
        node.yaml: 1 problem
          has neither `frontend` nor `worker`; add a section, may it be empty
        node.yaml: 1 problem
          has neither `frontend` nor `worker`; add a section, may it be empty
        node.yaml: 1 problem
          has neither `frontend` nor `worker`; add a section, may it be empty"#]]
    .assert_eq(&errors);
}

#[test]
fn files_that_cannot_be_read_say_why() {
    let dir = std::env::temp_dir().join(format!("cuelight-config-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let file = dir.join("node.yaml");
    let says = |expected: Expect| {
        let error = load_on(&host(), Some(&file), &[], Profile::Serve).unwrap_err().to_string();
        expected.assert_eq(&error.replace(&dir.display().to_string(), "DIR"));
    };
    says(expect![[r#"
        DIR/node.yaml: 1 problem
          cannot be read: No such file or directory (os error 2); see to its path and permissions"#]]);
    std::fs::write(&file, b"# fine\nlog: \xff\n").unwrap();
    says(expect![[r#"
        DIR/node.yaml: 1 problem
          is not UTF-8 (byte 13 in line 2); save it as UTF-8"#]]);
    std::fs::write(&file, vec![b'#'; (1 << 20) + 1]).unwrap();
    says(expect![[r#"
        DIR/node.yaml: 1 problem
          is larger than 1048576 bytes; is it a configuration?"#]]);
    std::fs::write(&file, "\u{feff}log: {level: debug}\n").unwrap();
    let config = load_on(&host(), Some(&file), &[], Profile::Serve).unwrap();
    assert_eq!(config.log.level, "debug");
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn without_the_shipped_model_the_error_says_where_it_was_looked_for() {
    let mut host = host();
    host.models = vec!["/a/models/cuelight-tiny".into(), "/b/models/cuelight-tiny".into()];
    let problems = check(&host, "", &[], Profile::Serve).unwrap_err();
    expect![[r#"
        configuration: 1 problem
          default: worker.model: the shipped model was not found in /a/models/cuelight-tiny, /b/models/cuelight-tiny; name a directory with --model DIR"#]].assert_eq(&ConfigErrors { file: None, problems }.to_string());
    assert!(
        check(&host, "", &[&format!("worker.model={MODEL}")].map(String::from), Profile::Serve)
            .is_ok()
    );
}

/// A valid value that is not the default.
fn another(key: &schema::Key) -> String {
    match (key.kind, key.name) {
        (Kind::Whole { .. }, "worker.max_batch_tokens") => "777".into(),
        (Kind::Whole { .. }, "worker.max_running") => "77".into(),
        (Kind::Whole { min, step, .. }, _) => (min.max(step) + 5 * step).to_string(),
        (Kind::Decimal { .. }, _) => "0.625".into(),
        (Kind::Time { min, .. }, _) => (min + 12.5).to_string(),
        (
            Kind::Switch,
            "worker.prefix_cache" | "worker.kv_events" | "frontend.disaggregation.overlap",
        ) => "false".into(),
        (Kind::Switch, _) => "true".into(),
        (Kind::Choice(words), _) => words[1].into(),
        (Kind::Text, "worker.transfer.advertise") => "192.0.2.7".into(),
        (Kind::Text, _) => "something".into(),
        (Kind::Filter, _) => "warn,cuelight=debug".into(),
        (Kind::Url, _) => "http://127.0.0.1:1".into(),
        (Kind::Address, _) => "127.0.0.1:1".into(),
        (Kind::Path, "worker.model") => "models/cuelight-tiny-draft".into(),
        (Kind::Path, "worker.sim.table") => "configs/sim-table.json".into(),
        (Kind::Path, "worker.trtllm.options") => "configs/trtllm-options.yml".into(),
        (Kind::Path, _) => "tests/none.pem".into(),
        (Kind::ApiKeys, _) => "env:KEY".into(),
        (Kind::Secret, _) => "env:COOKIE".into(),
        (Kind::List(_), "frontend.models") => "[models/cuelight-tiny-draft]".into(),
        (Kind::List(_), "cluster.etcd.endpoints") => "['http://127.0.0.1:1']".into(),
        (Kind::List(_), "worker.logits_processors") => "[forced_text]".into(),
        (Kind::List(_), "worker.trtllm.devices") => "[1]".into(),
        (Kind::List(_), "worker.trtllm.loras") => "[french=tests/trtllm/lora]".into(),
        (Kind::List(_), "frontend.router.modes") => "[m=random]".into(),
        (Kind::List(_), _) => "['127.0.0.1:7001']".into(),
    }
}

/// What must be said as well for a key to mean something.
fn surroundings(key: &str) -> Vec<String> {
    let cluster = "cluster.cookie=env:COOKIE";
    let said: &[&str] = match key {
        "cluster.directory" | "cluster.ttl_s" | "cluster.discovery" => {
            &[cluster, "cluster.discovery=file", "cluster.directory=/d"]
        }
        "worker.process_command" => &["worker.process=true"],
        "cluster.redial_max_ms" => &[cluster, "cluster.redial_ms=5"],
        _ if key.starts_with("cluster.etcd.") => {
            &[cluster, "cluster.discovery=etcd", "cluster.etcd.endpoints=['http://127.0.0.1:2']"]
        }
        _ if key.starts_with("cluster.") => &[cluster],
        _ => &[],
    };
    said.iter().map(ToString::to_string).collect()
}

#[test]
fn nixl_is_given_names_and_no_lists() {
    let sets = ["worker.transfer.nixl.transports=rc,tcp", "worker.transfer.nixl.devices=lo"];
    let text = errors("", &sets, Profile::Serve);
    expect![[r#"
        node.yaml: 1 problem
          --set: worker.transfer.nixl.transports = rc,tcp: must be one name: NIXL takes no lists (UCX_TLS and UCX_NET_DEVICES in the environment may be lists)"#]]
    .assert_eq(&text);
}

#[test]
fn a_table_of_step_times_is_read_and_takes_the_place_of_the_formula() {
    let sets = ["worker.sim.step_us=0", "worker.sim.table=configs/none.json"];
    let text = errors("", &sets, Profile::Serve);
    expect![[r#"
        node.yaml: 2 problems
          --set: worker.sim.table = configs/none.json: configs/none.json cannot be read: No such file or directory (os error 2); see to its path and permissions
          --set: worker.sim.step_us = 0: worker.sim.table says how long steps take; keep one of them"#]]
    .assert_eq(&text);
}

#[test]
fn every_key_changes_the_configuration() {
    // These need files, or others of their kind; tests of their own see to them.
    let apart = |name: &str| name.contains(".tls.") || name == "cluster.cookie";
    for key in keys().filter(|key| !apart(key.name)) {
        let mut sets = surroundings(key.name);
        let as_str = |sets: &[String]| accepted("", &sets.iter().map(|s| &**s).collect::<Vec<_>>());
        let default = match key.name {
            "cluster.discovery" => as_str(&["cluster.cookie=env:COOKIE".to_string()]),
            _ => as_str(&sets),
        };
        sets.retain(|set| !set.starts_with(&format!("{}=", key.name)));
        sets.push(format!("{}={}", key.name, another(key)));
        assert_ne!(as_str(&sets), default, "{} has no effect", key.name);
    }
}

#[test]
fn every_default_that_is_a_value_keeps_its_own_rule_and_changes_nothing() {
    let default = accepted("", &["cluster.cookie=env:COOKIE"]);
    let (mut sets, mut pool): (Vec<_>, Vec<_>) = keys()
        .filter_map(|key| match key.default {
            Preset::Is(value) => Some(format!("{}={value}", key.name)),
            Preset::Words(_) => None,
        })
        .partition(|set| !set.starts_with("worker.kv_"));
    sets.push("cluster.cookie=env:COOKIE".into());
    pool.push("cluster.cookie=env:COOKIE".into());
    let config = check(&host(), "", &sets, Profile::Serve).unwrap();
    assert_eq!(config, default);
    assert_eq!(check(&host(), "", &pool, Profile::Serve).unwrap(), default);
}

#[test]
fn limits_are_in_the_unit_of_their_keys() {
    let default = accepted("", &[]);
    for (name, limit) in default.limits() {
        if let Preset::Is(value) = schema::key(name).unwrap().default {
            assert_eq!(value.parse::<f64>().unwrap(), limit, "{name}");
        }
    }
    let of = |config: &Config, name| config.limits().find(|(key, _)| *key == name);
    assert_eq!(of(&default, "worker.threads"), Some(("worker.threads", 8.0)));
    assert_eq!(of(&default, "worker.kv_blocks"), None);
    let blocks = accepted("", &["worker.kv_blocks=9"]);
    assert_eq!(of(&blocks, "worker.kv_blocks"), Some(("worker.kv_blocks", 9.0)));
    assert_eq!(of(&blocks, "worker.kv_memory_mib"), None);
}

#[test]
fn metrics_that_keys_point_to_exist() {
    let metrics = crate::metrics::Metrics::new();
    let _handles = (
        metrics.model("m"),
        metrics.router("m", crate::metrics::Pool::Decode),
        metrics.worker("w", crate::ids::RankIndex(0)),
        metrics.transfer("w", crate::ids::RankIndex(0)),
    );
    metrics.restarted("worker");
    metrics.set_limits(accepted("", &[]).limits());
    for key in keys().filter(|key| key.limit.is_some()) {
        assert!(!key.metric.is_empty(), "{} is a limit without a metric", key.name);
    }
    let text = metrics.encode();
    for key in keys().filter(|key| !key.metric.is_empty()) {
        let family = key.metric.trim_end_matches("_total");
        assert!(text.contains(&format!("# TYPE {family} ")), "{} of {}", key.metric, key.name);
    }
    assert!(text.contains("cuelight_limit{key=\"frontend.max_requests\"} 4096.0"), "{text}");
}

/// Files that repeat the reference word for word.
const HOLDERS: &[&str] = &["docs/configuration.md"];

#[test]
fn the_docs_repeat_the_generated_reference() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for holder in HOLDERS {
        let text = std::fs::read_to_string(root.join(holder)).unwrap();
        let has = text.contains(&reference());
        assert!(has, "{holder} differs from `cuelight check --reference`; copy its output there");
    }
}

#[test]
fn every_shipped_configuration_can_be_loaded() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs");
    let mut left = vec![root];
    let mut files = 0;
    while let Some(path) = left.pop() {
        if path.is_dir() {
            left.extend(std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
            continue;
        }
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue; // what configurations name
        }
        load_all_on(&host(), &path, &[]).unwrap_or_else(|errors| panic!("{errors}"));
        files += 1;
    }
    assert!(files >= 5, "{files}");
}

#[test]
fn serve_yaml_says_the_defaults() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/serve.yaml");
    let config = load_on(&host(), Some(&file), &[], Profile::Serve).unwrap();
    assert_eq!(config, accepted("", &[]));
}
