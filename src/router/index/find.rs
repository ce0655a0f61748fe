//! Looking a chain up: which ranks hold how much of it.
//!
//! What a rank holds of a chain is a prefix of it, so along the chain the sets of ranks only
//! shrink, and two blocks with one set have that set between them. The search therefore looks only
//! for the places where the set changes; its cost grows with their number and with the logarithm
//! of the chain's length, not with the number of ranks. The blocks of one round do not depend on
//! each other, so the processor waits for memory once a round.

use super::sets::{Sets, Word, each_bit, word};
use super::table::{NONE, Table, key};
use super::{Slot, bit_of};
use crate::ids::BlockHash;

/// Blocks looked up in one round between two whose sets differ.
const ROUND: usize = 3;
const GUESS_BITS: u32 = 10;

/// Leading blocks of a chain that one set of ranks holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    blocks: u32,
    set: u32,
}

/// Memory that one look-up after another uses. It carries no answers from one to the next, only
/// where the sets last changed in a chain that began with the same block: prompts that begin alike
/// mostly have one beginning in common, and looking at its end first saves the search for it.
#[derive(Clone, Debug)]
pub struct Scratch {
    runs: Vec<Run>,
    /// By bits of the first block's key: blocks before the first change.
    guesses: Vec<u32>,
}

/// Who holds how much of a chain: ever longer prefixes, held by ever fewer ranks.
#[derive(Clone, Copy, Debug)]
pub struct Matches<'a> {
    runs: &'a [Run],
    sets: &'a Sets,
    dead: &'a [u64],
}

/// The ranks that hold one prefix.
#[derive(Clone, Copy, Debug)]
pub struct Ranks<'a> {
    words: &'a [Word],
    dead: &'a [u64],
}

impl Default for Scratch {
    fn default() -> Self {
        Self { runs: Vec::new(), guesses: vec![0; 1 << GUESS_BITS] }
    }
}

/// Finds what the ranks hold of `chain`, leaving out those in `dead`.
pub(super) fn find<'a>(
    table: &Table,
    sets: &'a Sets,
    dead: &'a [u64],
    chain: &[BlockHash],
    Scratch { runs, guesses }: &'a mut Scratch,
) -> Matches<'a> {
    runs.clear();
    if let [first, .., last] = chain {
        let first_key = key(*first);
        let guess = &mut guesses[(first_key >> (64 - GUESS_BITS)) as usize];
        let end = chain.len() - 1;
        // Two neighbours, between which the sets may change.
        let after = (*guess as usize).clamp(1, end);
        let keys = [first_key, key(chain[after - 1]), key(chain[after]), key(*last)];
        keys.iter().for_each(|key| table.prefetch(*key));
        let [first, last] = [keys[0], keys[3]].map(|key| table.get(key));
        if first != last && first != NONE {
            let [low, high] = [keys[1], keys[2]].map(|key| table.get(key));
            changes(table, chain, (0, first), (after - 1, low), runs);
            changes(table, chain, (after - 1, low), (after, high), runs);
            changes(table, chain, (after, high), (end, last), runs);
            *guess = runs.first().map_or(0, |run| run.blocks);
        }
        close(runs, chain.len(), last);
    } else if let [only] = chain {
        close(runs, 1, table.get(key(*only)));
    }
    Matches { runs, sets, dead }
}

/// Ends the runs with the set of the chain's last block.
fn close(runs: &mut Vec<Run>, blocks: usize, set: u32) {
    if set != NONE {
        runs.push(Run { blocks: blocks as u32, set });
    }
}

