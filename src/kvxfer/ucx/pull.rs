//! One pull: posts gets, waits for them, looks whether its grant still holds, and waits after a
//! failure until it is quiet.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Instant;

use super::endpoint::{Endpoint, Mapped, RemoteKey, Request};
use crate::kvxfer::error::XferError;
use crate::kvxfer::plan::{Cursor, Run};
use crate::kvxfer::process::Watch;
use crate::kvxfer::shared::{Job, Shared, count};
use crate::kvxfer::transport::{PeerId, Pull, Sink};
use crate::kvxfer::words::{Arrivals, REFUSED, WORD_BYTES, word_of};

/// Gets posted in one go.
const PIECES: usize = 64;

/// A peer that is connected.
pub(super) struct Peer {
    pub(super) endpoint: Endpoint,
    /// By region: its address there, and the key to it.
    pub(super) keys: Vec<(u64, Rc<RemoteKey>)>,
    /// The words of its grants: their address there, how many there are, and the key to them.
    pub(super) words: (u64, u32, Rc<RemoteKey>),
    /// Its process, on this host.
    pub(super) watch: Option<Watch>,
    /// Bytes posted and not ended, of all its pulls.
    pub(super) posted: u64,
    /// When something of it last ended: others of its pulls may be ahead in its queue.
    pub(super) moved: Instant,
}

/// Where the words of peers' grants arrive.
pub(super) struct Scratch {
    pub(super) arrivals: Arrivals,
    /// Its memory.
    pub(super) mapped: Rc<Mapped>,
}

/// What a pull writes to.
pub(super) struct Here<'a> {
    pub(super) local: &'a Rc<Mapped>,
    pub(super) scratch: &'a Scratch,
}

enum Phase {
    Running,
    /// Failed; what was posted has not all ended.
    Draining,
    /// Failed, all ended, the flush after it has not.
    Flushing(Request),
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
    posted: VecDeque<(Request, u64)>,
    arrived: u64,
    /// Where the grant's word arrives.
    pub(super) word: u64,
    /// Whether the word was asked for: the last get of all.
    asked: bool,
    phase: Phase,
    started: Instant,
    /// When it last moved.
    moved: Instant,
}

impl Active {
    pub(super) fn new(job: Job, word: u64) -> Self {
        let now = Instant::now();
        Self {
            job,
            cursor: Cursor::default(),
            posted: VecDeque::new(),
            arrived: 0,
            word,
            asked: false,
            phase: Phase::Running,
            started: now,
            moved: now,
        }
    }

    pub(super) fn peer(&self) -> PeerId {
        self.job.pull.peer
    }

    /// Tells that it failed; what was posted goes on.
    pub(super) fn fail(&mut self, shared: &Shared, sink: &Sink, why: XferError) {
        if matches!(self.phase, Phase::Running) {
            self.phase = Phase::Draining;
            self.moved = Instant::now();
            shared.failed(sink, self.job.pull.transfer, why);
        }
    }

    /// When the clock must be looked at again.
    pub(super) fn next_look(&self, shared: &Shared) -> Instant {
        let stalled = self.moved + shared.limits.stall;
        match self.phase {
            Phase::Running => stalled.min(self.started + self.job.pull.timeout),
            Phase::Draining | Phase::Flushing(_) => stalled,
        }
    }

    /// Collects what has ended, posts more, and says where it stands. `peer` is `None` once the
    /// peer was given up; `closed` says that nothing of its endpoint is left.
    pub(super) fn drive(
        &mut self,
        shared: &Shared,
        sink: &Sink,
        (mut peer, closed): (Option<&mut Peer>, bool),
        here: Here<'_>,
        now: Instant,
    ) -> Look {
        let (moved, error) = self.collect(shared, peer.as_deref_mut());
        if moved {
            self.moved = now;
            if let Some(peer) = &mut peer {
                peer.moved = now;
            }
        }
        if let Some(why) = error {
            let why = XferError::lost("get", why);
            self.fail(shared, sink, why.clone());
            return if peer.is_some() { Look::Lost(why) } else { Look::Moved };
        }
        let owes = peer.as_ref().filter(|_| !self.posted_nothing());
        if owes.is_some_and(|peer| now >= self.moved.max(peer.moved) + shared.limits.stall) {
            let after = shared.limits.stall;
            let why =
                XferError::PeerLost { why: format!("it owes bytes and sent none in {after:?}") };
            self.fail(shared, sink, why.clone());
            return Look::Lost(why);
        }
        let look = match self.phase {
            Phase::Running => self.run(shared, sink, peer, here, now),
            Phase::Draining | Phase::Flushing(_) => self.settle(peer, closed),
        };
        if matches!(look, Look::Over) && !matches!(self.phase, Phase::Running) {
            shared.quiesced(sink, self.job.pull.transfer);
        }
        if moved && matches!(look, Look::Same) { Look::Moved } else { look }
    }

