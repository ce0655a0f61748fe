//! The structures under test, each through its own interface; inputs are made beforehand.

use std::collections::HashMap;
use std::fs;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dynamo_kv_router::indexer::{SyncIndexer, WorkerTask};
use dynamo_kv_router::protocols::{
    KvCacheEvent, KvCacheEventData, KvCacheRemoveData, KvCacheStoreData, KvCacheStoredBlockData,
    OverlapScores, RouterEvent,
};
use dynamo_kv_router::{ConcurrentRadixTreeCompressed, PositionalIndexer, RadixTree};
use tokio::sync::oneshot;

use crate::data::{Chain, Data, Op};
use crate::ffi::busy;
use crate::ids::BlockHash;
use crate::index::{PrefixIndex, Scratch, Slot};

/// Blocks of the operations whose inputs are made at once.
const PORTION: usize = 1 << 20;

/// How deep each rank that is told holds a prompt.
pub type Depths = HashMap<u32, u32>;

/// One structure under test. Times are of its own work alone.
pub trait Subject {
    fn apply(&mut self, data: &Data, ops: &[Op]) -> Duration;
    /// The time of each look-up, its prompt's hashes being in the processor's cache, as they are
    /// when they have just been computed.
    fn look_up(&mut self, queries: &[Chain]) -> Vec<Duration>;
    fn told(&mut self, query: &Chain) -> Depths;
    /// Until look-ups leave the ranks out, and until their memory is free.
    fn remove_ranks(&mut self, ranks: &[u32]) -> (Duration, Duration);
}

/// Includes the two readings of the clock, about 25 ns on this project's machine.
fn timed<T>(work: impl FnOnce() -> T) -> Duration {
    let start = Instant::now();
    let result = work();
    let took = start.elapsed();
    drop(result);
    took
}

/// Calls `each` with portions of the operations.
fn portions<'a>(ops: &'a [Op], mut each: impl FnMut(&'a [Op])) {
    let mut rest = ops;
    while !rest.is_empty() {
        let mut blocks = 0;
        let count = rest.iter().take_while(|op| {
            blocks += op.blocks.len();
            blocks <= PORTION
        });
        let (now, later) = rest.split_at(count.count().max(1));
        each(now);
        rest = later;
    }
}

pub struct Ours {
    index: PrefixIndex,
    slots: Vec<Slot>,
    scratch: Scratch,
    depths: Vec<u32>,
}

impl Ours {
    pub fn new(ranks: u32) -> Self {
        let mut index = PrefixIndex::new();
        let slots = (0..ranks).map(|_| index.add_rank()).collect();
        Self { index, slots, scratch: Scratch::default(), depths: vec![0; ranks as usize] }
    }

    /// What the index itself says of its memory.
    pub fn bytes(&self) -> usize {
        self.index.bytes()
    }
}

impl Subject for Ours {
    fn apply(&mut self, data: &Data, ops: &[Op]) -> Duration {
        let mut took = Duration::ZERO;
        portions(ops, |ops| {
            let hashes: Vec<Vec<BlockHash>> = ops
                .iter()
                .map(|op| {
                    let blocks = &data.chains[op.chain].ours[op.blocks.clone()];
                    if op.store { blocks.to_vec() } else { blocks.iter().rev().copied().collect() }
                })
                .collect();
            let start = busy();
            for (op, hashes) in ops.iter().zip(hashes) {
                let slot = self.slots[op.rank as usize];
                match op.store {
                    true => self.index.store(slot, &hashes),
                    false => self.index.remove(slot, &hashes),
                }
            }
            took += busy() - start;
        });
        took
    }

    fn look_up(&mut self, queries: &[Chain]) -> Vec<Duration> {
        let look_up = |query: &Chain| {
            let query = black_box(query.ours.clone());
            timed(|| {
                self.depths.fill(0);
                self.index.matches(&query, &mut self.scratch).raise(&mut self.depths);
                black_box(&self.depths);
            })
        };
        queries.iter().map(look_up).collect()
    }

    fn told(&mut self, query: &Chain) -> Depths {
        self.depths.fill(0);
        self.index.matches(&query.ours, &mut self.scratch).raise(&mut self.depths);
        (0..).zip(self.depths.iter().copied()).filter(|&(_, depth)| depth > 0).collect()
    }

    fn remove_ranks(&mut self, ranks: &[u32]) -> (Duration, Duration) {
        let start = busy();
        ranks.iter().for_each(|&rank| self.index.retire(self.slots[rank as usize]));
        let hidden = busy() - start;
        while !self.index.sweep(4096) {}
        (hidden, busy() - start)
    }
}

/// An operation as the peer's event.
fn event(data: &Data, op: &Op, nth: usize) -> RouterEvent {
    let chain = &data.chains[op.chain];
    let data = if op.store {
        KvCacheEventData::Stored(KvCacheStoreData {
            parent_hash: op.blocks.start.checked_sub(1).map(|parent| chain.external[parent]),
            start_position: None,
            blocks: op
                .blocks
                .clone()
                .map(|at| KvCacheStoredBlockData {
                    block_hash: chain.external[at],
                    tokens_hash: chain.local[at],
                    mm_extra_info: None,
                })
                .collect(),
        })
    } else {
        let block_hashes = op.blocks.clone().rev().map(|at| chain.external[at]).collect();
        KvCacheEventData::Removed(KvCacheRemoveData { block_hashes })
    };
    RouterEvent::new(u64::from(op.rank), KvCacheEvent { event_id: nth as u64, data, dp_rank: 0 })
}

