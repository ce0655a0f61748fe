//! Cuelight's prefix index against those of `dynamo-kv-router`, in one process: README.md.

mod data;
mod ffi;
#[path = "../../../../src/ids.rs"]
#[allow(dead_code)]
mod ids;
#[path = "../../../../src/router/index/mod.rs"]
#[allow(dead_code, unused_imports)]
mod index;
mod subject;

use std::collections::HashMap;
use std::time::Duration;

use data::{Chain, Data, Op, Shape};
use subject::{Concurrent, Ours, Subject, Tree};

#[global_allocator]
static ALLOCATOR: ffi::Counted = ffi::Counted;

/// The structures, and the most bytes that one was seen to take for a pair of a rank and a block.
const STRUCTURES: [(&str, f64); 4] =
    [("cuelight", 60.0), ("radix-tree", 110.0), ("compressed", 120.0), ("positional", 200.0)];
const USAGE: &str = "kv-index time|memory SHAPE RANKS STORES ROUNDS [STRUCTURE…]";
/// What `time` prints, in this order.
const FIGURES: usize = 10;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [mode, shape, ranks, stores, rounds, names @ ..] = args.as_slice() else {
        panic!("{USAGE}")
    };
    let shape_of = Shape::named(shape).expect(USAGE);
    let [ranks, stores, rounds] = [ranks, stores, rounds].map(|n| n.parse().expect(USAGE));
    let all = STRUCTURES.map(|(name, _)| name.to_owned());
    let names: Vec<&String> = if names.is_empty() { all.iter() } else { names.iter() }.collect();
    let row = |name: &str| format!("| {shape} | {ranks} | {} M | {name} |", stores / 1_000_000);
    let (names, skipped): (Vec<_>, Vec<_>) =
        names.into_iter().partition(|name| fits(&shape_of, ranks, stores, name));
    for name in skipped {
        println!("{} skipped: this machine has not enough memory |", row(name));
    }
    if names.is_empty() {
        return;
    }
    let mut data = Data::new(shape_of, ranks as u32, stores);
    let mut figures = vec![Vec::new(); names.len()];
    for _ in 0..rounds {
        for (name, figures) in names.iter().zip(&mut figures) {
            figures.push(match mode.as_str() {
                "memory" => vec![memory(&mut data, name)],
                "time" => time(&mut data, name).to_vec(),
                other => panic!("{other}: {USAGE}"),
            });
        }
    }
    for (name, figures) in names.iter().zip(figures) {
        print!("{}", row(name));
        for nth in 0..figures[0].len() {
            let mut rounds: Vec<f64> = figures.iter().map(|round| round[nth]).collect();
            rounds.sort_by(f64::total_cmp);
            let figure = rounds[rounds.len() / 2];
            print!(" {figure:.*} |", if figure < 0.1 { 3 } else { usize::from(figure < 100.0) });
        }
        println!();
    }
}

fn subject(name: &str, ranks: u32) -> Box<dyn Subject> {
    match name {
        "cuelight" => Box::new(Ours::new(ranks)),
        "radix-tree" => Box::new(Tree::new()),
        "compressed" => Box::new(Concurrent::compressed()),
        "positional" => Box::new(Concurrent::positional()),
        other => panic!("{other} is none of {STRUCTURES:?}"),
    }
}

/// Whether there is memory for the structure and what it is given; says so if not.
fn fits(shape: &Shape, ranks: usize, stores: usize, name: &str) -> bool {
    let each = STRUCTURES.iter().find(|(known, _)| *known == name).map_or(0.0, |(_, each)| *each);
    let needed = stores as f64 * each + shape.bytes(ranks, stores) as f64;
    let text = std::fs::read_to_string("/proc/meminfo").expect("procfs");
    let available = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let available = available.and_then(|line| line.split_whitespace().next()?.parse().ok());
    let available = 1024.0 * available.unwrap_or(0.0);
    let fits = needed < 0.9 * available;
    if !fits {
        let [needed, available] = [needed, available].map(|bytes| bytes / (1_u64 << 30) as f64);
        eprintln!("{name}: SKIPPED, it may need {needed:.1} GiB; {available:.1} GiB are available");
    }
    fits
}

