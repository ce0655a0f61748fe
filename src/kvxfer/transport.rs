//! What every transport offers, and what it tells.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bincode::{Decode, Encode};

use super::error::XferError;
use super::layout::Layout;
use super::plan::Run;
use super::region::{Memory, MemoryKind};

/// One pull, named by the side that pulls; never used twice.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
pub struct TransferId(pub u128);

/// The right to read some ranges, named by the transport that is read. Whoever knows the name may
/// read them: it is drawn at random, and is never used again.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
pub struct GrantId(pub u128);

/// A registered pool, counted from 0 within one transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
pub struct RegionId(pub u32);

/// A connected peer, numbered within one transport; a peer that went down and came back has a new
/// number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerId(pub u32);

/// What a peer says of one of its pools.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct RegionInfo {
    /// Its number there.
    pub region: RegionId,
    /// Its length in bytes.
    pub bytes: u64,
    /// Where it lies.
    pub kind: MemoryKind,
    /// Which device, for device memory; else 0.
    pub device: u32,
    /// How its blocks lie in it.
    pub layout: Layout,
}

/// A pull of byte ranges of one of a peer's pools into one of ours.
#[derive(Clone, Debug)]
pub struct Pull {
    /// Its name in events.
    pub transfer: TransferId,
    /// The right to read the remote ranges, got from the peer.
    pub grant: GrantId,
    /// Whose pool.
    pub peer: PeerId,
    /// Which of the peer's pools.
    pub remote: RegionId,
    /// Which of ours.
    pub local: RegionId,
    /// What goes where; local ranges must not overlap. Of [`plan`](super::plan()).
    pub runs: Vec<Run>,
    /// How long it may take from when the transport starts it.
    pub timeout: Duration,
    /// Whether the peer sends checksums of what it read (tcp; others ignore it).
    pub checksum: bool,
}

/// What a transport tells, from its own thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// All bytes of a pull are in place, and nothing writes to its local ranges any more.
    Done {
        /// Which pull.
        transfer: TransferId,
        /// Bytes moved.
        bytes: u64,
    },
    /// A pull will not complete. Its local ranges may still be written until `Quiesced`.
    Failed {
        /// Which pull.
        transfer: TransferId,
        /// Why; [`XferError::Aborted`] after an abort.
        why: XferError,
    },
    /// Nothing writes to the local ranges of a failed pull any more. Once after each `Failed`, as
    /// soon as it is proven; never, if it cannot be proven while the transport lives.
    Quiesced {
        /// Which pull.
        transfer: TransferId,
    },
    /// A peer is lost. Its pulls have been told to have failed; one that was accepted at the same
    /// moment may be told after this. Connect again for a new one.
    PeerDown {
        /// Which peer.
        peer: PeerId,
        /// How it was noticed.
        why: XferError,
    },
}

/// Where a transport's events go. Called on the transport's thread: hand over and return.
pub type Sink = Box<dyn Fn(Event) + Send>;

/// Moves bytes between this process's pools and those of peers.
///
/// Calls return at once. Each has a thread of its own that sleeps when there is nothing to do.
/// Dropping it ends the thread; pulls in flight then end without an event.
pub trait Transport: Send + Sync {
    /// `local`, `tcp`, `ucx` or `nixl`.
    fn name(&self) -> &'static str;

    /// Makes a pool known, to pull into and for peers to be granted parts of.
    ///
    /// # Errors
    /// [`XferError::Unsupported`] for a kind of memory that it cannot read or write,
    /// [`XferError::BadLayout`] for a layout larger than the memory, [`XferError::Limit`].
    fn register(&self, memory: Arc<Memory>, layout: Layout) -> Result<RegionId, XferError>;

    /// What a peer needs to connect to us: for [`Self::connect`] there. Holds a secret.
    ///
    /// # Errors
    /// [`XferError::Stopped`].
    fn descriptor(&self) -> Result<Vec<u8>, XferError>;

    /// Prepares pulls from the peer that published `descriptor`, in the background. The same
    /// descriptor while the peer lives gives the same peer.
    ///
    /// # Errors
    /// [`XferError::BadDescriptor`], [`XferError::Limit`], [`XferError::Stopped`].
    fn connect(&self, descriptor: &[u8]) -> Result<PeerId, XferError>;

    /// The pools of a peer.
    ///
    /// # Errors
    /// [`XferError::UnknownPeer`].
    fn peer_regions(&self, peer: PeerId) -> Result<Vec<RegionInfo>, XferError>;