fn depths(scores: OverlapScores) -> Depths {
    scores.scores.iter().map(|(worker, depth)| (worker.worker_id as u32, *depth)).collect()
}

pub struct Tree(RadixTree);

impl Tree {
    pub fn new() -> Self {
        Self(RadixTree::new())
    }
}

impl Subject for Tree {
    fn apply(&mut self, data: &Data, ops: &[Op]) -> Duration {
        let mut took = Duration::ZERO;
        portions(ops, |ops| {
            let events: Vec<_> =
                ops.iter().enumerate().map(|(nth, op)| event(data, op, nth)).collect();
            let start = busy();
            for event in events {
                self.0.apply_event(event).expect("an event in order");
            }
            took += busy() - start;
        });
        took
    }

    fn look_up(&mut self, queries: &[Chain]) -> Vec<Duration> {
        let look_up = |query: &Chain| {
            let query = black_box(query.local.clone());
            timed(|| black_box(self.0.find_matches(query, false)))
        };
        queries.iter().map(look_up).collect()
    }

    fn told(&mut self, query: &Chain) -> Depths {
        depths(self.0.find_matches(query.local.clone(), false))
    }

    fn remove_ranks(&mut self, ranks: &[u32]) -> (Duration, Duration) {
        let start = busy();
        ranks.iter().for_each(|&rank| self.0.remove_worker(u64::from(rank)));
        (busy() - start, busy() - start)
    }
}

/// A concurrent structure: one thread of its own takes the events, as in the peer's thread pool
/// with one thread. Events are timed by that thread's time on the processor.
pub struct Concurrent<I> {
    index: Arc<I>,
    tasks: flume::Sender<WorkerTask>,
    /// The thread's `schedstat` file.
    clock: String,
}

impl Concurrent<ConcurrentRadixTreeCompressed> {
    pub fn compressed() -> Self {
        Self::start(ConcurrentRadixTreeCompressed::new())
    }
}

impl Concurrent<PositionalIndexer> {
    /// With the jump the peer uses by default.
    pub fn positional() -> Self {
        Self::start(PositionalIndexer::new(32))
    }
}

impl<I: SyncIndexer> Concurrent<I> {
    fn start(index: I) -> Self {
        let index = Arc::new(index);
        let (tasks, inbox) = flume::unbounded();
        let (name, named) = std::sync::mpsc::channel();
        let worker = Arc::clone(&index);
        std::thread::spawn(move || {
            let thread = fs::read_link("/proc/thread-self").expect("procfs");
            name.send(format!("/proc/{}/schedstat", thread.display())).expect("the bench waits");
            worker.worker(inbox, None).expect("the peer's thread");
        });
        let clock = named.recv().expect("the thread's name");
        Self { index, tasks, clock }
    }

    /// Time its thread was on the processor.
    fn busy(&self) -> Duration {
        let text = fs::read_to_string(&self.clock).expect("procfs");
        let nanos = text.split(' ').next().and_then(|nanos| nanos.parse().ok());
        Duration::from_nanos(nanos.expect("nanoseconds"))
    }

    /// Waits until the thread has done all that it was sent.
    fn flush(&self) {
        let (done, wait) = oneshot::channel();
        self.tasks.send(WorkerTask::Flush(done)).expect("the peer's thread");
        wait.blocking_recv().expect("the peer's thread");
        // Its time is booked when it goes to sleep.
        std::thread::sleep(Duration::from_millis(2));
    }
}

impl<I: SyncIndexer> Subject for Concurrent<I> {
    fn apply(&mut self, data: &Data, ops: &[Op]) -> Duration {
        let mut took = Duration::ZERO;
        portions(ops, |ops| {
            let events: Vec<_> = ops
                .iter()
                .enumerate()
                .map(|(nth, op)| WorkerTask::Event(event(data, op, nth)))
                .collect();
            let before = self.busy();
            for event in events {
                self.tasks.send(event).expect("the peer's thread");
            }
            self.flush();
            took += self.busy() - before;
        });
        took
    }

    fn look_up(&mut self, queries: &[Chain]) -> Vec<Duration> {
        let look_up = |query: &Chain| {
            let query = black_box(query.local.clone());
            timed(|| black_box(self.index.find_matches(&query, false)))
        };
        queries.iter().map(look_up).collect()
    }

    fn told(&mut self, query: &Chain) -> Depths {
        depths(self.index.find_matches(&query.local, false))
    }

    fn remove_ranks(&mut self, ranks: &[u32]) -> (Duration, Duration) {
        let before = self.busy();
        for &rank in ranks {
            let (resp, done) = oneshot::channel();
            let task =
                WorkerTask::RemoveWorker { worker_id: u64::from(rank), sweep_tree: true, resp };
            self.tasks.send(task).expect("the peer's thread");
            done.blocking_recv().expect("the peer's thread");
        }
        self.flush();
        let took = self.busy() - before;
        (took, took)
    }
}