/// Appends the runs that end between two blocks, given with their sets.
fn changes(
    table: &Table,
    chain: &[BlockHash],
    (low, low_set): (usize, u32),
    (high, high_set): (usize, u32),
    runs: &mut Vec<Run>,
) {
    if low_set == high_set || low_set == NONE {
        return;
    }
    let between = high - low - 1;
    if between == 0 {
        runs.push(Run { blocks: high as u32, set: low_set });
        return;
    }
    let count = between.min(ROUND);
    let nth = |nth: usize| low + (nth + 1) * (between + 1) / (count + 1);
    let mut keys = [0; ROUND];
    keys[..count].iter_mut().enumerate().for_each(|(i, to)| *to = key(chain[nth(i)]));
    keys[..count].iter().for_each(|key| table.prefetch(*key));
    let mut from = (low, low_set);
    for (i, &key) in keys[..count].iter().enumerate() {
        let to = (nth(i), table.get(key));
        changes(table, chain, from, to, runs);
        from = to;
        if to.1 == high_set || to.1 == NONE {
            break;
        }
    }
    changes(table, chain, from, (high, high_set), runs);
}

impl<'a> Matches<'a> {
    /// Every prefix that ends where some rank's does, the shortest first: its length in blocks, and
    /// the ranks that hold all of it.
    pub fn runs(&self) -> impl DoubleEndedIterator<Item = (u32, Ranks<'a>)> + use<'a> {
        let Self { runs, sets, dead } = *self;
        let runs = runs.iter();
        runs.map(move |run| (run.blocks, Ranks { words: sets.words(run.set), dead }))
    }

    /// Blocks of the longest prefix that any rank holds.
    pub fn longest(&self) -> u32 {
        self.runs().rev().find(|(_, ranks)| !ranks.is_empty()).map_or(0, |(blocks, _)| blocks)
    }

    /// Calls `each` once with every rank that holds any of the chain, and how many blocks of it.
    pub fn each(&self, mut each: impl FnMut(Slot, u32)) {
        let mut longer: &[Word] = &[];
        for (blocks, ranks) in self.runs().rev() {
            for &(index, bits) in ranks.words {
                while longer.first().is_some_and(|word| word.0 < index) {
                    longer = &longer[1..];
                }
                let told = longer.first().filter(|word| word.0 == index).map_or(0, |word| word.1);
                each_bit(index, bits & !told & !bit_of(ranks.dead, index), |slot| {
                    each(Slot(slot), blocks);
                });
            }
            longer = ranks.words;
        }
    }

    /// Raises `depths[slot]` to the number of blocks that rank holds. It has a place for each slot;
    /// what is beyond its end is left out.
    pub fn raise(&self, depths: &mut [u32]) {
        for (blocks, ranks) in self.runs() {
            for &(index, bits) in ranks.words {
                let first = index as usize * 64;
                let end = depths.len().min(first + 64);
                let Some(depths) = depths.get_mut(first..end) else { break };
                let live = bits & !bit_of(ranks.dead, index);
                if live == u64::MAX && depths.len() == 64 {
                    depths.iter_mut().for_each(|depth| *depth = blocks.max(*depth));
                } else {
                    each_bit(0, live, |nth| {
                        if let Some(depth) = depths.get_mut(nth as usize) {
                            *depth = blocks.max(*depth);
                        }
                    });
                }
            }
        }
    }
}

impl Ranks<'_> {
    /// Whether `slot` is one of them.
    pub fn contains(&self, slot: Slot) -> bool {
        let (index, bit) = word(slot.0);
        let found = self.words.binary_search_by_key(&index, |word| word.0);
        found.is_ok_and(|at| self.words[at].1 & bit & !bit_of(self.dead, index) != 0)
    }

    /// Calls `each` with every one of them, in the order of their slots.
    pub fn each(&self, mut each: impl FnMut(Slot)) {
        for &(index, bits) in self.words {
            each_bit(index, bits & !bit_of(self.dead, index), |slot| each(Slot(slot)));
        }
    }

    /// How many they are.
    pub fn len(&self) -> usize {
        let live = self.words.iter().map(|&(index, bits)| bits & !bit_of(self.dead, index));
        live.map(|bits| bits.count_ones() as usize).sum()
    }

    /// Whether there is none, which is so when all have died.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|&(index, bits)| bits & !bit_of(self.dead, index) == 0)
    }
}
