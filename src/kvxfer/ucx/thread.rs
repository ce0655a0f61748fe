//! The thread that owns UCX's worker and all that belongs to it.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::Timespec;

use super::Command;
use super::endpoint::{Context, Endpoint, Mapped, Request, Worker};
use super::library::Ucp;
use super::pull::{Active, Here, Look, Peer, Scratch};
use crate::kvxfer::commands::Commands;
use crate::kvxfer::descriptor::{UcxEndpoint, WordTable};
use crate::kvxfer::error::XferError;
use crate::kvxfer::process::Watch;
use crate::kvxfer::shared::Shared;
use crate::kvxfer::transport::{PeerId, Sink};
use crate::kvxfer::words::{Arrivals, WORD_BYTES};

/// How long it looks for more before it sleeps: waking up costs more than this.
const SPIN: Duration = Duration::from_micros(30);
/// Longest sleep: UCX is known to miss wake-ups.
const NAP: Duration = Duration::from_millis(100);
/// Progress calls between looks at the pulls.
const ROUNDS: usize = 16;
/// Progress calls after a sleep in which nothing happened.
const KEEPALIVE_CALLS: usize = 64;
/// How long the end of a transport waits for UCX's.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What the rest of the transport must know of the worker.
#[derive(Clone)]
pub(super) struct Hello {
    pub(super) address: Vec<u8>,
    pub(super) cuda: bool,
    pub(super) words: WordTable,
}

/// An endpoint on its way out.
struct Closing {
    peer: PeerId,
    request: Request,
    /// Kept until it is closed.
    _given_up: Peer,
}

pub(super) struct Driver {
    shared: Arc<Shared>,
    commands: Arc<Commands<Command>>,
    context: Rc<Context>,
    worker: Rc<Worker>,
    mapped: Vec<Rc<Mapped>>,
    /// Of our grants: kept for peers to read.
    _words: Rc<Mapped>,
    /// For the words of peers' grants.
    scratch: Scratch,
    peers: FxHashMap<PeerId, Peer>,
    closing: Vec<Closing>,
    active: VecDeque<Active>,
    /// When the peers' processes were last looked at.
    looked: Instant,
}

