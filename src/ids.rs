//! The names of things: newtypes that keep one kind of number from being taken for another.

use std::fmt;
use std::sync::Arc;

use bincode::{Decode, Encode};

/// One life of one node: its configured name, and when that life began.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
pub struct NodeId {
    /// `node.name`.
    pub name: Arc<str>,
    /// The incarnation: a later start of the same node has a larger one.
    pub boot: u64,
}

/// A worker of the cluster, whatever its generation.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
pub struct WorkerId {
    /// Where it runs.
    pub node: NodeId,
    /// Its name on that node.
    pub worker: Arc<str>,
}

/// One client request, unique within the life of its front-end node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
pub struct RequestId(pub u64);

/// One leg of a request on one rank: idempotency key of admit and abort.
///
/// `choice` counts the `n` of the request from 0; `attempt` counts the placements of that choice
/// from 0, so that what an earlier placement still sends can be told apart and dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
pub struct LegId {
    /// The request this leg belongs to.
    pub request: RequestId,
    /// Which of the request's `n` choices, from 0.
    pub choice: u16,
    /// How many times this choice was placed before, from 0.
    pub attempt: u16,
}

/// How many times a worker has been started, from 1. Messages of an older one are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
pub struct Generation(pub u32);

/// A data-parallel rank of one worker, from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
pub struct RankIndex(pub u16);

/// The place of one KV block in a rank's pool, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
pub struct BlockId(pub u32);

/// What a full KV block holds: a keyed hash chained over (parent block, its tokens, salt).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
pub struct BlockHash(pub u128);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{:x}", self.name, self.boot)
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.node.name, self.worker)
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Display for LegId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}.{}", self.request, self.choice, self.attempt)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for BlockHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}
