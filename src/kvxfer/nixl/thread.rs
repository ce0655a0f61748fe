//! The thread that owns NIXL's agents and all that belongs to them.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::Timespec;

use super::Command;
use super::agent::Agent;
use super::library::Table;
use super::pull::{Active, Look, Peer};
use crate::kvxfer::commands::Commands;
use crate::kvxfer::descriptor::{NixlEndpoint, WordTable};
use crate::kvxfer::error::XferError;
use crate::kvxfer::process::Watch;
use crate::kvxfer::region::Memory;
use crate::kvxfer::shared::Shared;
use crate::kvxfer::transport::{PeerId, Sink};
use crate::kvxfer::words::{Arrivals, WORD_BYTES};

/// How long it looks for more before it sleeps: waking up costs more than this.
const SPIN: Duration = Duration::from_micros(30);
/// Shortest and longest sleep while bytes are on their way: NIXL wakes nobody when they come.
const DOZE: (Duration, Duration) = (Duration::from_micros(20), Duration::from_millis(1));
/// Longest sleep with peers, and of the thread that NIXL has for those who read from us.
const NAP: Duration = Duration::from_millis(100);

/// What the rest of the transport must know of the agent that is read from.
#[derive(Clone)]
pub(super) struct Hello {
    /// Before any pool is registered.
    pub(super) metadata: Vec<u8>,
    pub(super) words: WordTable,
}

pub(super) struct Driver {
    nixl: &'static Table,
    settings: String,
    shared: Arc<Shared>,
    commands: Arc<Commands<Command>>,
    /// Whom peers read from.
    source: Rc<Agent>,
    pools: Vec<Arc<Memory>>,
    /// For the words of peers' grants.
    arrivals: Arrivals,
    /// Where what is read for the sake of reading goes.
    nowhere: u64,
    peers: FxHashMap<PeerId, Peer>,
    active: VecDeque<Active>,
    /// When the peers were last looked at.
    looked: Instant,
}

