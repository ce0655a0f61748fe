//! The prefix index: which ranks hold which leading blocks of a prompt.
//!
//! A block's hash is chained, so it names the block and everything before it, and a rank holds a
//! block only together with those before it (`engine::blocks`). One flat table from blocks to
//! *sets of ranks* is therefore enough, and no tree is needed: blocks that the same ranks hold share
//! one set, and a look-up searches the chain for the places where the set changes.
//!
//! ```text
//! chain   h0   h1   h2   h3   h4   h5   h6 …          sets   7: ranks 0 1 2
//! table    7    7    7    7    9    9    –                   9: ranks 1
//!                           └ 4 blocks: ranks 0 1 2     └ 6 blocks: rank 1
//! ```
//!
//! Events may be lost, repeated or swapped. Then the index tells too much or too little of a rank
//! until that rank's snapshot is applied: [`PrefixIndex::retire`], [`PrefixIndex::add_rank`],
//! [`PrefixIndex::store`]. Engines compare tokens themselves, so whatever it tells wrongly, also
//! because two blocks share a 64-bit key, costs time and never a wrong answer.

mod blocks;
mod ffi;
mod find;
mod part;
mod predicted;
mod sets;
mod table;
#[cfg(test)]
mod tests;

use crate::ids::BlockHash;
use blocks::Blocks;
pub use find::{Matches, Ranks, Scratch};
pub use predicted::Predicted;
use table::Cursor;

/// The number of a rank in an index, from 0 and dense. After [`PrefixIndex::retire`] it comes back
/// for another rank once the sweep is done; until then whatever is stored under it is ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(u32);

impl Slot {
    /// Where this rank is in a table of all ranks.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Which blocks each rank of one model holds, by the ranks' own word.
#[derive(Debug)]
pub struct PrefixIndex {
    blocks: Blocks,
    ranks: Vec<Life>,
    /// Slots to give out again.
    free: Vec<Slot>,
    /// Retired before the current pass of the sweep began: free at its end.
    leaving: Vec<Slot>,
    /// Retired since then: they need another pass.
    waiting: Vec<Slot>,
    cursor: Cursor,
}

/// What a slot is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    /// A rank that holds that many blocks.
    Live(u32),
    /// Nobody, but the table may still have blocks of the last one.
    Dead,
    /// Nobody.
    Free,
}

impl Default for PrefixIndex {
    fn default() -> Self {
        Self::new()
    }
}

impl PrefixIndex {
    /// An index of no ranks.
    pub fn new() -> Self {
        Self {
            blocks: Blocks::new(),
            ranks: Vec::new(),
            free: Vec::new(),
            leaving: Vec::new(),
            waiting: Vec::new(),
            cursor: Cursor::default(),
        }
    }

    /// A slot for a rank that holds nothing yet.
    pub fn add_rank(&mut self) -> Slot {
        if let Some(slot) = self.free.pop() {
            self.ranks[slot.index()] = Life::Live(0);
            return slot;
        }
        self.ranks.push(Life::Live(0));
        Slot(self.ranks.len() as u32 - 1)
    }

    /// Slots given out so far, the retired ones included: the places a table of all ranks needs.
    pub fn slots(&self) -> usize {
        self.ranks.len()
    }

    /// These blocks can be found on that rank now. Any order; known ones are left as they are.
    pub fn store(&mut self, slot: Slot, hashes: &[BlockHash]) {
        if let Some(Life::Live(held)) = self.ranks.get_mut(slot.index()) {
            *held += self.blocks.store(slot.0, hashes);
        }
    }

    /// These blocks cannot be found on that rank any more. Any order; unknown ones are ignored.
    pub fn remove(&mut self, slot: Slot, hashes: &[BlockHash]) {
        if let Some(Life::Live(held)) = self.ranks.get_mut(slot.index()) {
            *held -= self.blocks.remove(slot.0, hashes);
        }
    }

    /// The rank is gone, and with it all its blocks, at once and whatever their number. Their
    /// memory comes back as [`sweep`](Self::sweep) goes on.
    pub fn retire(&mut self, slot: Slot) {
        if let Some(life @ Life::Live(_)) = self.ranks.get_mut(slot.index()) {
            *life = Life::Dead;
            self.blocks.set_dead(slot.0, true);
            self.waiting.push(slot);
        }
    }

    /// Clears up after retired ranks, in up to `places` places of the table (a place takes some
    /// nanoseconds). Returns whether all is clean.
    pub fn sweep(&mut self, places: usize) -> bool {
        if self.leaving.is_empty() {
            self.leaving = std::mem::take(&mut self.waiting);
        }
        if !self.leaving.is_empty() && self.blocks.sweep(&mut self.cursor, places) {
            for slot in self.leaving.drain(..) {
                self.blocks.set_dead(slot.0, false);
                self.ranks[slot.index()] = Life::Free;
                self.free.push(slot);
            }
        }
        self.leaving.is_empty() && self.waiting.is_empty()
    }

    /// Which ranks hold how much of a chain of blocks.
    pub fn matches<'a>(&'a self, chain: &[BlockHash], scratch: &'a mut Scratch) -> Matches<'a> {
        self.blocks.find(chain, scratch)
    }

    /// Blocks in the index; one that many ranks hold counts once.
    pub fn blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Different sets of ranks that hold some block.
    pub fn sets(&self) -> usize {
        self.blocks.sets()
    }

    /// Blocks that a rank holds; 0 for one that is retired.
    pub fn holdings(&self, slot: Slot) -> u32 {
        match self.ranks.get(slot.index()) {
            Some(Life::Live(held)) => *held,
            Some(Life::Dead | Life::Free) | None => 0,
        }
    }

    /// Bytes of memory.
    pub fn bytes(&self) -> usize {
        let slots = self.free.capacity() + self.leaving.capacity() + self.waiting.capacity();
        self.blocks.bytes() + self.ranks.capacity() * size_of::<Life>() + slots * size_of::<Slot>()
    }
}

/// The bits of one word in a mask of all slots.
fn bit_of(mask: &[u64], index: u32) -> u64 {
    mask.get(index as usize).copied().unwrap_or(0)
}
