//! The side of a connection that is read: requests come in, chunks go straight out of the pools.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use super::wire::{
    self, HEAD_BYTES, HELLO_BYTES, Head, RANGE_BYTES, REQUEST_BYTES, Refusal, Request,
};
use crate::kvxfer::plan::{Cursor, Run};
use crate::kvxfer::region::{Memory, Part};
use crate::kvxfer::shared::{Shared, check_range, count};
use crate::kvxfer::transport::{GrantId, RegionId};

/// Bytes written to one connection before others have their turn.
const TURN: usize = 8 << 20;
/// Pieces of one write.
const PIECES: usize = 256;
/// Bytes of requests that are read at a time.
const READ: usize = 16 << 10;
/// Pulls of the largest number of runs that one peer may have waiting.
const QUEUED: usize = 16;
/// Sent in place of what was withdrawn in the middle of a chunk.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// A pull of the peer's.
struct Serving {
    number: u32,
    grant: GrantId,
    region: RegionId,
    memory: Arc<Memory>,
    runs: Vec<Run>,
    bytes: u64,
    cursor: Cursor,
    checksum: bool,
    cancelled: bool,
}

impl Serving {
    fn left(&self) -> u64 {
        self.bytes - self.cursor.done
    }

    /// What follows its last chunk.
    fn end(&self) -> Head {
        Head::End { number: self.number }
    }
}

/// What is being written: a head, and the chunk after it.
struct Sending {
    head: [u8; HEAD_BYTES],
    head_done: usize,
    /// Of the chunk, not yet written.
    left: u32,
    /// `None` for a head alone.
    from: Option<Serving>,
    /// The grant ended: zeros fill the chunk, then a refusal follows.
    withdrawn: bool,
}

impl Sending {
    fn alone(head: Head) -> Self {
        let (head, left, from) = (head.encode(), 0, None);
        Self { head, head_done: 0, left, from, withdrawn: false }
    }
}

pub(super) struct Server {
    pub(super) socket: TcpStream,
    /// When it must have proved its right to be here; `None` once it has.
    pub(super) hello_by: Option<Instant>,
    input: Vec<u8>,
    waiting: VecDeque<Serving>,
    replies: VecDeque<Head>,
    sending: Option<Sending>,
    pieces: Vec<Run>,
    parts: Vec<Part>,
}

/// The peer broke the protocol, or the connection broke: close it.
pub(super) struct Closed {
    /// Whether the peer is to blame.
    pub(super) rejected: bool,
}

const BROKEN: Closed = Closed { rejected: false };
const REJECTED: Closed = Closed { rejected: true };

impl Server {
    pub(super) fn new(socket: TcpStream, hello_by: Instant) -> Self {
        Self {
            socket,
            hello_by: Some(hello_by),
            input: Vec::new(),
            waiting: VecDeque::new(),
            replies: VecDeque::new(),
            sending: None,
            pieces: Vec::new(),
            parts: Vec::new(),
        }
    }

    /// Reads once and notes the requests in it. Returns whether there may be more to read; `closing`
    /// says that the end of the stream may be among it.
    pub(super) fn read(
        &mut self,
        shared: &Shared,
        token: u128,
        closing: bool,
    ) -> Result<bool, Closed> {
        let have = self.input.len();
        self.input.resize(have + READ, 0);
        let got = loop {
            match self.socket.read(&mut self.input[have..]) {
                Ok(0) => break Err(BROKEN),
                Ok(got) => break Ok(got),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break Ok(0),
                Err(_) => break Err(BROKEN),
            }
        };
        self.input.truncate(have + got.as_ref().unwrap_or(&0));
        let got = got?;
        let more = got == READ || (closing && got > 0);
        let mut used = 0;
        while let Some(frame) = self.next_frame(shared, token, used)? {
            used += frame;
        }
        self.input.drain(..used);
        Ok(more)
    }

