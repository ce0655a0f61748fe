//! What the callers of a transport and its thread share: pools, peers, grants, pulls in flight,
//! counters. All that is received or asked for is checked here before the thread sees it.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use rustc_hash::FxHashMap;

use super::descriptor::{Descriptor, Endpoint};
use super::error::XferError;
use super::grants::Grants;
use super::layout::Layout;
use super::plan::Run;
use super::region::{Memory, MemoryKind};
use super::transport::{
    Counters, Event, GrantId, Limits, PeerId, Pull, RegionId, RegionInfo, Sink, TransferId,
};
use super::words::Words;

/// One registered pool.
#[derive(Clone, Debug)]
pub(super) struct Region {
    pub(super) memory: Arc<Memory>,
    layout: Layout,
}

/// One connected peer, as callers see it.
#[derive(Debug)]
struct Peer {
    instance: u128,
    regions: Vec<RegionInfo>,
}

/// A pull that was checked.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) pull: Pull,
    /// Sum of all runs.
    pub(super) bytes: u64,
    /// The local pool.
    pub(super) memory: Arc<Memory>,
}

/// State of a pull that was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Live {
    Running,
    /// `abort` was called.
    Aborting,
    /// Told to have failed.
    Unquiet,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) name: &'static str,
    pub(super) limits: Limits,
    /// Names this transport to its peers.
    pub(super) instance: u128,
    pub(super) grants: Grants,
    pub(super) stats: Stats,
    regions: RwLock<Vec<Region>>,
    peers: Mutex<FxHashMap<PeerId, Peer>>,
    next_peer: AtomicU32,
    live: Mutex<FxHashMap<TransferId, Live>>,
    /// Why the thread has ended.
    stopped: Mutex<Option<String>>,
}

#[derive(Debug, Default)]
pub(super) struct Stats {
    pub(super) bytes_pulled: AtomicU64,
    pub(super) bytes_served: AtomicU64,
    pub(super) posts: AtomicU64,
    done: AtomicU64,
    failed: AtomicU64,
    pub(super) peers_lost: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) rejected: AtomicU64,
}

