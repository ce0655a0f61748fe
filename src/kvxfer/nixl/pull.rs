//! One pull: asks for reads, waits for them, looks whether its grant still holds.

use std::collections::VecDeque;
use std::ffi::CString;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::agent::{Agent, Read};
use crate::kvxfer::error::XferError;
use crate::kvxfer::plan::{Cursor, Run};
use crate::kvxfer::process::Watch;
use crate::kvxfer::shared::{Job, Shared, count};
use crate::kvxfer::transport::{PeerId, Pull, Sink};
use crate::kvxfer::words::{Arrivals, REFUSED, WORD_BYTES, word_of};

/// Reads asked for in one go.
const PIECES: usize = 64;
/// How often a peer is read from that is idle and whose process cannot be watched.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// A peer that is connected.
pub(super) struct Peer {
    /// Ours, for this peer alone: its end is the proof that nothing writes any more.
    pub(super) agent: Rc<Agent>,
    /// The peer's agent.
    pub(super) name: CString,
    /// By region: its address there.
    pub(super) bases: Vec<u64>,
    /// The words of its grants: their address there, and how many there are.
    pub(super) words: (u64, u32),
    /// Its process, on this host.
    pub(super) watch: Option<Watch>,
    /// Pools registered with the agent.
    pub(super) registered: usize,
    /// Bytes asked for that have not come, of all its pulls.
    pub(super) posted: u64,
    /// When something of it last ended.
    pub(super) moved: Instant,
    /// A read that nobody asked for, and since when.
    probe: Option<(Read, Instant)>,
}

impl Peer {
    pub(super) fn new(agent: Rc<Agent>, name: CString, watch: Option<Watch>) -> Self {
        let (bases, words, moved) = (Vec::new(), (0, 0), Instant::now());
        Self { agent, name, bases, words, watch, registered: 0, posted: 0, moved, probe: None }
    }

    /// Looks whether it is still there; why it is not. What is read for that goes to `place`.
    pub(super) fn look(
        &mut self,
        arrivals: &Arrivals,
        place: u64,
        stall: Duration,
    ) -> Option<XferError> {
        // What its side sends on its own must not pile up.
        if let Err(why) = self.agent.progress() {
            return Some(XferError::lost("progress", why));
        }
        if let Some(watch) = &self.watch {
            let why = || XferError::PeerLost { why: "its process has ended".into() };
            return watch.has_ended().then(why);
        }
        let now = Instant::now();
        match &mut self.probe {
            None if now < self.moved + LOOK_AGAIN => None,
            None => {
                let here = (&**arrivals.memory(), place);
                match self.agent.read(&self.name, here, self.words.0, WORD_BYTES) {
                    Ok(read) => self.probe = Some((read, now)),
                    Err(why) => return Some(XferError::lost("read", why)),
                }
                None
            }
            Some((read, since)) => match read.ended() {
                Some(Ok(())) => {
                    (self.probe, self.moved) = (None, now);
                    None
                }
                Some(Err(why)) => Some(XferError::lost("read", why)),
                None => (now >= *since + stall).then(|| silent(stall)),
            },
        }
    }

    /// Ends all that the agent does, for good.
    pub(super) fn end(self) -> Result<(), String> {
        drop(self.probe);
        self.agent.end()
    }
}

fn silent(stall: Duration) -> XferError {
    XferError::PeerLost { why: format!("it owes bytes and sent none in {stall:?}") }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Running,
    /// Failed; what was asked for has not all ended.
    Draining,
}

/// What a look at a pull has shown.
pub(super) enum Look {
    /// Nothing has changed.
    Same,
    /// Something has, look again soon.
    Moved,
    /// It is over: drop it.
    Over,
    /// Its peer must be given up.
    Lost(XferError),
}

pub(super) struct Active {
    pub(super) job: Job,
    cursor: Cursor,
    posted: VecDeque<(Read, u64)>,
    arrived: u64,
    /// Where the grant's word arrives.
    pub(super) place: u64,
    /// Whether the word was asked for: the last read of all.
    asked: bool,
    phase: Phase,
    started: Instant,
    /// When it last moved.
    moved: Instant,
}

impl Active {
    pub(super) fn new(job: Job, place: u64) -> Self {
        let now = Instant::now();
        Self {
            job,
            cursor: Cursor::default(),
            posted: VecDeque::new(),
            arrived: 0,
            place,
            asked: false,
            phase: Phase::Running,
            started: now,
            moved: now,
        }
    }

    pub(super) fn peer(&self) -> PeerId {
        self.job.pull.peer
    }

    /// Tells that it failed; what was asked for goes on.
    pub(super) fn fail(&mut self, shared: &Shared, sink: &Sink, why: XferError) {
        if self.phase == Phase::Running {
            self.phase = Phase::Draining;
            self.moved = Instant::now();
            shared.failed(sink, self.job.pull.transfer, why);
        }
    }

