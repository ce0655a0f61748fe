//! What can go wrong in an engine, by what the caller can do about it.

use bincode::{Decode, Encode};

use crate::word::Word;

/// How far a failure reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// This request only, and trying again elsewhere will not help: its own fault.
    Request,
    /// Pressure, not fault: the same request can succeed later or elsewhere.
    Retry,
    /// The engine and all its legs; the worker must be started again.
    Engine,
}

/// An engine's failure.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Encode, Decode)]
#[non_exhaustive]
pub enum EngineError {
    /// The leg has no tokens to start from.
    #[error("the prompt is empty; it needs at least one token")]
    EmptyPrompt,
    /// The leg is longer than the model's context.
    #[error("prompt of {tokens} tokens leaves no room in the model's context of {context} tokens")]
    PromptTooLong {
        /// Tokens in the leg.
        tokens: usize,
        /// The model's limit.
        context: usize,
    },
    /// The leg's output is complete before it starts.
    #[error("the output has {output} tokens already and may have {max_tokens}; raise max_tokens")]
    NoTokensLeft {
        /// Output tokens that were delivered before.
        output: usize,
        /// The leg's limit.
        max_tokens: u32,
    },
    /// The leg alone would not fit into the pool.
    #[error(
        "{tokens} tokens need {need} KV blocks, but the whole pool has {total}; raise worker.kv_blocks"
    )]
    PoolTooSmall {
        /// Tokens the leg may grow to.
        tokens: usize,
        /// Blocks for them.
        need: u32,
        /// Blocks in the pool.
        total: u32,
    },
    /// A token id the model has no row for.
    #[error("token id {token} is outside the model's vocabulary of {vocab}")]
    UnknownToken {
        /// The id.
        token: u32,
        /// Ids start at 0 and end below this.
        vocab: usize,
    },
    /// The waiting queue is full.
    #[error("the engine's queue is full: {waiting} of {limit} legs wait")]
    QueueFull {
        /// Legs waiting.
        waiting: usize,
        /// The limit, `worker.max_waiting`.
        limit: usize,
    },
    /// A leg produced a number that is not one; the others go on.
    #[error("the model produced {what} for this request")]
    BadNumbers {
        /// What was found, e.g. "a logit that is not a number".
        what: Word,
    },
    /// A logits processor cannot do what the request asks of it; the others go on.
    #[error("logits processor {name}: {why}")]
    Processor {
        /// Its name.
        name: Word,
        /// What was wrong.
        why: String,
    },
    /// Nobody has fetched in time what the leg has prefilled.
    #[error("nobody has fetched what was prefilled within {seconds} s (worker.transfer.lease_s)")]
    Unfetched {
        /// The limit.
        seconds: u64,
    },
    /// The engine failed as a whole.
    #[error("the engine was lost during {during}: {detail}")]
    Lost {
        /// The call that failed.
        during: Word,
        /// For people only.
        detail: String,
    },
    /// This engine cannot do what the request asks for.
    #[error("{what}: {why}")]
    Unsupported {
        /// What was asked for.
        what: Word,
        /// Why not, and what could be done.
        why: String,
    },
}

impl EngineError {
    /// The one place that maps a failure to its reach. No wildcard arm: a new variant must choose.
    pub fn reach(&self) -> Reach {
        match self {
            Self::EmptyPrompt
            | Self::PromptTooLong { .. }
            | Self::NoTokensLeft { .. }
            | Self::PoolTooSmall { .. }
            | Self::UnknownToken { .. }
            | Self::BadNumbers { .. }
            | Self::Processor { .. }
            | Self::Unsupported { .. } => Reach::Request,
            Self::QueueFull { .. } | Self::Unfetched { .. } => Reach::Retry,
            Self::Lost { .. } => Reach::Engine,
        }
    }
}
