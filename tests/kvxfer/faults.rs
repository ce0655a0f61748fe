//! Sides that die, freeze, or change their minds in the middle of a transfer.

use std::time::{Duration, Instant};

use cuelight::kvxfer::{Event, Reach, XferError};
use rustix::process::Signal;

use super::moves::Rng;
use super::peer::{BLOCK_BYTES, POISON, Peer};
use super::puller::{MARK, PATIENCE, Puller, blocks, is_one_sided};

/// Large enough to be interrupted: 64 MiB.
const BLOCKS: u32 = 1024;
/// Tries to hit a transfer in its middle; most do at once.
const TRIES: usize = 40;
/// Grants that are withdrawn at some moment of a pull.
const WITHDRAWALS: usize = 60;

pub(crate) fn an_aborted_pull_is_quiet_when_it_says_so(kind: &str) {
    let Some(mut puller) = Puller::start(kind, BLOCKS) else { return };
    let mut peer = Peer::spawn(kind, BLOCKS);
    puller.grant = peer.grant();
    let id = puller.transport.connect(&peer.descriptor).unwrap();
    let mut hits = 0;
    for _ in 0..TRIES {
        let before = puller.transport.counters().bytes_pulled;
        let transfer = puller.pull(id, blocks(0, BLOCKS - 1));
        let under_way = puller.is_under_way(before);
        puller.transport.abort(transfer);
        puller.transport.abort(transfer); // harmless
        match puller.event() {
            Event::Done { .. } => continue,
            event => assert_eq!(event, Event::Failed { transfer, why: XferError::Aborted }),
        }
        assert_eq!(puller.event(), Event::Quiesced { transfer });
        hits += usize::from(under_way);
        // The owner uses the blocks for something else; what still comes must not reach them.
        puller.mark();
        let last = puller.pull(id, blocks(BLOCKS - 1, 1));
        assert_eq!(puller.event(), Event::Done { transfer: last, bytes: BLOCK_BYTES });
        puller.check(&blocks(BLOCKS - 1, 1));
    }
    assert!(hits > 0, "no abort of {TRIES} came in the middle of a transfer");
    let counters = puller.transport.counters();
    assert_eq!((counters.in_flight, counters.unquiet), (0, 0));
    puller.no_event();
}

pub(crate) fn a_killed_peer_is_told_once_and_its_pulls_are_quiet(kind: &str) {
    let Some(mut puller) = Puller::start(kind, BLOCKS) else { return };
    let mut hits = 0;
    for _ in 0..8 {
        let mut peer = Peer::spawn(kind, BLOCKS);
        puller.grant = peer.grant();
        let id = puller.transport.connect(&peer.descriptor).unwrap();
        let before = puller.transport.counters().bytes_pulled;
        let transfers =
            [puller.pull(id, blocks(0, BLOCKS / 2)), puller.pull(id, blocks(BLOCKS / 2, 512))];
        let under_way = puller.is_under_way(before);
        peer.kill();
        let (mut failed, mut quiet, mut done) = (Vec::new(), Vec::new(), 0);
        let mut told = false;
        while !told || quiet.len() < failed.len() || failed.len() + done < 2 {
            match puller.event() {
                Event::Done { .. } => done += 1,
                Event::Failed { transfer, why } => {
                    assert_eq!(why.reach(), Reach::Peer, "{why}");
                    failed.push(transfer);
                }
                Event::Quiesced { transfer } => quiet.push(transfer),
                Event::PeerDown { peer, .. } => {
                    assert_eq!(peer, id);
                    told = true;
                }
            }
        }
        assert!(failed.iter().all(|one| transfers.contains(one) && quiet.contains(one)));
        hits += usize::from(under_way && !failed.is_empty());
        puller.mark();
        assert!(puller.transport.peer_regions(id).is_err());
        puller.no_event();
        assert!(puller.is_all(MARK));
    }
    assert!(hits > 0, "no kill came in the middle of a transfer");
    assert_eq!(puller.transport.counters().unquiet, 0);
}

pub(crate) fn a_source_outlives_those_who_die_while_they_read(kind: &str) {
    let Some(mut puller) = Puller::start(kind, 4) else { return };
    let mut source = Peer::spawn(kind, BLOCKS);
    puller.grant = source.grant();
    let id = puller.transport.connect(&source.descriptor).unwrap();
    for round in 0..8 {
        let mut reader = Peer::spawn(kind, BLOCKS);
        reader.pull_from(&mut source);
        if round % 2 == 0 {
            reader.signal(Signal::STOP); // it takes nothing any more, for a while
            std::thread::sleep(Duration::from_millis(50));
        }
        reader.kill();
        let transfer = puller.pull(id, blocks(0, 4));
        assert_eq!(puller.event(), Event::Done { transfer, bytes: 4 * BLOCK_BYTES });
        puller.check(&blocks(0, 4));
    }
}

pub(crate) fn an_idle_peer_that_dies_is_noticed(kind: &str) {
    let Some(mut puller) = Puller::start(kind, 4) else { return };
    for _ in 0..5 {
        let mut peer = Peer::spawn(kind, 4);
        puller.grant = peer.grant();
        let id = puller.transport.connect(&peer.descriptor).unwrap();
        let transfer = puller.pull(id, blocks(0, 4));
        assert_eq!(puller.event(), Event::Done { transfer, bytes: 4 * BLOCK_BYTES });
        peer.kill();
        let start = Instant::now();
        assert!(matches!(puller.event(), Event::PeerDown { peer, .. } if peer == id));
        assert!(start.elapsed() < Duration::from_secs(4), "noticed after {:?}", start.elapsed());
    }
    puller.no_event();
}