    /// Ends the connection: its pulls fail, no [`Event::PeerDown`] follows.
    fn disconnect(&self, peer: PeerId);

    /// Lets whoever knows the name that this returns read ranges of a pool. On ucx and nixl peers keep
    /// to the ranges by themselves.
    ///
    /// # Errors
    /// [`XferError::UnknownRegion`], [`XferError::BadRange`], [`XferError::Limit`],
    /// [`XferError::Stopped`]; [`XferError::Unavailable`] if the system gives no random numbers.
    fn grant(&self, region: RegionId, ranges: &[Range<u64>]) -> Result<GrantId, XferError>;

    /// Adds ranges to a grant, of the same pool or of another one.
    ///
    /// # Errors
    /// [`XferError::UnknownGrant`], [`XferError::UnknownRegion`], [`XferError::BadRange`].
    fn extend(
        &self,
        grant: GrantId,
        region: RegionId,
        ranges: &[Range<u64>],
    ) -> Result<(), XferError>;

    /// Takes a grant back. When this returns, no pull under it ends in [`Event::Done`] any more
    /// unless it has read all its bytes already: the pool's owner may write to the ranges. Other
    /// pulls fail with [`XferError::Refused`]. For an unknown grant nothing happens.
    fn withdraw(&self, grant: GrantId);

    /// Starts a pull. Exactly one [`Event::Done`] or [`Event::Failed`] follows if it is accepted.
    ///
    /// # Errors
    /// Nothing was started: [`XferError::UnknownPeer`], [`XferError::UnknownRegion`],
    /// [`XferError::BadRange`], [`XferError::Duplicate`], [`XferError::Limit`],
    /// [`XferError::Stopped`].
    fn pull(&self, pull: Pull) -> Result<(), XferError>;

    /// Stops a pull: it ends in `Failed` and `Quiesced`, or in `Done` if that came first. Nothing
    /// happens for an unknown or ended one.
    fn abort(&self, transfer: TransferId);

    /// What it has done so far.
    fn counters(&self) -> Counters;
}

/// How much of everything one transport takes on.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Limits {
    /// Registered pools. Default 64.
    pub regions: usize,
    /// Connected peers, and as many that are connected to us. Default 1,024.
    pub peers: usize,
    /// Pulls in flight, ours; a peer may have as many on one connection. Default 1,024.
    pub pulls: usize,
    /// Runs of one pull. Default 65,536.
    pub runs: usize,
    /// Grants at a time. Default 65,536.
    pub grants: usize,
    /// Bytes that one pull moves before another has its turn. Default 1 MiB.
    pub chunk_bytes: u32,
    /// Bytes that may be posted to a peer ahead of completion (ucx, nixl). Default 16 MiB.
    pub window_bytes: u64,
    /// A peer that owes bytes and sends none for so long is lost. Default 5 s.
    pub stall: Duration,
    /// A peer must be connected, and prove its right to be, within this time. Default 5 s.
    pub handshake: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            regions: 64,
            peers: 1024,
            pulls: 1024,
            runs: 1 << 16,
            grants: 1 << 16,
            chunk_bytes: 1 << 20,
            window_bytes: 16 << 20,
            stall: Duration::from_secs(5),
            handshake: Duration::from_secs(5),
        }
    }
}

/// What a transport has done since its start, and what it is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes of remote pools that arrived in ours.
    pub bytes_pulled: u64,
    /// Bytes of our pools sent to peers; one-sided reads are not seen.
    pub bytes_served: u64,
    /// Reads posted: socket reads, gets, copies.
    pub posts: u64,
    /// Pulls that ended well.
    pub done: u64,
    /// Pulls that failed, aborted ones included.
    pub failed: u64,
    /// Pulls that were told to have failed and are not yet quiet.
    pub unquiet: u64,
    /// Pulls accepted and not yet ended.
    pub in_flight: u64,
    /// Grants not yet withdrawn.
    pub grants: u64,
    /// Peers lost.
    pub peers_lost: u64,
    /// Pulls of peers that were refused here: no grant, or nonsense.
    pub refused: u64,
    /// Connections ended here because of what they sent.
    pub rejected: u64,
}

impl fmt::Debug for TransferId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "transfer {:032x}", self.0)
    }
}

impl fmt::Display for TransferId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for GrantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("grant") // it is a secret
    }
}
