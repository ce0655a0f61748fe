//! The process that pulls: a pool full of a mark, and the events of its transport.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use cuelight::ids::BlockId;
use cuelight::kvxfer::nixl::{self, Nixl};
use cuelight::kvxfer::tcp::{Listen, Tcp};
use cuelight::kvxfer::ucx::{self, Ucx};
use cuelight::kvxfer::{
    Counters, Event, GrantId, Limits, Memory, PeerId, Pull, RegionId, Run, Sink, TransferId,
    Transport, XferError,
};

use super::peer::{BLOCK_BYTES, content, layout};

/// Longer than anything here takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// What the local pool is full of before a pull.
pub(crate) const MARK: u8 = 0xAB;

/// `None` where the transport's library is missing: said loudly, since nothing is tested then.
pub(crate) fn start(kind: &str, sink: Sink) -> Option<Box<dyn Transport>> {
    let limits = Limits { stall: Duration::from_secs(2), ..Limits::default() };
    match kind {
        "tcp" => {
            let listen = Listen { bind: "127.0.0.1:0".parse().unwrap(), advertise: None };
            Some(Box::new(Tcp::start(listen, limits, sink).unwrap()))
        }
        "ucx" => start_ucx(&ucx::Options::default().transports, limits, sink),
        "ucx-tcp" => start_ucx("tcp", limits, sink),
        "nixl" => start_nixl(&nixl::Options::default().transports, limits, sink),
        "nixl-tcp" => start_nixl("tcp", limits, sink),
        other => panic!("no transport {other}"),
    }
}

/// Whether peers read memory by themselves: poison may arrive then, and is refused afterwards.
pub(crate) fn is_one_sided(kind: &str) -> bool {
    kind != "tcp"
}

/// A folder of the client tests' Python environment.
pub(crate) fn installed(folder: &str) -> Option<PathBuf> {
    let venv = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-venv/lib");
    let pythons = std::fs::read_dir(venv).into_iter().flatten().flatten();
    let folders = pythons.map(|python| python.path().join("site-packages").join(folder));
    folders.into_iter().find(|folder| folder.is_dir())
}

/// With the library of `CUELIGHT_UCX_DIR`, of the client tests' Python environment, or the system's.
fn start_ucx(transports: &str, limits: Limits, sink: Sink) -> Option<Box<dyn Transport>> {
    let (dir, transports) = (installed("libucx/lib"), transports.to_owned());
    let options = ucx::Options { dir, transports, ..ucx::Options::default() };
    here(Ucx::start(&options, limits, sink))
}

/// The same with `CUELIGHT_NIXL_DIR`.
fn start_nixl(transports: &str, limits: Limits, sink: Sink) -> Option<Box<dyn Transport>> {
    let (dir, transports) = (installed(".nixl_cu13.mesonpy.libs"), transports.to_owned());
    let options = nixl::Options { dir, transports, ..nixl::Options::default() };
    here(Nixl::start(&options, limits, sink))
}

fn here<T: Transport + 'static>(started: Result<T, XferError>) -> Option<Box<dyn Transport>> {
    match started {
        Ok(transport) => Some(Box::new(transport)),
        Err(error) => {
            assert!(matches!(error, XferError::Unavailable { .. }), "{error}");
            eprintln!("{error}");
            None
        }
    }
}

pub(crate) struct Puller {
    pub(crate) transport: Box<dyn Transport>,
    pub(crate) memory: Arc<Memory>,
    pub(crate) region: RegionId,
    /// What the next pull names.
    pub(crate) grant: GrantId,
    events: Receiver<Event>,
    next: u128,
}

impl Puller {
    pub(crate) fn start(kind: &str, blocks: u32) -> Option<Self> {
        let (to, events) = channel();
        let sink = Box::new(move |event| drop(to.send(event)));
        let Some(transport) = start(kind, sink) else {
            eprintln!("SKIPPED, NOTHING TESTED: transport {kind} is not available here");
            return None;
        };
        Some(Self::over(transport, events, blocks))
    }

    pub(crate) fn over(
        transport: Box<dyn Transport>,
        events: Receiver<Event>,
        blocks: u32,
    ) -> Self {
        let memory = Memory::zeroed(layout(blocks).bytes() as usize).unwrap();
        let region = transport.register(memory.clone(), layout(blocks)).unwrap();
        let puller = Self { transport, memory, region, grant: GrantId(0), events, next: 0 };
        puller.mark();
        puller
    }

