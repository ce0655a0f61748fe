//! The side of a transport that callers see, over what each transport does its own way: all is
//! checked and counted in [`Shared`], and what moves bytes is a command to the transport's thread.

use std::ops::Range;
use std::sync::Arc;
use std::thread::JoinHandle;

use super::commands::Commands;
use super::descriptor::{Descriptor, Endpoint};
use super::error::XferError;
use super::layout::Layout;
use super::region::{Memory, MemoryKind};
use super::shared::{Job, Shared};
use super::transport::{
    Counters, GrantId, PeerId, Pull, RegionId, RegionInfo, Sink, TransferId, Transport,
};

/// Why a descriptor is refused whose endpoint is not of the transport's kind.
pub(super) const OTHER_TRANSPORT: &str = "it is of another transport";

/// What one transport does its own way.
pub(super) trait Kind: Send + Sync {
    /// What its thread needs to reach a peer.
    type Way: Send;
    /// What its thread is asked for besides; [`Infallible`](std::convert::Infallible) for nothing.
    type Work: Send;

    fn front(&self) -> &Front<Self::Way, Self::Work>;

    /// Where peers reach it, and its first `regions` pools.
    fn endpoint(&self, regions: usize) -> Endpoint;

    /// The way to who has published a descriptor, or why there is none.
    fn way(&self, there: &Descriptor) -> Result<Self::Way, &'static str>;

    /// Makes a pool known.
    fn add_region(&self, memory: Arc<Memory>, layout: Layout) -> Result<RegionId, XferError> {
        self.front().shared.register(memory, layout, &[MemoryKind::Host])
    }
}

/// What a transport's thread is told.
pub(super) enum Command<Way, Work> {
    /// A new peer, or one that may have registered more since.
    Connect(PeerId, Way),
    Disconnect(PeerId),
    Pull(Job),
    Abort(TransferId),
    Work(Work),
    Stop,
}

/// What callers and the thread share, and the thread, which ends with this.
pub(super) struct Front<Way, Work> {
    pub(super) shared: Arc<Shared>,
    pub(super) commands: Arc<Commands<Command<Way, Work>>>,
    thread: Option<JoinHandle<()>>,
}

impl<Way: Send + 'static, Work: Send + 'static> Front<Way, Work> {
    /// Starts the thread with the body that `prepare` makes.
    pub(super) fn start<Body>(
        shared: Arc<Shared>,
        sink: Sink,
        prepare: impl FnOnce(Arc<Shared>, Arc<Commands<Command<Way, Work>>>) -> Result<Body, String>,
    ) -> Result<Self, XferError>
    where
        Body: FnOnce(&Sink) -> Result<(), String> + Send + 'static,
    {
        let unavailable = |why| XferError::Unavailable { transport: shared.name, why };
        let commands = Commands::new(shared.command_limit());
        let commands = commands.map_err(|error| unavailable(format!("eventfd: {error}")))?;
        let commands = Arc::new(commands);
        let body = prepare(shared.clone(), commands.clone()).map_err(unavailable)?;
        let mine = shared.clone();
        let thread = std::thread::Builder::new()
            .name(format!("kvxfer-{}", shared.name))
            .spawn(move || mine.run_thread(&sink, body))
            .map_err(|error| unavailable(format!("thread: {error}")))?;
        Ok(Self { shared, commands, thread: Some(thread) })
    }
}

impl<Way, Work> Drop for Front<Way, Work> {
    fn drop(&mut self) {
        self.commands.push_end(Command::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // its panic was told as `Stopped`
        }
    }
}

impl<K: Kind> Transport for K {
    fn name(&self) -> &'static str {
        self.front().shared.name
    }

    fn register(&self, memory: Arc<Memory>, layout: Layout) -> Result<RegionId, XferError> {
        self.add_region(memory, layout)
    }

    fn descriptor(&self) -> Result<Vec<u8>, XferError> {
        let shared = &self.front().shared;
        let regions = shared.region_infos();
        let endpoint = self.endpoint(regions.len());
        shared.describe(regions, endpoint)
    }

    fn connect(&self, descriptor: &[u8]) -> Result<PeerId, XferError> {
        let Front { shared, commands, .. } = self.front();
        let there = Descriptor::decode(descriptor)?;
        let bad = |why: &str| XferError::BadDescriptor { why: why.into() };
        let way = self.way(&there).map_err(bad)?;
        let (peer, new) = shared.add_peer(&there)?;
        commands.push(Command::Connect(peer, way)).inspect_err(|_| {
            if new {
                shared.remove_peer(peer);
            }
        })?;
        Ok(peer)
    }

    fn peer_regions(&self, peer: PeerId) -> Result<Vec<RegionInfo>, XferError> {
        self.front().shared.peer_regions(peer)
    }

    fn disconnect(&self, peer: PeerId) {
        let Front { shared, commands, .. } = self.front();
        if shared.remove_peer(peer) {
            commands.push_end(Command::Disconnect(peer));
        }
    }

    fn grant(&self, region: RegionId, ranges: &[Range<u64>]) -> Result<GrantId, XferError> {
        self.front().shared.grant(region, ranges)
    }

    fn extend(
        &self,
        grant: GrantId,
        region: RegionId,
        ranges: &[Range<u64>],
    ) -> Result<(), XferError> {
        self.front().shared.extend(grant, region, ranges)
    }

    fn withdraw(&self, grant: GrantId) {
        self.front().shared.grants.remove(grant);
    }

    fn pull(&self, pull: Pull) -> Result<(), XferError> {
        let Front { shared, commands, .. } = self.front();
        let transfer = pull.transfer;
        let job = shared.admit(pull)?;
        commands.push(Command::Pull(job)).inspect_err(|_| shared.dismiss(transfer))
    }

    fn abort(&self, transfer: TransferId) {
        let Front { shared, commands, .. } = self.front();
        if shared.begin_abort(transfer) {
            commands.push_end(Command::Abort(transfer));
        }
    }

    fn counters(&self) -> Counters {
        self.front().shared.counters()
    }
}
