//! Between ranks of one process: a thread that copies, a chunk of each pull in turn.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};
use std::time::Instant;

use rustc_hash::FxHashMap;
use rustix::event::{PollFd, PollFlags, poll};

use super::commands::Commands;
use super::descriptor::{Descriptor, Endpoint};
use super::error::XferError;
use super::front::{Command, Front, Kind, OTHER_TRANSPORT};
use super::plan::{Cursor, Run};
use super::region::Part;
use super::shared::{Job, Shared, count};
use super::transport::{Limits, PeerId, Sink, TransferId};

/// The name in messages.
const NAME: &str = "local";
/// Pieces that are copied under one look at the grant.
const PIECES: usize = 4096;

/// All local transports of this process, by instance.
static INSTANCES: LazyLock<Mutex<FxHashMap<u128, Weak<Shared>>>> = LazyLock::new(Mutex::default);

/// Copies between pools of one process.
pub struct Local {
    front: Front<Weak<Shared>, Infallible>,
}

impl Local {
    /// Starts the thread.
    ///
    /// # Errors
    /// [`XferError::Unavailable`] if the system gives no thread.
    pub fn start(limits: Limits, sink: Sink) -> Result<Self, XferError> {
        let shared = Shared::new(NAME, limits, None)?;
        let front = Front::start(shared, sink, |shared, commands| {
            let (peers, active, pieces) = (FxHashMap::default(), VecDeque::new(), Vec::new());
            let copier = Copier { shared, commands, peers, active, pieces };
            Ok(move |sink: &Sink| copier.run(sink))
        })?;
        let mut instances = INSTANCES.lock().unwrap_or_else(PoisonError::into_inner);
        instances.insert(front.shared.instance, Arc::downgrade(&front.shared));
        Ok(Self { front })
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        let mut instances = INSTANCES.lock().unwrap_or_else(PoisonError::into_inner);
        instances.remove(&self.front.shared.instance);
    }
}

impl Kind for Local {
    type Way = Weak<Shared>;
    type Work = Infallible;

    fn front(&self) -> &Front<Self::Way, Self::Work> {
        &self.front
    }

    fn endpoint(&self, _regions: usize) -> Endpoint {
        Endpoint::Local
    }

    fn way(&self, there: &Descriptor) -> Result<Self::Way, &'static str> {
        if there.endpoint != Endpoint::Local {
            return Err(OTHER_TRANSPORT);
        }
        let instances = INSTANCES.lock().unwrap_or_else(PoisonError::into_inner);
        let found = instances.get(&there.instance).cloned();
        found.ok_or("it is of another process, or has ended")
    }
}

/// One pull that is being copied.
struct Active {
    job: Job,
    cursor: Cursor,
    started: Instant,
}

/// What the thread owns.
struct Copier {
    shared: Arc<Shared>,
    commands: Arc<Commands<Command<Weak<Shared>, Infallible>>>,
    peers: FxHashMap<PeerId, Weak<Shared>>,
    active: VecDeque<Active>,
    pieces: Vec<Run>,
}

impl Copier {
    fn run(mut self, sink: &Sink) -> Result<(), String> {
        loop {
            for command in self.commands.take() {
                match command {
                    Command::Connect(peer, _) if !self.shared.knows(peer) => {} // lost since
                    Command::Connect(peer, there) => drop(self.peers.insert(peer, there)),
                    Command::Disconnect(peer) => {
                        self.peers.remove(&peer);
                        self.fail_all(sink, peer, &XferError::Aborted);
                    }
                    Command::Pull(job) => {
                        let (cursor, started) = (Cursor::default(), Instant::now());
                        self.active.push_back(Active { job, cursor, started });
                    }
                    Command::Abort(transfer) => self.abort(sink, transfer),
                    Command::Stop => return Ok(()),
                }
            }
            match self.active.pop_front() {
                Some(active) => self.copy_chunk(sink, active),
                None => self.sleep()?,
            }
        }
    }

    fn sleep(&self) -> Result<(), String> {
        let mut wake = [PollFd::new(&*self.commands, PollFlags::IN)];
        match poll(&mut wake, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(format!("poll: {error}")),
        }
    }

    fn abort(&mut self, sink: &Sink, transfer: TransferId) {
        let found = self.active.iter().position(|active| active.job.pull.transfer == transfer);
        if let Some(place) = found {
            self.active.remove(place);
            self.shared.failed_quiet(sink, transfer, XferError::Aborted);
        }
    }

    fn fail_all(&mut self, sink: &Sink, peer: PeerId, why: &XferError) {
        let (lost, kept) = self.active.drain(..).partition(|active| active.job.pull.peer == peer);
        self.active = kept;
        let lost: VecDeque<Active> = lost;
        for active in lost {
            self.shared.failed_quiet(sink, active.job.pull.transfer, why.clone());
        }
    }

    /// Copies one chunk and puts the pull back, or ends it.
    fn copy_chunk(&mut self, sink: &Sink, mut active: Active) {
        let Job { pull, bytes, memory } = &active.job;
        let fail = |why| self.shared.failed_quiet(sink, pull.transfer, why);
        if active.started.elapsed() >= pull.timeout {
            let (after, done, bytes) = (pull.timeout, active.cursor.done, *bytes);
            return fail(XferError::Deadline { after, done, bytes });
        }
        let Some(peer) = self.peers.get(&pull.peer) else { return fail(XferError::Aborted) };
        let there = peer.upgrade().and_then(|there| {
            let region = there.region(pull.remote)?;
            there.running().ok().map(|()| (there, region))
        });
        let Some((there, source)) = there else {
            let lost = XferError::PeerLost { why: "it has ended".into() };
            let peer = pull.peer;
            fail(lost.clone());
            self.fail_all(sink, peer, &lost);
            self.peers.remove(&peer);
            return self.shared.peer_down(sink, peer, lost);
        };
        let chunk = u64::from(self.shared.limits.chunk_bytes);
        active.cursor.peek(&pull.runs, chunk, PIECES, &mut self.pieces);
        let ranges = self.pieces.iter().map(|run| run.remote..run.remote + run.bytes);
        let copied = there.grants.while_granted(pull.grant, pull.remote, ranges, || {
            for run in &self.pieces {
                let part = Part { offset: run.remote, bytes: run.bytes };
                memory.copy_from(run.local, &source.memory, part);
            }
            self.pieces.iter().map(|run| run.bytes).sum::<u64>()
        });
        let Some(copied) = copied else {
            count(&there.stats.refused, 1);
            return fail(XferError::Refused { why: "the grant is unknown, ended or too small" });
        };
        active.cursor.advance(&pull.runs, copied);
        count(&self.shared.stats.bytes_pulled, copied);
        count(&self.shared.stats.posts, self.pieces.len() as u64);
        count(&there.stats.bytes_served, copied);
        if active.cursor.done == *bytes {
            return self.shared.done(sink, pull.transfer, *bytes);
        }
        self.active.push_back(active);
    }
}