    /// Fills the pool with the mark.
    pub(crate) fn mark(&self) {
        let block = vec![MARK; BLOCK_BYTES as usize];
        for start in (0..self.memory.bytes()).step_by(block.len()) {
            self.memory.write(start, &block);
        }
    }

    /// A pull that may take as long as any test.
    pub(crate) fn pull(&mut self, peer: PeerId, runs: Vec<Run>) -> TransferId {
        self.pull_within(peer, runs, PATIENCE)
    }

    pub(crate) fn pull_within(
        &mut self,
        peer: PeerId,
        runs: Vec<Run>,
        timeout: Duration,
    ) -> TransferId {
        self.try_pull(peer, runs, timeout).unwrap()
    }

    pub(crate) fn try_pull(
        &mut self,
        peer: PeerId,
        runs: Vec<Run>,
        timeout: Duration,
    ) -> Result<TransferId, XferError> {
        self.next += 1;
        let transfer = TransferId(self.next);
        let (grant, local, remote) = (self.grant, self.region, RegionId(0));
        let checksum = self.next.is_multiple_of(2);
        let pull = Pull { transfer, grant, peer, remote, local, runs, timeout, checksum };
        self.transport.pull(pull).map(|()| transfer)
    }

    pub(crate) fn event(&self) -> Event {
        self.events.recv_timeout(PATIENCE).unwrap_or_else(|_| {
            panic!("no event within the test's patience: {:?}", self.transport.counters())
        })
    }

    pub(crate) fn no_event(&self) {
        assert_eq!(self.events.try_recv().ok(), None);
    }

    /// Waits until some of the pull has arrived; `false` if it ended first.
    pub(crate) fn is_under_way(&self, before: u64) -> bool {
        let start = Instant::now();
        loop {
            let counters = self.transport.counters();
            if counters.in_flight == 0 {
                return false;
            }
            if counters.bytes_pulled > before + BLOCK_BYTES {
                return true;
            }
            assert!(start.elapsed() < PATIENCE, "nothing arrives");
            std::thread::yield_now();
        }
    }

    /// Whether the ranges hold what the source has, and the rest the mark.
    pub(crate) fn check(&self, runs: &[Run]) {
        let mut expected = vec![MARK; self.memory.bytes() as usize];
        for run in runs {
            let target = &mut expected[run.local as usize..(run.local + run.bytes) as usize];
            content(run.remote, target);
        }
        let mut found = vec![0; expected.len()];
        self.memory.read(0, &mut found);
        if let Some(at) = found.iter().zip(&expected).position(|(a, b)| a != b) {
            panic!("byte {at}: {:#x}, not {:#x}", found[at], expected[at]);
        }
    }

    /// Waits until nothing of any pull is left.
    pub(crate) fn settle(&self) {
        let start = Instant::now();
        let left = |counters: Counters| counters.in_flight + counters.unquiet;
        while left(self.transport.counters()) > 0 {
            assert!(start.elapsed() < PATIENCE, "{:?}", self.transport.counters());
            std::thread::yield_now();
        }
        while self.events.try_recv().is_ok() {}
    }

    /// Whether a line of 64 bytes is full of this one.
    pub(crate) fn has(&self, byte: u8) -> bool {
        let mut found = vec![0; self.memory.bytes() as usize];
        self.memory.read(0, &mut found);
        found.chunks(64).any(|line| line.iter().all(|b| *b == byte))
    }

    /// Whether all bytes are this one.
    pub(crate) fn is_all(&self, byte: u8) -> bool {
        let mut found = vec![0; self.memory.bytes() as usize];
        self.memory.read(0, &mut found);
        found.iter().all(|b| *b == byte)
    }
}

/// Whole blocks from `first` on, from the same places.
pub(crate) fn blocks(first: u32, count: u32) -> Vec<Run> {
    let pool = layout(first + count);
    let table: Vec<BlockId> = (first..first + count).map(BlockId).collect();
    let ranges = pool.ranges(&table).unwrap();
    let run = |range: std::ops::Range<u64>| Run {
        remote: range.start,
        local: range.start,
        bytes: range.end - range.start,
    };
    ranges.into_iter().map(run).collect()
}
