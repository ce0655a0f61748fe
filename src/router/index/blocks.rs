//! The blocks of all ranks: the table and the sets, kept in step.

use super::bit_of;
use super::find::{Matches, Scratch, find};
use super::sets::{Sets, word};
use super::table::{Cursor, Table, key};
use crate::ids::BlockHash;

/// Blocks whose places are on their way into the cache while those before them are changed.
const AHEAD: usize = 32;

/// Who holds what, and which of those who held something are dead.
#[derive(Debug)]
pub(super) struct Blocks {
    table: Table,
    sets: Sets,
    /// One bit a slot: what it holds is no longer told.
    dead: Vec<u64>,
}

/// One change of a set, and how many blocks made it. Neighbours in a batch mostly make the same one,
/// so it is worked out once.
#[derive(Default)]
struct Step {
    sets: Option<(u32, u32)>,
    blocks: u32,
    /// Blocks whose set became another.
    changed: u32,
}

impl Blocks {
    pub(super) fn new() -> Self {
        Self { table: Table::new(), sets: Sets::default(), dead: Vec::new() }
    }

    /// Adds `slot` to the sets of `hashes`; returns to how many it was new.
    pub(super) fn store(&mut self, slot: u32, hashes: &[BlockHash]) -> u32 {
        self.change(hashes, |sets, set| sets.with(set, slot))
    }

    /// Takes `slot` out of the sets of `hashes`; returns in how many it was.
    pub(super) fn remove(&mut self, slot: u32, hashes: &[BlockHash]) -> u32 {
        self.change(hashes, |sets, set| sets.without_one(set, slot))
    }

    fn change(&mut self, hashes: &[BlockHash], to: impl Fn(&mut Sets, u32) -> u32) -> u32 {
        let Self { table, sets, .. } = self;
        let mut step = Step::default();
        let fetch = |table: &Table, hash: &BlockHash| {
            let key = key(*hash);
            table.prefetch(key);
            key
        };
        let mut ahead = [0; AHEAD];
        ahead.iter_mut().zip(hashes).for_each(|(key, hash)| *key = fetch(table, hash));
        for at in 0..hashes.len() {
            let key = ahead[at % AHEAD];
            if let Some(hash) = hashes.get(at + AHEAD) {
                ahead[at % AHEAD] = fetch(table, hash);
            }
            table.change(key, |set| step.take(sets, set, &to));
        }
        step.settle(sets);
        sets.free_unused();
        step.changed
    }

    /// Takes the dead out of the sets of up to `places` places of the table, from `cursor` on.
    /// Returns whether it came to the end.
    pub(super) fn sweep(&mut self, cursor: &mut Cursor, places: usize) -> bool {
        let Self { table, sets, dead } = self;
        // Neighbours in the table have nothing in common: a step is remembered for many sets.
        let mut steps: [Step; 256] = std::array::from_fn(|_| Step::default());
        let done = table.sweep(cursor, places, |set| {
            let step = &mut steps[set as usize % 256];
            step.take(sets, set, &|sets: &mut Sets, set| sets.without(set, dead))
        });
        steps.iter_mut().for_each(|step| step.settle(sets));
        sets.free_unused();
        done
    }

    /// From now on, whether look-ups leave `slot` out.
    pub(super) fn set_dead(&mut self, slot: u32, dead: bool) {
        let (index, bit) = word(slot);
        let index = index as usize;
        if dead {
            self.dead.resize(self.dead.len().max(index + 1), 0);
            self.dead[index] |= bit;
        } else if let Some(bits) = self.dead.get_mut(index) {
            *bits &= !bit;
        }
    }

    /// Whether look-ups leave `slot` out.
    pub(super) fn is_dead(&self, slot: u32) -> bool {
        let (index, bit) = word(slot);
        bit_of(&self.dead, index) & bit != 0
    }

    pub(super) fn find<'a>(&'a self, chain: &[BlockHash], scratch: &'a mut Scratch) -> Matches<'a> {
        find(&self.table, &self.sets, &self.dead, chain, scratch)
    }

    /// Blocks that some rank holds, those of the dead included until they are swept.
    pub(super) fn len(&self) -> usize {
        self.table.entries()
    }

    /// Sets of ranks in use.
    pub(super) fn sets(&self) -> usize {
        self.sets.len()
    }

    /// Bytes allocated.
    pub(super) fn bytes(&self) -> usize {
        self.table.bytes() + self.sets.bytes() + self.dead.capacity() * 8
    }
}

impl Step {
    fn take(&mut self, sets: &mut Sets, from: u32, to: &impl Fn(&mut Sets, u32) -> u32) -> u32 {
        if let Some((known, to)) = self.sets
            && known == from
        {
            self.blocks += 1;
            return to;
        }
        self.settle(sets);
        let to = to(sets, from);
        (self.sets, self.blocks) = (Some((from, to)), 1);
        to
    }

    /// Tells the sets how many blocks made the step.
    fn settle(&mut self, sets: &mut Sets) {
        if let Some((from, to)) = self.sets.take()
            && from != to
        {
            sets.move_blocks(from, to, self.blocks);
            self.changed += self.blocks;
        }
    }
}

#[cfg(test)]
impl Blocks {
    /// Checks the table and the counts of the sets.
    pub(super) fn check(&self) {
        self.table.check();
        let mut counts = rustc_hash::FxHashMap::default();
        self.table.iter().for_each(|entry| *counts.entry(entry.1).or_insert(0) += 1);
        self.sets.check(&counts);
    }
}