    /// Leaves its reads to their agent, which is about to end.
    pub(super) fn give_up(&mut self) {
        self.posted.clear();
    }

    /// Collects what has ended, asks for more, and says where it stands.
    pub(super) fn drive(
        &mut self,
        shared: &Shared,
        sink: &Sink,
        peer: &mut Peer,
        arrivals: &Arrivals,
        now: Instant,
    ) -> Look {
        let moved = match self.collect(shared, peer) {
            Ok(moved) => moved,
            Err(why) => return Look::Lost(XferError::lost("read", why)),
        };
        if moved {
            (self.moved, peer.moved) = (now, now);
        }
        let stall = shared.limits.stall;
        if !self.posted.is_empty() && now >= self.moved.max(peer.moved) + stall {
            return Look::Lost(silent(stall));
        }
        let look = match self.phase {
            Phase::Running => self.run(shared, sink, peer, arrivals, now),
            Phase::Draining if self.posted.is_empty() => {
                shared.quiesced(sink, self.job.pull.transfer);
                Look::Over
            }
            Phase::Draining => Look::Same,
        };
        if moved && matches!(look, Look::Same) { Look::Moved } else { look }
    }

    /// Takes off what has ended; whether there was any.
    fn collect(&mut self, shared: &Shared, peer: &mut Peer) -> Result<bool, String> {
        let mut moved = false;
        while let Some((read, bytes)) = self.posted.front_mut() {
            let Some(ended) = read.ended() else { break };
            let bytes = *bytes;
            ended?; // it stays with those that may still be written to
            self.posted.pop_front();
            moved = true;
            peer.posted -= bytes;
            self.arrived += bytes;
            count(&shared.stats.bytes_pulled, bytes);
        }
        Ok(moved)
    }

    fn run(
        &mut self,
        shared: &Shared,
        sink: &Sink,
        peer: &mut Peer,
        arrivals: &Arrivals,
        now: Instant,
    ) -> Look {
        if self.asked && self.posted.is_empty() {
            return self.conclude(shared, sink, arrivals);
        }
        if now >= self.started + self.job.pull.timeout {
            let (after, done) = (self.job.pull.timeout, self.arrived);
            self.fail(shared, sink, XferError::Deadline { after, done, bytes: self.job.bytes });
            return Look::Moved;
        }
        let Some(word) = word_of(self.job.pull.grant, peer.words.1) else {
            self.fail(shared, sink, REFUSED);
            return Look::Moved;
        };
        // Each may have one chunk on its way, whatever others have filled the window with.
        let room = peer.posted < shared.limits.window_bytes || self.posted.is_empty();
        let posted = if self.arrived == self.job.bytes && !self.asked {
            self.ask(shared, peer, arrivals, word)
        } else if room && self.cursor.done < self.job.bytes {
            self.post(shared, peer)
        } else {
            return Look::Same;
        };
        match posted {
            Ok(()) => Look::Moved,
            Err(why) => Look::Lost(XferError::lost("read", why)),
        }
    }

    /// Asks for one chunk.
    fn post(&mut self, shared: &Shared, peer: &mut Peer) -> Result<(), String> {
        let pull = &self.job.pull;
        let base =
            *peer.bases.get(pull.remote.0 as usize).ok_or("it has published no such region")?;
        let mut pieces: Vec<Run> = Vec::with_capacity(PIECES);
        let chunk = u64::from(shared.limits.chunk_bytes);
        self.cursor.peek(&pull.runs, chunk, PIECES, &mut pieces);
        for run in pieces {
            let here = (&*self.job.memory, run.local);
            let there = base + run.remote; // within the region: checked on admission
            let read = peer.agent.read(&peer.name, here, there, run.bytes)?;
            self.posted.push_back((read, run.bytes));
            self.cursor.advance(&pull.runs, run.bytes);
            peer.posted += run.bytes;
            count(&shared.stats.posts, 1);
        }
        Ok(())
    }

    /// Asks for the grant's word, when all else has arrived. It counts for no bytes.
    fn ask(
        &mut self,
        shared: &Shared,
        peer: &Peer,
        arrivals: &Arrivals,
        word: u64,
    ) -> Result<(), String> {
        arrivals.clear(self.place);
        let here = (&**arrivals.memory(), self.place);
        let read = peer.agent.read(&peer.name, here, peer.words.0 + word, WORD_BYTES)?;
        self.posted.push_back((read, 0));
        self.asked = true;
        count(&shared.stats.posts, 1);
        Ok(())
    }

    /// The word has arrived: only if it is the grant's name, the bytes are what was granted.
    fn conclude(&mut self, shared: &Shared, sink: &Sink, arrivals: &Arrivals) -> Look {
        let Pull { transfer, grant, .. } = self.job.pull;
        if !arrivals.tell(self.place, grant) {
            self.fail(shared, sink, REFUSED);
            return Look::Moved;
        }
        shared.done(sink, transfer, self.job.bytes);
        Look::Over
    }
}
