//! The index against the block managers of engines, over a line that loses, repeats and swaps.

use std::collections::BTreeSet;

use proptest::prelude::*;
use rustc_hash::FxHashSet;

use super::*;
use crate::engine::KvEvent;
use crate::engine::blocks::{BlockManager, Filled, HashKey};
use crate::ids::BlockId;

const SIZE: usize = 2;
const RANKS: usize = 3;

/// One engine's cache: prompts run to their end at once.
struct Rank {
    pool: BlockManager,
    slot: Slot,
    findable: FxHashSet<BlockHash>,
}

/// Prompts over two letters share many beginnings.
fn prompt() -> impl Strategy<Value = Vec<u32>> {
    proptest::collection::vec(0..2_u32, 1..24)
}

fn hashes_of(pool: &mut BlockManager, tokens: &[u32]) -> Vec<BlockHash> {
    let mut hashes = Vec::new();
    pool.extend_hashes(tokens, 0, &mut hashes);
    hashes
}

impl Rank {
    /// Runs a prompt; returns what its engine would publish.
    fn run(&mut self, tokens: &[u32]) -> Vec<KvEvent> {
        let hashes = hashes_of(&mut self.pool, tokens);
        let mut table = Vec::new();
        let hit = self.pool.find(tokens, 0, &hashes, &mut table);
        self.pool.hold(&table);
        if self.pool.allocate((tokens.len().div_ceil(SIZE) - hit.blocks) as u32, &mut table) {
            for at in hit.blocks..hashes.len() {
                let parent: Option<BlockId> = (at > 0).then(|| table[at - 1]);
                let part = &tokens[at * SIZE..][..SIZE];
                if let Filled::Same(other) = self.pool.fill(table[at], parent, hashes[at], part, 0)
                {
                    table[at] = other;
                }
            }
        }
        self.pool.release(&mut table);
        let mut events = Vec::new();
        self.pool.drain_events(&mut events);
        for event in &events {
            match event {
                KvEvent::Stored { hash, .. } => self.findable.insert(*hash),
                KvEvent::Removed { hash } => self.findable.remove(hash),
            };
        }
        events
    }
}

fn publish(index: &mut PrefixIndex, slot: Slot, events: &[KvEvent]) {
    for event in events {
        match event {
            KvEvent::Stored { hash, .. } => index.store(slot, &[*hash]),
            KvEvent::Removed { hash } => index.remove(slot, &[*hash]),
        }
    }
}

/// Whether the index tells what the managers would find.
fn agrees(index: &PrefixIndex, ranks: &mut [Rank], asked: &[Vec<u32>]) -> bool {
    asked.iter().all(|tokens| {
        let hashes = hashes_of(&mut ranks[0].pool, tokens);
        let told = depths(index, &hashes);
        ranks.iter().all(|rank| {
            let hit = rank.pool.find(tokens, 0, &hashes, &mut Vec::new());
            told[rank.slot.index()] as usize == hit.blocks
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn the_index_finds_what_the_engines_would_find(
        pool_blocks in 12..40_u32,
        runs in proptest::collection::vec((0..RANKS, prompt(), 0..40_u8), 1..80),
        asked in proptest::collection::vec(prompt(), 20),
    ) {
        let mut index = PrefixIndex::new();
        let mut ranks: Vec<Rank> = (0..RANKS)
            .map(|_| Rank {
                pool: BlockManager::new(pool_blocks, 0, SIZE, &HashKey::default()),
                slot: index.add_rank(),
                findable: FxHashSet::default(),
            })
            .collect();
        let mut late: Vec<(usize, Vec<KvEvent>)> = Vec::new();
        let mut astray = BTreeSet::new();
        for (rank, tokens, fate) in runs {
            let events = ranks[rank].run(&tokens);
            let slot = ranks[rank].slot;
            match fate {
                0 => astray.extend([rank]), // lost
                1 => late.push((rank, events)),
                2 => (0..2).for_each(|_| publish(&mut index, slot, &events)),
                _ => publish(&mut index, slot, &events),
            }
            if fate == 3 {
                for (rank, events) in late.drain(..) {
                    publish(&mut index, ranks[rank].slot, &events);
                    astray.insert(rank);
                }
            }
            // What a gap in the numbers of a rank's batches leads to.
            if fate > 30 {
                astray.extend(late.iter().map(|(rank, _)| *rank));
                late.clear();
                for rank in std::mem::take(&mut astray) {
                    index.retire(ranks[rank].slot);
                    ranks[rank].slot = index.add_rank();
                    let snapshot: Vec<_> = ranks[rank].findable.iter().copied().collect();
                    index.store(ranks[rank].slot, &snapshot);
                }
                index.sweep(64);
            }
            if astray.is_empty() && late.is_empty() {
                prop_assert!(agrees(&index, &mut ranks, &asked));
            }
        }
    }
}
