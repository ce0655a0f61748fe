//! A rank's KV pool, as other ranks may read it and as their blocks come into it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing::{info, warn};

use crate::config::{Transfer, TransportKind};
use crate::engine::KvPool;
use crate::ids::{BlockId, LegId};
use crate::kvxfer::nixl::Nixl;
use crate::kvxfer::tcp::{Listen, Tcp};
use crate::kvxfer::ucx::Ucx;
use crate::kvxfer::{
    Counters, Event, GrantId, KvBlocks, KvOrigin, Layout, PeerId, Pull, RegionId, RegionInfo, Run,
    Sink, TransferId, Transport, XferError, block_checksum,
};

/// Pulls that have not ended, or of which it is not proven that they write no more, by name.
type Flying = Arc<Mutex<HashMap<TransferId, LegId>>>;

/// A pool with the transport that moves its blocks. It lives as long as its rank's engine.
pub struct Mover {
    transport: Box<dyn Transport>,
    region: RegionId,
    pool: KvPool,
    descriptor: Arc<[u8]>,
    checksums: bool,
    timeout: Duration,
    most_runs: usize,
    flying: Flying,
    last: AtomicU64,
}

/// What a rank hears of a pull that it has in flight: for which leg, and what happened.
pub type Moved = (LegId, Event);

impl Mover {
    /// Starts the transport and makes the pool known to it. What happens to pulls is told to `hear`, on
    /// the transport's thread.
    ///
    /// # Errors
    /// The transport does not work here, or cannot move such memory.
    pub fn start(
        config: &Transfer,
        pool: KvPool,
        hear: impl Fn(Moved) + Send + Clone + 'static,
    ) -> Result<Self, XferError> {
        let flying = Flying::default();
        let sink = || {
            let (flying, hear) = (flying.clone(), hear.clone());
            Box::new(move |event| dispatch(&flying, &hear, event)) as Sink
        };
        let transport = transport(config, sink)?;
        let region = transport.register(pool.memory.clone(), pool.layout.clone())?;
        let descriptor = transport.descriptor()?.into();
        let (checksums, timeout) = (config.checksums, config.timeout);
        let (most_runs, last) = (config.limits.runs, AtomicU64::new(0));
        Ok(Self {
            transport,
            region,
            pool,
            descriptor,
            checksums,
            timeout,
            most_runs,
            flying,
            last,
        })
    }

