//! Real processes, really broken: the shipped cluster of `configs/chaos` under all faults of
//! processes and engines, and a server whose answers are cut short, which must be found out.
#![allow(clippy::unwrap_used)]

#[path = "chaos_support/mod.rs"]
mod support;

use serde_json::Value;
use support::{Liar, chaos, cluster_files};

/// Every kind comes twice on workers; the same seed in every run, so that a failure can be replayed.
const SEED: &str = "20";
const FAULTS: &str = "24";

#[test]
fn no_client_can_tell_that_processes_and_engines_fail() {
    let files = cluster_files("healthy");
    let faketime = faketime();
    let mut args = vec!["--seed", SEED, "--faults", FAULTS, "--clients", "8", "--pause-ms", "400"];
    args.extend(["--faketime", &faketime]);
    args.extend(files.iter().flat_map(|file| ["--node", file.as_str()]));
    let run = chaos("healthy", &args);
    assert_eq!(run.code, 0, "{}", run.shown());

    let report = run.report();
    assert_eq!(report["violations_total"], 0, "{}", run.shown());
    let kinds = ["kill", "stop", "drain", "restart", "clock_jump"];
    for kind in kinds.into_iter().chain(["engine_panic", "engine_hang", "step_fails"]) {
        let rows: Vec<&Value> = rows(&report, kind).collect();
        let count: u64 = rows.iter().filter_map(|row| row["count"].as_u64()).sum();
        let without: u64 = rows.iter().filter_map(|row| row["no_effect"].as_u64()).sum();
        assert_eq!((count, without), (2, 0), "{kind}: {}", run.shown());
    }
    let answers = report["answers"].as_object().unwrap();
    assert!(answers.values().all(|count| count.as_u64() > Some(3)), "{answers:?}");
    assert_eq!(report["full_ranks"], 3);
}

/// Where Debian's package puts it.
fn faketime() -> String {
    let libraries = std::fs::read_dir("/usr/lib").unwrap().flatten();
    let mut found = libraries.map(|dir| dir.path().join("faketime/libfaketimeMT.so.1"));
    let library = found.find(|library| library.is_file());
    library.expect("install libfaketime, as `tests/run rust` does").display().to_string()
}

fn rows<'a>(report: &'a Value, kind: &'a str) -> impl Iterator<Item = &'a Value> {
    report["kinds"].as_array().unwrap().iter().filter(move |row| row["kind"] == kind)
}

#[test]
fn answers_that_are_cut_short_or_changed_are_found_out() {
    for (lie, invariant) in [
        (Liar::Truncates, "no_truncated_success"),
        (Liar::Changes, "output_equals_fault_free"),
        (Liar::EndsTwice, "ends_exactly_once"),
        (Liar::Leaks, "nothing_left"),
    ] {
        let url = lie.serve();
        let run = chaos(
            &format!("{lie:?}"),
            &[
                "--attach",
                &url,
                "--faults",
                "2",
                "--only",
                "vanishing_client",
                "--clients",
                "2",
                "--pause-ms",
                "50",
                "--settle-timeout",
                "1",
                "--heal-timeout",
                "2",
            ],
        );
        assert_eq!(run.code, 1, "{lie:?}: {}", run.shown());
        let report = run.report();
        let violations = report["violations"].as_array().unwrap();
        let found = violations.iter().any(|violation| violation["invariant"] == invariant);
        assert!(found, "{lie:?}: {}", run.shown());
    }
}
