//! `cuelight bench` against a node with the sim engine, and against servers that do not do well.
#![allow(clippy::unwrap_used)]

#[path = "bench_support/mod.rs"]
mod support;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::{Behaviour, Fake, Node, bench, start};

const TRACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/mooncake.jsonl");

fn number(report: &Value, path: &str) -> u64 {
    let found = report.pointer(path).unwrap_or_else(|| panic!("no {path} in {report}"));
    found.as_u64().unwrap_or_else(|| panic!("{path} is {found}"))
}

/// Complete, failed and not sent.
fn ends(report: &Value) -> [u64; 3] {
    ["complete", "failed", "not_sent"].map(|end| number(report, &format!("/requests/{end}")))
}

#[test]
fn a_closed_loop_sends_what_it_is_told_and_measures_all_of_it() {
    let node = Node::start(&[]);
    let (url, pid) = (node.url(), node.pid().to_string());
    let run = bench(
        "closed",
        &[
            &["--url", &url, "--concurrency", "4", "--requests", "30", "--warmup", "5"][..],
            &["--prompt-tokens", "50", "--output-tokens", "8", "--pid", &pid],
            &["--slo", "ttft=30s,itl=30s"],
        ]
        .concat(),
    );
    assert_eq!(run.code, 0, "{}", run.shown());
    let report = run.report();
    assert_eq!((ends(&report), number(&report, "/requests/sent")), ([30, 0, 0], 30));
    assert_eq!(number(&report, "/tokens/input"), 30 * 50);
    assert_eq!(number(&report, "/tokens/output"), 30 * 8);
    assert_eq!(number(&report, "/requests/other_length"), 0);
    assert_eq!(number(&report, "/ttft_ms/count"), 30);
    assert_eq!(number(&report, "/goodput/met"), 30);
    assert_eq!(number(&report, "/processes/0/pid"), u64::from(node.pid()));
    assert!(report["processes"][0]["rss_mib_peak"].as_f64() > Some(1.0), "{report}");
    assert!(report["generator"]["cpu_us_per_token"].as_f64() > Some(0.0), "{report}");
    assert_eq!(report["model"], "cuelight-tiny");
    let events = report["over_time"]["events"].as_array().unwrap();
    let events: u64 = events.iter().filter_map(Value::as_u64).sum();
    assert_eq!(events, number(&report, "/tokens/events"));
    assert!(
        run.plot().starts_with("<svg ") && run.out.contains("30 complete, 0 failed"),
        "{}",
        run.out
    );
}

#[test]
fn an_open_loop_does_not_wait_and_counts_what_it_could_not_send() {
    let node = Node::start(&["worker.sim.step_us=5000"]); // an answer takes 100 ms
    let url = node.url();
    let load = ["--url", &url, "--rate", "200", "--requests", "40", "--output-tokens", "20"];
    let run = bench("open", &load);
    assert_eq!(run.code, 0, "{}", run.shown());
    assert_eq!(ends(&run.report()), [40, 0, 0], "{}", run.shown());

    let run = bench(
        "limited",
        &[&load[..], &["--arrivals", "constant", "--max-in-flight", "2"]].concat(),
    );
    let [complete, failed, not_sent] = ends(&run.report());
    assert_eq!((run.code, complete + not_sent, failed), (0, 40, 0), "{}", run.shown());
    assert!(not_sent > 10 && complete >= 2, "{}", run.shown());
}

#[test]
fn conversations_repeat_what_was_said() {
    let node = Node::start(&[]);
    let url = node.url();
    let sessions = |name: &str, more: &[&str]| {
        let all = ["--url", &url, "--workload", "sessions", "--turns", "3", "--concurrency", "1"];
        let sizes = ["--requests", "12", "--prompt-tokens", "16", "--output-tokens", "8"];
        let run = bench(name, &[&all[..], &sizes, more].concat());
        assert_eq!(run.code, 0, "{}", run.shown());
        let report = run.report();
        assert_eq!((ends(&report), number(&report, "/tokens/output")), ([12, 0, 0], 12 * 8));
        report
    };
    // Prompts of 16, 16 + 8 + 16 and 40 + 8 + 16 tokens, four times.
    let report = sessions("ids", &["--think-ms", "1:3"]);
    assert_eq!(number(&report, "/tokens/input"), 4 * (16 + 40 + 64));
    assert!(number(&report, "/tokens/cached") > 0);
    let report = sessions("words", &["--api", "chat"]);
    assert!(number(&report, "/tokens/input") > 4 * (16 + 40 + 64) / 2, "{report}");
}

