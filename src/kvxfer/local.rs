//! Between ranks of one process: a thread that copies, a chunk of each pull in turn.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Instant;

use rustc_hash::FxHashMap;
use rustix::event::{PollFd, PollFlags, poll};

use super::commands::Commands;
use super::descriptor::{Descriptor, Endpoint};
use super::error::XferError;
use super::layout::Layout;
use super::plan::{Cursor, Run};
use super::region::{Memory, MemoryKind, Part};
use super::shared::{Job, Shared, count};
use super::transport::{
    Counters, GrantId, Limits, PeerId, Pull, RegionId, RegionInfo, Sink, TransferId, Transport,
    Withdrawal,
};

/// The name in messages.
const NAME: &str = "local";
/// Pieces that are copied under one look at the grant.
const PIECES: usize = 4096;

/// All local transports of this process, by instance.
static INSTANCES: LazyLock<Mutex<FxHashMap<u128, Weak<Shared>>>> = LazyLock::new(Mutex::default);

enum Command {
    Connect(PeerId, Weak<Shared>),
    Disconnect(PeerId),
    Pull(Job),
    Abort(TransferId),
    Stop,
}

/// Copies between pools of one process.
pub struct Local {
    shared: Arc<Shared>,
    commands: Arc<Commands<Command>>,
    thread: Option<JoinHandle<()>>,
}

impl Local {
    /// Starts the thread.
    ///
    /// # Errors
    /// [`XferError::Unavailable`] if the system gives no thread.
    pub fn start(limits: Limits, sink: Sink) -> Result<Self, XferError> {
        let unavailable = |e: std::io::Error| {
            let why = e.to_string();
            XferError::Unavailable { transport: NAME, why }
        };
        let shared = Shared::new(NAME, limits)?;
        let commands = Arc::new(Commands::new(shared.command_limit()).map_err(unavailable)?);
        let copier = Copier {
            shared: shared.clone(),
            commands: commands.clone(),
            peers: FxHashMap::default(),
            active: VecDeque::new(),
            pieces: Vec::new(),
        };
        let thread = std::thread::Builder::new()
            .name("kvxfer-local".into())
            .spawn(move || copier.shared.clone().run_thread(&sink, |sink| copier.run(sink)))
            .map_err(unavailable)?;
        let mut instances = INSTANCES.lock().unwrap_or_else(PoisonError::into_inner);
        instances.insert(shared.instance, Arc::downgrade(&shared));
        Ok(Self { shared, commands, thread: Some(thread) })
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        let mut instances = INSTANCES.lock().unwrap_or_else(PoisonError::into_inner);
        instances.remove(&self.shared.instance);
        drop(instances);
        self.commands.push_end(Command::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // its panic was told as `Stopped`
        }
    }
}

impl Transport for Local {
    fn name(&self) -> &'static str {
        NAME
    }

    fn register(&self, memory: Arc<Memory>, layout: Layout) -> Result<RegionId, XferError> {
        self.shared.register(memory, layout, &[MemoryKind::Host])
    }

    fn descriptor(&self) -> Result<Vec<u8>, XferError> {
        self.shared.describe(Endpoint::Local)
    }

    fn connect(&self, descriptor: &[u8]) -> Result<PeerId, XferError> {
        let descriptor = Descriptor::decode(descriptor)?;
        let bad = |why: &str| XferError::BadDescriptor { why: why.into() };
        if descriptor.endpoint != Endpoint::Local {
            return Err(bad("it is of another transport"));
        }
        let instances = INSTANCES.lock().unwrap_or_else(PoisonError::into_inner);
        let found = instances.get(&descriptor.instance).cloned();
        drop(instances);
        let there = found.ok_or_else(|| bad("it is of another process, or has ended"))?;
        let (peer, new) = self.shared.add_peer(&descriptor)?;
        if new && let Err(full) = self.commands.push(Command::Connect(peer, there)) {
            self.shared.remove_peer(peer);
            return Err(full);
        }
        Ok(peer)
    }

    fn peer_regions(&self, peer: PeerId) -> Result<Vec<RegionInfo>, XferError> {
        self.shared.peer_regions(peer)
    }

    fn disconnect(&self, peer: PeerId) {
        if self.shared.remove_peer(peer) {
            self.commands.push_end(Command::Disconnect(peer));
        }
    }

    fn grant(
        &self,
        grant: GrantId,
        region: RegionId,
        ranges: &[Range<u64>],
    ) -> Result<(), XferError> {
        self.shared.grant(grant, region, ranges)
    }

    fn withdraw(&self, grant: GrantId) -> Withdrawal {
        self.shared.grants.remove(grant);
        Withdrawal::Quiet
    }

    fn pull(&self, pull: Pull) -> Result<(), XferError> {
        let transfer = pull.transfer;
        let job = self.shared.admit(pull)?;
        self.commands.push(Command::Pull(job)).inspect_err(|_| self.shared.dismiss(transfer))
    }

    fn abort(&self, transfer: TransferId) {
        if self.shared.begin_abort(transfer) {
            self.commands.push_end(Command::Abort(transfer));
        }
    }

    fn counters(&self) -> Counters {
        self.shared.counters()
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
    commands: Arc<Commands<Command>>,
    peers: FxHashMap<PeerId, Weak<Shared>>,
    active: VecDeque<Active>,
    pieces: Vec<Run>,
}

impl Copier {
    fn run(mut self, sink: &Sink) -> Result<(), String> {
        loop {
            for command in self.commands.take() {
                match command {
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
