//! The table from blocks to sets of ranks, in many small parts.
//!
//! Parts grow one by one, so neither memory nor a pause is ever that of the whole.

use super::part::{FREE, Part, Swept};
use crate::ids::BlockHash;

/// No set: a block nobody holds.
pub(super) const NONE: u32 = u32::MAX;
/// The high bits of a key tell its part.
pub(super) const PART_BITS: u32 = 8;

/// The 64 bits that stand for a block here.
///
/// Two blocks may share them. Then a look-up may promise a block that the rank does not have, and
/// the rank computes it: that costs time, and never a wrong answer.
pub(super) fn key(hash: BlockHash) -> u64 {
    let folded = hash.0 as u64 ^ ((hash.0 >> 64) as u64).rotate_left(32);
    // Multiplying by an odd number keeps keys apart and spreads them over the high bits.
    folded.wrapping_mul(0x9E37_79B9_7F4A_7C15).min(FREE - 1)
}

/// From keys to set numbers.
#[derive(Debug)]
pub(super) struct Table {
    parts: Vec<Part>,
}

/// How far a sweep has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cursor {
    part: usize,
    swept: Swept,
}

impl Table {
    pub(super) fn new() -> Self {
        Self { parts: vec![Part::EMPTY; 1 << PART_BITS] }
    }

    /// Keys in the table.
    pub(super) fn entries(&self) -> usize {
        self.parts.iter().map(Part::used).sum()
    }

    /// Bytes allocated.
    pub(super) fn bytes(&self) -> usize {
        let parts: usize = self.parts.iter().map(Part::bytes).sum();
        parts + self.parts.capacity() * size_of::<Part>()
    }

    /// The set of `key`, or [`NONE`].
    pub(super) fn get(&self, key: u64) -> u32 {
        self.parts[part_of(key)].get(key)
    }

    /// Brings into the cache what is needed for `key`, without waiting for it.
    pub(super) fn prefetch(&self, key: u64) {
        self.parts[part_of(key)].prefetch(key);
    }

    /// Replaces the set of `key`, [`NONE`] standing for no entry before and after.
    pub(super) fn change(&mut self, key: u64, to: impl FnOnce(u32) -> u32) {
        self.parts[part_of(key)].change(key, to);
    }

    /// Passes about `places` places from `cursor` on to `to`, as [`change`](Self::change) would.
    /// Returns whether it came to the end, which also sets the cursor back to the beginning.
    pub(super) fn sweep(
        &mut self,
        cursor: &mut Cursor,
        mut places: usize,
        mut to: impl FnMut(u32) -> u32,
    ) -> bool {
        while let Some(part) = self.parts.get_mut(cursor.part) {
            if !part.sweep(&mut cursor.swept, &mut places, &mut to) {
                return false;
            }
            *cursor = Cursor { part: cursor.part + 1, swept: Swept::default() };
        }
        *cursor = Cursor::default();
        true
    }

    /// All entries.
    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, u32)> + '_ {
        self.parts.iter().flat_map(Part::iter)
    }

    /// Checks that every key is found, and what is counted.
    #[cfg(test)]
    pub(super) fn check(&self) {
        self.parts.iter().for_each(Part::check);
    }
}

fn part_of(key: u64) -> usize {
    (key >> (64 - PART_BITS)) as usize
}
