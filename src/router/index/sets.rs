//! Sets of ranks, each kept once and counted by the blocks that have it.

use rustc_hash::FxHashMap;

use super::bit_of;
use super::table::NONE;

/// 64 ranks: the number of the word, and one bit a rank. A set lists its words in order, none of
/// them empty, so few ranks among thousands are as small as few among few.
pub(super) type Word = (u32, u64);

/// The word of one rank.
pub(super) fn word(slot: u32) -> Word {
    (slot / 64, 1 << (slot % 64))
}

#[derive(Debug, Default)]
pub(super) struct Sets {
    all: Vec<Set>,
    by_hash: FxHashMap<u64, u32>,
    free: Vec<u32>,
    /// Sets whose last block left, unless they got another one since.
    unused: Vec<u32>,
    /// The set under construction.
    draft: Vec<Word>,
    /// Of all words allocated.
    word_count: usize,
}

#[derive(Debug, Default)]
struct Set {
    words: Box<[Word]>,
    hash: u64,
    /// Blocks that have it.
    blocks: u32,
}

impl Sets {
    /// The ranks of a set.
    pub(super) fn words(&self, id: u32) -> &[Word] {
        &self.all[id as usize].words
    }

    /// Sets in use.
    pub(super) fn len(&self) -> usize {
        self.all.len() - self.free.len()
    }

    /// Bytes allocated.
    pub(super) fn bytes(&self) -> usize {
        let map_places = self.by_hash.capacity() * 8 / 7;
        self.all.capacity() * size_of::<Set>()
            + self.word_count * size_of::<Word>()
            + map_places * (size_of::<(u64, u32)>() + 1)
            + (self.free.capacity() + self.unused.capacity()) * 4
            + self.draft.capacity() * size_of::<Word>()
    }

    /// The set with `slot` added; `id` itself if it is in there. May take [`NONE`].
    pub(super) fn with(&mut self, id: u32, slot: u32) -> u32 {
        let (index, bit) = word(slot);
        self.draft.clear();
        let mut hash = mix(slot);
        if id == NONE {
            self.draft.push((index, bit));
        } else {
            let old = &self.all[id as usize];
            hash ^= old.hash;
            self.draft.extend_from_slice(&old.words);
            match self.draft.binary_search_by_key(&index, |word| word.0) {
                Ok(at) if self.draft[at].1 & bit != 0 => return id,
                Ok(at) => self.draft[at].1 |= bit,
                Err(at) => self.draft.insert(at, (index, bit)),
            }
        }
        self.intern(hash)
    }

    /// The set with the ranks in `gone` (one bit a rank) taken out; `id` itself if none is in
    /// there, [`NONE`] if none is left.
    pub(super) fn without(&mut self, id: u32, gone: &[u64]) -> u32 {
        let old = &self.all[id as usize];
        let is_gone = |&(index, bits): &Word| bits & bit_of(gone, index) != 0;
        if !old.words.iter().any(is_gone) {
            return id;
        }
        self.draft.clear();
        let mut hash = old.hash;
        for &(index, bits) in &old.words {
            let out = bits & bit_of(gone, index);
            each_bit(index, out, |slot| hash ^= mix(slot));
            if bits != out {
                self.draft.push((index, bits & !out));
            }
        }
        if self.draft.is_empty() { NONE } else { self.intern(hash) }
    }

    /// As [`without`](Self::without), for one rank.
    pub(super) fn without_one(&mut self, id: u32, slot: u32) -> u32 {
        if id == NONE {
            return NONE;
        }
        let (index, bit) = word(slot);
        let old = &self.all[id as usize];
        let Ok(at) = old.words.binary_search_by_key(&index, |word| word.0) else { return id };
        if old.words[at].1 & bit == 0 {
            return id;
        }
        self.draft.clear();
        self.draft.extend_from_slice(&old.words);
        self.draft[at].1 &= !bit;
        if self.draft[at].1 == 0 {
            self.draft.remove(at);
        }
        let hash = old.hash ^ mix(slot);
        if self.draft.is_empty() { NONE } else { self.intern(hash) }
    }

    /// Moves `blocks` blocks from one set to another; either may be [`NONE`].
    pub(super) fn move_blocks(&mut self, from: u32, to: u32, blocks: u32) {
        if from == to {
            return;
        }
        if to != NONE {
            self.all[to as usize].blocks += blocks;
        }
        if from != NONE {
            let set = &mut self.all[from as usize];
            set.blocks -= blocks;
            if set.blocks == 0 {
                self.unused.push(from);
            }
        }
    }

    /// Frees the sets that no block has. Until then their numbers keep their meaning.
    pub(super) fn free_unused(&mut self) {
        while let Some(id) = self.unused.pop() {
            let set = &mut self.all[id as usize];
            if set.blocks > 0 || set.words.is_empty() {
                continue;
            }
            self.word_count -= set.words.len();
            set.words = Box::default();
            if self.by_hash.get(&set.hash) == Some(&id) {
                self.by_hash.remove(&set.hash);
            }
            self.free.push(id);
        }
    }

    /// The number of the set in `draft`.
    ///
    /// Two sets of one hash, should that ever be, are told apart: the later is then kept more than
    /// once, which costs memory and nothing else.
    fn intern(&mut self, hash: u64) -> u32 {
        let known = self.by_hash.get(&hash).copied();
        if let Some(id) = known
            && *self.all[id as usize].words == *self.draft
        {
            return id;
        }
        let set = Set { words: self.draft.as_slice().into(), hash, blocks: 0 };
        self.word_count += set.words.len();
        let id = match self.free.pop() {
            Some(id) => {
                self.all[id as usize] = set;
                id
            }
            None => {
                self.all.push(set);
                self.all.len() as u32 - 1
            }
        };
        self.by_hash.entry(hash).or_insert(id);
        id
    }
}

/// Calls `each` with every rank of one word.
pub(super) fn each_bit(index: u32, mut bits: u64, mut each: impl FnMut(u32)) {
    while bits != 0 {
        each(index * 64 + bits.trailing_zeros());
        bits &= bits - 1;
    }
}

/// A set's hash is the exclusive or of these, whatever the order its ranks came in.
fn mix(slot: u32) -> u64 {
    let x = (u64::from(slot) + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
impl Sets {
    /// Checks the sets against the number of blocks that have each.
    pub(super) fn check(&self, blocks: &FxHashMap<u32, u32>) {
        for (id, set) in (0..).zip(&self.all) {
            assert_eq!(set.blocks, blocks.get(&id).copied().unwrap_or(0), "blocks of set {id}");
            assert_eq!(set.words.is_empty(), set.blocks == 0, "set {id}");
            assert!(set.words.is_sorted_by(|a, b| a.0 < b.0), "words of set {id}");
        }
        assert_eq!(self.by_hash.len(), self.len());
    }
}