impl Driver {
    pub(super) fn new(
        nixl: &'static Table,
        settings: String,
        shared: Arc<Shared>,
        commands: Arc<Commands<Command>>,
    ) -> Result<(Self, Hello), String> {
        let source = Agent::new(nixl, &name(&shared, "source"), &settings, Some(NAP))?;
        let memory = shared.grants.words().ok_or("its grants have no words")?;
        let words = WordTable {
            address: memory.address().addr() as u64,
            count: (memory.bytes() / WORD_BYTES) as u32, // it was made for so many
            key: Vec::new(),
        };
        source.register(memory)?;
        let mut arrivals = Arrivals::new(shared.limits.pulls.saturating_add(1))?;
        let nowhere = arrivals.take();
        let hello = Hello { metadata: source.metadata()?, words };
        let driver = Self {
            nixl,
            settings,
            shared,
            commands,
            source,
            pools: Vec::new(),
            arrivals,
            nowhere,
            peers: FxHashMap::default(),
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
                    return Ok(()); // agents end with `self`, whatever they do
                }
            }
            let now = Instant::now();
            self.look_after_peers(sink, now);
            moved |= self.drive(sink, now);
            if moved {
                last_moved = now;
            } else {
                self.sleep(now - last_moved)?;
            }
        }
    }

    /// Does what a caller asked; `false` when it is time to end.
    fn obey(&mut self, sink: &Sink, command: Command) -> bool {
        match command {
            Command::Work((memory, reply)) => {
                let metadata = self.source.register(memory.clone()).and_then(|()| {
                    let metadata = self.source.metadata()?;
                    self.pools.push(memory);
                    Ok(metadata)
                });
                let _ = reply.send(metadata); // the caller waits for it
            }
            Command::Connect(peer, _) if !self.shared.knows(peer) => {} // lost since
            Command::Connect(peer, endpoint) => {
                if let Err(why) = self.connect(peer, &endpoint) {
                    self.lose(sink, peer, XferError::lost("connect", why));
                }
            }
            Command::Disconnect(peer) => self.lose(sink, peer, XferError::Aborted),
            Command::Pull(job) => {
                let (peer, transfer) = (job.pull.peer, job.pull.transfer);
                if self.peers.contains_key(&peer) {
                    let place = self.arrivals.take();
                    self.active.push_back(Active::new(job, place));
                } else {
                    self.shared.failed_quiet(sink, transfer, XferError::UnknownPeer { peer });
                }
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

    fn connect(&mut self, id: PeerId, endpoint: &NixlEndpoint) -> Result<(), String> {
        if !self.peers.contains_key(&id) {
            let watch = endpoint.process.as_ref().and_then(Watch::new);
            let mine = name(&self.shared, &id.0.to_string());
            let agent = Agent::new(self.nixl, &mine, &self.settings, None)?;
            agent.register(self.arrivals.memory().clone())?;
            let theirs = agent.load(&endpoint.metadata)?;
            self.peers.insert(id, Peer::new(agent, theirs, watch));
        }
        let Some(peer) = self.peers.get_mut(&id) else { return Ok(()) };
        peer.words = (endpoint.words.address, endpoint.words.count);
        if peer.bases.len() < endpoint.bases.len() {
            if !peer.bases.is_empty() {
                peer.agent.load(&endpoint.metadata)?; // it registered more since
            }
            peer.bases.clone_from(&endpoint.bases);
        }
        Ok(())
    }

    /// Gives a peer up: its pulls fail, and are quiet when its agent has ended.
    fn lose(&mut self, sink: &Sink, id: PeerId, why: XferError) {
        let (mut lost, left) = self.active.drain(..).partition::<Vec<_>, _>(|a| a.peer() == id);
        self.active = left.into();
        for active in &mut lost {
            active.fail(&self.shared, sink, why.clone());
            active.give_up();
        }
        self.shared.peer_down(sink, id, why);
        let ended = self.peers.remove(&id).map_or(Ok(()), Peer::end);
        if ended.is_err() {
            return; // not proven quiet, and it never will be: its places are not used again either
        }
        for active in lost {
            self.shared.quiesced(sink, active.job.pull.transfer);
            self.arrivals.give_back(active.place);
        }
    }

    fn look_after_peers(&mut self, sink: &Sink, now: Instant) {
        if now < self.looked + NAP {
            return;
        }
        self.looked = now;
        let (arrivals, place, stall) = (&self.arrivals, self.nowhere, self.shared.limits.stall);
        let looks = self.peers.iter_mut();
        let lost: Vec<(PeerId, XferError)> = looks
            .filter_map(|(id, peer)| Some((*id, peer.look(arrivals, place, stall)?)))
            .collect();
        for (peer, why) in lost {
            self.lose(sink, peer, why);
        }
    }

    /// Lets each pull go on; whether anything moved.
    fn drive(&mut self, sink: &Sink, now: Instant) -> bool {
        let mut moved = false;
        for _ in 0..self.active.len() {
            let Some(mut active) = self.active.pop_front() else { break };
            let id = active.peer();
            let Some(peer) = self.peers.get_mut(&id) else { continue }; // it takes its pulls along
            let look = match registered(peer, &self.pools) {
                Ok(()) => active.drive(&self.shared, sink, peer, &self.arrivals, now),
                Err(why) => Look::Lost(XferError::lost("register", why)),
            };
            moved |= !matches!(look, Look::Same);
            match look {
                Look::Same | Look::Moved => self.active.push_back(active),
                Look::Over => self.arrivals.give_back(active.place),
                Look::Lost(why) => {
                    self.active.push_back(active);
                    self.lose(sink, id, why);
                }
            }
        }
        moved
    }

    /// Sleeps until a caller has something, or it is time to look again after nothing has moved for
    /// `idle`.
    fn sleep(&self, idle: Duration) -> Result<(), String> {
        let on_their_way = !self.active.is_empty();
        if on_their_way && idle < SPIN {
            std::hint::spin_loop();
            return Ok(());
        }
        let timeout = match on_their_way {
            true => Some((idle / 4).clamp(DOZE.0, DOZE.1)),
            false => (!self.peers.is_empty()).then_some(NAP),
        };
        let timeout =
            timeout.map(|left| Timespec { tv_sec: 0, tv_nsec: i64::from(left.subsec_nanos()) });
        match poll(&mut [PollFd::new(&*self.commands, PollFlags::IN)], timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(format!("poll: {error}")),
        }
    }
}

/// Registers the pools with a peer's agent that came after it.
fn registered(peer: &mut Peer, pools: &[Arc<Memory>]) -> Result<(), String> {
    for pool in &pools[peer.registered..] {
        peer.agent.register(pool.clone())?;
        peer.registered += 1;
    }
    Ok(())
}

/// Of one of the transport's agents: no other one has it.
fn name(shared: &Shared, which: &str) -> String {
    format!("cuelight-{:032x}-{which}", shared.instance)
}