pub(crate) fn a_frozen_peer_ends_in_a_deadline_and_writes_nothing_later(kind: &str) {
    let Some(mut puller) = Puller::start(kind, BLOCKS) else { return };
    let mut peer = Peer::spawn(kind, BLOCKS);
    puller.grant = peer.grant();
    let mut id = puller.transport.connect(&peer.descriptor).unwrap();
    let before = puller.transport.counters().bytes_pulled;
    let transfer = puller.pull_within(id, blocks(0, BLOCKS - 1), Duration::from_millis(700));
    puller.is_under_way(before);
    peer.signal(Signal::STOP);
    let mut frozen = None;
    match puller.event() {
        // One-sided reads of a stopped process succeed; so may one that was nearly done.
        Event::Done { .. } => {}
        Event::Failed { why, .. } => {
            assert!(matches!(why, XferError::Deadline { .. }), "{why}");
            let mut event = puller.event();
            let lost = matches!(event, Event::PeerDown { .. });
            if lost {
                event = puller.event(); // what cannot be recalled ends with the connection
            }
            assert_eq!(event, Event::Quiesced { transfer });
            puller.mark();
            frozen = Some(lost);
        }
        other => panic!("{other:?}"),
    }
    let marked = puller.is_all(MARK);
    peer.signal(Signal::CONT);
    peer.ask("counters"); // it runs again
    if frozen == Some(true) {
        id = puller.transport.connect(&peer.descriptor).unwrap();
    }
    let last = puller.pull(id, blocks(BLOCKS - 1, 1));
    assert_eq!(puller.event(), Event::Done { transfer: last, bytes: BLOCK_BYTES });
    if marked {
        puller.check(&blocks(BLOCKS - 1, 1));
    }
}

pub(crate) fn what_changes_after_a_withdrawal_never_arrives_as_done(kind: &str) {
    const BLOCKS: u32 = 256;
    let Some(mut puller) = Puller::start(kind, BLOCKS) else { return };
    let mut peer = Peer::spawn(kind, BLOCKS);
    let id = puller.transport.connect(&peer.descriptor).unwrap();
    let seed = u64::from(std::process::id());
    println!("seed {seed}");
    let (mut rng, mut refused, mut done) = (Rng(seed), 0, 0);
    // Follows the time that a pull takes, so that about as many withdrawals come before its end as
    // after it, whatever the transport and the machine.
    let mut typical = Duration::from_millis(3);
    for _ in 0..WITHDRAWALS {
        peer.ask("fill");
        puller.mark();
        puller.grant = peer.grant();
        let start = Instant::now();
        let transfer = puller.pull(id, blocks(0, BLOCKS));
        let at = typical * rng.below(2000) as u32 / 1000;
        while start.elapsed() < at {
            std::hint::spin_loop();
        }
        peer.withdraw(puller.grant); // it fills its pool with poison
        match puller.event() {
            Event::Done { .. } => {
                puller.check(&blocks(0, BLOCKS));
                done += 1;
                typical = typical * 9 / 10;
            }
            Event::Failed { why, .. } => {
                // A checksum may notice first that a chunk was cut short.
                let noticed = matches!(why, XferError::Refused { .. } | XferError::Corrupt { .. });
                assert!(noticed, "{why}");
                assert_eq!(puller.event(), Event::Quiesced { transfer });
                refused += 1;
                typical = typical * 11 / 10;
            }
            other => panic!("{other:?}"),
        }
        // Where the source serves every read, nothing of it has left.
        assert!(is_one_sided(kind) || !puller.has(POISON), "poison arrived");
    }
    println!("{refused} refused, {done} done");
    assert!(refused > 0 && done > 0, "{refused} refused, {done} done");
    puller.no_event();
}

pub(crate) fn nothing_is_done_after_the_end_of_the_transport_that_is_read(kind: &str) {
    const BLOCKS: u32 = 256;
    let Some(mut puller) = Puller::start(kind, BLOCKS) else { return };
    let seed = u64::from(std::process::id());
    println!("seed {seed}");
    let mut rng = Rng(seed);
    for _ in 0..10 {
        let mut peer = Peer::spawn(kind, BLOCKS);
        puller.grant = peer.grant();
        puller.mark();
        let id = puller.transport.connect(&peer.descriptor).unwrap();
        puller.pull(id, blocks(0, BLOCKS));
        let (start, at) = (Instant::now(), Duration::from_micros(rng.below(6000)));
        while start.elapsed() < at {
            std::hint::spin_loop();
        }
        peer.ask("end"); // it fills its pool with poison
        let mut pulls = 1;
        while pulls > 0 {
            match puller.event() {
                Event::Done { .. } => {
                    puller.check(&blocks(0, BLOCKS));
                    pulls -= 1;
                }
                Event::Failed { .. } => pulls -= 1,
                Event::Quiesced { .. } | Event::PeerDown { .. } => {}
            }
        }
        // Whether the loss was noticed before or not.
        puller.mark();
        if puller.try_pull(id, blocks(0, 1), PATIENCE).is_ok() {
            loop {
                match puller.event() {
                    Event::Done { .. } => panic!("done after the end"),
                    Event::Failed { .. } => break,
                    Event::Quiesced { .. } | Event::PeerDown { .. } => {}
                }
            }
        }
        puller.transport.disconnect(id);
        puller.settle();
    }
}
