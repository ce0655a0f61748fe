//! The exported text, parsed as a scraper would.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use super::*;
use crate::engine::Load;
use crate::ids::Generation;

fn filled() -> Metrics {
    let metrics = Metrics::new();
    let model = metrics.model("m\"\\\n");
    model.ttft.observe(Duration::from_millis(30));
    model.requests.inc(Outcome::Ok);
    model.cancellations.inc(Cancellation::SlowClient);
    let worker = metrics.worker("w", RankIndex(0));
    worker.set_load(&Load { blocks_used: 3, preemptions: 2, ..Load::default() }, &Load::default());
    worker.set_generation(Generation(4));
    metrics.http.answered("/v1/models", "GET", 200);
    metrics.restarted("worker");
    metrics.set_limits([("frontend.max_requests", 4096.0)]);
    metrics
}

/// Family name → type, after checking that the text is what OpenMetrics asks for.
fn families(text: &str) -> HashMap<String, String> {
    let mut types = HashMap::new();
    let mut helped = HashSet::new();
    let mut current = String::new();
    let body = text.strip_suffix("# EOF\n").expect("ends with # EOF");
    for line in body.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect(line);
            assert!(!help.is_empty() && !help.ends_with(".."), "{line}");
            assert!(helped.insert(name.to_owned()), "{name} is described twice");
            name.clone_into(&mut current);
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect(line);
            assert_eq!(name, current, "TYPE follows its HELP");
            assert!(types.insert(name.to_owned(), kind.to_owned()).is_none(), "{name} twice");
        } else {
            assert!(!line.starts_with('#'), "{line}");
            let (series, value) = line.rsplit_once(' ').expect(line);
            value.parse::<f64>().expect(line);
            let name = series.split('{').next().unwrap();
            let suffix = name.strip_prefix(current.as_str()).expect(line);
            let allowed: &[&str] = match types[&current].as_str() {
                "counter" => &["_total"],
                "gauge" => &[""],
                "info" => &["_info"],
                "histogram" => &["_bucket", "_sum", "_count"],
                other => panic!("type {other} of {current}"),
            };
            assert!(allowed.contains(&suffix), "{line}");
        }
    }
    assert_eq!(helped.len(), types.len(), "every family has HELP and TYPE");
    types
}

#[test]
fn every_family_has_help_and_type_and_samples_of_its_own() {
    let text = filled().encode();
    let families = families(&text);
    for name in families.keys() {
        assert!(name.starts_with("cuelight_") || name.starts_with("process_"), "{name}");
    }
    for name in ["cuelight_ttft_seconds", "cuelight_limit", "process_open_fds", "cuelight_build"] {
        assert!(families.contains_key(name), "{name} is missing of {families:?}");
    }
}

#[test]
fn what_was_counted_can_be_read() {
    let text = filled().encode();
    for line in [
        r#"cuelight_ttft_seconds_bucket{le="0.025",model="m\"\\\n"} 0"#,
        r#"cuelight_ttft_seconds_bucket{le="0.05",model="m\"\\\n"} 1"#,
        r#"cuelight_ttft_seconds_bucket{le="+Inf",model="m\"\\\n"} 1"#,
        r#"cuelight_ttft_seconds_sum{model="m\"\\\n"} 0.03"#,
        r#"cuelight_requests_total{model="m\"\\\n",outcome="ok"} 1"#,
        r#"cuelight_requests_total{model="m\"\\\n",outcome="failed"} 0"#,
        r#"cuelight_cancellations_total{model="m\"\\\n",reason="slow_client"} 1"#,
        r#"cuelight_kv_blocks_used{worker="w",rank="0"} 3"#,
        r#"cuelight_preemptions_total{worker="w",rank="0"} 2"#,
        r#"cuelight_generation{worker="w",rank="0"} 4"#,
        r#"cuelight_http_requests_total{route="/v1/models",method="GET",status="200"} 1"#,
        r#"cuelight_restarts_total{part="worker"} 1"#,
        r#"cuelight_limit{key="frontend.max_requests"} 4096.0"#,
        r#"cuelight_http_refused_total{reason="draining"} 0"#,
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is missing of\n{text}");
    }
}

#[test]
fn one_name_has_one_handle() {
    let metrics = Metrics::new();
    assert!(Arc::ptr_eq(&metrics.model("a"), &metrics.model("a")));
    let (a, b) = (metrics.worker("w", RankIndex(0)), metrics.worker("w", RankIndex(1)));
    assert!(!Arc::ptr_eq(&a, &b));
}

#[test]
fn preemptions_add_up_over_engines() {
    let worker = Metrics::new().worker("w", RankIndex(0));
    let load = |preemptions| Load { preemptions, ..Load::default() };
    worker.set_load(&load(5), &load(0));
    worker.set_load(&load(7), &load(5));
    worker.set_load(&load(1), &load(0)); // a new engine counts from zero
    assert_eq!(worker.preemptions.get(), 8);
}

#[test]
fn observing_costs_nanoseconds() {
    let model = Metrics::new().model("m");
    let rounds = 1_000_000_u32;
    let cost = |_| {
        let start = Instant::now();
        for i in 0..rounds {
            model.inter_token_latency.observe(Duration::from_micros(u64::from(i % 50_000)));
            model.output_tokens.inc();
        }
        start.elapsed() / rounds
    };
    let best = (0..5).map(cost).min().unwrap();
    println!("one observation and one increment: {best:?}");
    // Loose by an order of magnitude: it guards against a lock or a lookup, not against a slow day.
    assert!(best < Duration::from_nanos(300), "{best:?}");
}
