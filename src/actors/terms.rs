//! Whether a worker on another node can serve a model of this front end: a pure decision.

use super::models::ServedModel;
use super::worker::WorkerUp;

/// Why a worker cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Mismatch {
    /// Token ids mean something else there.
    #[error("its tokenizer is another one; give both nodes the same checkpoint directory")]
    Tokenizer,
    /// The engine has fewer or more logits than the tokenizer has ids.
    #[error("its model has a vocabulary of {theirs} tokens, this front end's tokenizer {ours}")]
    Vocabulary {
        /// Rows of its logits.
        theirs: usize,
        /// Ids of the tokenizer.
        ours: usize,
    },
    /// Prompts that this front end takes would be refused there, or the other way round.
    #[error(
        "its context is {theirs} tokens, this front end's {ours}; give worker.max_context and \
         frontend.max_context one value"
    )]
    Context {
        /// There.
        theirs: usize,
        /// Here.
        ours: usize,
    },
    /// Blocks of one worker could not be found on another.
    #[error(
        "its KV blocks have {theirs} tokens, those of the model's other workers {ours}; give all \
         one worker.block_tokens"
    )]
    BlockTokens {
        /// There.
        theirs: usize,
        /// On the workers that serve the model already.
        ours: usize,
    },
}

/// Compares a worker with the model here and with the workers that serve it already.
///
/// # Errors
/// The first thing that differs.
pub fn check(
    model: &ServedModel,
    block_tokens: Option<usize>,
    worker: &WorkerUp,
) -> Result<(), Mismatch> {
    let (engine, vocab) = (&worker.description, model.text.vocab_len());
    if worker.tokenizer != model.tokenizer {
        return Err(Mismatch::Tokenizer);
    }
    if engine.vocab < vocab {
        return Err(Mismatch::Vocabulary { theirs: engine.vocab, ours: vocab });
    }
    if engine.context != model.context {
        return Err(Mismatch::Context { theirs: engine.context, ours: model.context });
    }
    match block_tokens {
        Some(ours) if ours != engine.block_tokens => {
            Err(Mismatch::BlockTokens { theirs: engine.block_tokens, ours })
        }
        _ => Ok(()),
    }
}
