//! What arrives is what was asked for.

use std::time::{Duration, Instant};

use cuelight::kvxfer::{Event, GrantId, Reach, Run, TransferId, XferError};

use super::peer::{BLOCK_BYTES, Peer};
use super::puller::{PATIENCE, Puller, blocks, is_one_sided};

/// SplitMix64.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

/// Ranges of any lengths (multiples of 8) at shuffled places, some of them neighbours.
pub(crate) fn random_runs(rng: &mut Rng, bytes: u64) -> Vec<Run> {
    let mut cuts: Vec<u64> = (0..=1 + rng.below(200)).map(|_| rng.below(bytes / 8) * 8).collect();
    cuts.sort_unstable();
    cuts.dedup();
    let mut runs = Vec::new();
    for pair in cuts.windows(2) {
        let len = pair[1] - pair[0];
        if rng.below(3) > 0 {
            let remote = rng.below((bytes - len) / 8 + 1) * 8;
            runs.push(Run { remote, local: pair[0], bytes: len });
        }
    }
    if runs.is_empty() {
        runs.push(Run { remote: 0, local: 8, bytes: 8 });
    }
    for at in (1..runs.len()).rev() {
        runs.swap(at, rng.below(at as u64 + 1) as usize);
    }
    runs
}

pub(crate) fn any_plan_arrives_whole_and_touches_nothing_else(kind: &str) {
    let Some(mut puller) = Puller::start(kind, 64) else { return };
    let mut peer = Peer::spawn(kind, 64);
    puller.grant = peer.grant();
    let id = puller.transport.connect(&peer.descriptor).unwrap();
    assert_eq!(puller.transport.connect(&peer.descriptor).unwrap(), id);
    let seed = u64::from(std::process::id());
    println!("seed {seed}");
    let mut rng = Rng(seed);
    for round in 0..60 {
        puller.mark();
        let runs = random_runs(&mut rng, 64 * BLOCK_BYTES);
        let bytes = runs.iter().map(|run| run.bytes).sum();
        let transfer = puller.pull(id, runs.clone());
        assert_eq!(puller.event(), Event::Done { transfer, bytes }, "round {round}, seed {seed}");
        puller.check(&runs);
    }
    let counters = puller.transport.counters();
    assert_eq!((counters.done, counters.in_flight, counters.failed), (60, 0, 0));
}

pub(crate) fn pulls_of_many_sizes_run_side_by_side(kind: &str) {
    let Some(mut puller) = Puller::start(kind, 1024) else { return };
    let mut peer = Peer::spawn(kind, 1024);
    puller.grant = peer.grant();
    let id = puller.transport.connect(&peer.descriptor).unwrap();
    let large = puller.pull(id, blocks(0, 1000));
    let small: Vec<TransferId> =
        (1000..1024).map(|block| puller.pull(id, blocks(block, 1))).collect();
    let mut done = Vec::new();
    while done.len() < 25 {
        match puller.event() {
            Event::Done { transfer, .. } => done.push(transfer),
            other => panic!("{other:?}"),
        }
    }
    // The large one does not make the small ones wait for its end.
    assert_eq!(done.last(), Some(&large), "{done:?}");
    assert!(small.iter().all(|transfer| done.contains(transfer)));
    puller.check(&blocks(0, 1024));
}

