//! The process whose pool is read.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::slice::from_ref;
use std::sync::Arc;
use std::time::Duration;

use cuelight::kvxfer::nixl::{self, Nixl};
use cuelight::kvxfer::tcp::{Listen, Tcp};
use cuelight::kvxfer::ucx::{self, Ucx};
use cuelight::kvxfer::{Layout, Limits, Memory, Sink, Sizes, Transport};

use crate::raw;

/// Environment: what a peer process serves.
pub(crate) const KIND: &str = "CUELIGHT_KVXFER_BENCH_PEER";
const BLOCKS: &str = "CUELIGHT_KVXFER_BENCH_BLOCKS";
/// 64 KiB in one block.
pub(crate) fn layout(blocks: u32) -> Layout {
    let sizes =
        Sizes { blocks, layers: 2, planes: 2, heads: 0..4, block_tokens: 16, head_bytes: 256 };
    Layout::block_major(sizes).expect("a layout")
}

/// A pool with every page touched.
pub(crate) fn pool(blocks: u32) -> Arc<Memory> {
    let memory = Memory::zeroed(layout(blocks).bytes() as usize).expect("memory");
    let page = [0x5A; 4096];
    for start in (0..memory.bytes()).step_by(page.len()) {
        memory.write(start, &page);
    }
    memory
}

/// `None` where it is not available.
pub(crate) fn transport(kind: &str, sink: Sink) -> Option<Box<dyn Transport>> {
    if kind == "tcp" {
        let listen = Listen { bind: "127.0.0.1:0".parse().expect("an address"), advertise: None };
        return Some(Box::new(Tcp::start(listen, Limits::default(), sink).expect("tcp")));
    }
    let started: Result<Box<dyn Transport>, _> = match kind {
        "nixl" => {
            let options = nixl::Options { dir: crate::nixl_dir(), ..nixl::Options::default() };
            Nixl::start(&options, Limits::default(), sink).map(|nixl| Box::new(nixl) as _)
        }
        kind => {
            let mut options = ucx::Options { dir: crate::ucx_dir(), ..ucx::Options::default() };
            if kind == "ucx-tcp" {
                options.transports = "tcp".into();
            }
            Ucx::start(&options, Limits::default(), sink).map(|ucx| Box::new(ucx) as _)
        }
    };
    started.inspect_err(|error| eprintln!("not measured: {error}")).ok()
}

/// Serves until the parent's end of the pipe closes.
pub(crate) fn serve(kind: &str) {
    let blocks: u32 = std::env::var(BLOCKS).expect("a count").parse().expect("a number");
    let memory = pool(blocks);
    match kind {
        "socket" => serve_socket(&memory),
        "raw" => raw::serve(&memory, say, has_ended),
        kind => {
            let transport = transport(kind, Box::new(|_| {})).expect("the parent has it too");
            let bytes = memory.bytes();
            let region = transport.register(memory, layout(blocks)).expect("registered");
            let grant = transport.grant(region, from_ref(&(0..bytes))).expect("granted");
            let mut hello = grant.0.to_le_bytes().to_vec();
            hello.extend(transport.descriptor().expect("a descriptor"));
            say(&hello);
            let _ = std::io::stdin().read(&mut [0]);
        }
    }
}

/// Writes as many bytes of its pool as each request says, 1 MiB at a time.
fn serve_socket(memory: &Memory) {
    let mut pool = vec![0; memory.bytes() as usize];
    memory.read(0, &mut pool);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    say(&listener.local_addr().expect("an address").port().to_le_bytes());
    let (mut socket, _) = listener.accept().expect("the parent");
    socket.set_nodelay(true).expect("no delay");
    let mut wanted = [0; 8];
    while socket.read_exact(&mut wanted).is_ok() {
        for chunk in pool[..u64::from_le_bytes(wanted) as usize].chunks(1 << 20) {
            socket.write_all(chunk).expect("the parent reads");
        }
    }
}

/// A connection to a peer that serves a plain socket.
pub(crate) fn dial(peer: &Peer) -> TcpStream {
    let port = u16::from_le_bytes([peer.hello[0], peer.hello[1]]);
    let socket = TcpStream::connect(("127.0.0.1", port)).expect("the peer listens");
    socket.set_nodelay(true).expect("no delay");
    socket
}

fn say(bytes: &[u8]) {
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    println!("{hex}");
    std::io::stdout().flush().expect("the parent reads");
}

/// Whether the parent has closed its end; looks without waiting.
fn has_ended() -> bool {
    let stdin = std::io::stdin();
    let mut look = [rustix::event::PollFd::new(&stdin, rustix::event::PollFlags::IN)];
    let now = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut look, Some(&now)).is_ok_and(|ready| ready > 0)
}

/// A peer process, ended with this value.
pub(crate) struct Peer {
    child: Child,
    stdin: Option<ChildStdin>,
    _lines: BufReader<ChildStdout>,
    /// What it said first.
    pub(crate) hello: Vec<u8>,
}

impl Peer {
    pub(crate) fn spawn(kind: &str, blocks: u32) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .env(KIND, kind)
            .env(BLOCKS, blocks.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a process");
        let stdin = child.stdin.take();
        let mut lines = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut hex = String::new();
        lines.read_line(&mut hex).expect("a line");
        let hex = hex.trim_end();
        let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal");
        let hello = (0..hex.len()).step_by(2).map(byte).collect();
        Self { child, stdin, _lines: lines, hello }
    }

    /// Time that its threads have run.
    pub(crate) fn cpu(&self) -> Duration {
        cpu(&self.child.id().to_string())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.stdin = None;
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Time that the threads of a process have run so far.
pub(crate) fn cpu(pid: &str) -> Duration {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let time = threads.filter_map(|thread| {
        let stat = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
        stat.split(' ').next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(time.sum())
}
