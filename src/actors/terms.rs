//! Whether a worker on another node can serve a model of this front end: a pure decision.

use super::models::ServedModel;
use super::worker::WorkerUp;
use crate::engine::Description;
use crate::word::Word;

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
    /// Another engine computes other tokens from the same prompt.
    #[error(
        "its engine is `{theirs}`, that of the model's other workers `{ours}`; give all one worker.engine"
    )]
    Engine {
        /// There.
        theirs: Word,
        /// On the workers that serve the model already.
        ours: Word,
    },
    /// The same kind of engine computes other tokens from the same prompt.
    #[error(
        "it would give other answers than the model's other workers; give all the same checkpoint \
         directory, one worker.precision and the same worker.logits_processors"
    )]
    Weights,
    /// The longest prompt would not fit into one message.
    #[error(
        "a prompt of its whole context may need {needed} bytes between nodes, and cluster.max_frame_bytes is {limit}; raise it on all nodes"
    )]
    Frame {
        /// The limit here.
        limit: usize,
        /// What it may take.
        needed: usize,
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

/// Most bytes of one token id between nodes.
const TOKEN_BYTES: usize = 5;
/// Most bytes of a KV block's number and checksum.
const BLOCK_BYTES: usize = 14;
/// Most bytes of a leg besides its tokens, sampling rules included.
const LEG_BYTES: usize = 32 << 10;

/// Compares a worker with the model here, with one that serves it already, and with one that has blocks
/// to share with it (`mate`).
///
/// # Errors
/// The first thing that differs.
pub fn check(
    model: &ServedModel,
    (mate, other): (Option<&Description>, Option<&Description>),
    max_frame: Option<usize>,
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
    if let Some(mate) = mate
        && mate.block_tokens != engine.block_tokens
    {
        let (theirs, ours) = (engine.block_tokens, mate.block_tokens);
        return Err(Mismatch::BlockTokens { theirs, ours });
    }
    if let Some(other) = other {
        if other.kind != engine.kind {
            let (theirs, ours) = (engine.kind.clone(), other.kind.clone());
            return Err(Mismatch::Engine { theirs, ours });
        }
        if other.fingerprint != engine.fingerprint {
            return Err(Mismatch::Weights);
        }
    }
    let blocks = engine.context / engine.block_tokens.max(1);
    let needed = engine.context * TOKEN_BYTES + blocks * BLOCK_BYTES + LEG_BYTES;
    match max_frame {
        Some(limit) if limit < needed => Err(Mismatch::Frame { limit, needed }),
        _ => Ok(()),
    }
}
