//! An owner that follows the ledger, over a transport that writes late on purpose.

use std::collections::HashMap;
use std::slice::from_ref;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use cuelight::ids::BlockId;
use cuelight::kvxfer::ledger::{Access, Census, Ledger, LedgerLimits, Level, Phase};
use cuelight::kvxfer::local::Local;
use cuelight::kvxfer::{
    Event, GrantId, Limits, Memory, PeerId, Pull, RegionId, Run, TransferId, Transport,
};

use super::late::{Late, Lateness, POISON};
use super::moves::Rng;
use super::peer::{BLOCK_BYTES, content, layout, pool};
use super::puller::PATIENCE;

const BLOCKS: u32 = 32;
/// What the owner's own work leaves in a block that it got.
const MINE: u8 = 0x11;

struct Owner {
    transport: Late,
    events: Receiver<Event>,
    memory: Arc<Memory>,
    ledger: Ledger<TransferId>,
    _source: Local,
    grant: GrantId,
    id: PeerId,
    pulls: HashMap<TransferId, Vec<BlockId>>,
}

impl Owner {
    fn new(lateness: Lateness) -> Self {
        let source = Local::start(Limits::default(), Box::new(|_| {})).unwrap();
        let region = source.register(pool(BLOCKS), layout(BLOCKS)).unwrap();
        let grant = source.grant(region, from_ref(&(0..layout(BLOCKS).bytes()))).unwrap();
        let (to, events) = channel();
        let sink = Box::new(move |event| drop(to.send(event)));
        let start = |sink| {
            let local = Local::start(Limits::default(), sink)?;
            Ok(Box::new(local) as Box<dyn Transport>)
        };
        let transport = Late::start(lateness, sink, start).unwrap();
        let memory = Memory::zeroed(layout(BLOCKS).bytes() as usize).unwrap();
        transport.register(memory.clone(), layout(BLOCKS)).unwrap();
        let id = transport.connect(&source.descriptor().unwrap()).unwrap();
        let limits = LedgerLimits { alarm: 8, cap: 24, remembered: 4096 };
        let ledger = Ledger::new(BLOCKS, limits);
        let pulls = HashMap::new();
        Self { transport, events, memory, ledger, _source: source, grant, id, pulls }
    }

    /// Pulls blocks into the same places here, and perhaps changes its mind at once.
    fn pull(&mut self, number: u128, blocks: &[BlockId], abort: bool) {
        let transfer = TransferId(number);
        if self.ledger.reserve(transfer, Access::Write, blocks).is_err() {
            return; // held by a transfer: the owner takes others
        }
        let place = |block: &BlockId| u64::from(block.0) * BLOCK_BYTES;
        let run = |b: &BlockId| Run { remote: place(b), local: place(b), bytes: BLOCK_BYTES };
        let runs = blocks.iter().map(run).collect();
        self.ledger.expose(transfer).unwrap();
        let pull = Pull {
            transfer,
            grant: self.grant,
            peer: self.id,
            remote: RegionId(0),
            local: RegionId(0),
            runs,
            timeout: PATIENCE,
            checksum: false,
        };
        self.transport.pull(pull).unwrap();
        self.pulls.insert(transfer, blocks.to_vec());
        if abort {
            self.transport.abort(transfer);
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Done { transfer, .. } => {
                for block in self.pulls.remove(&transfer).unwrap() {
                    let mut expected = vec![0; BLOCK_BYTES as usize];
                    content(u64::from(block.0) * BLOCK_BYTES, &mut expected);
                    assert!(self.read(block) == expected, "{block:?} is not what was pulled");
                }
                for block in self.ledger.done(transfer).unwrap() {
                    self.use_for_other_things(block);
                }
            }
            Event::Failed { transfer, .. } => {
                assert_eq!(self.ledger.abort(transfer).unwrap(), []);
            }
            Event::Quiesced { transfer } => {
                self.pulls.remove(&transfer);
                for block in self.ledger.quiesced(transfer).unwrap() {
                    self.use_for_other_things(block);
                }
            }
            Event::PeerDown { .. } => panic!("nobody ended the peer"),
        }
    }

