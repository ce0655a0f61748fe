//! Where a leg's events go: the side of a request that the links to its workers see.
//!
//! A link brings a whole step at once: it [puts](Inbox::put) all that the step has for one inbox,
//! and then [flushes](Inbox::flush) each inbox that asked for it, so that what came together
//! leaves in one write.

use std::time::Instant;

use super::link::FetchEnd;
use crate::engine::{EngineError, FinishReason, TokenLogprobs};
use crate::ids::LegId;
use crate::kvxfer::{KvBlocks, KvSource};

/// See the module's description.
pub trait Inbox: Send + Sync {
    /// Takes in an event; `true` if it is the first one since the last flush, which is then due.
    ///
    /// Called by links in the middle of a step, and under none of their locks, so that it may call
    /// them back. It must not wait and must not panic.
    fn put(&self, leg: LegId, event: LegEvent) -> bool;

    /// All that came at `now` is in.
    fn flush(&self, now: Instant);
}

/// What can happen to a leg.
#[derive(Debug)]
pub enum LegEvent {
    /// Its rank has queued it.
    Accepted,
    /// It left the queue.
    Started {
        /// Tokens found in the prefix cache.
        cached_tokens: u32,
        /// Whether it waits for KV from elsewhere.
        fetches: bool,
    },
    /// It is a prefill, and more of it can be fetched.
    Lent {
        /// Where, the first time.
        source: Option<KvSource>,
        /// What follows that told before.
        blocks: KvBlocks,
    },
    /// It fetches nothing any more.
    Fetched(FetchEnd),
    /// A new token.
    Token {
        /// Vocabulary id.
        token: u32,
        /// If asked for.
        logprobs: Option<Box<TokenLogprobs>>,
        /// On the last one.
        finish: Option<FinishReason>,
    },
    /// The engine ended it.
    Failed(EngineError),
    /// Its rank, or the way to it, is gone: it may be placed again.
    Lost(Lost),
}

/// How a leg was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// The token stream of the worker ended.
    #[error("its worker was lost")]
    Worker,
    /// Its rank ended; others of its worker may live.
    #[error("its rank was lost")]
    Rank,
    /// The leg's own part of the tree ended on its rank.
    #[error("its sequence was lost")]
    Sequence,
}