pub(crate) fn what_was_not_granted_or_does_not_exist_is_refused(kind: &str) {
    let Some(mut puller) = Puller::start(kind, 8) else { return };
    let mut peer = Peer::spawn(kind, 8);
    puller.grant = peer.grant_first(4);
    let id = puller.transport.connect(&peer.descriptor).unwrap();
    if !is_one_sided(kind) {
        let transfer = puller.pull(id, blocks(3, 2)); // block 4 is not granted
        let Event::Failed { why: XferError::Refused { .. }, .. } = puller.event() else {
            panic!("not refused")
        };
        assert_eq!(puller.event(), Event::Quiesced { transfer });
        assert!(puller.is_all(super::puller::MARK));
    }
    let run = |remote, local, bytes| Run { remote, local, bytes };
    let end = 8 * BLOCK_BYTES;
    let cases = [
        (vec![], "a pull needs at least one byte"),
        (vec![run(0, 0, 0)], "the range is empty"),
        (vec![run(end - 8, 0, 16)], "it ends outside"),
        (vec![run(0, end - 8, 16)], "it ends outside"),
        (vec![run(u64::MAX - 4, 0, 16)], "it ends outside"),
        (vec![run(0, 0, 16), run(64, 8, 16)], "another run of the pull writes there too"),
    ];
    for (runs, expected) in cases {
        let pull = cuelight::kvxfer::Pull {
            transfer: TransferId(99),
            grant: puller.grant,
            peer: id,
            remote: cuelight::kvxfer::RegionId(0),
            local: puller.region,
            runs: runs.clone(),
            timeout: PATIENCE,
            checksum: false,
        };
        let error = puller.transport.pull(pull).unwrap_err();
        assert!(error.to_string().ends_with(expected), "{runs:?}: {error}");
        assert_eq!(error.reach(), Reach::Transfer);
    }
    let transfer = puller.pull(id, blocks(0, 4));
    assert_eq!(puller.event(), Event::Done { transfer, bytes: 4 * BLOCK_BYTES });
    let bad = puller.transport.connect(&peer.descriptor[1..]).unwrap_err();
    assert_eq!(bad.reach(), Reach::Peer);
}

pub(crate) fn only_a_grant_that_holds_may_be_named(kind: &str) {
    let Some(mut puller) = Puller::start(kind, 8) else { return };
    let mut peer = Peer::spawn(kind, 8);
    let id = puller.transport.connect(&peer.descriptor).unwrap();
    let old = peer.grant();
    peer.withdraw(old);
    peer.ask("fill");
    let names = |holds: GrantId| {
        let off_by_one_bit = [0, 31, 32, 63, 64, 127].map(|bit| GrantId(holds.0 ^ (1 << bit)));
        [old, GrantId(0), GrantId(u128::MAX)].into_iter().chain(off_by_one_bit)
    };
    let holds = peer.grant(); // perhaps in the place of the old one
    for grant in names(holds) {
        puller.grant = grant;
        let transfer = puller.pull(id, blocks(0, 8));
        let event = puller.event();
        let Event::Failed { why: XferError::Refused { .. }, .. } = event else {
            panic!("{event:?}")
        };
        assert_eq!(puller.event(), Event::Quiesced { transfer });
    }
    puller.mark();
    puller.grant = holds;
    let transfer = puller.pull(id, blocks(0, 8));
    assert_eq!(puller.event(), Event::Done { transfer, bytes: 8 * BLOCK_BYTES });
    puller.check(&blocks(0, 8));
}

pub(crate) fn a_thread_with_nothing_to_do_uses_no_time(kind: &str) {
    let Some(mut puller) = Puller::start(kind, 8) else { return };
    let mut peer = Peer::spawn(kind, 8);
    puller.grant = peer.grant();
    let id = puller.transport.connect(&peer.descriptor).unwrap();
    let transfer = puller.pull(id, blocks(0, 8));
    assert_eq!(puller.event(), Event::Done { transfer, bytes: 8 * BLOCK_BYTES });
    let (before, start) = (cpu_ticks(peer.pid()), Instant::now());
    std::thread::sleep(Duration::from_secs(2)); // the time that is measured
    let ticks = cpu_ticks(peer.pid()) - before;
    let share = ticks as f64 / 100.0 / start.elapsed().as_secs_f64();
    assert!(share < 0.05, "an idle peer uses {share} of a core");
}

/// User and system time of a process in hundredths of a second.
fn cpu_ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let after_name = stat.rsplit_once(") ").unwrap().1;
    let field = |at: usize| after_name.split(' ').nth(at).unwrap().parse::<u64>().unwrap();
    field(11) + field(12)
}