    /// The transport's name, for people.
    pub fn name(&self) -> &'static str {
        self.transport.name()
    }

    /// Most runs of one pull.
    pub fn most_runs(&self) -> usize {
        self.most_runs
    }

    /// How the pool's blocks lie.
    pub fn layout(&self) -> &Layout {
        &self.pool.layout
    }

    /// Lets whoever is told of it read these blocks.
    ///
    /// # Errors
    /// As [`Transport::grant`].
    pub fn lend(&self, blocks: &[BlockId]) -> Result<GrantId, XferError> {
        self.transport.grant(self.region, &self.pool.layout.ranges(blocks)?)
    }

    /// Lets them read more.
    ///
    /// # Errors
    /// As [`Transport::extend`].
    pub fn lend_more(&self, grant: GrantId, blocks: &[BlockId]) -> Result<(), XferError> {
        self.transport.extend(grant, self.region, &self.pool.layout.ranges(blocks)?)
    }

    /// Takes the right back: what is read from now on does not count.
    pub fn take_back(&self, grant: GrantId) {
        self.transport.withdraw(grant);
    }

    /// What others must know to read under a grant.
    pub fn origin(&self, grant: GrantId) -> KvOrigin {
        KvOrigin { descriptor: self.descriptor.clone(), region: self.region, grant }
    }

    /// Blocks as they are told to others.
    pub fn told(&self, blocks: Vec<BlockId>, missing: u32) -> KvBlocks {
        let checksums = match self.checksums {
            true => blocks.iter().map_while(|block| self.checksum(*block)).collect(),
            false => Vec::new(),
        };
        KvBlocks { blocks, checksums, missing }
    }

    /// Of a block of this pool, if the CPU can read it.
    pub fn checksum(&self, block: BlockId) -> Option<u64> {
        block_checksum(&self.pool.memory, &self.pool.layout, block)
    }

    /// Connects to where KV is, or finds the connection, and says how it lies there.
    ///
    /// # Errors
    /// As [`Transport::connect`]; the pool is not among those that the peer has.
    pub fn connect(&self, origin: &KvOrigin) -> Result<(PeerId, RegionInfo), XferError> {
        let peer = self.transport.connect(&origin.descriptor)?;
        let (what, region) = ("the peer's", origin.region);
        let known = self.transport.peer_regions(peer)?.into_iter().find(|r| r.region == region);
        Ok((peer, known.ok_or(XferError::UnknownRegion { what, region })?))
    }

    /// Starts a pull for a leg.
    ///
    /// # Errors
    /// As [`Transport::pull`]: nothing was started.
    pub fn pull(
        &self,
        leg: LegId,
        (peer, origin): (PeerId, &KvOrigin),
        runs: Vec<Run>,
    ) -> Result<TransferId, XferError> {
        let transfer = TransferId(self.last.fetch_add(1, Ordering::Relaxed).into());
        let pull = Pull {
            transfer,
            grant: origin.grant,
            peer,
            remote: origin.region,
            local: self.region,
            runs,
            timeout: self.timeout,
            checksum: self.checksums,
        };
        // First: its end may come before the call returns.
        flying(&self.flying).insert(transfer, leg);
        self.transport.pull(pull).inspect_err(|_| {
            flying(&self.flying).remove(&transfer);
        })?;
        Ok(transfer)
    }

    /// Stops all pulls for a leg; their ends are told.
    pub fn abort(&self, leg: LegId) {
        let of_leg = |(transfer, of): (&TransferId, &LegId)| (*of == leg).then_some(*transfer);
        let transfers: Vec<_> = flying(&self.flying).iter().filter_map(of_leg).collect();
        transfers.into_iter().for_each(|transfer| self.transport.abort(transfer));
    }

    /// Whether anything may still write to the blocks of a leg.
    pub fn is_quiet(&self, leg: LegId) -> bool {
        !flying(&self.flying).values().any(|of| *of == leg)
    }

    /// What the transport has done.
    pub fn counters(&self) -> Counters {
        self.transport.counters()
    }
}

/// Finds out which leg an event is about, and forgets pulls that have ended.
fn dispatch(all: &Flying, hear: &impl Fn(Moved), event: Event) {
    let leg = match &event {
        Event::Done { transfer, .. } | Event::Quiesced { transfer } => flying(all).remove(transfer),
        Event::Failed { transfer, .. } => flying(all).get(transfer).copied(),
        Event::PeerDown { why, .. } => {
            info!(%why, "a rank whose KV blocks were fetched is gone");
            None
        }
    };
    if let Some(leg) = leg {
        hear((leg, event));
    }
}

fn flying(all: &Flying) -> MutexGuard<'_, HashMap<TransferId, LegId>> {
    all.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The transport that the configuration asks for.
fn transport(config: &Transfer, sink: impl Fn() -> Sink) -> Result<Box<dyn Transport>, XferError> {
    let (listen, limits) =
        (Listen { bind: config.listen, advertise: config.advertise }, config.limits.clone());
    if config.transport == TransportKind::Nixl {
        return Ok(Box::new(Nixl::start(&config.nixl, limits, sink())?));
    }
    let by_ucx = match config.transport {
        TransportKind::Auto => config.ucx.beats_sockets(),
        kind => kind == TransportKind::Ucx,
    };
    if by_ucx {
        match Ucx::start(&config.ucx, limits.clone(), sink()) {
            Ok(ucx) => return Ok(Box::new(ucx)),
            Err(error) if config.transport == TransportKind::Ucx => return Err(error),
            Err(error) => warn!(
                %error,
                "KV blocks travel by TCP; install UCX 1.19 or newer (PyPI's libucx-cu13 will do) and \
                 name it in worker.transfer.ucx.dir, or set worker.transfer.transport to tcp"
            ),
        }
    }
    Ok(Box::new(Tcp::start(listen, limits, sink())?))
}