    /// Handles the frame that begins at `at`, if it is complete, and returns its length.
    fn next_frame(
        &mut self,
        shared: &Shared,
        token: u128,
        at: usize,
    ) -> Result<Option<usize>, Closed> {
        let input = &self.input[at..];
        if self.hello_by.is_some() {
            // A wrong start is known early: nobody fills our memory by never finishing it.
            let Some(hello) = input.first_chunk::<HELLO_BYTES>() else { return Ok(None) };
            if !wire::hello_is_right(hello, token) {
                return Err(REJECTED);
            }
            self.hello_by = None;
            self.replies.push_back(Head::Welcome);
            return Ok(Some(HELLO_BYTES));
        }
        let Some(header) = input.first_chunk::<REQUEST_BYTES>() else { return Ok(None) };
        match Request::decode(header).ok_or(REJECTED)? {
            Request::Cancel { number } => {
                self.cancel(number);
                Ok(Some(REQUEST_BYTES))
            }
            Request::Pull { number, grant, region, checksum, runs } => {
                if runs as usize > shared.limits.runs {
                    return Err(REJECTED);
                }
                let frame = REQUEST_BYTES + runs as usize * RANGE_BYTES;
                let Some(ranges) = input.get(REQUEST_BYTES..frame) else { return Ok(None) };
                let runs = wire::decode_ranges(ranges);
                match self.accept(shared, (grant, region), &runs) {
                    Ok((memory, bytes)) => self.waiting.push_back(Serving {
                        number,
                        grant,
                        region,
                        memory,
                        runs,
                        bytes,
                        cursor: Cursor::default(),
                        checksum,
                        cancelled: false,
                    }),
                    Err(why) => {
                        count(&shared.stats.refused, 1);
                        self.replies.push_back(Head::Refused { number, why });
                    }
                }
                Ok(Some(frame))
            }
        }
    }

    /// Checks a pull: its region, its ranges, its right to read them.
    fn accept(
        &self,
        shared: &Shared,
        (grant, region): (GrantId, RegionId),
        runs: &[Run],
    ) -> Result<(Arc<Memory>, u64), Refusal> {
        let memory = shared.region(region).ok_or(Refusal::NoRegion)?.memory;
        let mut bytes = 0u64;
        for run in runs {
            let end = run.remote.saturating_add(run.bytes);
            check_range("a pull", run.remote, end, memory.bytes()).map_err(|_| Refusal::Outside)?;
            bytes = bytes.checked_add(run.bytes).ok_or(Refusal::Outside)?;
        }
        let queued: usize = self.waiting.iter().map(|serving| serving.runs.len()).sum();
        let pulls = self.waiting.len().max(self.replies.len());
        if pulls >= shared.limits.pulls || queued + runs.len() > QUEUED * shared.limits.runs {
            return Err(Refusal::TooMany);
        }
        let ranges = runs.iter().map(|run| run.remote..run.remote + run.bytes);
        let granted = shared.grants.while_granted(grant, region, ranges, || ());
        granted.map(|()| (memory, bytes)).ok_or(Refusal::NotGranted)
    }

    fn cancel(&mut self, number: u32) {
        self.waiting.retain(|serving| serving.number != number);
        if let Some(from) = self.sending.as_mut().and_then(|sending| sending.from.as_mut())
            && from.number == number
        {
            from.cancelled = true;
        }
    }

