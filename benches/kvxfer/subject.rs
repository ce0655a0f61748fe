//! What is compared: each moves runs from another pool into its own and waits for the end.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::slice::from_ref;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use cuelight::kvxfer::local::Local;
use cuelight::kvxfer::{
    Event, GrantId, Limits, Memory, PeerId, Pull, RegionId, Run, TransferId, Transport,
};

use crate::peer::{self, Peer, layout, pool};
use crate::raw;

/// What all others are compared with.
pub(crate) const COPY: &str = "memory copy";

pub(crate) trait Subject {
    fn name(&self) -> &'static str;
    /// Moves the runs, and returns when they are there.
    fn pull(&mut self, runs: &[Run]);
    /// CPU time of this process and of the peer.
    fn cpu(&self) -> Duration;
}

/// All that run here; the memory copy is the first.
pub(crate) fn all(blocks: u32) -> Vec<Box<dyn Subject>> {
    let mut subjects: Vec<Box<dyn Subject>> =
        vec![Box::new(Copy::new(blocks)), Box::new(Ours::local(blocks))];
    let peer = Peer::spawn("socket", blocks);
    let (socket, memory) = (peer::dial(&peer), vec![0; layout(blocks).bytes() as usize]);
    subjects.push(Box::new(Socket { peer, socket, memory }));
    subjects.push(Box::new(Ours::with_peer("tcp", "tcp", blocks).expect("tcp is always there")));
    for raw in raw::Raw::all(blocks) {
        subjects.push(Box::new(raw));
    }
    for (kind, name) in [("ucx", "ucx"), ("ucx-tcp", "ucx over tcp"), ("nixl", "nixl")] {
        if let Some(ours) = Ours::with_peer(kind, name, blocks) {
            subjects.push(Box::new(ours));
        }
    }
    subjects
}

/// One thread that copies within this process.
struct Copy {
    from: Vec<u8>,
    to: Vec<u8>,
}

impl Copy {
    fn new(blocks: u32) -> Self {
        let bytes = layout(blocks).bytes() as usize;
        Self { from: vec![0x5A; bytes], to: vec![0xA5; bytes] }
    }
}

impl Subject for Copy {
    fn name(&self) -> &'static str {
        COPY
    }

    fn pull(&mut self, runs: &[Run]) {
        for run in runs {
            let from = run.remote as usize..(run.remote + run.bytes) as usize;
            let to = run.local as usize..(run.local + run.bytes) as usize;
            self.to[to].copy_from_slice(&self.from[from]);
        }
    }

    fn cpu(&self) -> Duration {
        peer::cpu("self")
    }
}

/// As many bytes over a plain socket, from one place to one place.
struct Socket {
    peer: Peer,
    socket: TcpStream,
    memory: Vec<u8>,
}

impl Subject for Socket {
    fn name(&self) -> &'static str {
        "plain socket"
    }

    fn pull(&mut self, runs: &[Run]) {
        let bytes: u64 = runs.iter().map(|run| run.bytes).sum();
        self.socket.write_all(&bytes.to_le_bytes()).expect("the peer reads");
        for chunk in self.memory[..bytes as usize].chunks_mut(1 << 20) {
            self.socket.read_exact(chunk).expect("the peer writes");
        }
    }

    fn cpu(&self) -> Duration {
        peer::cpu("self") + self.peer.cpu()
    }
}

/// A transport of ours.
struct Ours {
    name: &'static str,
    transport: Box<dyn Transport>,
    events: Receiver<Event>,
    id: PeerId,
    grant: GrantId,
    next: u128,
    /// Whom it pulls from.
    source: Source,
}

enum Source {
    Here(#[expect(dead_code, reason = "kept alive")] Local),
    There(Peer),
}

impl Ours {
    fn local(blocks: u32) -> Self {
        let source = Local::start(Limits::default(), Box::new(|_| {})).expect("local");
        let memory = pool(blocks);
        let bytes = memory.bytes();
        let region = source.register(memory, layout(blocks)).expect("registered");
        let grant = source.grant(region, from_ref(&(0..bytes))).expect("granted");
        let (to, events) = channel();
        let sink = Box::new(move |event| drop(to.send(event)));
        let transport = Box::new(Local::start(Limits::default(), sink).expect("local"));
        let hello = source.descriptor().expect("a descriptor");
        let source = (Source::Here(source), grant);
        Self::over("local", transport, events, &hello, source, pool(blocks))
    }

    fn with_peer(kind: &'static str, name: &'static str, blocks: u32) -> Option<Self> {
        let (to, events) = channel();
        let transport = peer::transport(kind, Box::new(move |event| drop(to.send(event))))?;
        let peer = Peer::spawn(kind, blocks);
        let hello = peer.hello.clone();
        let (grant, hello) = hello.split_first_chunk().expect("a grant and a descriptor");
        let source = (Source::There(peer), GrantId(u128::from_le_bytes(*grant)));
        Some(Self::over(name, transport, events, hello, source, pool(blocks)))
    }

    fn over(
        name: &'static str,
        transport: Box<dyn Transport>,
        events: Receiver<Event>,
        hello: &[u8],
        (source, grant): (Source, GrantId),
        memory: Arc<Memory>,
    ) -> Self {
        let blocks = (memory.bytes() / crate::BLOCK) as u32;
        transport.register(memory, layout(blocks)).expect("registered");
        let id = transport.connect(hello).expect("connected");
        Self { name, transport, events, id, grant, next: 0, source }
    }
}

impl Subject for Ours {
    fn name(&self) -> &'static str {
        self.name
    }

    fn pull(&mut self, runs: &[Run]) {
        self.next += 1;
        let pull = Pull {
            transfer: TransferId(self.next),
            grant: self.grant,
            peer: self.id,
            remote: RegionId(0),
            local: RegionId(0),
            runs: runs.to_vec(),
            timeout: Duration::from_secs(60),
            checksum: false,
        };
        self.transport.pull(pull).expect("accepted");
        match self.events.recv() {
            Ok(Event::Done { .. }) => {}
            other => panic!("{}: {other:?}", self.name),
        }
    }

    fn cpu(&self) -> Duration {
        let there = match &self.source {
            Source::Here(_) => Duration::ZERO,
            Source::There(peer) => peer.cpu(),
        };
        peer::cpu("self") + there
    }
}