/// Adds to a counter.
pub(super) fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Relaxed);
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(super) fn new(
        name: &'static str,
        limits: Limits,
        words: Option<Words>,
    ) -> Result<Arc<Self>, XferError> {
        Ok(Arc::new(Self {
            name,
            instance: random(name)?,
            grants: Grants::new(limits.grants, words),
            limits,
            stats: Stats::default(),
            regions: RwLock::default(),
            peers: Mutex::default(),
            next_peer: AtomicU32::new(0),
            live: Mutex::default(),
            stopped: Mutex::default(),
        }))
    }

    /// Fails once the thread has ended.
    pub(super) fn running(&self) -> Result<(), XferError> {
        match &*lock(&self.stopped) {
            None => Ok(()),
            Some(why) => Err(XferError::Stopped { transport: self.name, why: why.clone() }),
        }
    }

    /// How many commands may wait: one start for each pull and peer, and slack.
    pub(super) fn command_limit(&self) -> usize {
        self.limits.pulls + self.limits.peers + self.limits.regions
    }

    /// Whether `register` would succeed.
    pub(super) fn may_register(
        &self,
        memory: &Memory,
        layout: &Layout,
        kinds: &[MemoryKind],
    ) -> Result<(), XferError> {
        self.running()?;
        if !kinds.contains(&memory.kind()) {
            let what = format!("{:?} memory", memory.kind());
            return Err(XferError::Unsupported { transport: self.name, what });
        }
        layout.check()?;
        if layout.bytes() > memory.bytes() {
            let (start, end, why) = (0, layout.bytes(), "the layout is larger than its memory");
            return Err(XferError::BadRange { what: "a new region", start, end, why });
        }
        let regions = self.regions.read().unwrap_or_else(PoisonError::into_inner);
        self.room_for_region(regions.len())
    }

    fn room_for_region(&self, have: usize) -> Result<(), XferError> {
        let limit = self.limits.regions;
        if have < limit { Ok(()) } else { Err(XferError::Limit { what: "regions", have, limit }) }
    }

    pub(super) fn register(
        &self,
        memory: Arc<Memory>,
        layout: Layout,
        kinds: &[MemoryKind],
    ) -> Result<RegionId, XferError> {
        self.may_register(&memory, &layout, kinds)?;
        let mut regions = self.regions.write().unwrap_or_else(PoisonError::into_inner);
        self.room_for_region(regions.len())?; // others register too
        regions.push(Region { memory, layout });
        Ok(RegionId(regions.len() as u32 - 1))
    }

    pub(super) fn region(&self, region: RegionId) -> Option<Region> {
        let regions = self.regions.read().unwrap_or_else(PoisonError::into_inner);
        regions.get(region.0 as usize).cloned()
    }

    pub(super) fn describe(
        &self,
        regions: Vec<RegionInfo>,
        endpoint: Endpoint,
    ) -> Result<Vec<u8>, XferError> {
        self.running()?;
        Descriptor::new(self.instance, regions, endpoint).encode()
    }

    pub(super) fn region_infos(&self) -> Vec<RegionInfo> {
        let regions = self.regions.read().unwrap_or_else(PoisonError::into_inner);
        let info = |(place, Region { memory, layout }): (usize, &Region)| RegionInfo {
            region: RegionId(place as u32),
            bytes: memory.bytes(),
            kind: memory.kind(),
            device: memory.device(),
            layout: layout.clone(),
        };
        regions.iter().enumerate().map(info).collect()
    }

    /// The peer of a descriptor, and whether it is new.
    pub(super) fn add_peer(&self, descriptor: &Descriptor) -> Result<(PeerId, bool), XferError> {
        self.running()?;
        let mut peers = lock(&self.peers);
        let (instance, regions) = (descriptor.instance, descriptor.regions.clone());
        if let Some((id, peer)) = peers.iter_mut().find(|(_, peer)| peer.instance == instance) {
            if peer.regions.len() < regions.len() {
                peer.regions = regions; // it registered more since
            }
            return Ok((*id, false));
        }
        let (have, limit) = (peers.len(), self.limits.peers);
        if have >= limit {
            return Err(XferError::Limit { what: "peers", have, limit });
        }
        let id = PeerId(self.next_peer.fetch_add(1, Relaxed));
        peers.insert(id, Peer { instance, regions });
        Ok((id, true))
    }

    /// Forgets a peer; whether it was known.
    pub(super) fn remove_peer(&self, peer: PeerId) -> bool {
        lock(&self.peers).remove(&peer).is_some()
    }

    /// Whether a peer is neither lost nor disconnected.
    pub(super) fn knows(&self, peer: PeerId) -> bool {
        lock(&self.peers).contains_key(&peer)
    }

    pub(super) fn peer_regions(&self, peer: PeerId) -> Result<Vec<RegionInfo>, XferError> {
        let peers = lock(&self.peers);
        Ok(peers.get(&peer).ok_or(XferError::UnknownPeer { peer })?.regions.clone())
    }

    pub(super) fn grant(
        &self,
        region: RegionId,
        ranges: &[Range<u64>],
    ) -> Result<GrantId, XferError> {
        self.running()?;
        self.check_grant(region, ranges)?;
        self.grants.add(random(self.name)?, region, ranges)
    }

    pub(super) fn extend(
        &self,
        grant: GrantId,
        region: RegionId,
        ranges: &[Range<u64>],
    ) -> Result<(), XferError> {
        self.check_grant(region, ranges)?;
        self.grants.extend(grant, region, ranges)
    }

    fn check_grant(&self, region: RegionId, ranges: &[Range<u64>]) -> Result<(), XferError> {
        let what = "a local";
        let known = self.region(region).ok_or(XferError::UnknownRegion { what, region })?;
        let bytes = known.memory.bytes();
        ranges.iter().try_for_each(|range| check_range("a grant", range.start, range.end, bytes))
    }

    /// Checks a pull and counts it as in flight.
    pub(super) fn admit(&self, pull: Pull) -> Result<Job, XferError> {
        self.running()?;
        let Pull { peer, local, remote, .. } = pull;
        let (ours, theirs) = (
            self.region(local).ok_or(XferError::UnknownRegion { what: "local", region: local })?,
            self.peer_regions(peer)?,
        );
        let unknown = XferError::UnknownRegion { what: "the peer's", region: remote };
        let remote_bytes = theirs.get(remote.0 as usize).ok_or(unknown)?.bytes;
        let bytes = self.check_runs(&pull.runs, remote_bytes, ours.memory.bytes())?;
        let mut live = lock(&self.live);
        let (have, limit) = (live.len(), self.limits.pulls);
        if have >= limit {
            return Err(XferError::Limit { what: "pulls in flight", have, limit });
        }
        if live.contains_key(&pull.transfer) {
            return Err(XferError::Duplicate { transfer: pull.transfer });
        }
        live.insert(pull.transfer, Live::Running);
        Ok(Job { pull, bytes, memory: ours.memory })
    }

    fn check_runs(&self, runs: &[Run], remote: u64, local: u64) -> Result<u64, XferError> {
        let (have, limit) = (runs.len(), self.limits.runs);
        if have > limit {
            return Err(XferError::Limit { what: "runs of one pull", have, limit });
        }
        let mut targets = Vec::with_capacity(have);
        for run in runs {
            let end = |start: u64| start.saturating_add(run.bytes);
            check_range("the peer's region", run.remote, end(run.remote), remote)?;
            check_range("the local region", run.local, end(run.local), local)?;
            targets.push((run.local, end(run.local)));
        }
        targets.sort_unstable();
        if let Some(pair) = targets.windows(2).find(|pair| pair[0].1 > pair[1].0) {
            let (start, end) = pair[1];
            let why = "another run of the pull writes there too";
            return Err(XferError::BadRange { what: "the local region", start, end, why });
        }
        if targets.is_empty() {
            let why = "a pull needs at least one byte";
            return Err(XferError::BadRange { what: "a pull", start: 0, end: 0, why });
        }
        Ok(targets.iter().map(|(start, end)| end - start).sum())
    }

    /// Takes an admitted pull back that could not be handed to the thread.
    pub(super) fn dismiss(&self, transfer: TransferId) {
        lock(&self.live).remove(&transfer);
    }

    /// Whether this is the first call of `abort` for a running pull.
    pub(super) fn begin_abort(&self, transfer: TransferId) -> bool {
        let mut live = lock(&self.live);
        let Some(state @ Live::Running) = live.get_mut(&transfer) else { return false };
        *state = Live::Aborting;
        true
    }

    pub(super) fn done(&self, sink: &Sink, transfer: TransferId, bytes: u64) {
        lock(&self.live).remove(&transfer);
        count(&self.stats.done, 1);
        sink(Event::Done { transfer, bytes });
    }

    /// Tells of a failure of which it is not yet proven that nothing writes any more.
    pub(super) fn failed(&self, sink: &Sink, transfer: TransferId, why: XferError) {
        lock(&self.live).insert(transfer, Live::Unquiet);
        count(&self.stats.failed, 1);
        sink(Event::Failed { transfer, why });
    }

    pub(super) fn quiesced(&self, sink: &Sink, transfer: TransferId) {
        lock(&self.live).remove(&transfer);
        sink(Event::Quiesced { transfer });
    }

    /// A failure where nothing writes any more, by construction.
    pub(super) fn failed_quiet(&self, sink: &Sink, transfer: TransferId, why: XferError) {
        self.failed(sink, transfer, why);
        self.quiesced(sink, transfer);
    }

    /// Tells of a lost peer, unless it was disconnected.
    pub(super) fn peer_down(&self, sink: &Sink, peer: PeerId, why: XferError) {
        if self.remove_peer(peer) {
            count(&self.stats.peers_lost, 1);
            sink(Event::PeerDown { peer, why });
        }
    }

    /// Runs a transport's thread; if it panics, tells all pulls so (not that they are quiet).
    pub(super) fn run_thread(&self, sink: &Sink, body: impl FnOnce(&Sink) -> Result<(), String>) {
        let ended = catch_unwind(AssertUnwindSafe(|| body(sink)));
        self.grants.remove_all(); // a peer that reads by itself may still do so
        let why = match ended {
            Ok(Ok(())) => {
                *lock(&self.stopped) = Some("it was dropped".to_owned());
                return;
            }
            Ok(Err(why)) => why,
            Err(_) => "its thread panicked".to_owned(),
        };
        *lock(&self.stopped) = Some(why.clone());
        let running = |(id, state): (&TransferId, &Live)| (*state != Live::Unquiet).then_some(*id);
        let left: Vec<TransferId> = lock(&self.live).iter().filter_map(running).collect();
        for transfer in left {
            let why = XferError::Stopped { transport: self.name, why: why.clone() };
            self.failed(sink, transfer, why);
        }
    }

    pub(super) fn counters(&self) -> Counters {
        let stats = &self.stats;
        let read = |counter: &AtomicU64| counter.load(Relaxed);
        let live = lock(&self.live);
        let unquiet = live.values().filter(|state| **state == Live::Unquiet).count() as u64;
        Counters {
            bytes_pulled: read(&stats.bytes_pulled),
            bytes_served: read(&stats.bytes_served),
            posts: read(&stats.posts),
            done: read(&stats.done),
            failed: read(&stats.failed),
            unquiet,
            in_flight: live.len() as u64 - unquiet,
            grants: self.grants.len() as u64,
            peers_lost: read(&stats.peers_lost),
            refused: read(&stats.refused),
            rejected: read(&stats.rejected),
        }
    }
}

/// 128 random bits.
pub(super) fn random(transport: &'static str) -> Result<u128, XferError> {
    let mut bytes = [0; 16];
    match getrandom::fill(&mut bytes) {
        Ok(()) => Ok(u128::from_le_bytes(bytes)),
        Err(error) => {
            let why = format!("the system gives no random numbers: {error}");
            Err(XferError::Unavailable { transport, why })
        }
    }
}

/// Refuses a range that is empty or leaves its `bytes`.
pub(super) fn check_range(
    what: &'static str,
    start: u64,
    end: u64,
    bytes: u64,
) -> Result<(), XferError> {
    let why = if end <= start {
        "the range is empty"
    } else if end > bytes || end == u64::MAX {
        "it ends outside"
    } else {
        return Ok(());
    };
    Err(XferError::BadRange { what, start, end, why })
}
