//! One leg in the scheduler, and the slots legs live in.

use std::ops::{Index, IndexMut};

use crate::engine::Leg;
use crate::ids::{BlockHash, BlockId};

/// Tokens reserved at a leg's start: short outputs never allocate again, long ones seldom.
const RESERVED_TOKENS: usize = 64;

/// A leg and how far it has come.
#[derive(Clone, Debug)]
pub struct Sequence {
    /// What was asked; new tokens are appended to `leg.tokens`.
    pub leg: Leg,
    /// Order of admission: age. Lower is older.
    pub(super) arrival: u64,
    /// Total tokens at which the output is complete.
    pub(super) limit: usize,
    /// Leading tokens whose KV is in the blocks.
    pub(super) computed: usize,
    pub(super) blocks: Vec<BlockId>,
    /// Hashes of the leading full blocks of `leg.tokens`, as far as they were needed.
    pub(super) hashes: Vec<BlockHash>,
    /// Leading blocks that can be found by their hash.
    pub(super) findable: usize,
    /// Whether further blocks can be made findable.
    pub(super) chained: bool,
    pub(super) stage: Stage,
    /// Whether it left the queue before.
    pub(super) started: bool,
    /// Leading blocks of a prefill that others may read: it is not preempted any more.
    pub(super) told: usize,
    /// The block a running leg was computing when this one last asked to start.
    pub(super) waits_for: Option<BlockHash>,
}

impl Sequence {
    pub(super) fn new(leg: Leg, arrival: u64, limit: usize) -> Self {
        Self {
            leg,
            arrival,
            limit,
            computed: 0,
            blocks: Vec::new(),
            hashes: Vec::new(),
            findable: 0,
            chained: false,
            stage: Stage::Waiting,
            started: false,
            told: 0,
            waits_for: None,
        }
    }

    /// Tokens whose KV is still to be computed; at least 1 for a live leg.
    pub(super) fn remaining(&self) -> usize {
        self.leg.tokens.len() - self.computed
    }

    /// Output tokens so far: the index of the next one.
    pub fn output_len(&self) -> usize {
        self.leg.tokens.len() - self.leg.prompt_len
    }

    /// Whether the output may not grow further.
    pub fn is_full(&self) -> bool {
        self.leg.tokens.len() >= self.limit
    }

    pub(super) fn reserve(&mut self, block_tokens: usize) {
        let more = (self.limit - self.leg.tokens.len()).min(RESERVED_TOKENS);
        // Exactly: thousands of legs at once would hold twice their prompts otherwise.
        self.leg.tokens.reserve_exact(more);
        self.blocks.reserve_exact((self.leg.tokens.len() + more).div_ceil(block_tokens));
    }
}

/// Where a leg is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// In the queue, without blocks.
    Waiting,
    /// It computes.
    Running,
    /// It has blocks and waits for the first so many of them to be fetched.
    Pulling {
        /// Leading blocks that will be there.
        until: usize,
    },
    /// As before, but it was aborted: its blocks may still be written.
    Leaving,
    /// A prefill that is done.
    Held,
}

/// All live legs, by slot.
#[derive(Clone, Debug, Default)]
pub(super) struct Slots {
    sequences: Vec<Option<Sequence>>,
    free: Vec<u32>,
}

impl Slots {
    pub(super) fn insert(&mut self, sequence: Sequence) -> u32 {
        if let Some(slot) = self.free.pop() {
            self.sequences[slot as usize] = Some(sequence);
            return slot;
        }
        self.sequences.push(Some(sequence));
        (self.sequences.len() - 1) as u32
    }

    pub(super) fn remove(&mut self, slot: u32) -> Sequence {
        self.free.push(slot);
        self.sequences[slot as usize].take().expect("the slot of a live leg")
    }

    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = &Sequence> {
        self.sequences.iter().flatten()
    }
}

impl Index<u32> for Slots {
    type Output = Sequence;

    fn index(&self, slot: u32) -> &Sequence {
        self.sequences[slot as usize].as_ref().expect("the slot of a live leg")
    }
}

impl IndexMut<u32> for Slots {
    fn index_mut(&mut self, slot: u32) -> &mut Sequence {
        self.sequences[slot as usize].as_mut().expect("the slot of a live leg")
    }
}
