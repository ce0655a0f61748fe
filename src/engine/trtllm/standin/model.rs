//! The reference model behind the stand-in: executors schedule, and their tokens are the native engine's.
//!
//! Every sequence has KV blocks of its own in the model's pool, from its first call until it is forgotten. What the
//! executor finds in its prefix cache, or fetches from elsewhere, is computed here like everything else: the tokens
//! of a sequence depend on those before them alone.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::folder::{MAX_BATCH_SIZE, TOKENS_PER_BLOCK};
use super::{SourceRow, TokenSource, tokens_from};
use crate::engine::model::{Batch, Model, Produced, Span};
use crate::engine::native::{KvSize, NativeModel, Options, Precision, checkpoint};
use crate::engine::sample::{Position, Sampler};
use crate::engine::{EngineError, Sampling};
use crate::ids::BlockId;

/// Most tokens that go through the model at once. Prompts come whole, and many at a time.
const PASS_TOKENS: usize = 512;

/// How the model is loaded.
#[derive(Clone, Debug, PartialEq)]
pub struct ServeOptions {
    /// Threads that compute, at least 1.
    pub threads: usize,
    /// What matrix products round their inputs to.
    pub precision: Precision,
    /// Ids at or above it are never produced: those that the tokenizer does not have.
    pub known_ids: Option<usize>,
    /// Shortens the model's context, in tokens.
    pub max_context: Option<usize>,
    /// How many sequences of full length there is KV for, over all engines of the process.
    pub sequences: usize,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            precision: Precision::Weights,
            known_ids: None,
            max_context: None,
            sequences: MAX_BATCH_SIZE,
        }
    }
}

/// Engines that are opened from now on have their tokens from the checkpoint in `dir`. Asked for once more, a model
/// is not loaded again.
///
/// # Errors
/// `Lost`: the model cannot be loaded.
pub fn serve_model(dir: &Path, options: ServeOptions) -> Result<(), EngineError> {
    static LOADED: Mutex<Option<(PathBuf, ServeOptions, Arc<ModelSource>)>> = Mutex::new(None);
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    let source = match &*loaded {
        Some((of, with, source)) if of == dir && *with == options => source.clone(),
        _ => {
            let source = Arc::new(ModelSource::load(dir, &options)?);
            *loaded = Some((dir.to_owned(), options, source.clone()));
            source
        }
    };
    tokens_from(Box::new(source));
    Ok(())
}

/// One model for all engines of the process.
#[derive(Debug)]
struct ModelSource(Mutex<Inner<NativeModel>>);

impl ModelSource {
    fn load(dir: &Path, options: &ServeOptions) -> Result<Self, EngineError> {
        let lost = |error: &dyn ToString| EngineError::Lost {
            during: "loading".into(),
            detail: error.to_string(),
        };
        let card = checkpoint::read_card(dir).map_err(|error| lost(&error))?;
        let context = options.max_context.map_or(card.context, |most| most.min(card.context));
        let blocks = options.sequences.max(1) * context.div_ceil(TOKENS_PER_BLOCK);
        let with = Options {
            threads: options.threads,
            kv: KvSize::Blocks(u32::try_from(blocks).unwrap_or(u32::MAX)),
            block_tokens: TOKENS_PER_BLOCK,
            // Prompts may have such ids, as with a compiled engine: `Inner` keeps them out of the output.
            vocab_limit: None,
            max_context: options.max_context,
            precision: options.precision,
            ..Options::default()
        };
        let model = NativeModel::load(dir, with).map_err(|error| lost(&error))?;
        Ok(Self(Mutex::new(Inner::new(model, options.known_ids))))
    }
}

impl TokenSource for Arc<ModelSource> {
    fn forward(&self, engine: &str, rows: &mut [SourceRow<'_>]) -> bool {
        let Ok(mut inner) = self.0.lock() else {
            tracing::error!(
                engine,
                "the model behind the stand-in has panicked before: restart the process"
            );
            return false;
        };
        match inner.forward(rows) {
            Ok(()) => true,
            Err(why) => {
                tracing::error!(
                    engine,
                    sequences = rows.len(),
                    why,
                    "the model behind the stand-in failed a step"
                );
                false
            }
        }
    }

    fn forget(&self, _engine: &str, sequence: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).forget(sequence);
    }
}

/// KV of one sequence.
#[derive(Debug, Default)]
struct Held {
    blocks: Vec<BlockId>,
    /// Tokens whose KV is there.
    computed: usize,
}

struct Inner<M> {
    model: M,
    known_ids: usize,
    sequences: HashMap<u64, Held>,
    free: Vec<BlockId>,
    batch: Batch,
    sampler: Sampler,
    greedy: Sampling,
}

impl<M> std::fmt::Debug for Inner<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").field("free", &self.free.len()).finish_non_exhaustive()
    }
}

