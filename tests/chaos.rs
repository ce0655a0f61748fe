//! Real processes, really broken: the shipped cluster of `configs/chaos` under all faults of
//! processes and engines, and a server whose answers are cut short, which must be found out.
#![allow(clippy::unwrap_used)]

#[path = "chaos_support/mod.rs"]
mod support;

use std::sync::{Mutex, PoisonError};

use serde_json::Value;
use support::{Liar, chaos, cluster_files};

/// Every kind comes twice on workers; the same seed in every run, so that a failure can be replayed.
const SEED: &str = "20";
const FAULTS: &str = "24";
/// Under this one each kind hits a front end, and a worker.
const NETWORK_SEED: &str = "1";

/// Held by the test whose cluster runs: two would take the cores from each other.
static CLUSTER: Mutex<()> = Mutex::new(());

#[test]
fn no_client_can_tell_that_processes_and_engines_fail() {
    let _alone = CLUSTER.lock().unwrap_or_else(PoisonError::into_inner);
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
fn no_client_can_tell_that_packets_are_late_or_lost_or_that_a_front_end_is_cut_off() {
    let ip = std::process::Command::new("ip").arg("netns").output();
    let has_ip = ip.is_ok_and(|done| done.status.success());
    let is_root = rustix::process::geteuid().is_root();
    if !has_ip || !is_root || !std::path::Path::new("/dev/net/tun").exists() {
        eprintln!("NOT TESTED: faults of the network: they need root, `ip` and /dev/net/tun");
        return;
    }
    let _alone = CLUSTER.lock().unwrap_or_else(PoisonError::into_inner);
    let files = ["front", "front2", "w1", "w2"];
    let files = files.map(|node| format!("configs/chaos/{node}.yaml"));
    let mut args = vec!["--netns", "--netns-wires", "switch", "--seed", NETWORK_SEED];
    args.extend(["--only", "partition,delay,loss", "--faults", "9", "--clients", "6"]);
    args.extend(["--pause-ms", "300"]);
    args.extend(files.iter().flat_map(|file| ["--node", file.as_str()]));
    let run = chaos("network", &args);
    assert_eq!(run.code, 0, "{}", run.shown());

    let report = run.report();
    for kind in ["partition", "delay", "loss"] {
        let count = |at_frontend: bool| -> u64 {
            let at = rows(&report, kind).filter(|row| row["at_frontend"] == at_frontend);
            at.filter_map(|row| row["count"].as_u64()).sum()
        };
        assert!(count(true) > 0 && count(false) > 0, "{kind}: {}", run.shown());
    }
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
