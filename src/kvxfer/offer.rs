//! What a rank that has KV says of it, and a rank that wants it has to know. Front ends carry it.

use std::sync::Arc;

use bincode::{Decode, Encode};

use super::transport::{GrantId, RegionId};
use crate::ids::BlockId;

/// Where KV can be pulled from, and the right to.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct KvOrigin {
    /// Of the transport there: for [`Transport::connect`](super::Transport::connect).
    pub descriptor: Arc<[u8]>,
    /// The pool.
    pub region: RegionId,
    /// The right to read it.
    pub grant: GrantId,
}

/// Blocks of a sequence, from its first token on or after those told before.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct KvBlocks {
    /// In the order of the sequence's tokens.
    pub blocks: Vec<BlockId>,
    /// XXH3 of each, if the rank was asked for it; else empty.
    pub checksums: Vec<u64>,
    /// Blocks that are still to come.
    pub missing: u32,
}

impl KvBlocks {
    /// Adds those that follow.
    pub fn append(&mut self, mut more: Self) {
        self.blocks.append(&mut more.blocks);
        self.checksums.append(&mut more.checksums);
        self.missing = more.missing;
    }

    /// Those after the first `known`.
    pub fn after(&self, known: usize) -> Self {
        let rest = |from: usize| self.blocks.get(from..).unwrap_or_default().to_vec();
        let checksums = self.checksums.get(known..).unwrap_or_default().to_vec();
        Self { blocks: rest(known), checksums, missing: self.missing }
    }
}

/// How a prompt's KV can be had.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum KvSource {
    /// From a pool, by a transfer of ours.
    Pool(KvOrigin),
    /// The engine that has it moves it by itself, to an engine that is given these bytes of its own. Blocks
    /// are then counted only, and their ids mean nothing.
    Engine(Arc<[u8]>),
}

/// KV that can be fetched: what of it there is by now.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct KvOffer {
    /// Where from.
    pub source: KvSource,
    /// From the first token on.
    pub blocks: KvBlocks,
}
