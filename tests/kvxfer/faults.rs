//! Sides that die, freeze, or change their minds in the middle of a transfer.

use std::time::{Duration, Instant};

use cuelight::kvxfer::{Event, Reach, XferError};
use rustix::process::Signal;

use super::peer::{BLOCK_BYTES, POISON, Peer};
use super::puller::{MARK, Puller, blocks};

/// Large enough to be interrupted: 64 MiB.
const BLOCKS: u32 = 1024;
/// Tries to hit a transfer in its middle; most do at once.
const TRIES: usize = 40;

pub(crate) fn an_aborted_pull_is_quiet_when_it_says_so(kind: &str) {
    let Some(mut puller) = Puller::start(kind, BLOCKS) else { return };
    let mut peer = Peer::spawn(kind, BLOCKS);
    peer.ask("grant 7");
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
        peer.ask("grant 7");
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

pub(crate) fn an_idle_peer_that_dies_is_noticed(kind: &str) {
    let Some(mut puller) = Puller::start(kind, 4) else { return };
    for _ in 0..5 {
        let mut peer = Peer::spawn(kind, 4);
        peer.ask("grant 7");
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
    peer.ask("grant 7");
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

pub(crate) fn a_withdrawn_grant_ends_the_pull_and_poison_never_arrives(kind: &str) {
    let Some(mut puller) = Puller::start(kind, BLOCKS) else { return };
    let (mut refused, mut unproven) = (0, 0);
    for _ in 0..8 {
        let mut peer = Peer::spawn(kind, BLOCKS);
        peer.ask("grant 7");
        let id = puller.transport.connect(&peer.descriptor).unwrap();
        puller.mark();
        let before = puller.transport.counters().bytes_pulled;
        let transfer = puller.pull(id, blocks(0, BLOCKS));
        puller.is_under_way(before);
        // Once it says that it is quiet, the peer fills its pool with poison.
        unproven += usize::from(peer.ask("withdraw 7") == "unproven");
        match puller.event() {
            Event::Done { .. } => puller.check(&blocks(0, BLOCKS)),
            Event::Failed { why, .. } => {
                // A checksum may notice first that a chunk was cut short.
                let noticed = matches!(why, XferError::Refused { .. } | XferError::Corrupt { .. });
                assert!(noticed, "{why}");
                assert_eq!(puller.event(), Event::Quiesced { transfer });
                refused += 1;
            }
            other => panic!("{other:?}"),
        }
        let mut found = vec![0; puller.memory.bytes() as usize];
        puller.memory.read(0, &mut found);
        let poisoned = found.chunks(64).any(|line| line.iter().all(|byte| *byte == POISON));
        assert!(!poisoned, "poison arrived");
        puller.transport.disconnect(id);
    }
    assert!(refused > 0 || unproven == 8, "no withdrawal came in the middle of a transfer");
}