impl Driver {
    pub(super) fn new(
        ucp: &'static Ucp,
        settings: &[(&'static str, String)],
        shared: Arc<Shared>,
        commands: Arc<Commands<Command>>,
    ) -> Result<(Self, Hello), String> {
        let settings: Vec<(&str, &str)> =
            settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let context = Context::new(ucp, &settings)?;
        let worker = Worker::new(&context)?;
        let memory = shared.grants.words().ok_or("its grants have no words")?;
        let words = Mapped::new(&context, memory.clone())?;
        let table = WordTable {
            address: memory.address().addr() as u64,
            count: (memory.bytes() / WORD_BYTES) as u32, // it was made for so many
            key: words.pack()?,
        };
        let arrivals = Arrivals::new(shared.limits.pulls)?;
        let mapped = Mapped::new(&context, arrivals.memory().clone())?;
        let scratch = Scratch { arrivals, mapped };
        let hello = Hello { address: worker.address()?, cuda: context.has_cuda(), words: table };
        let driver = Self {
            shared,
            commands,
            context,
            worker,
            mapped: Vec::new(),
            _words: words,
            scratch,
            peers: FxHashMap::default(),
            closing: Vec::new(),
            active: VecDeque::new(),
            looked: Instant::now(),
        };
        Ok((driver, hello))
    }

    pub(super) fn run(mut self, sink: &Sink) -> Result<(), String> {
        let mut last_moved = Instant::now();
        loop {
            let mut moved = false;
            for command in self.commands.take() {
                moved = true;
                if !self.obey(sink, command) {
                    self.end();
                    return Ok(());
                }
            }
            moved |= (0..ROUNDS).take_while(|_| self.worker.progress()).count() > 0;
            self.find_failures(sink);
            let now = Instant::now();
            moved |= self.drive(sink, now);
            if moved {
                last_moved = now;
            } else if now >= last_moved + SPIN {
                self.sleep(now)?;
                last_moved = Instant::now();
            }
        }
    }

    /// Does what a caller asked; `false` when it is time to end.
    fn obey(&mut self, sink: &Sink, command: Command) -> bool {
        match command {
            Command::Work((memory, reply)) => {
                let packed = Mapped::new(&self.context, memory).and_then(|mapped| {
                    let packed = mapped.pack()?;
                    self.mapped.push(mapped);
                    Ok(packed)
                });
                let _ = reply.send(packed); // the caller waits for it
            }
            Command::Connect(peer, _) if !self.shared.knows(peer) => {} // lost since
            Command::Connect(peer, endpoint) => {
                if let Err(why) = self.connect(peer, &endpoint) {
                    self.lose(sink, peer, XferError::lost("connect", why));
                }
            }
            Command::Disconnect(peer) => self.lose(sink, peer, XferError::Aborted),
            Command::Pull(job) => {
                let word = self.scratch.arrivals.take();
                self.active.push_back(Active::new(job, word));
            }
            Command::Abort(transfer) => {
                let found = self.active.iter_mut().find(|a| a.job.pull.transfer == transfer);
                if let Some(active) = found {
                    active.fail(&self.shared, sink, XferError::Aborted);
                }
            }
            Command::Stop => return false,
        }
        true
    }

    fn connect(&mut self, id: PeerId, endpoint: &UcxEndpoint) -> Result<(), String> {
        if !self.peers.contains_key(&id) {
            let watch = endpoint.process.as_ref().and_then(Watch::new);
            let to = Endpoint::new(&self.worker, &endpoint.worker)?;
            let WordTable { address, count, key } = &endpoint.words;
            let words = (*address, *count, to.unpack(key)?);
            let (keys, moved) = (Vec::new(), Instant::now());
            self.peers.insert(id, Peer { endpoint: to, keys, words, watch, posted: 0, moved });
        }
        let Some(peer) = self.peers.get_mut(&id) else { return Ok(()) };
        for (base, packed) in endpoint.keys.iter().skip(peer.keys.len()) {
            let key = peer.endpoint.unpack(packed)?;
            peer.keys.push((*base, key));
        }
        Ok(())
    }

    /// Gives a peer up: its pulls fail, its endpoint is closed by force.
    fn lose(&mut self, sink: &Sink, id: PeerId, why: XferError) {
        for active in self.active.iter_mut().filter(|active| active.peer() == id) {
            active.fail(&self.shared, sink, why.clone());
        }
        if let Some(mut peer) = self.peers.remove(&id)
            && let Some(request) = peer.endpoint.close()
        {
            self.closing.push(Closing { peer: id, request, _given_up: peer });
        }
        self.shared.peer_down(sink, id, why);
    }

    fn find_failures(&mut self, sink: &Sink) {
        // UCX's keepalive takes a dead child that nobody has reaped for a living one, or looks at
        // nothing at all while only one-sided copies are in use.
        let look = self.looked.elapsed() >= NAP;
        if look {
            self.looked = Instant::now();
        }
        let failed = |(id, peer): (&PeerId, &Peer)| {
            let dead = || look && peer.watch.as_ref().is_some_and(Watch::has_ended);
            let why = peer.endpoint.failure();
            let why = why.or_else(|| dead().then(|| "its process has ended".to_owned()))?;
            Some((*id, why))
        };
        let failures: Vec<(PeerId, String)> = self.peers.iter().filter_map(failed).collect();
        for (peer, why) in failures {
            self.lose(sink, peer, XferError::PeerLost { why });
        }
        self.closing.retain_mut(|closing| closing.request.ended().is_none());
    }

    /// Lets each pull go on; whether anything moved.
    fn drive(&mut self, sink: &Sink, now: Instant) -> bool {
        let mut moved = false;
        for _ in 0..self.active.len() {
            let Some(mut active) = self.active.pop_front() else { break };
            let id = active.peer();
            let closed = !self.closing.iter().any(|closing| closing.peer == id);
            let local = &self.mapped[active.job.pull.local.0 as usize]; // checked on admission
            let peer = (self.peers.get_mut(&id), closed);
            let here = Here { local, scratch: &self.scratch };
            let look = active.drive(&self.shared, sink, peer, here, now);
            moved |= !matches!(look, Look::Same);
            match look {
                Look::Same | Look::Moved => self.active.push_back(active),
                Look::Over => self.scratch.arrivals.give_back(active.word),
                Look::Lost(why) => {
                    self.active.push_back(active);
                    self.lose(sink, id, why);
                }
            }
        }
        moved
    }

    /// Sleeps until UCX or a caller has something, or the clock must be looked at.
    fn sleep(&mut self, now: Instant) -> Result<(), String> {
        if !self.worker.arm()? {
            return Ok(()); // something has happened since
        }
        // What is past was acted on: a pull that is stuck for good must not keep the thread busy.
        let looks = self.active.iter().map(|active| active.next_look(&self.shared));
        let left = looks.filter(|at| *at > now).map(|at| at - now).min().unwrap_or(NAP);
        let left = left.clamp(Duration::from_millis(1), NAP);
        let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(left.subsec_nanos()) };
        let mut wake = [
            PollFd::new(&*self.commands, PollFlags::IN),
            PollFd::new(&*self.worker, PollFlags::IN),
        ];
        match poll(&mut wake, Some(&timeout)) {
            Ok(0) => {
                // UCX looks after silent peers in one of so many calls only.
                for _ in 0..KEEPALIVE_CALLS {
                    self.worker.progress();
                }
                Ok(())
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(format!("poll: {error}")),
        }
    }

    /// Closes what is open and gives UCX some time for it. What never ends is freed after the
    /// worker, with the rest of `self`.
    fn end(mut self) {
        let silent: Sink = Box::new(|_| {});
        for id in self.peers.keys().copied().collect::<Vec<_>>() {
            self.shared.remove_peer(id);
            self.lose(&silent, id, XferError::Aborted);
        }
        let start = Instant::now();
        while !(self.closing.is_empty() && self.active.is_empty()) && start.elapsed() < LAST_WORDS {
            self.worker.progress();
            self.find_failures(&silent);
            self.drive(&silent, Instant::now());
        }
    }
}
