//! Driving a native model without a scheduler: sequences with hand-made block tables.

#![allow(dead_code)] // each test file uses a part of it

use std::path::{Path, PathBuf};

use cuelight::engine::model::{Batch, Model, Produced, Span};
use cuelight::engine::native::{KvSize, NativeModel, Options};
use cuelight::ids::BlockId;

/// A file or directory of the repository.
pub(crate) fn repo(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Small and quick to load.
pub(crate) fn options() -> Options {
    Options { threads: 2, kv: KvSize::Blocks(256), ..Options::default() }
}

/// A sequence with its blocks; `done` tokens have their KV in the pool.
#[derive(Clone)]
pub(crate) struct Sequence {
    pub(crate) tokens: Vec<u32>,
    pub(crate) blocks: Vec<BlockId>,
    pub(crate) done: usize,
}

impl Sequence {
    /// A sequence that owns blocks `first, first + 1, …`, enough for `room` tokens of 16 a block.
    pub(crate) fn new(tokens: &[u32], first: u32, room: usize) -> Self {
        let blocks = (first..first + room.div_ceil(16) as u32).map(BlockId).collect();
        Self { tokens: tokens.to_vec(), blocks, done: 0 }
    }
}

/// Runs the next `rows` tokens of each sequence in one pass; gives each one's logits.
pub(crate) fn step(model: &mut NativeModel, work: &mut [(&mut Sequence, usize)]) -> Vec<Vec<f32>> {
    let mut batch = Batch::default();
    let block_tokens = model.shape().block_tokens;
    for (sequence, rows) in work.iter_mut() {
        let end = sequence.done + *rows;
        let blocks = end.div_ceil(block_tokens);
        batch.spans.push(Span {
            first_row: batch.tokens.len(),
            rows: *rows,
            start: sequence.done,
            first_block: batch.blocks.len(),
            blocks,
            wants_logits: true,
        });
        batch.tokens.extend_from_slice(&sequence.tokens[sequence.done..end]);
        batch.blocks.extend_from_slice(&sequence.blocks[..blocks]);
        sequence.done = end;
    }
    let vocab = model.shape().vocab;
    match model.forward(&batch).unwrap() {
        Produced::Logits(logits) => logits.chunks(vocab).map(<[f32]>::to_vec).collect(),
        Produced::Tokens(_) => panic!("a native model computes logits"),
    }
}

/// Runs a sequence in chunks of at most `chunk` tokens; gives the last logits.
pub(crate) fn run(model: &mut NativeModel, sequence: &mut Sequence, chunk: usize) -> Vec<f32> {
    let mut last = Vec::new();
    while sequence.done < sequence.tokens.len() {
        let rows = chunk.min(sequence.tokens.len() - sequence.done);
        last = step(model, &mut [(sequence, rows)]).remove(0);
    }
    last
}

/// The likeliest token.
pub(crate) fn greedy(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (id, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = id;
        }
    }
    best as u32
}

/// The bits, so that equality is exact.
pub(crate) fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|logit| logit.to_bits()).collect()
}
