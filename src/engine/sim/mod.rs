//! `SimModel`: a model that computes tokens from the text so far instead of weights, in the time the
//! config says. For routing, planning, scale and fault tests, and as an engine that costs nothing.
//!
//! Its KV is real: every block keeps a hash of the sequence up to its last position, and the next
//! token is a function of that hash. Wrong block tables, stale blocks, gaps and blocks of another
//! sequence therefore give wrong tokens, and a recomputed or moved block gives the same ones.

mod pace;
#[cfg(test)]
mod tests;
mod timing;

use std::ops::Range;
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use super::EngineError;
use super::model::{Batch, KvPool, Model, Move, Produced, Shape, Span};
use crate::ids::BlockId;
use crate::kvxfer::{Layout, Memory, Sizes};
pub use timing::{Formula, Law, Table, TableError, Timing, Work};

/// Multiplies a hash into the next: odd, without pattern (2^64 divided by the golden ratio).
const MIX: u64 = 0x9E37_79B9_7F4A_7C15;

/// What a simulated model is like.
#[derive(Clone, Debug, PartialEq)]
pub struct SimConfig {
    /// Sizes of the model and of its pool.
    pub shape: Shape,
    /// Tokens are a function of the text so far and of this.
    pub seed: u64,
    /// Ids it answers with; not empty and within the vocabulary.
    pub answers: Range<u32>,
    /// The end-of-sequence id, and how many tokens come before it on average; `None` for never.
    pub eos: Option<(u32, u32)>,
    /// Whether every span looks at its whole block table, as attention does: costs time, and
    /// notices a wrong block anywhere in it. Without it only the last block is looked at.
    pub attend: bool,
    /// How long steps take.
    pub timing: Timing,
}

impl Default for SimConfig {
    /// As fast as possible, 4,096 blocks of 16 tokens, printable ASCII bytes as ids.
    fn default() -> Self {
        Self {
            shape: Shape {
                context: 8192,
                vocab: 4096,
                block_tokens: 16,
                blocks: 4096,
                block_bytes: 16 * size_of::<u64>(),
                host_blocks: 0,
            },
            seed: 0,
            answers: 32..127,
            eos: None,
            attend: false,
            timing: Timing::default(),
        }
    }
}

/// The hash of a sequence after one more token.
#[inline(always)]
fn absorb(before: u64, token: u32) -> u64 {
    let mixed = (before ^ u64::from(token)).wrapping_mul(MIX);
    mixed ^ (mixed >> 29)
}

impl SimConfig {
    /// The token that follows a sequence with this hash.
    #[inline(always)]
    fn answer(&self, hash: u64) -> u32 {
        // The high half chooses the token, the low half whether this is the end.
        let mixed = hash.wrapping_mul(MIX);
        if let Some((eos, after)) = self.eos
            && (mixed & 0xFFFF_FFFF) * u64::from(after) < (1 << 32)
        {
            return eos;
        }
        let count = u64::from(self.answers.end - self.answers.start);
        self.answers.start + (((mixed >> 32) * count) >> 32) as u32
    }

    /// The token that follows `tokens`, by definition: what every engine around this model gives.
    pub fn next_token(&self, tokens: &[u32]) -> u32 {
        self.answer(tokens.iter().fold(self.start(), |hash, &token| absorb(hash, token)))
    }

    /// The hash of the empty sequence.
    fn start(&self) -> u64 {
        self.seed ^ MIX
    }
}

/// What a block holds.
#[derive(Clone, Copy, Debug, Default)]
struct Kv {
    /// The hash of the sequence before the block's first position.
    before: u64,
    /// The hash of the sequence up to the last position that was written.
    hash: u64,
    /// Positions that were written.
    filled: u64,
}

impl Kv {
    /// In the pool.
    const BYTES: usize = 24;

    /// The hash after the first `len` positions; something else if the block does not end there.
    fn after(&self, len: usize) -> u64 {
        if self.filled == len as u64 { self.hash } else { !self.hash }
    }
}

/// The KV of all blocks, in memory that transfers may touch.
#[derive(Debug)]
struct Pool {
    memory: Arc<Memory>,
    layout: Layout,
}

impl Pool {
    fn new(shape: &Shape) -> std::io::Result<Self> {
        let (blocks, block_tokens) = (shape.blocks.max(1), shape.block_tokens.max(1) as u32);
        let head_bytes = (Kv::BYTES as u64).div_ceil(block_tokens.into());
        let sizes = Sizes { blocks, layers: 1, planes: 1, heads: 0..1, block_tokens, head_bytes };
        let layout = Layout::block_major(sizes).expect("no size is 0, and all are small");
        Ok(Self { memory: Memory::zeroed(layout.bytes() as usize)?, layout })
    }

    fn offset(&self, block: BlockId) -> u64 {
        u64::from(block.0) * self.layout.strides.block
    }

    fn get(&self, block: BlockId) -> Kv {
        let mut bytes = [[0; 8]; 3];
        self.memory.read(self.offset(block), bytes.as_flattened_mut());
        let [before, hash, filled] = bytes.map(u64::from_ne_bytes);
        Kv { before, hash, filled }
    }

    fn set(&self, block: BlockId, kv: Kv) {
        let bytes = [kv.before, kv.hash, kv.filled].map(u64::to_ne_bytes);
        self.memory.write(self.offset(block), bytes.as_flattened());
    }
}