    /// Writes for one turn, or until the socket is full. Returns whether it could go on.
    pub(super) fn write(&mut self, shared: &Shared) -> Result<bool, Closed> {
        let mut turn = 0;
        while turn < TURN {
            let Some(mut sending) = self.sending.take().or_else(|| self.next_sending(shared))
            else {
                return Ok(false);
            };
            match self.write_once(shared, &mut sending) {
                Ok((sent, wanted)) => {
                    turn += sent;
                    let head = sent.min(HEAD_BYTES - sending.head_done);
                    sending.head_done += head;
                    let of_chunk = (sent - head).min(sending.left as usize);
                    let of_end = sent - head - of_chunk;
                    sending.left -= of_chunk as u32;
                    if let Some(from) = &mut sending.from {
                        from.cursor.advance(&from.runs, of_chunk as u64);
                        count(&shared.stats.bytes_served, of_chunk as u64);
                    }
                    self.keep(shared, sending, of_end);
                    if sent < wanted {
                        return Ok(false); // full: an event comes when it has room
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.sending = Some(sending);
                    return Ok(false);
                }
                Err(_) => return Err(BROKEN),
            }
        }
        Ok(true)
    }

    /// Puts back what is not finished; of the head after the last chunk, `of_end` bytes are written.
    fn keep(&mut self, shared: &Shared, sending: Sending, of_end: usize) {
        if sending.head_done < HEAD_BYTES || sending.left > 0 {
            self.sending = Some(sending);
        } else if let Some(from) = sending.from {
            if sending.withdrawn {
                count(&shared.stats.refused, 1);
                let why = Refusal::Withdrawn;
                self.replies.push_back(Head::Refused { number: from.number, why });
            } else if from.left() == 0 {
                let end = Sending { head_done: of_end, ..Sending::alone(from.end()) };
                self.sending = (of_end < HEAD_BYTES).then_some(end);
            } else if !from.cancelled {
                self.waiting.push_back(from);
            }
        }
    }

    /// The next head, with the chunk that follows it.
    fn next_sending(&mut self, shared: &Shared) -> Option<Sending> {
        if let Some(head) = self.replies.pop_front() {
            return Some(Sending::alone(head));
        }
        let from = self.waiting.pop_front()?;
        let chunk = from.left().min(u64::from(shared.limits.chunk_bytes)) as u32;
        from.cursor.peek(&from.runs, u64::from(chunk), usize::MAX, &mut self.pieces);
        let ranges = self.pieces.iter().map(|run| run.remote..run.remote + run.bytes);
        let sum = shared.grants.while_granted(from.grant, from.region, ranges, || {
            let part = |run: &Run| Part { offset: run.remote, bytes: run.bytes };
            from.checksum.then(|| {
                let parts: Vec<Part> = self.pieces.iter().map(part).collect();
                from.memory.checksum(&parts)
            })
        });
        let number = from.number;
        let Some(sum) = sum else {
            count(&shared.stats.refused, 1);
            return Some(Sending::alone(Head::Refused { number, why: Refusal::Withdrawn }));
        };
        let head = Head::Data { number, bytes: chunk, checksum: sum.unwrap_or(0) };
        Some(Sending { left: chunk, from: Some(from), ..Sending::alone(head) })
    }

    /// One system call: the rest of the head and as much of the chunk as it takes. Returns what it
    /// wrote and how much it had.
    fn write_once(&mut self, shared: &Shared, sending: &mut Sending) -> io::Result<(usize, usize)> {
        let head = &sending.head[sending.head_done..];
        let Some(from) = sending.from.as_ref().filter(|_| !sending.withdrawn) else {
            let zeros = &ZEROS[..ZEROS.len().min(sending.left as usize)];
            let sent = self.socket.write_vectored(&[IoSlice::new(head), IoSlice::new(zeros)])?;
            return Ok((sent, head.len() + zeros.len()));
        };
        from.cursor.peek(&from.runs, u64::from(sending.left), PIECES, &mut self.pieces);
        let part = |run: &Run| Part { offset: run.remote, bytes: run.bytes };
        self.parts.clear();
        self.parts.extend(self.pieces.iter().map(part));
        let ranges = self.pieces.iter().map(|run| run.remote..run.remote + run.bytes);
        let socket = self.socket.as_fd();
        // With the last bytes goes the word that they may be kept.
        let all: u64 = self.parts.iter().map(|part| part.bytes).sum();
        let end = (all == from.left()).then(|| from.end().encode());
        let end = end.as_ref().map_or(&[][..], |end| &end[..]);
        // The kernel has copied what it took when the call returns: a grant withdrawn after it
        // finds nothing of ours still reading.
        let sent = shared.grants.while_granted(from.grant, from.region, ranges, || {
            let sent = from.memory.send(socket, head, &self.parts, end)?;
            Ok((sent, head.len() + all as usize + end.len()))
        });
        sent.unwrap_or_else(|| {
            sending.withdrawn = true;
            self.write_once(shared, sending)
        })
    }
}
