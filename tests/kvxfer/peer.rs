//! The process that is read: a pool with a known content, told by lines what to do.

use std::io::{BufRead, BufReader, Write};
use std::ops::Range;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;

use cuelight::ids::BlockId;
use cuelight::kvxfer::{
    GrantId, Layout, Memory, Pull, RegionId, Run, Sizes, TransferId, Transport,
};

use super::puller::PATIENCE;

/// Environment: the transport of a peer process.
pub(crate) const KIND: &str = "CUELIGHT_KVXFER_PEER";
const BLOCKS: &str = "CUELIGHT_KVXFER_BLOCKS";
/// What a line to the parent starts with; the test harness writes lines too.
const MARK: &str = "@@ ";
pub(crate) const BLOCK_BYTES: u64 = 64 << 10;
pub(crate) const POISON: u8 = 0xEE;

/// `blocks` blocks of 64 KiB.
pub(crate) fn layout(blocks: u32) -> Layout {
    let sizes =
        Sizes { blocks, layers: 2, planes: 2, heads: 0..4, block_tokens: 16, head_bytes: 256 };
    Layout::block_major(sizes).unwrap()
}

/// What the source has at a place.
pub(crate) fn content(offset: u64, out: &mut [u8]) {
    assert!(offset.is_multiple_of(8) && out.len().is_multiple_of(8));
    for (word, bytes) in (offset / 8..).zip(out.chunks_exact_mut(8)) {
        let mixed = (word + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        bytes.copy_from_slice(&(mixed ^ (mixed >> 29)).to_le_bytes());
    }
}

pub(crate) fn fill(memory: &Memory) {
    let mut block = vec![0; BLOCK_BYTES as usize];
    for start in (0..memory.bytes()).step_by(block.len()) {
        content(start, &mut block);
        memory.write(start, &block);
    }
}

/// A source's pool, filled.
pub(crate) fn pool(blocks: u32) -> Arc<Memory> {
    let memory = Memory::zeroed(layout(blocks).bytes() as usize).unwrap();
    fill(&memory);
    memory
}

/// Serves until the parent's end of the pipe closes.
pub(crate) fn serve(kind: &str) {
    let blocks: u32 = std::env::var(BLOCKS).unwrap().parse().unwrap();
    let transport = super::puller::start(kind, Box::new(|_| {})).expect("the parent has it too");
    let (memory, layout) = (pool(blocks), layout(blocks));
    let region = transport.register(memory.clone(), layout.clone()).unwrap();
    let descriptor = transport.descriptor().unwrap();
    say(&hex_of(&descriptor));
    let mut transport = Some(transport);
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let (verb, argument) = line.split_once(' ').unwrap_or((&line, ""));
        let running = || transport.as_deref().expect("it has not ended");
        match verb {
            "grant" => {
                let blocks = layout.blocks.min(argument.parse().unwrap());
                let grant = grant_blocks(running(), region, &layout, blocks);
                say(&grant.0.to_string());
                continue;
            }
            // The owner has other uses for its pool, at once.
            "withdraw" => {
                running().withdraw(GrantId(argument.parse().unwrap()));
                poison(&memory);
            }
            "end" => {
                transport = None;
                poison(&memory);
            }
            "fill" => fill(&memory),
            "pull" => pull_much(running(), region, argument),
            "counters" => {
                let c = running().counters();
                say(&format!("{} {} {}", c.bytes_served, c.refused, c.rejected));
                continue;
            }
            other => panic!("unknown {other}"),
        }
        say("ok");
    }
}

/// Reads all of another one's blocks again and again; returns when that is under way.
fn pull_much(transport: &dyn Transport, local: RegionId, what: &str) {
    let (grant, descriptor) = what.split_once(' ').unwrap();
    let peer = transport.connect(&bytes_of(descriptor)).unwrap();
    let whole = Run { remote: 0, local: 0, bytes: transport.peer_regions(peer).unwrap()[0].bytes };
    for transfer in 0..16 {
        let (transfer, grant) = (TransferId(transfer), GrantId(grant.parse().unwrap()));
        let (remote, runs, timeout) = (RegionId(0), vec![whole], PATIENCE);
        let pull = Pull { transfer, grant, peer, remote, local, runs, timeout, checksum: false };
        transport.pull(pull).unwrap();
    }
    while transport.counters().bytes_pulled < BLOCK_BYTES {
        std::thread::yield_now();
    }
}

fn bytes_of(hex: &str) -> Vec<u8> {
    let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
    (0..hex.len()).step_by(2).map(byte).collect()
}

fn hex_of(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Grants the first blocks, the last of them later.
fn grant_blocks(
    transport: &dyn Transport,
    region: RegionId,
    layout: &Layout,
    count: u32,
) -> GrantId {
    let ranges = |blocks: Range<u32>| {
        let blocks: Vec<BlockId> = blocks.map(BlockId).collect();
        layout.ranges(&blocks).unwrap()
    };
    let grant = transport.grant(region, &ranges(0..count - 1)).unwrap();
    transport.extend(grant, region, &ranges(count - 1..count)).unwrap();
    grant
}

pub(crate) fn poison(memory: &Memory) {
    let block = vec![POISON; BLOCK_BYTES as usize];
    for start in (0..memory.bytes()).step_by(block.len()) {
        memory.write(start, &block);
    }
}

fn say(what: &str) {
    println!("\n{MARK}{what}");
    std::io::stdout().flush().unwrap();
}

/// A peer process, ended with this value.
pub(crate) struct Peer {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: BufReader<ChildStdout>,
    pub(crate) descriptor: Vec<u8>,
}

impl Peer {
    pub(crate) fn spawn(kind: &str, blocks: u32) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["peer_process", "--exact", "--nocapture"])
            .env(KIND, kind)
            .env(BLOCKS, blocks.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take();
        let lines = BufReader::new(child.stdout.take().unwrap());
        let mut peer = Self { child, stdin, lines, descriptor: Vec::new() };
        peer.descriptor = bytes_of(&peer.answer());
        peer
    }

    /// The right to read all blocks.
    pub(crate) fn grant(&mut self) -> GrantId {
        self.grant_first(u32::MAX)
    }

    /// The right to read so many of the first blocks.
    pub(crate) fn grant_first(&mut self, blocks: u32) -> GrantId {
        GrantId(self.ask(&format!("grant {blocks}")).parse().unwrap())
    }

    /// Takes a grant back. The peer writes to its whole pool right after.
    pub(crate) fn withdraw(&mut self, grant: GrantId) {
        self.ask(&format!("withdraw {}", grant.0));
    }

    /// Lets it read much from another peer.
    pub(crate) fn pull_from(&mut self, source: &mut Self) {
        let grant = source.grant();
        self.ask(&format!("pull {} {}", grant.0, hex_of(&source.descriptor)));
    }

    /// Sends a line and gives the answer.
    pub(crate) fn ask(&mut self, line: &str) -> String {
        writeln!(self.stdin.as_mut().unwrap(), "{line}").unwrap();
        self.answer()
    }

    fn answer(&mut self) -> String {
        loop {
            let mut line = String::new();
            let bytes = self.lines.read_line(&mut line).unwrap();
            assert!(bytes > 0, "the peer process has ended");
            if let Some(answer) = line.trim_end().strip_prefix(MARK) {
                return answer.to_owned();
            }
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// `SIGKILL`, and reaps it.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.pid() as i32).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.stdin = None;
        self.kill();
    }
}
