//! What both sides are given: chains of blocks, named in each side's own way, and who stores them.

use std::ops::{Range, RangeInclusive};

use dynamo_kv_router::protocols::{
    ExternalSequenceBlockHash, LocalBlockHash, compute_seq_hash_for_block,
};

use crate::ids::BlockHash;

/// Blocks that decoding adds to a chain, beyond its prompt.
pub const DECODED: usize = 8;

/// Bytes of a block's names in a [`Chain`].
const NAMES: usize = 32;
/// Bytes of the events that are made before the clock starts.
const EVENTS: usize = 256 << 20;

/// One chain, and its decoded blocks at the end.
pub struct Chain {
    pub ours: Vec<BlockHash>,
    pub local: Vec<LocalBlockHash>,
    pub external: Vec<ExternalSequenceBlockHash>,
}

/// A rank stores or removes some blocks of a chain.
#[derive(Clone)]
pub struct Op {
    pub rank: u32,
    pub chain: usize,
    pub blocks: Range<usize>,
    pub store: bool,
}

/// A kind of traffic.
#[derive(Clone, Copy)]
pub struct Shape {
    /// Blocks of a prompt.
    pub blocks: usize,
    /// How many of them 64 prompts have in common.
    pub shared: usize,
    /// Whether every rank holds every chain, or each chain is on one rank.
    pub everywhere: bool,
}

pub struct Data {
    pub shape: Shape,
    pub ranks: u32,
    pub chains: Vec<Chain>,
    random: Random,
}

impl Shape {
    pub fn named(name: &str) -> Option<Self> {
        let (blocks, shared, everywhere) = match name {
            "unique-32" => (32, 0, false),
            "unique-128" => (128, 0, false),
            "unique-4096" => (4096, 0, false),
            "32+96" => (128, 32, false),
            "everywhere-32" => (32, 0, true),
            "everywhere-128" => (128, 0, true),
            "everywhere-4096" => (4096, 0, true),
            _ => return None,
        };
        Some(Self { blocks, shared, everywhere })
    }

    fn chains(&self, ranks: usize, stores: usize) -> usize {
        let copies = if self.everywhere { ranks } else { 1 };
        (stores / self.blocks / copies).max(1)
    }

    /// Memory that chains, look-ups and events take, about.
    pub fn bytes(&self, ranks: usize, stores: usize) -> usize {
        let chains = self.chains(ranks, stores) * (self.blocks + DECODED);
        let look_ups = 3 * queries_of(self.blocks) * self.blocks;
        (chains + look_ups) * NAMES + stores / self.blocks * size_of::<Op>() * 3 + EVENTS
    }
}

/// Look-ups of each kind with prompts of so many blocks.
pub fn queries_of(blocks: usize) -> usize {
    (4_000_000 / blocks).clamp(100, 20_000)
}

impl Data {
    /// Chains for about `stores` pairs of a rank and a block.
    pub fn new(shape: Shape, ranks: u32, stores: usize) -> Self {
        let mut random = Random(7);
        let count = shape.chains(ranks as usize, stores);
        let mut head = Vec::new();
        let chains = (0..count)
            .map(|nth| {
                if nth % 64 == 0 {
                    head = random.blocks(shape.shared);
                }
                let mut local = head.clone();
                local.extend(random.blocks(shape.blocks + DECODED - shape.shared));
                Chain::new(local)
            })
            .collect();
        Self { shape, ranks, chains, random }
    }

    /// Every rank stores what it holds, chain by chain, in random order.
    pub fn stores(&mut self) -> Vec<Op> {
        let blocks = 0..self.shape.blocks;
        let mut ops = Vec::new();
        for chain in 0..self.chains.len() {
            for rank in self.holders(chain) {
                ops.push(Op { rank, chain, blocks: blocks.clone(), store: true });
            }
        }
        self.random.shuffle(&mut ops);
        ops
    }

    /// Decoding: `count` blocks, one an event, that continue chains where they are.
    pub fn decodes(&mut self, count: usize) -> Vec<Op> {
        let chains = self.chains.len().min(count / DECODED);
        let mut ops = Vec::new();
        for nth in 0..DECODED {
            let at = self.shape.blocks + nth;
            for chain in 0..chains {
                let rank = self.holders(chain).start;
                ops.push(Op { rank, chain, blocks: at..at + 1, store: true });
            }
        }
        ops
    }

    /// What undoes these stores, the last first; what several prompts have in common stays.
    pub fn removes(&self, stores: &[Op]) -> Vec<Op> {
        let own = |op: &Op| op.blocks.start.max(self.shape.shared)..op.blocks.end;
        stores.iter().rev().map(|op| Op { blocks: own(op), store: false, ..op.clone() }).collect()
    }

    fn holders(&self, chain: usize) -> Range<u32> {
        match self.shape.everywhere {
            true => 0..self.ranks,
            // Not in step with the 64 prompts that share a beginning.
            false => {
                let rank = (chain as u32).wrapping_mul(0x9E37_79B1) >> 8;
                rank % self.ranks..rank % self.ranks + 1
            }
        }
    }

    /// Prompts of full length whose first blocks are in some chain; how many is drawn from `known`.
    pub fn queries(&mut self, count: usize, known: RangeInclusive<usize>) -> Vec<Chain> {
        let blocks = self.shape.blocks;
        (0..count)
            .map(|_| {
                let known = known.start() + self.random.below(known.end() - known.start() + 1);
                let chain = &self.chains[self.random.below(self.chains.len())];
                let mut local = chain.local[..known].to_vec();
                local.extend(self.random.blocks(blocks - known));
                Chain::new(local)
            })
            .collect()
    }
}

impl Chain {
    fn new(local: Vec<LocalBlockHash>) -> Self {
        let chained = compute_seq_hash_for_block(&local);
        let wide = |hash: &u64| BlockHash(u128::from(mix(*hash)) << 64 | u128::from(*hash));
        Self {
            ours: chained.iter().map(wide).collect(),
            external: chained.iter().copied().map(ExternalSequenceBlockHash).collect(),
            local,
        }
    }
}

/// A generator with a fixed seed: every run has the same chains.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn blocks(&mut self, count: usize) -> Vec<LocalBlockHash> {
        (0..count).map(|_| LocalBlockHash(self.next())).collect()
    }

    fn shuffle<T>(&mut self, all: &mut [T]) {
        for at in (1..all.len()).rev() {
            all.swap(at, self.below(at + 1));
        }
    }
}

fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}
