//! How fast KV blocks move between two processes, next to a memory copy, a plain socket and raw UCX.
//!
//! `cargo bench --bench kvxfer [-- --quick] [-- --rounds N] [-- --blocks 4,64,4096] [-- --only socket,tcp]`
//!
//! Blocks have 64 KiB. *scattered*: they lie in different orders on both sides, so that none can be
//! joined; *in order*: side by side on both sides, one run. All subjects take turns in every round;
//! the table has the medians. CPU is that of both processes. UCX and NIXL are found as the transports
//! find them (`CUELIGHT_UCX_DIR`, `CUELIGHT_NIXL_DIR`), or in the Python environment of the client
//! tests.

mod peer;
mod raw;
mod subject;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cuelight::kvxfer::Run;
use subject::Subject;

/// Bytes of a block.
pub(crate) const BLOCK: u64 = 64 << 10;
/// Bytes that a round of one cell moves at least, so that short pulls are measured too.
const ROUND_BYTES: u64 = 256 << 20;

struct Setup {
    blocks: Vec<u32>,
    rounds: usize,
    latencies: usize,
}

fn main() {
    if let Ok(kind) = std::env::var(peer::KIND) {
        return peer::serve(&kind);
    }
    let mut setup = Setup { blocks: vec![4, 16, 64, 256, 1024, 4096], rounds: 9, latencies: 2000 };
    let (mut args, mut only) = (std::env::args().skip(1), None);
    while let Some(arg) = args.next() {
        let mut value = || args.next().unwrap_or_else(|| panic!("{arg} needs a value"));
        match arg.as_str() {
            "--bench" => {} // cargo says so
            "--quick" => setup = Setup { blocks: vec![4, 64], rounds: 2, latencies: 50 },
            "--rounds" => setup.rounds = value().parse().expect("--rounds needs a number"),
            "--blocks" => {
                let numbers = value();
                let parse = |n: &str| n.parse().expect("--blocks needs numbers");
                setup.blocks = numbers.split(',').map(parse).collect();
            }
            "--only" => only = Some(value()),
            _ => panic!("unknown argument {arg}; see the top of benches/kvxfer/main.rs"),
        }
    }
    let most = setup.blocks.iter().copied().max().expect("some number of blocks").max(4);
    let mut subjects = subject::all(most);
    // The memory copy stays: all others are compared with it.
    subjects.retain(|one| {
        let name = one.name().to_lowercase();
        let is_wanted = |only: &String| only.split(',').any(|part| name.contains(part));
        name == subject::COPY || only.as_ref().is_none_or(is_wanted)
    });
    println!("| blocks | order | by | GB/s median | low..high | CPU s/GB | of memory copy |");
    println!("|---|---|---|---|---|---|---|");
    for count in &setup.blocks {
        for (order, runs) in [("scattered", scattered(*count)), ("in order", in_order(*count))] {
            bandwidth(&mut subjects, &setup, (*count, order), &runs);
        }
    }
    println!("\n| 4 blocks, scattered | p50 µs | p99 µs |\n|---|---|---|");
    for subject in &mut subjects {
        latency(subject.as_mut(), setup.latencies);
    }
}

/// Where UCX is, if the environment does not say.
pub(crate) fn ucx_dir() -> Option<PathBuf> {
    named("CUELIGHT_UCX_DIR").or_else(|| installed("libucx/lib"))
}

/// Where NIXL is, if the environment does not say.
pub(crate) fn nixl_dir() -> Option<PathBuf> {
    named("CUELIGHT_NIXL_DIR").or_else(|| installed(".nixl_cu13.mesonpy.libs"))
}

fn named(key: &str) -> Option<PathBuf> {
    std::env::var_os(key).map(PathBuf::from)
}

/// A folder of the client tests' Python environment.
fn installed(folder: &str) -> Option<PathBuf> {
    let venv = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-venv/lib");
    let pythons = std::fs::read_dir(venv).ok()?.flatten();
    pythons.map(|p| p.path().join("site-packages").join(folder)).find(|dir| dir.is_dir())
}

/// Multiplying by an odd number mod a power of two leaves no two neighbours together.
fn scattered(count: u32) -> Vec<Run> {
    let span = u64::from(count.next_power_of_two());
    let place = |block: u64, by: u64| (block * by) % span * BLOCK;
    let run = |block| Run { remote: place(block, 5), local: place(block, 11), bytes: BLOCK };
    let mut runs: Vec<Run> = (0..u64::from(count)).map(run).collect();
    runs.sort_unstable_by_key(|run| run.local);
    runs
}

fn in_order(count: u32) -> Vec<Run> {
    vec![Run { remote: 0, local: 0, bytes: u64::from(count) * BLOCK }]
}

fn bandwidth(
    subjects: &mut [Box<dyn Subject>],
    setup: &Setup,
    (count, order): (u32, &str),
    runs: &[Run],
) {
    let bytes = u64::from(count) * BLOCK;
    let repeats = ROUND_BYTES.div_ceil(bytes);
    let gigabytes = (bytes * repeats) as f64 / 1e9;
    let mut rates = vec![Vec::new(); subjects.len()];
    let mut cpu = vec![Duration::ZERO; subjects.len()];
    for round in 0..=setup.rounds {
        for (place, subject) in subjects.iter_mut().enumerate() {
            let before = subject.cpu();
            let start = Instant::now();
            for _ in 0..repeats {
                subject.pull(runs);
            }
            let took = start.elapsed();
            if round > 0 {
                // The first one touches pages and opens connections.
                rates[place].push(gigabytes / took.as_secs_f64());
                cpu[place] += subject.cpu() - before;
            }
        }
    }
    for rates in &mut rates {
        rates.sort_unstable_by(f64::total_cmp);
    }
    let median = |rates: &Vec<f64>| rates[rates.len() / 2];
    let copy = median(&rates[0]);
    for ((subject, rates), cpu) in subjects.iter().zip(&rates).zip(cpu) {
        let per_gigabyte = cpu.as_secs_f64() / (gigabytes * rates.len() as f64);
        println!(
            "| {count} | {order} | {} | {:.2} | {:.2}..{:.2} | {per_gigabyte:.3} | {:.0} % |",
            subject.name(),
            median(rates),
            rates[0],
            rates[rates.len() - 1],
            100.0 * median(rates) / copy,
        );
    }
}

fn latency(subject: &mut dyn Subject, count: usize) {
    let runs = scattered(4);
    let mut times: Vec<Duration> = (0..count + 10)
        .map(|_| {
            let start = Instant::now();
            subject.pull(&runs);
            start.elapsed()
        })
        .skip(10)
        .collect();
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e6;
    println!("| {} | {:.1} | {:.1} |", subject.name(), at(0.5), at(0.99));
}