/// Bytes allocated for each pair of a rank and a block it holds.
fn memory(data: &mut Data, name: &str) -> f64 {
    let stores = data.stores();
    let pairs: usize = stores.iter().map(|op| op.blocks.len()).sum();
    ffi::start_counting();
    let before = ffi::bytes();
    let mut subject = subject(name, data.ranks);
    subject.apply(data, &stores);
    let bytes = (ffi::bytes() - before) as f64;
    if name == "cuelight" {
        let mut ours = Ours::new(data.ranks);
        ours.apply(data, &stores);
        let said = ours.bytes() as f64;
        // A look-up's scratch memory is the caller's.
        let off = (said - bytes).abs() - size_of_val(&[0_u32; 1 << 12]) as f64;
        assert!(off < bytes / 20.0, "it says {said} of {bytes} bytes");
    }
    bytes / pairs as f64
}

/// Stores, one-block stores, removes and one-block removes in million blocks a second; hits,
/// partial hits and misses in nanoseconds; one rank's removal in milliseconds, until look-ups leave
/// it out and until all is done; million blocks a second when all ranks are removed.
fn time(data: &mut Data, name: &str) -> [f64; FIGURES] {
    let blocks = data.shape.blocks;
    let stores = data.stores();
    let mut subject = subject(name, data.ranks);
    let stored = rate(subject.apply(data, &stores), &stores);
    let queries = data::queries_of(blocks);
    let hits = data.queries(queries, blocks..=blocks);
    let partial = data.queries(queries, data.shape.shared.max(1)..=blocks - 1);
    let misses = data.queries(queries, 0..=0);
    let mut holders: Holders<'_> = HashMap::new();
    for op in &stores {
        holders.entry(data.chains[op.chain].local[0].0).or_default().push(op);
    }
    for query in hits.iter().chain(&partial).chain(&misses).step_by(queries / 100) {
        check(&mut *subject, &holders, data, query);
    }
    let [hit, partial, miss] =
        [&hits, &partial, &misses].map(|queries| look_up(&mut *subject, queries));
    let decodes = data.decodes(400_000);
    let decoded = rate(subject.apply(data, &decodes), &decodes);
    let mut removes = data.removes(&decodes);
    removes.truncate(removes.len() / 2);
    let single = rate(subject.apply(data, &removes), &removes);
    let removes = data.removes(&stores[stores.len() / 2..]);
    let removed = rate(subject.apply(data, &removes), &removes);
    let (hidden, one) = subject.remove_ranks(&[0]);
    let rest: Vec<u32> = (1..data.ranks).collect();
    let (_, all) = subject.remove_ranks(&rest);
    assert!(subject.told(&hits[0]).is_empty(), "{name} still tells of ranks that are gone");
    let left: usize = stores[..stores.len() / 2].iter().map(|op| op.blocks.len()).sum();
    let all = left as f64 / 1e6 / (one + all).as_secs_f64();
    let [hidden, one] = [hidden, one].map(|took| took.as_secs_f64() * 1e3);
    [stored, decoded, removed, single, hit, partial, miss, hidden, one, all]
}

/// Million blocks a second.
fn rate(took: Duration, ops: &[Op]) -> f64 {
    let blocks: usize = ops.iter().map(|op| op.blocks.len()).sum();
    blocks as f64 / took.as_secs_f64() / 1e6
}

/// Nanoseconds a look-up: the median, over several rounds.
fn look_up(subject: &mut dyn Subject, queries: &[Chain]) -> f64 {
    let mut took: Vec<Duration> = (0..5).flat_map(|_| subject.look_up(queries)).collect();
    let middle = took.len() / 2;
    took.select_nth_unstable(middle).1.as_nanos() as f64
}

/// Who stores what, by the first block.
type Holders<'a> = HashMap<u64, Vec<&'a Op>>;

/// Panics unless the ranks told are those that hold the blocks.
fn check(subject: &mut dyn Subject, holders: &Holders<'_>, data: &Data, query: &Chain) {
    let mut expected = subject::Depths::new();
    for op in holders.get(&query.local[0].0).into_iter().flatten() {
        let held = &data.chains[op.chain].local;
        let same = held.iter().zip(&query.local).take_while(|(a, b)| a == b).count();
        let depth = expected.entry(op.rank).or_insert(0);
        *depth = (*depth).max(same.min(op.blocks.end) as u32);
    }
    assert_eq!(subject.told(query), expected);
}
