//! Llama-family transformers on this machine's CPU, from a Hugging Face checkpoint directory.
//!
//! ```text
//! checkpoint/    config.json, generation_config.json, safetensors → Config, ModelCard, Tensor
//! weights        names, shapes, fusing → Transformer
//! model          the forward pass, over the operations of
//! backend        the trait a device implements
//! └─ cpu/        AVX-512, AVX2 or plain Rust; a team of threads; the KV pool
//! ```
//!
//! **The numbers do not depend on the batch.** A sequence's logits are the same to the bit alone or
//! among others, with its prompt in one chunk or many, whatever blocks hold its KV, on any number of
//! threads and on any instruction set. Each output of a matrix product is one chain of fused
//! multiply-adds over the inputs in one order; sums over a row or a head use sixteen fixed lanes and
//! a fixed tree; attention goes over its keys in tiles of sixteen positions, counted from 0.
//!
//! # KV pool
//! One allocation of `f32`, `[blocks, layers, 2, kv_heads, block_tokens, head_dim]`, row-major; axis
//! 2 is K (rotated to its position), then V. Zeroed by the system when first touched; what no pass
//! has written never influences a result.

mod backend;
pub mod checkpoint;
mod cpu;
mod error;
mod model;
mod weights;

use std::path::Path;

pub use error::{HeaderError, LoadError};

use crate::engine::EngineError;
use crate::engine::model::{Batch, KvPool, Model, Produced, Shape};
use backend::{Backend as _, Geometry};
use checkpoint::{Config, Weights};
use cpu::Cpu;
use model::Transformer;

/// Positions that attention handles together; KV blocks are a multiple of it.
const TILE_TOKENS: usize = 16;

/// How to load a model.
#[derive(Clone, Debug)]
pub struct Options {
    /// Threads that compute, the caller included; at least 1.
    pub threads: usize,
    /// Size of the KV pool.
    pub kv: KvSize,
    /// Tokens in one KV block, a multiple of 16. Default 16.
    pub block_tokens: usize,
    /// Ids at or above it are never produced; for a tokenizer with fewer ids than the embedding.
    pub vocab_limit: Option<usize>,
    /// Shortens the model's context, in tokens.
    pub max_context: Option<usize>,
    /// Instruction set. Default [`Instructions::Best`].
    pub instructions: Instructions,
    /// What matrix products round their inputs to. Default [`Precision::Weights`].
    pub precision: Precision,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            kv: KvSize::Bytes(1 << 30),
            block_tokens: TILE_TOKENS,
            vocab_limit: None,
            max_context: None,
            instructions: Instructions::Best,
            precision: Precision::Weights,
        }
    }
}

/// Size of the KV pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvSize {
    /// So many blocks.
    Blocks(u32),
    /// As many blocks as fit into so many bytes.
    Bytes(u64),
}

/// Which instructions the kernels use. The results are the same to the bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instructions {
    /// The best that this CPU has.
    Best,
    /// AVX-512F.
    Avx512,
    /// AVX2 and FMA.
    Avx2,
    /// Any CPU; slow.
    Scalar,
}

/// What the inputs of a matrix product are rounded to. Sums and everything else are F32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// To BF16 where the weights are BF16, as in training; else not. Twice as fast on CPUs that
    /// multiply BF16.
    Weights,
    /// Not at all.
    F32,
}

/// A transformer on this machine's CPU, with its KV pool.
pub struct NativeModel {
    transformer: Transformer<Cpu>,
    shape: Shape,
    fingerprint: u64,
}

impl NativeModel {
    /// Loads a Hugging Face checkpoint directory.
    ///
    /// # Errors
    /// [`LoadError`], naming the file and the field or tensor, or the option.
    pub fn load(dir: &Path, options: Options) -> Result<Self, LoadError> {
        let config = Config::read(dir)?;
        let shape = shape(&config, &options)?;
        let geometry = Geometry {
            layers: config.layers(),
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            block_tokens: options.block_tokens,
            blocks: shape.blocks as usize,
        };
        let cpu = Cpu::new(options.threads, options.instructions, options.precision, geometry)?;
        let weights = Weights::open(dir)?;
        let seed = u64::from(options.precision == Precision::F32);
        let fingerprint = config.fingerprint(weights.fingerprint(seed));
        let transformer = weights::load(&weights, &config, shape.vocab, cpu)?;
        Ok(Self { transformer, shape, fingerprint })
    }
}

impl Model for NativeModel {
    fn kind(&self) -> &'static str {
        "native"
    }

    fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    fn shape(&self) -> Shape {
        self.shape
    }

    fn kv_pool(&self) -> Option<KvPool> {
        self.transformer.backend.kv_pool()
    }

    fn forward(&mut self, batch: &Batch) -> Result<Produced<'_>, EngineError> {
        debug_assert!(batch.moves.is_empty(), "it has no host tier");
        debug_assert!(batch.tokens.iter().all(|id| (*id as usize) < self.shape.vocab));
        self.transformer.forward(batch).map(Produced::Logits)
    }
}

fn shape(config: &Config, options: &Options) -> Result<Shape, LoadError> {
    let wrong = |option, value: &dyn ToString, rule: String| LoadError::Option {
        option,
        value: value.to_string(),
        rule,
    };
    if options.threads == 0 {
        return Err(wrong("threads", &0, "must be at least 1".to_owned()));
    }
    let block_tokens = options.block_tokens;
    if block_tokens == 0 || !block_tokens.is_multiple_of(TILE_TOKENS) {
        let rule = format!("must be a multiple of {TILE_TOKENS}");
        return Err(wrong("block_tokens", &block_tokens, rule));
    }
    let block_bytes = checkpoint::kv_bytes_per_token(config).saturating_mul(block_tokens);
    let blocks = match options.kv {
        KvSize::Blocks(blocks) => blocks,
        KvSize::Bytes(bytes) => u32::try_from(bytes / block_bytes as u64).unwrap_or(u32::MAX),
    };
    if blocks == 0 {
        let rule = format!("must hold at least one block of {block_bytes} bytes");
        return Err(wrong("kv", &format!("{:?}", options.kv), rule));
    }
    for (option, limit) in
        [("vocab_limit", options.vocab_limit), ("max_context", options.max_context)]
    {
        if limit == Some(0) {
            return Err(wrong(option, &0, "must be at least 1".to_owned()));
        }
    }
    Ok(Shape {
        context: options.max_context.map_or(config.context, |most| most.min(config.context)),
        vocab: options.vocab_limit.map_or(config.vocab, |most| most.min(config.vocab)),
        block_tokens,
        blocks,
        block_bytes,
        host_blocks: 0,
    })
}
