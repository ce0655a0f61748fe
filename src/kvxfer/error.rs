//! What can go wrong in a transfer, and how far it reaches.

use std::time::Duration;

use super::plan::PlanError;
use super::transport::{PeerId, RegionId, TransferId};

/// What can go wrong, by what the caller can do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "fields are what the texts name")]
pub enum XferError {
    /// The transport cannot run here at all.
    #[error("transport {transport} is not available: {why}")]
    Unavailable { transport: &'static str, why: String },
    /// The transport cannot move such memory.
    #[error("transport {transport} cannot move {what}")]
    Unsupported { transport: &'static str, what: String },
    /// The transport's thread has ended.
    #[error("transport {transport} has stopped: {why}")]
    Stopped { transport: &'static str, why: String },
    /// A limit of ours is reached: try again later, or raise it.
    #[error("limit reached: {have} {what} of at most {limit}")]
    Limit { what: &'static str, have: usize, limit: usize },
    /// A layout is wrong, or larger than its memory.
    #[error(transparent)]
    BadLayout(#[from] PlanError),
    /// A byte range leaves its region, or two overlap.
    #[error("bytes {start}..{end} of {what}: {why}")]
    BadRange { what: &'static str, start: u64, end: u64, why: &'static str },
    /// No such region, here or there.
    #[error("{what} region {} is not registered", region.0)]
    UnknownRegion { what: &'static str, region: RegionId },
    /// Its name is a secret and not told.
    #[error("the grant is unknown, or was withdrawn: grant anew")]
    UnknownGrant,
    /// Never connected, disconnected, or lost.
    #[error("peer {} is not connected", peer.0)]
    UnknownPeer { peer: PeerId },
    /// The name of a pull was used again while it is in flight.
    #[error("transfer {transfer} is already in flight")]
    Duplicate { transfer: TransferId },
    /// What a peer published cannot be used.
    #[error("the peer's descriptor cannot be used: {why}")]
    BadDescriptor { why: String },
    /// The peer did not let us read: the grant is unknown, ended, or does not cover the ranges.
    #[error("the peer refused to be read: {why}")]
    Refused { why: &'static str },
    /// What arrived is not what the peer read.
    #[error("checksum mismatch in the {bytes} bytes after byte {at}")]
    Corrupt { at: u64, bytes: u64 },
    /// It took too long.
    #[error("not done after {after:?}: {done} of {bytes} bytes arrived")]
    Deadline { after: Duration, done: u64, bytes: u64 },
    /// Somebody called `abort`, or `disconnect`.
    #[error("aborted")]
    Aborted,
    /// The peer is dead, frozen, unreachable, or talks nonsense.
    #[error("peer lost: {why}")]
    PeerLost { why: String },
}

/// How far an error reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// This transfer only.
    Transfer,
    /// Pressure, not fault: the same call may succeed later.
    Retry,
    /// All transfers with this peer.
    Peer,
    /// All transfers of this transport.
    Transport,
}

impl XferError {
    /// The one place that maps a failure to its reach.
    pub fn reach(&self) -> Reach {
        match self {
            Self::Unavailable { .. } | Self::Stopped { .. } => Reach::Transport,
            Self::Limit { .. } => Reach::Retry,
            Self::UnknownPeer { .. } | Self::BadDescriptor { .. } | Self::PeerLost { .. } => {
                Reach::Peer
            }
            Self::Unsupported { .. }
            | Self::BadLayout(_)
            | Self::BadRange { .. }
            | Self::UnknownRegion { .. }
            | Self::UnknownGrant
            | Self::Duplicate { .. }
            | Self::Refused { .. }
            | Self::Corrupt { .. }
            | Self::Deadline { .. }
            | Self::Aborted => Reach::Transfer,
        }
    }

    /// A lost peer, from what the system said.
    pub(super) fn lost(during: &str, error: impl std::fmt::Display) -> Self {
        Self::PeerLost { why: format!("{during}: {error}") }
    }
}
