//! The side of a connection that pulls: requests go out, chunks go straight into the pools.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;

use super::wire::{self, HEAD_BYTES, Head, Request};
use crate::kvxfer::error::XferError;
use crate::kvxfer::plan::{Cursor, Run};
use crate::kvxfer::region::{Part, wake_after};
use crate::kvxfer::shared::{Job, Shared, count};
use crate::kvxfer::transport::{PeerId, Sink, TransferId};

/// Bytes read from one connection before others have their turn.
const TURN: usize = 8 << 20;
/// Pieces of one read.
const PIECES: usize = 256;
/// Bytes of a chunk that are worth waking up for.
const WAKE_AFTER: u32 = 128 << 10;
/// Room for bytes that nobody wants any more.
const DISCARD: usize = 64 << 10;

/// A pull in flight.
struct Active {
    job: Job,
    cursor: Cursor,
    started: Instant,
}

/// What the next bytes are.
#[derive(Clone, Copy)]
enum Reading {
    /// The rest of a head.
    Head,
    /// The rest of a chunk of a pull, which began where its cursor was.
    Chunk { number: u32, left: u32, begin: Cursor, bytes: u32, checksum: u64 },
}

pub(super) struct Client {
    pub(super) peer: PeerId,
    pub(super) socket: TcpStream,
    /// When it must have welcomed us; `None` once it has.
    welcome_by: Option<Instant>,
    pulls: FxHashMap<u32, Active>,
    next_number: u32,
    /// Accepted pulls whose request is not yet written, and cancels.
    to_ask: VecDeque<Ask>,
    out: Vec<u8>,
    out_done: usize,
    reading: Reading,
    head: [u8; HEAD_BYTES],
    head_have: usize,
    /// When it last sent something, or began to owe us something.
    heard: Instant,
    pieces: Vec<Run>,
    parts: Vec<Part>,
    discard: Vec<u8>,
    /// Bytes that make the socket readable.
    wake_after: u32,
}

enum Ask {
    Pull(u32),
    Cancel(u32),
}

impl Client {
    pub(super) fn new(peer: PeerId, socket: TcpStream, token: u128, handshake: Duration) -> Self {
        Self {
            peer,
            socket,
            welcome_by: Some(Instant::now() + handshake),
            pulls: FxHashMap::default(),
            next_number: 0,
            to_ask: VecDeque::new(),
            out: wire::hello(token).to_vec(),
            out_done: 0,
            reading: Reading::Head,
            head: [0; HEAD_BYTES],
            head_have: 0,
            heard: Instant::now(),
            pieces: Vec::new(),
            parts: Vec::new(),
            discard: Vec::new(),
            wake_after: 1,
        }
    }

    pub(super) fn start(&mut self, job: Job) {
        if self.pulls.is_empty() {
            self.heard = Instant::now();
        }
        let number = self.next_number;
        self.next_number = number.wrapping_add(1);
        self.to_ask.push_back(Ask::Pull(number));
        let (cursor, started) = (Cursor::default(), Instant::now());
        self.pulls.insert(number, Active { job, cursor, started });
    }

    pub(super) fn number_of(&self, transfer: TransferId) -> Option<u32> {
        let found = self.pulls.iter().find(|(_, active)| active.job.pull.transfer == transfer);
        found.map(|(number, _)| *number)
    }

    /// Ends a pull. It is quiet at once: only this thread writes, and it discards what still comes.
    pub(super) fn fail(&mut self, shared: &Shared, sink: &Sink, number: u32, why: XferError) {
        if let Some(active) = self.pulls.remove(&number) {
            self.to_ask.push_back(Ask::Cancel(number));
            shared.failed_quiet(sink, active.job.pull.transfer, why);
        }
    }

    /// Ends all pulls: the connection is over.
    pub(super) fn fail_all(&mut self, shared: &Shared, sink: &Sink, why: &XferError) {
        for (_, active) in self.pulls.drain() {
            shared.failed_quiet(sink, active.job.pull.transfer, why.clone());
        }
    }

    pub(super) fn wants_to_write(&self) -> bool {
        self.out_done < self.out.len() || !self.to_ask.is_empty()
    }

