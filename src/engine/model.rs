//! What [`Embedded`](super::embedded::Embedded) asks of a model: one forward pass over a batch of spans.

use std::sync::Arc;

use super::EngineError;
use crate::ids::BlockId;
use crate::kvxfer::{Layout, Memory};

/// The sizes of a model and of its KV pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Longest sequence in tokens.
    pub context: usize,
    /// Rows of the logits; ids at or above it are never produced (padding rows are cut off).
    pub vocab: usize,
    /// Tokens in one KV block.
    pub block_tokens: usize,
    /// Blocks in the pool.
    pub blocks: u32,
    /// Bytes of one block over all layers.
    pub block_bytes: usize,
    /// Blocks that the host tier below the pool has room for; 0 without one.
    pub host_blocks: u32,
}

/// A block's KV goes from the pool to the host tier or back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    /// It is copied to this place of the host tier; what was there is gone.
    Save {
        /// The block.
        block: BlockId,
        /// Where to, below [`Shape::host_blocks`].
        place: u32,
    },
    /// It is copied back into a block of the pool.
    Load {
        /// Where it is.
        place: u32,
        /// The block.
        block: BlockId,
    },
}

/// Consecutive new tokens of one sequence: a chunk of its prompt, or the one token of a decode step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First row in [`Batch::tokens`].
    pub first_row: usize,
    /// Tokens in this span, at least 1.
    pub rows: usize,
    /// Position of the first of them in its sequence; the KV of all before it is in the blocks.
    pub start: usize,
    /// First entry in [`Batch::blocks`]; the table covers positions `0..start + rows`.
    pub first_block: usize,
    /// Entries in the table.
    pub blocks: usize,
    /// Whether the logits after the span's last token are wanted.
    pub wants_logits: bool,
}

/// One step's work. Reused from step to step.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Tokens of all spans, one after the other.
    pub tokens: Vec<u32>,
    /// The spans, in row order.
    pub spans: Vec<Span>,
    /// Block tables of all spans, one after the other.
    pub blocks: Vec<BlockId>,
    /// To be carried out first, in this order; none for a model without a host tier.
    pub moves: Vec<Move>,
}

impl Batch {
    /// Empties it for the next step.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.spans.clear();
        self.blocks.clear();
        self.moves.clear();
    }
}

/// What a forward pass gives for each span with `wants_logits`, in order.
#[derive(Debug)]
pub enum Produced<'a> {
    /// `[wanted spans, vocab]`, row-major; the sampler may change them in place.
    Logits(&'a mut [f32]),
    /// The next tokens themselves: a model that does not compute logits.
    Tokens(&'a [u32]),
}

/// Where a KV pool is and how blocks lie in it, for transfers between ranks.
#[derive(Clone, Debug)]
pub struct KvPool {
    /// Its memory.
    pub memory: Arc<Memory>,
    /// How blocks lie in it.
    pub layout: Layout,
}

/// A model with its KV pool.
pub trait Model: Send {
    /// Kind shown to people: `native`, `sim`, ….
    fn kind(&self) -> &'static str;

    /// Hash of all that its tokens depend on besides the prompt; constant.
    fn fingerprint(&self) -> u64;

    /// Sizes; constant.
    fn shape(&self) -> Shape;

    /// Its KV pool, if blocks can be moved between it and others.
    fn kv_pool(&self) -> Option<KvPool> {
        None
    }

    /// Computes a batch: carries out its moves, then writes the KV of its tokens into their blocks and
    /// returns what follows.
    ///
    /// The result for one span must not depend, to the bit, on what else is in the batch, on how
    /// the tokens before it were split into spans, or on which physical blocks hold its KV.
    ///
    /// # Errors
    /// [`EngineError::Lost`]; the pool's content is then undefined.
    fn forward(&mut self, batch: &Batch) -> Result<Produced<'_>, EngineError>;
}