#[test]
fn a_trace_is_played_as_it_was_recorded() {
    let node = Node::start(&[]);
    let url = node.url();
    let run = bench("trace", &["--url", &url, "--trace", TRACE, "--speedup", "4"]);
    assert_eq!(run.code, 0, "{}", run.shown());
    let report = run.report();
    let lines: Vec<Value> = std::fs::read_to_string(TRACE)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let sum = |name: &str| lines.iter().map(|line| line[name].as_u64().unwrap()).sum::<u64>();
    assert_eq!(ends(&report), [lines.len() as u64, 0, 0], "{}", run.shown());
    assert_eq!(number(&report, "/tokens/input"), sum("input_length"));
    assert_eq!(number(&report, "/tokens/output"), sum("output_length"));
    // Most blocks come again; the same block must be the same tokens.
    assert!(number(&report, "/tokens/cached") > sum("input_length") / 3, "{}", run.shown());
    let last = lines.last().unwrap()["timestamp"].as_f64().unwrap() / 4e3;
    assert!(report["duration_s"].as_f64().unwrap() >= last, "{}", run.shown());
}

#[test]
fn failures_are_counted_by_kind_and_decide_the_exit_code() {
    let node = Node::start(&[]);
    let url = node.url();
    let args = ["--url", &url, "--requests", "3", "--prompt-tokens", "9000"];
    let run = bench("too-long", &args);
    assert_eq!(run.code, 1, "{}", run.shown());
    assert_eq!(run.report()["errors"][0]["kind"], "http_400", "{}", run.shown());
    assert_eq!(bench("allowed", &[&args[..], &["--allow-errors"]].concat()).code, 0);

    for (behaviour, kind) in [
        (Behaviour::EndsWithoutDone, "truncated"),
        (Behaviour::Breaks, "connection"),
        (Behaviour::SaysError, "error_event"),
        (Behaviour::Hangs, "timeout"),
    ] {
        let fake = Fake::start(behaviour);
        let args = ["--url", &fake.url, "--concurrency", "2", "--requests", "2", "--timeout", "1"];
        let run = bench(kind, &args);
        assert_eq!((run.code, ends(&run.report())), (1, [0, 2, 0]), "{}", run.shown());
        assert_eq!(run.report()["errors"][0]["kind"], kind, "{}", run.shown());
    }
}

#[test]
fn a_connection_that_was_closed_between_two_requests_is_no_failure() {
    let fake = Fake::start(Behaviour::ClosesAfterwards);
    let run = bench("closes", &["--url", &fake.url, "--concurrency", "1", "--requests", "5"]);
    assert_eq!((run.code, ends(&run.report())), (0, [5, 0, 0]), "{}", run.shown());
}

#[test]
fn the_first_signal_ends_the_run_with_a_report() {
    let fake = Fake::start(Behaviour::Hangs);
    let args = ["--url", &fake.url, "--concurrency", "3", "--duration", "600"];
    let running = start("signal", &args);
    fake.wait_for_requests(3);
    kill_process(Pid::from_raw(running.pid() as i32).unwrap(), Signal::INT).unwrap();
    let run = running.finish();
    let report = run.report();
    assert_eq!((run.code, &report["interrupted"]), (0, &Value::Bool(true)), "{}", run.shown());
    assert_eq!(
        (ends(&report), number(&report, "/requests/cut")),
        ([0, 0, 0], 3),
        "{}",
        run.shown()
    );
}