    /// Looks at the clock: ends what is late, and says when to look again.
    pub(super) fn check_time(
        &mut self,
        shared: &Shared,
        sink: &Sink,
        now: Instant,
    ) -> Result<Option<Instant>, XferError> {
        if self.welcome_by.is_some_and(|by| now >= by) {
            let after = shared.limits.handshake;
            return Err(XferError::PeerLost { why: format!("no connection after {after:?}") });
        }
        let late = |active: &Active| now >= active.started + active.job.pull.timeout;
        let numbers: Vec<u32> =
            self.pulls.iter().filter(|(_, active)| late(active)).map(|(n, _)| *n).collect();
        let any_late = !numbers.is_empty();
        for number in numbers {
            let active = &self.pulls[&number];
            let (after, bytes) = (active.job.pull.timeout, active.job.bytes);
            let why = XferError::Deadline { after, done: active.cursor.done, bytes };
            self.fail(shared, sink, number, why);
        }
        if any_late {
            self.write()?; // tells the peer to send no more
        }
        let stalled = self.heard + shared.limits.stall;
        if !self.pulls.is_empty() && self.welcome_by.is_none() && now >= stalled {
            let after = shared.limits.stall;
            return Err(XferError::PeerLost {
                why: format!("it owes bytes and sent none in {after:?}"),
            });
        }
        let deadlines = self.pulls.values().map(|active| active.started + active.job.pull.timeout);
        let stall = (!self.pulls.is_empty()).then_some(stalled);
        Ok(deadlines.chain(stall).chain(self.welcome_by).min())
    }

    /// Writes requests until the socket is full or nothing is left.
    pub(super) fn write(&mut self) -> Result<(), XferError> {
        while self.wants_to_write() {
            if self.out_done == self.out.len() {
                self.out.clear();
                self.out_done = 0;
                self.encode_next();
                continue;
            }
            match self.socket.write(&self.out[self.out_done..]) {
                Ok(sent) => self.out_done += sent,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_not_ready(&error) => return Ok(()),
                Err(error) => return Err(XferError::lost("write", error)),
            }
        }
        Ok(())
    }

    fn encode_next(&mut self) {
        match self.to_ask.pop_front() {
            Some(Ask::Pull(number)) => {
                let Some(active) = self.pulls.get(&number) else { return }; // ended meanwhile
                let pull = &active.job.pull;
                let (grant, region, checksum) = (pull.grant, pull.remote, pull.checksum);
                let runs = pull.runs.len() as u32;
                Request::Pull { number, grant, region, checksum, runs }.encode(&mut self.out);
                wire::encode_ranges(&pull.runs, &mut self.out);
            }
            Some(Ask::Cancel(number)) => Request::Cancel { number }.encode(&mut self.out),
            None => {}
        }
    }

    /// Reads for one turn. Returns whether there may be more to read at once; `closing` says that
    /// the end of the stream may be among it, so that no short read means that nothing is left.
    pub(super) fn read(
        &mut self,
        shared: &Shared,
        sink: &Sink,
        closing: bool,
    ) -> Result<bool, XferError> {
        let mut turn = 0;
        while turn < TURN {
            let (got, wanted) = match self.reading {
                Reading::Head => {
                    let rest = &mut self.head[self.head_have..];
                    (self.socket.read(rest), rest.len())
                }
                Reading::Chunk { number, left, .. } => self.read_chunk(number, left),
            };
            count(&shared.stats.posts, 1);
            let got = match got {
                Ok(0) => {
                    return Err(XferError::PeerLost { why: "it closed the connection".into() });
                }
                Ok(got) => got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if is_not_ready(&error) => return Ok(self.wait()),
                Err(error) => return Err(XferError::lost("read", error)),
            };
            turn += got;
            self.heard = Instant::now();
            self.arrived(shared, sink, got)?;
            if got < wanted && !closing {
                return Ok(self.wait());
            }
        }
        Ok(true)
    }

    /// Says when to wake up: not for every packet of a chunk. Always `false`: nothing more to read.
    fn wait(&mut self) -> bool {
        let enough = match self.reading {
            Reading::Head => 1,
            Reading::Chunk { left, .. } => left.min(WAKE_AFTER),
        };
        if enough != self.wake_after {
            wake_after(self.socket.as_fd(), enough);
            self.wake_after = enough;
        }
        false
    }

    /// One read into a pool and, where the chunk's end is in sight, into the next head.
    /// Returns what it got, and how much it could have got.
    fn read_chunk(&mut self, number: u32, left: u32) -> (io::Result<usize>, usize) {
        let Some(active) = self.pulls.get(&number) else {
            self.discard.resize(DISCARD, 0);
            let len = self.discard.len().min(left as usize);
            return (self.socket.read(&mut self.discard[..len]), len);
        };
        active.cursor.peek(&active.job.pull.runs, u64::from(left), PIECES, &mut self.pieces);
        self.parts.clear();
        self.parts
            .extend(self.pieces.iter().map(|run| Part { offset: run.local, bytes: run.bytes }));
        let all: u64 = self.parts.iter().map(|part| part.bytes).sum();
        let after = if all == u64::from(left) { HEAD_BYTES } else { 0 };
        let memory = &active.job.memory;
        let got = memory.receive(self.socket.as_fd(), &self.parts, &mut self.head[..after]);
        (got, all as usize + after)
    }