    fn use_for_other_things(&self, block: BlockId) {
        self.memory.write(u64::from(block.0) * BLOCK_BYTES, &vec![MINE; BLOCK_BYTES as usize]);
    }

    fn read(&self, block: BlockId) -> Vec<u8> {
        let mut bytes = vec![0; BLOCK_BYTES as usize];
        self.memory.read(u64::from(block.0) * BLOCK_BYTES, &mut bytes);
        bytes
    }

    /// No free block has been written by a transfer.
    fn check_free(&self) {
        for block in (0..BLOCKS).map(BlockId).filter(|block| self.ledger.is_free(*block)) {
            assert!(
                self.read(block).iter().all(|byte| *byte == MINE),
                "{block:?} was written late"
            );
        }
    }
}

#[test]
fn what_is_free_was_never_written_late() {
    let mut owner = Owner::new(Lateness { delay: Duration::from_millis(5), never_quiet: false });
    (0..BLOCKS).for_each(|block| owner.use_for_other_things(BlockId(block)));
    let seed = u64::from(std::process::id());
    println!("seed {seed}");
    let mut rng = Rng(seed);
    for number in 0..400 {
        let first = rng.below(u64::from(BLOCKS) - 4) as u32;
        let blocks: Vec<BlockId> = (first..first + 1 + rng.below(4) as u32).map(BlockId).collect();
        owner.pull(number, &blocks, rng.below(2) == 0);
        while let Ok(event) = owner.events.recv_timeout(Duration::from_micros(rng.below(800))) {
            owner.handle(event);
            owner.check_free();
        }
    }
    while owner.ledger.census().holds > 0 {
        let event = owner.events.recv_timeout(PATIENCE).expect("every pull ends");
        owner.handle(event);
        owner.check_free();
    }
    assert_eq!(owner.ledger.census(), Census { free: BLOCKS, ..Census::default() });
}

#[test]
fn what_never_proves_quiet_is_kept_and_raises_the_alarm() {
    let mut owner = Owner::new(Lateness { delay: Duration::from_millis(1), never_quiet: true });
    (0..BLOCKS).for_each(|block| owner.use_for_other_things(BlockId(block)));
    let mut number = 0;
    while owner.ledger.level() != Level::Full {
        assert!(number < 10_000, "no abort comes before the end of its pull");
        number += 1;
        let free = (0..BLOCKS).map(BlockId).filter(|block| owner.ledger.is_free(*block));
        let blocks: Vec<BlockId> = free.take(4).collect();
        owner.pull(number, &blocks, true);
        let event = owner.events.recv_timeout(PATIENCE).expect("an outcome");
        owner.handle(event);
        let transfer = TransferId(number);
        if owner.ledger.phase(transfer) == Some(Phase::Aborting) {
            owner.ledger.quarantine(transfer).unwrap(); // the time for a proof is over
        }
        owner.check_free();
    }
    let held = owner.ledger.census().quarantined;
    assert!((24..=BLOCKS).contains(&held), "{held}");
    let refused = owner.ledger.reserve(TransferId(0), Access::Write, &[BlockId(BLOCKS - 1)]);
    assert!(refused.is_err());
    // They were written late indeed, and nobody else had them.
    let poisoned = |block: &BlockId| owner.read(*block).iter().all(|byte| *byte == POISON);
    let start = std::time::Instant::now();
    let all: Vec<BlockId> =
        (0..BLOCKS).map(BlockId).filter(|block| !owner.ledger.is_free(*block)).collect();
    while !all.iter().all(poisoned) {
        assert!(start.elapsed() < PATIENCE, "the late writes do not come");
        std::thread::yield_now();
    }
    owner.check_free();
}
