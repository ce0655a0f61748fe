//! What is refused and in which words.

use expect_test::{Expect, expect};

use super::{accepted, errors};
use crate::config::{ApiKey, Profile};

/// Compares each case's text and `--set`s, and what is said about them, with the golden text.
#[track_caller]
fn golden(cases: &[(&str, &[&str])], expected: &Expect) {
    let here = std::env::current_dir().unwrap().display().to_string();
    let mut text = String::new();
    for (file, sets) in cases {
        let errors = errors(file, sets, Profile::Serve).replace(&here, "HERE");
        let (_, problems) = errors.split_once('\n').unwrap_or(("", &errors));
        let given: Vec<_> = file
            .lines()
            .map(str::to_owned)
            .chain(sets.iter().map(|set| format!("--set {set}")))
            .collect();
        text += &format!("{}\n{problems}\n", given.join("\n"));
    }
    expected.assert_eq(&text);
}

#[test]
fn set_is_checked_like_the_file() {
    let sets = [
        "frontend.http=",
        "frontend=1",
        "worker.model=@x",
        "worker.threads",
        "frontend.api_keys=@secret",
    ];
    expect![[r#"
        node.yaml: 5 problems
          --set: frontend.http: has no value; give it one or leave the key out
          --set: frontend = 1: is a section of keys such as frontend.http; give it keys
          --set: worker.model = @x: is not YAML: unexpected character: `@'; see to its indentation, colons and quotes
          --set: worker.threads: must be KEY=VALUE, such as --set frontend.http=127.0.0.1:8000
          --set: frontend.api_keys: is not YAML: unexpected character: `@'; see to its indentation, colons and quotes"#]].assert_eq(&errors("", &sets, Profile::Serve));
}

#[test]
fn all_problems_are_listed_at_once_in_the_order_of_the_file() {
    let text = "\
# a node
frontend:
  htpp: 127.0.0.1:8000
  max_requests: many
  tls: { cert: Cargo.toml }
worker:
  block_tokens: 20
  max_running: 600
  engine: cuda
  kv_blocks: 10
  kv_memory_mib: 10
  model: /nowhere
wroker: 1
";
    let errors = errors(text, &["log.levle=debug", "faults.enabled=yes", "x"], Profile::Serve);
    expect![[r#"
        node.yaml: 13 problems
          line 3: frontend.htpp: unknown key; did you mean frontend.http?
          line 4: frontend.max_requests = many: must be a whole number from 1 to 1000000
          line 5: frontend.tls.cert = Cargo.toml: holds no CERTIFICATE; it must be a PEM file with a line -----BEGIN … CERTIFICATE-----
          line 5: frontend.tls.cert = Cargo.toml: needs frontend.tls.key as well; give both or neither
          line 7: worker.block_tokens = 20: must be a multiple of 16; 16 suits most models
          line 8: worker.max_running = 600: must be at most worker.max_batch_tokens (512): each running leg may need a token in every step; lower it or raise worker.max_batch_tokens
          line 9: worker.engine = cuda: must be native or sim or trtllm
          line 11: worker.kv_memory_mib = 10: worker.kv_blocks and worker.kv_memory_mib exclude each other; keep one
          line 12: worker.model = /nowhere: /nowhere cannot be read: No such file or directory (os error 2); name the directory of a Hugging Face checkpoint
          line 13: wroker: unknown key; did you mean worker?
          --set: log.levle: unknown key; did you mean log.level?
          --set: faults.enabled = yes: must be true or false
          --set: x: must be KEY=VALUE, such as --set frontend.http=127.0.0.1:8000"#]]
    .assert_eq(&errors);
}

#[test]
fn wrong_values_name_key_value_rule_and_way_out() {
    golden(
        &[
            ("worker: {threads: 0}", &[]),
            ("worker:\n  threads: '4'", &[]),
            ("worker: {threads: -1}", &[]),
            ("worker: {threads: 1e3}", &[]),
            ("worker: {max_waiting: 99999999999999999999999}", &[]),
            ("worker: {max_waiting: [1]}", &[]),
            ("worker: {max_waiting: {a: 1}}", &[]),
            ("worker:\n  max_waiting:", &[]),
            ("worker: {served_name: ''}", &[]),
            ("worker: {served_name: \"a\\nb\"}", &[]),
            ("frontend: {http: localhost:8000}", &[]),
            ("frontend: {header_timeout_s: 0}", &[]),
            ("frontend: {header_timeout_s: .nan}", &[]),
            ("log: {level: infoo}", &[]),
            ("log: {otlp_endpoint: 'https://collector:4318'}", &[]),
            ("log: {otlp_sample: 2}", &[]),
            ("log: {format: JSON}", &[]),
            ("faults: {enabled: 1}", &[]),
        ],
        &expect![[r#"
            worker: {threads: 0}
              line 1: worker.threads = 0: must be a whole number from 1 to 1024; leave it out to follow the number of cores
            worker:
              threads: '4'
              line 2: worker.threads = "4": must be a whole number from 1 to 1024; leave it out to follow the number of cores
            worker: {threads: -1}
              line 1: worker.threads = -1: must be a whole number from 1 to 1024; leave it out to follow the number of cores
            worker: {threads: 1e3}
              line 1: worker.threads = 1e3: must be a whole number from 1 to 1024; leave it out to follow the number of cores
            worker: {max_waiting: 99999999999999999999999}
              line 1: worker.max_waiting = 99999999999999999999999: must be a whole number from 1 to 1000000
            worker: {max_waiting: [1]}
              line 1: worker.max_waiting: must be a whole number from 1 to 1000000, not a list
            worker: {max_waiting: {a: 1}}
              line 1: worker.max_waiting: must be a whole number from 1 to 1000000, not a section
            worker:
              max_waiting:
              line 2: worker.max_waiting: has no value; give it one or leave the key out
            worker: {served_name: ''}
              line 1: worker.served_name = "": must be text of 1 to 256 characters on one line
            worker: {served_name: "a\nb"}
              line 1: worker.served_name = "a\nb": must be text of 1 to 256 characters on one line
            frontend: {http: localhost:8000}
              line 1: frontend.http = localhost:8000: must be an IP address and a port such as 127.0.0.1:8000 or [::1]:8000
            frontend: {header_timeout_s: 0}
              line 1: frontend.header_timeout_s = 0: must be a number of seconds from 0.01 to 86400
            frontend: {header_timeout_s: .nan}
              line 1: frontend.header_timeout_s = .nan: must be a number of seconds from 0.01 to 86400
            log: {level: infoo}
              line 1: log.level = infoo: must be error, warn, info, debug, trace, off, or a filter such as info,cuelight::engine=debug
            log: {otlp_endpoint: 'https://collector:4318'}
              line 1: log.otlp_endpoint = "https://collector:4318": must be a URL such as http://127.0.0.1:4318 (https is not supported)
            log: {otlp_sample: 2}
              line 1: log.otlp_sample = 2: must be a number from 0 to 1; 0.01 traces one request in a hundred
            log: {format: JSON}
              line 1: log.format = JSON: must be text or json
            faults: {enabled: 1}
              line 1: faults.enabled = 1: must be true or false
        "#]],
    );
}

#[test]
fn keys_that_do_not_exist_get_the_nearest_one() {
    golden(
        &[
            ("fronted: {http: 1}", &[]),
            ("max_requests: 1", &[]),
            ("worker: {max_requests: 1}", &[]),
            ("worker: {sim: {sped_up: 1}}", &[]),
            ("worker: {temperature: 1}", &[]),
            ("worker: {[a]: 1}", &[]),
        ],
        &expect![[r#"
            fronted: {http: 1}
              line 1: fronted: unknown key; did you mean frontend?
            max_requests: 1
              line 1: max_requests: unknown key; did you mean frontend.max_requests?
            worker: {max_requests: 1}
              line 1: worker.max_requests: unknown key; did you mean frontend.max_requests?
            worker: {sim: {sped_up: 1}}
              line 1: worker.sim.sped_up: unknown key; did you mean worker.sim.speedup?
            worker: {temperature: 1}
              line 1: worker.temperature: unknown key; did you mean frontend.router.temperature?
            worker: {[a]: 1}
              line 1: worker: has a key that is no word
        "#]],
    );
}

#[test]
fn what_is_no_configuration_is_refused_as_a_whole() {
    golden(
        &[
            ("frontend: 5", &[]),
            ("frontend: [a]", &[]),
            ("just text", &[]),
            ("- a\n- b", &[]),
            ("a: b: c", &[]),
            ("worker: {threads: 1", &[]),
            ("worker:\n\tthreads: 1", &[]),
            ("worker: {}", &["worker.threads=1\n---\n2"]),
            ("worker: &w {threads: 1}\nfrontend: *w", &[]),
            ("worker: {threads: !!int 1}", &[]),
            ("worker: {threads: 1}\nworker: {threads: 2}", &[]),
            ("worker:\n  threads: 1\n  threads: 2", &[]),
            ("[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]", &[]),
        ],
        &expect![[r#"
            frontend: 5
              line 1: frontend = 5: is a section of keys such as frontend.http; give it keys
            frontend: [a]
              line 1: frontend: is a section of keys such as frontend.http; give it keys
            just text
              line 1: must be sections with keys, such as `frontend:` over `  http: …`
            - a
            - b
              line 1: must be sections with keys, such as `frontend:` over `  http: …`
            a: b: c
              line 1: is not YAML: mapping values are not allowed in this context; see to its indentation, colons and quotes
            worker: {threads: 1
              line 2: is not YAML: while parsing a flow mapping, did not find expected ',' or '}'; see to its indentation, colons and quotes
            worker:
            	threads: 1
              line 2: is not YAML: tabs disallowed within this context (block indentation); see to its indentation, colons and quotes
            worker: {}
            --set worker.threads=1
            ---
            2
              --set: worker.threads = 1\n---\n2: a second document begins; a value is one
            worker: &w {threads: 1}
            frontend: *w
              line 2: has an alias (*…); write the value out
            worker: {threads: !!int 1}
              line 1: has a tag (!…); leave it out
            worker: {threads: 1}
            worker: {threads: 2}
              line 2: worker: is there twice, first in line 1; keep one
            worker:
              threads: 1
              threads: 2
              line 3: worker.threads: is there twice, first in line 2; keep one
            [[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]
              line 1: is nested too deeply; no key needs that
        "#]],
    );
}

#[test]
fn rules_between_keys_complain_where_something_was_said() {
    golden(
        &[
            ("worker: {max_running: 600}", &[]),
            ("worker: {max_batch_tokens: 100}", &[]),
            ("worker: {kv_memory_mib: 5}", &["worker.kv_blocks=7"]),
            ("frontend: {tls: {key: Cargo.toml}}", &[]),
            ("", &["frontend.tls.cert=nope.pem", "frontend.tls.key=nope.key"]),
            ("worker: {max_running: x, max_batch_tokens: 1}", &[]),
            ("worker: {model: src}", &[]),
            ("worker: {model: Cargo.toml}", &[]),
        ],
        &expect![[r#"
            worker: {max_running: 600}
              line 1: worker.max_running = 600: must be at most worker.max_batch_tokens (512): each running leg may need a token in every step; lower it or raise worker.max_batch_tokens
            worker: {max_batch_tokens: 100}
              line 1: worker.max_batch_tokens = 100: must be at least worker.max_running (256): each running leg may need a token in every step; raise it or lower worker.max_running
            worker: {kv_memory_mib: 5}
            --set worker.kv_blocks=7
              --set: worker.kv_blocks = 7: worker.kv_blocks and worker.kv_memory_mib exclude each other; keep one
            frontend: {tls: {key: Cargo.toml}}
              line 1: frontend.tls.key = Cargo.toml: holds no PRIVATE KEY; it must be a PEM file with a line -----BEGIN … PRIVATE KEY-----
              line 1: frontend.tls.key = Cargo.toml: needs frontend.tls.cert as well; give both or neither
            --set frontend.tls.cert=nope.pem
            --set frontend.tls.key=nope.key
              --set: frontend.tls.cert = nope.pem: HERE/nope.pem cannot be read: No such file or directory (os error 2); see to its path and permissions
              --set: frontend.tls.key = nope.key: HERE/nope.key cannot be read: No such file or directory (os error 2); see to its path and permissions
            worker: {max_running: x, max_batch_tokens: 1}
              line 1: worker.max_running = x: must be a whole number from 1 to 65536
            worker: {model: src}
              line 1: worker.model = src: its config.json cannot be read: No such file or directory (os error 2); name the directory of a Hugging Face checkpoint
            worker: {model: Cargo.toml}
              line 1: worker.model = Cargo.toml: HERE/Cargo.toml is not a directory; name the directory of a Hugging Face checkpoint
        "#]],
    );
}

#[test]
fn api_keys_never_show_in_errors() {
    let text = "\
frontend:
  api_keys:
    - hunter2
    - sha256:00
    - env:MISSING
    - env:EMPTY
    - {a: b}
";
    golden(
        &[(text, &[])],
        &expect![[r#"
        frontend:
          api_keys:
            - hunter2
            - sha256:00
            - env:MISSING
            - env:EMPTY
            - {a: b}
          line 3: frontend.api_keys[0]: must be sha256:<64 hex digits> or env:NAME; `cuelight hash-key` prints the digest of a key
          line 4: frontend.api_keys[1]: must be sha256:<64 hex digits> or env:NAME; `cuelight hash-key` prints the digest of a key
          line 5: frontend.api_keys[2]: the environment variable MISSING is not set; put a key there
          line 6: frontend.api_keys[3]: the environment variable EMPTY is empty; put a key there
          line 7: frontend.api_keys[4]: must be sha256:<64 hex digits> or env:NAME; `cuelight hash-key` prints the digest of a key
    "#]],
    );
    let digest = format!("sha256:{}", "0f".repeat(32));
    let config = accepted(&format!("frontend: {{api_keys: ['{digest}', env:KEY]}}"), &[]);
    let keys = config.frontend.unwrap().api_keys;
    assert_eq!(keys, [ApiKey([0x0f; 32]), ApiKey::of("secret")], "the newline is no part of it");
    let config = accepted("", &["frontend.api_keys=env:KEY"]);
    assert_eq!(config.frontend.unwrap().api_keys.len(), 1, "one key needs no list");
}
