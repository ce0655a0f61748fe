//! The table and the verdict of a small run.

use expect_test::expect;

use super::super::ledger::Window;
use super::super::plan::{Action, Work};
use super::*;

/// A ledger's contents with faults that made these gaps, in milliseconds.
fn contents(gaps: &[u64]) -> Contents {
    let window = |&gap: &u64| Window::with_gap(Duration::from_millis(gap));
    Contents {
        windows: gaps.iter().map(window).collect(),
        totals: Totals { requests: 30, complete: 28, failed: 2, excused: 1, wrong: 0 },
        by_ask: vec![("short", 28)],
        calm: vec![(Duration::from_millis(3), Duration::from_millis(4))],
        violations: Vec::new(),
        violations_total: 0,
    }
}

fn node(name: &str, frontend: bool) -> NodeReport {
    let role = Role { frontend, worker: (!frontend).then_some(Work::Decode) };
    NodeReport { name: name.to_owned(), role, starts: 3, before: None, after: None }
}

fn findings(violations: Vec<Violation>) -> Findings {
    let planned = |index, fault| {
        let target = Some(1 - index % 2);
        Planned { index, pause_ms: 1, target, aim: None, fault }
    };
    let outcome = |hit: &str, heal: f64| Outcome {
        hit: hit.to_owned(),
        heal_ms: Some(heal),
        no_effect: false,
        replaced: 0,
        phases: Some(BTreeMap::from([(Phase::Lent, 2), (Phase::Decoding, 1)])),
    };
    let mut ledger = contents(&[40, 50, 9]);
    ledger.windows[1].failed = 2;
    ledger.windows[1].excused = 1;
    ledger.violations_total = violations.len();
    ledger.violations = violations;
    Findings {
        command: "cuelight chaos --seed 7".to_owned(),
        seed: 7,
        duration: Duration::from_secs(61),
        interrupted: false,
        nodes: vec![node("front", true), node("w1", false)],
        full_ranks: 3,
        full_prefill_ranks: 0,
        ledger,
        faults: vec![
            (planned(0, Action::Kill { down_ms: 5 }), outcome("w1", 300.0)),
            (planned(1, Action::Kill { down_ms: 5 }), outcome("w1", 400.0)),
            (
                planned(2, Action::EngineHang { ms: 9 }),
                Outcome { no_effect: true, replaced: 1, phases: None, ..outcome("w1", 2000.0) },
            ),
        ],
        left_out: vec![(Kind::Etcd, "needs --etcd")],
        slack: Slack { rss_mib: 1, fds: 1 },
        logs: "dir".to_owned(),
    }
}

#[test]
fn the_table_has_a_line_for_each_kind_and_the_verdict_comes_last() {
    let violation =
        Violation { invariant: "heals", evidence: "w1: not well".to_owned(), faults: vec![1] };
    let report = Report::new(findings(vec![violation]));
    assert!(!report.holds());
    expect![[r#"
        fault                  count  touched  failed  excused  wrong    gap ms p50/p99/max  first ms p50/p99/max   heal ms p50/p99
        kill                       1       10       0        0      0              40/40/40                 0/0/0           300/300
        kill (front end)           1       10       2        1      0              50/50/50                 0/0/0           400/400
        engine_hang                1       10       0        0      0                 9/9/9                 0/0/0         2000/2000  1 without effect  1 processes replaced

        fault                 of           count        queued    prefilling          lent      reserved  transferring      decoding   idle  unseen
        kill                  front_end        1             0             0             1             0             0             1      0       0
        kill                  decode           1             0             0             1             0             0             1      0       0
        engine_hang           decode           1             0             0             0             0             0             0      0       1

        calm streams: 1, gap ms 4/4/4, first ms 3/3/3
        requests: 30, complete 28, failed 2 (1 excused by their fault), wrong 0
        starts of processes: front 3, w1 3
        left out: etcd, needs --etcd
        VIOLATED heals: w1: not well [fault 1: kill of w1]
        logs: dir
        violated: 3 faults in 61 s with seed 7
    "#]].assert_eq(&report.to_text());
}

#[test]
fn json_has_the_schedule_and_the_seed() {
    let report = Report::new(findings(Vec::new()));
    assert!(report.holds());
    let value: serde_json::Value = serde_json::from_str(&report.to_json()).unwrap();
    assert_eq!((&value["seed"], &value["verdict"]), (&7.into(), &"ok".into()));
    assert_eq!(value["faults"][0]["fault"]["kind"], "kill");
    assert_eq!(value["faults"][2]["heal_ms"], 2000.0);
    assert_eq!(value["faults"][0]["phases"], serde_json::json!({ "lent": 2, "decoding": 1 }));
    assert_eq!(value["caught"][1]["phases"]["decoding"], 1);
    let kind =
        |index: usize| (&value["kinds"][index], value["kinds"][index]["at_frontend"] == true);
    assert_eq!((kind(0).1, &kind(0).0["gap_ms"]["max"]), (false, &40.0.into()));
    assert_eq!((kind(1).1, &kind(1).0["gap_ms"]["max"]), (true, &50.0.into()));
}

#[test]
fn a_spread_is_by_nearest_rank() {
    let spread = Spread::of((1..=200).map(f64::from).collect());
    assert_eq!(spread, Spread { count: 200, p50: 100.0, p99: 198.0, max: 200.0 });
    assert_eq!(Spread::of(vec![3.0]), Spread { count: 1, p50: 3.0, p99: 3.0, max: 3.0 });
    assert_eq!(Spread::of(Vec::new()), Spread::default());
}