impl<M: Model> Inner<M> {
    fn new(model: M, known_ids: Option<usize>) -> Self {
        let shape = model.shape();
        Self {
            model,
            known_ids: known_ids.map_or(shape.vocab, |known| known.min(shape.vocab)),
            sequences: HashMap::new(),
            free: (0..shape.blocks).rev().map(BlockId).collect(),
            batch: Batch::default(),
            sampler: Sampler::default(),
            greedy: Sampling { logprobs: Some(0), ..Sampling::default() },
        }
    }

    /// The next token, or the logits, of each row; or why there are none.
    fn forward(&mut self, rows: &mut [SourceRow<'_>]) -> Result<(), String> {
        for row in rows.iter() {
            self.check(row)?;
            self.hold(row)?;
        }
        let mut next = 0;
        while next < rows.len() {
            let complete = self.plan(&rows[next..]);
            let done = self.compute(&mut rows[next..next + complete]);
            if done.is_err() {
                // Nobody knows what the blocks hold now.
                self.sequences.values_mut().for_each(|held| held.computed = 0);
            }
            done?;
            next += complete;
        }
        Ok(())
    }

    fn check(&self, row: &SourceRow<'_>) -> Result<(), String> {
        let (shape, tokens) = (self.model.shape(), row.tokens.len());
        if tokens == 0 || tokens > shape.context {
            return Err(format!(
                "{tokens} tokens: the model takes 1 to {}; lower max_seq_len",
                shape.context
            ));
        }
        let known = |token: i32| usize::try_from(token).is_ok_and(|token| token < shape.vocab);
        if let Some(token) = row.tokens.iter().find(|token| !known(**token)) {
            return Err(format!(
                "token id {token} is outside the model's vocabulary of {}",
                shape.vocab
            ));
        }
        match &row.logits {
            Some(logits) if logits.len() < self.known_ids => Err(format!(
                "vocab = {}: the stand-in's option must be the model's, {}",
                logits.len(),
                shape.vocab
            )),
            _ => Ok(()),
        }
    }

    /// Has blocks for all of the row's tokens.
    fn hold(&mut self, row: &SourceRow<'_>) -> Result<(), String> {
        let shape = self.model.shape();
        let held = self.sequences.entry(row.sequence).or_default();
        // The last token's logits are wanted, whatever is known.
        held.computed = held.computed.min(row.known_len).min(row.tokens.len() - 1);
        let missing =
            row.tokens.len().div_ceil(shape.block_tokens).saturating_sub(held.blocks.len());
        let Some(rest) = self.free.len().checked_sub(missing) else {
            return Err(format!(
                "{missing} KV blocks are wanted and {} of {} are free; raise the number of sequences",
                self.free.len(),
                shape.blocks
            ));
        };
        held.blocks.extend(self.free.drain(rest..).rev());
        Ok(())
    }

    /// Fills the batch with as much of these rows as goes through the model at once, and says how many of them it
    /// completes.
    fn plan(&mut self, rows: &[SourceRow<'_>]) -> usize {
        self.batch.clear();
        let block_tokens = self.model.shape().block_tokens;
        let mut complete = 0;
        for row in rows {
            let room = PASS_TOKENS - self.batch.tokens.len();
            let Some(held) = self.sequences.get_mut(&row.sequence).filter(|_| room > 0) else {
                break;
            };
            let start = held.computed;
            let end = row.tokens.len().min(start + room);
            held.computed = end;
            let wants_logits = end == row.tokens.len();
            let blocks = &held.blocks[..end.div_ceil(block_tokens)];
            self.batch.spans.push(Span {
                first_row: self.batch.tokens.len(),
                rows: end - start,
                start,
                first_block: self.batch.blocks.len(),
                blocks: blocks.len(),
                wants_logits,
            });
            self.batch.blocks.extend_from_slice(blocks);
            self.batch
                .tokens
                .extend(row.tokens[start..end].iter().map(|token| token.cast_unsigned()));
            complete += usize::from(wants_logits);
        }
        complete
    }

    /// Computes the batch, which completes these rows.
    fn compute(&mut self, rows: &mut [SourceRow<'_>]) -> Result<(), String> {
        let vocab = self.model.shape().vocab;
        let logits = match self.model.forward(&self.batch).map_err(|error| error.to_string())? {
            Produced::Logits(logits) => logits,
            Produced::Tokens(_) => return Err("the model computes no logits".to_owned()),
        };
        for (row, logits) in rows.iter_mut().zip(logits.chunks_exact_mut(vocab)) {
            let logits = &mut logits[..self.known_ids];
            if let Some(out) = &mut row.logits {
                out[..logits.len()].copy_from_slice(logits);
                out[logits.len()..].fill(f32::NEG_INFINITY);
                continue;
            }
            let first = Position { choice: 0, index: 0 };
            let (token, logprobs) = self
                .sampler
                .sample(logits, &self.greedy, None, first)
                .map_err(|error| error.to_string())?;
            row.token = token.cast_signed();
            row.logprob = logprobs.map_or(0.0, |of| of.chosen);
        }
        Ok(())
    }

    fn forget(&mut self, sequence: u64) {
        if let Some(held) = self.sequences.remove(&sequence) {
            self.free.extend(held.blocks.into_iter().rev());
        }
    }
}

#[cfg(test)]
mod tests;