/// A simulated model and its KV pool.
#[derive(Debug)]
pub struct SimModel {
    config: SimConfig,
    kv: Pool,
    /// `[host_blocks]`
    host: Vec<Kv>,
    answers: Vec<u32>,
    pace: pace::Pace,
}

impl SimModel {
    /// A model with an empty pool.
    ///
    /// # Panics
    /// If `answers` is empty, or there is no memory for the pool.
    pub fn new(config: SimConfig) -> Self {
        Self::load(config).expect("memory for the simulated pool")
    }

    /// A model with an empty pool.
    ///
    /// # Errors
    /// There is no memory for the pool.
    ///
    /// # Panics
    /// If `answers` is empty.
    pub fn load(config: SimConfig) -> Result<Self, EngineError> {
        assert!(!config.answers.is_empty(), "a simulated model needs at least one answer");
        let kv = Pool::new(&config.shape).map_err(|error| {
            let blocks = config.shape.blocks;
            let detail = format!("no memory for {blocks} KV blocks (worker.kv_blocks): {error}");
            EngineError::Lost { during: "loading".into(), detail }
        })?;
        Ok(Self {
            kv,
            host: vec![Kv::default(); config.shape.host_blocks as usize],
            answers: Vec::new(),
            pace: pace::Pace::new(config.timing.clone()),
            config,
        })
    }

    /// What it was made of.
    pub fn config(&self) -> &SimConfig {
        &self.config
    }

    /// Writes the KV of a sequence's last full block, as a transfer from another rank would.
    pub fn receive(&mut self, block: BlockId, tokens: &[u32]) {
        let size = self.config.shape.block_tokens;
        let (before, own) = tokens.split_at(tokens.len() - size);
        let hash = |from: u64, tokens: &[u32]| tokens.iter().fold(from, |h, &t| absorb(h, t));
        let before = hash(self.config.start(), before);
        self.kv.set(block, Kv { before, hash: hash(before, own), filled: size as u64 });
    }

    /// Overwrites one block's KV, as a broken transfer would.
    pub fn corrupt(&mut self, block: BlockId) {
        let kv = self.kv.get(block);
        self.kv.set(block, Kv { hash: absorb(kv.hash, u32::MAX), ..kv });
    }

    /// Writes a span's KV and returns the hash of its sequence.
    fn run(&mut self, span: &Span, tokens: &[u32], table: &[BlockId]) -> u64 {
        let size = self.config.shape.block_tokens;
        let mut hash = self.config.start();
        if span.start > 0 {
            let block = table[(span.start - 1) / size];
            hash = self.kv.get(block).after((span.start - 1) % size + 1);
            if self.config.attend {
                hash ^= self.flaws(span.start, table);
            }
        }
        let mut at = span.start;
        let mut rest = tokens;
        while !rest.is_empty() {
            let (block, offset) = (table[at / size], at % size);
            let (own, after) = rest.split_at(rest.len().min(size - offset));
            let before = if offset == 0 { hash } else { self.kv.get(block).before };
            hash = own.iter().fold(hash, |hash, &token| absorb(hash, token));
            self.kv.set(block, Kv { before, hash, filled: (offset + own.len()) as u64 });
            (at, rest) = (at + own.len(), after);
        }
        hash
    }

    /// 0 if the blocks before `start` continue each other, something else otherwise.
    fn flaws(&self, start: usize, table: &[BlockId]) -> u64 {
        let size = self.config.shape.block_tokens;
        let mut expected = self.config.start();
        let mut flaws = 0;
        for block in &table[..start.div_ceil(size)] {
            let kv = self.kv.get(*block);
            flaws |= kv.before ^ expected;
            expected = kv.after(size);
        }
        flaws
    }
}

impl Model for SimModel {
    fn kind(&self) -> &'static str {
        "sim"
    }

    fn fingerprint(&self) -> u64 {
        let SimConfig { seed, answers, eos, .. } = &self.config;
        let (eos, after) = eos.unwrap_or_default();
        let parts = [*seed, answers.start.into(), answers.end.into(), eos.into(), after.into()];
        xxh3_64(parts.map(u64::to_le_bytes).as_flattened())
    }

    fn shape(&self) -> Shape {
        self.config.shape
    }

    fn kv_pool(&self) -> Option<KvPool> {
        Some(KvPool { memory: self.kv.memory.clone(), layout: self.kv.layout.clone() })
    }

    fn forward(&mut self, batch: &Batch) -> Result<Produced<'_>, EngineError> {
        self.pace.start();
        self.answers.clear();
        for &one in &batch.moves {
            match one {
                Move::Save { block, place } => {
                    // What is read from the pool now must not be what is there.
                    self.host[place as usize] = self.kv.get(block);
                    self.kv.set(block, Kv::default());
                }
                Move::Load { place, block } => {
                    let kv = std::mem::take(&mut self.host[place as usize]);
                    self.kv.set(block, kv);
                }
            }
        }
        for span in &batch.spans {
            let tokens = &batch.tokens[span.first_row..][..span.rows];
            let table = &batch.blocks[span.first_block..][..span.blocks];
            let hash = self.run(span, tokens, table);
            if span.wants_logits {
                self.answers.push(self.config.answer(hash));
            }
        }
        self.pace.wait(batch);
        Ok(Produced::Tokens(&self.answers))
    }
}