    /// Takes note of bytes that a read has put where they belong.
    fn arrived(&mut self, shared: &Shared, sink: &Sink, got: usize) -> Result<(), XferError> {
        match self.reading {
            Reading::Head => self.head_have += got,
            Reading::Chunk { number, left, begin, bytes, checksum } => {
                let of_chunk = got.min(left as usize) as u32;
                self.head_have = got - of_chunk as usize;
                if let Some(active) = self.pulls.get_mut(&number) {
                    active.cursor.advance(&active.job.pull.runs, u64::from(of_chunk));
                    count(&shared.stats.bytes_pulled, u64::from(of_chunk));
                }
                let left = left - of_chunk;
                self.reading = Reading::Chunk { number, left, begin, bytes, checksum };
                if left > 0 {
                    return Ok(());
                }
                self.reading = Reading::Head;
                self.chunk_ended(shared, sink, number, begin, (bytes, checksum));
            }
        }
        if self.head_have == HEAD_BYTES {
            self.head_have = 0;
            self.begin_chunk(shared, sink)?;
        }
        Ok(())
    }

    fn chunk_ended(
        &mut self,
        shared: &Shared,
        sink: &Sink,
        number: u32,
        begin: Cursor,
        (bytes, checksum): (u32, u64),
    ) {
        let Some(active) = self.pulls.get(&number) else { return };
        let pull = &active.job.pull;
        if pull.checksum {
            begin.peek(&pull.runs, u64::from(bytes), usize::MAX, &mut self.pieces);
            let part = |run: &Run| Part { offset: run.local, bytes: run.bytes };
            let parts: Vec<Part> = self.pieces.iter().map(part).collect();
            if active.job.memory.checksum(&parts) != checksum {
                let why = XferError::Corrupt { at: begin.done, bytes: u64::from(bytes) };
                self.fail(shared, sink, number, why);
            }
        }
    }

    /// The peer has sent all of a pull that may be kept.
    fn pull_ended(&mut self, shared: &Shared, sink: &Sink, number: u32) -> Result<(), XferError> {
        let Some(active) = self.pulls.get(&number) else { return Ok(()) }; // ended meanwhile
        let (transfer, done, bytes) =
            (active.job.pull.transfer, active.cursor.done, active.job.bytes);
        if done < bytes {
            return Err(nonsense(format!("an end after {done} of {bytes} bytes")));
        }
        self.pulls.remove(&number);
        shared.done(sink, transfer, bytes);
        Ok(())
    }

    /// Acts on a complete head.
    fn begin_chunk(&mut self, shared: &Shared, sink: &Sink) -> Result<(), XferError> {
        let head = Head::decode(&self.head);
        if self.welcome_by.is_some() != (head == Some(Head::Welcome)) {
            return Err(nonsense(format!("{head:?} out of turn")));
        }
        match head {
            Some(Head::Welcome) => self.welcome_by = None,
            Some(Head::Data { number, bytes, checksum }) => {
                let begin = match self.pulls.get(&number) {
                    Some(active) => active.cursor,
                    None => Cursor::default(), // ended: what follows is discarded
                };
                let owed = self.pulls.get(&number).map(|active| active.job.bytes - begin.done);
                if owed.is_some_and(|owed| u64::from(bytes) > owed) {
                    return Err(nonsense(format!("{bytes} bytes where {owed:?} are owed")));
                }
                self.reading = Reading::Chunk { number, left: bytes, begin, bytes, checksum };
            }
            Some(Head::Refused { number, why }) => {
                self.fail(shared, sink, number, XferError::Refused { why: why.text() });
            }
            Some(Head::End { number }) => self.pull_ended(shared, sink, number)?,
            None => return Err(nonsense(format!("{:02x?}", self.head))),
        }
        Ok(())
    }
}

fn nonsense(what: String) -> XferError {
    XferError::PeerLost { why: format!("it sent nonsense: {what}") }
}

/// Whether the socket only has no more room or bytes for now, or is not yet connected.
fn is_not_ready(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::NotConnected)
}