    fn posted_nothing(&self) -> bool {
        self.posted.is_empty() && !matches!(self.phase, Phase::Flushing(_))
    }

    /// Takes off what has ended. Whether there was any, and the first error.
    fn collect(&mut self, shared: &Shared, mut peer: Option<&mut Peer>) -> (bool, Option<String>) {
        let (mut moved, mut error) = (false, None);
        while let Some((request, bytes)) = self.posted.front_mut() {
            let Some(ended) = request.ended() else { break };
            let bytes = *bytes;
            self.posted.pop_front();
            moved = true;
            if let Some(peer) = &mut peer {
                peer.posted -= bytes;
            }
            match ended {
                Ok(()) => {
                    self.arrived += bytes;
                    count(&shared.stats.bytes_pulled, bytes);
                }
                Err(why) => error = error.or(Some(why)),
            }
        }
        (moved, error)
    }

    fn run(
        &mut self,
        shared: &Shared,
        sink: &Sink,
        peer: Option<&mut Peer>,
        here: Here<'_>,
        now: Instant,
    ) -> Look {
        if self.asked && self.posted.is_empty() {
            return self.conclude(shared, sink, here.scratch);
        }
        let Some(peer) = peer else {
            let peer = self.peer();
            self.fail(shared, sink, XferError::UnknownPeer { peer });
            return Look::Moved;
        };
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
            self.ask(shared, peer, here.scratch, word)
        } else if room && self.cursor.done < self.job.bytes {
            self.post(shared, peer, here.local)
        } else {
            return Look::Same;
        };
        match posted {
            Ok(()) => Look::Moved,
            Err(why) => {
                let why = XferError::lost("get", why);
                self.fail(shared, sink, why.clone());
                Look::Lost(why)
            }
        }
    }

    /// Posts one chunk.
    fn post(&mut self, shared: &Shared, peer: &mut Peer, local: &Rc<Mapped>) -> Result<(), String> {
        let pull = &self.job.pull;
        let key = peer.keys.get(pull.remote.0 as usize);
        let (base, key) = key.ok_or("the peer has published no key for that region")?;
        let mut pieces: Vec<Run> = Vec::with_capacity(PIECES);
        let chunk = u64::from(shared.limits.chunk_bytes);
        self.cursor.peek(&pull.runs, chunk, PIECES, &mut pieces);
        for run in pieces {
            let remote = (key, base + run.remote); // within the region: checked on admission
            let request = peer.endpoint.get((local, run.local), remote, run.bytes)?;
            self.posted.push_back((request, run.bytes));
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
        scratch: &Scratch,
        word: u64,
    ) -> Result<(), String> {
        let (base, _, key) = &peer.words;
        scratch.arrivals.clear(self.word);
        let here = (&scratch.mapped, self.word);
        let request = peer.endpoint.get(here, (key, base + word), WORD_BYTES)?;
        self.posted.push_back((request, 0));
        self.asked = true;
        count(&shared.stats.posts, 1);
        Ok(())
    }

    /// The word has arrived: only if it is the grant's name, the bytes are what was granted.
    fn conclude(&mut self, shared: &Shared, sink: &Sink, scratch: &Scratch) -> Look {
        let Pull { transfer, grant, .. } = self.job.pull;
        if !scratch.arrivals.tell(self.word, grant) {
            self.fail(shared, sink, REFUSED);
            return Look::Moved;
        }
        shared.done(sink, transfer, self.job.bytes);
        Look::Over
    }

    /// After a failure: towards the proof that nothing writes any more.
    fn settle(&mut self, peer: Option<&mut Peer>, closed: bool) -> Look {
        if !self.posted.is_empty() {
            return Look::Same;
        }
        let Some(peer) = peer else {
            // Given up: quiet once its endpoint is closed too.
            return if closed { Look::Over } else { Look::Same };
        };
        if let Phase::Flushing(flush) = &mut self.phase {
            return match flush.ended() {
                None => Look::Same,
                Some(Ok(())) => Look::Over,
                Some(Err(why)) => Look::Lost(XferError::lost("flush", why)),
            };
        }
        match peer.endpoint.flush() {
            Ok(flush) => {
                self.phase = Phase::Flushing(flush);
                Look::Moved
            }
            Err(why) => Look::Lost(XferError::lost("flush", why)),
        }
    }
}
