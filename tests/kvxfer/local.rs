//! Pulls within one process.

use std::slice::from_ref;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use cuelight::kvxfer::local::Local;
use cuelight::kvxfer::{Event, GrantId, Limits, Memory, Reach, RegionId, Transport, XferError};

use super::moves::{Rng, random_runs};
use super::peer::{BLOCK_BYTES, POISON, fill, layout, poison, pool};
use super::puller::{MARK, Puller, blocks};

/// A transport with a pool, all of which is granted.
fn source(count: u32) -> (Local, GrantId, Arc<Memory>) {
    let source = Local::start(Limits::default(), Box::new(|_| {})).unwrap();
    let memory = pool(count);
    let region = source.register(memory.clone(), layout(count)).unwrap();
    let grant = source.grant(region, from_ref(&(0..layout(count).bytes()))).unwrap();
    (source, grant, memory)
}

fn puller(count: u32, limits: Limits) -> Puller {
    let (to, events) = channel();
    let local = Local::start(limits, Box::new(move |event| drop(to.send(event)))).unwrap();
    Puller::over(Box::new(local), events, count)
}

#[test]
fn any_plan_arrives_whole_and_touches_nothing_else() {
    let ((source, grant, _), mut puller) = (source(64), puller(64, Limits::default()));
    puller.grant = grant;
    let id = puller.transport.connect(&source.descriptor().unwrap()).unwrap();
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
    assert_eq!(puller.transport.counters().bytes_pulled, source.counters().bytes_served);
}

#[test]
fn an_aborted_pull_is_quiet_and_a_late_one_ends() {
    let ((source, grant, _), mut puller) = (source(1024), puller(1024, Limits::default()));
    puller.grant = grant;
    let id = puller.transport.connect(&source.descriptor().unwrap()).unwrap();
    let aborted = puller.pull(id, blocks(0, 1024));
    puller.transport.abort(aborted);
    let event = puller.event();
    if event != (Event::Done { transfer: aborted, bytes: 1024 * BLOCK_BYTES }) {
        assert_eq!(event, Event::Failed { transfer: aborted, why: XferError::Aborted });
        assert_eq!(puller.event(), Event::Quiesced { transfer: aborted });
    }
    puller.mark();
    let late = puller.pull_within(id, blocks(0, 1024), Duration::ZERO);
    let Event::Failed { why: XferError::Deadline { .. }, .. } = puller.event() else {
        panic!("no deadline")
    };
    assert_eq!(puller.event(), Event::Quiesced { transfer: late });
    assert!(puller.is_all(MARK));
}

#[test]
fn what_changes_after_a_withdrawal_never_arrives() {
    let ((source, mut grant, memory), mut puller) = (source(128), puller(128, Limits::default()));
    let id = puller.transport.connect(&source.descriptor().unwrap()).unwrap();
    let seed = u64::from(std::process::id());
    println!("seed {seed}");
    let (mut rng, mut refused, mut done) = (Rng(seed), 0, 0);
    let mut typical = Duration::from_millis(1); // of a pull
    for _ in 0..100 {
        puller.mark();
        puller.grant = grant;
        let start = Instant::now();
        let transfer = puller.pull(id, blocks(0, 128));
        let at = typical * rng.below(2000) as u32 / 1000;
        while start.elapsed() < at {
            std::hint::spin_loop();
        }
        source.withdraw(grant);
        poison(&memory);
        if let Event::Done { .. } = puller.event() {
            puller.check(&blocks(0, 128));
            done += 1;
            typical = typical * 9 / 10;
        } else {
            assert_eq!(puller.event(), Event::Quiesced { transfer });
            refused += 1;
            typical = typical * 11 / 10;
        }
        assert!(!puller.has(POISON));
        fill(&memory);
        grant = source.grant(RegionId(0), from_ref(&(0..memory.bytes()))).unwrap();
    }
    assert!(refused > 0 && done > 0, "{refused} refused, {done} done");
}

#[test]
fn what_is_withdrawn_is_not_read_and_who_has_ended_is_lost() {
    let ((source, grant, _), mut puller) = (source(8), puller(8, Limits::default()));
    puller.grant = grant;
    let id = puller.transport.connect(&source.descriptor().unwrap()).unwrap();
    source.withdraw(grant);
    source.withdraw(grant); // nothing happens
    assert_eq!(source.extend(grant, RegionId(0), &[]), Err(XferError::UnknownGrant));
    let refused = puller.pull(id, blocks(0, 8));
    let Event::Failed { why, .. } = puller.event() else { panic!("not refused") };
    assert!(matches!(why, XferError::Refused { .. }), "{why}");
    assert_eq!(puller.event(), Event::Quiesced { transfer: refused });
    assert!(puller.is_all(MARK));
    let descriptor = source.descriptor().unwrap();
    drop(source);
    let lost = puller.pull(id, blocks(0, 8));
    let Event::Failed { why, .. } = puller.event() else { panic!("not lost") };
    assert_eq!(why.reach(), Reach::Peer);
    assert_eq!(puller.event(), Event::Quiesced { transfer: lost });
    assert!(matches!(puller.event(), Event::PeerDown { peer, .. } if peer == id));
    assert_eq!(puller.transport.connect(&descriptor).unwrap_err().reach(), Reach::Peer);
}

#[test]
fn every_limit_is_kept() {
    let limits = Limits { pulls: 1, runs: 4, peers: 1, regions: 1, ..Limits::default() };
    let ((first, grant, _), (second, ..)) = (source(1024), source(1));
    let mut puller = puller(1024, limits);
    puller.grant = grant;
    let id = puller.transport.connect(&first.descriptor().unwrap()).unwrap();
    let refused = |error: XferError, what: &str| {
        assert_eq!(error.reach(), Reach::Retry);
        assert!(error.to_string().contains(what), "{error}");
    };
    refused(puller.transport.connect(&second.descriptor().unwrap()).unwrap_err(), "peers");
    refused(puller.transport.register(pool(1), layout(1)).unwrap_err(), "regions");
    let transfer = puller.pull(id, blocks(0, 1024));
    let again = cuelight::kvxfer::Pull {
        transfer: cuelight::kvxfer::TransferId(77),
        grant,
        peer: id,
        remote: cuelight::kvxfer::RegionId(0),
        local: puller.region,
        runs: blocks(0, 1),
        timeout: Duration::from_secs(1),
        checksum: false,
    };
    if let Err(error) = puller.transport.pull(again) {
        refused(error, "pulls in flight");
        assert_eq!(puller.event(), Event::Done { transfer, bytes: 1024 * BLOCK_BYTES });
    }
}
