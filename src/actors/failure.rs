//! Why a request failed, by what its client can do about it. `http/errors.rs` maps it to statuses.

use std::time::Duration;

use crate::engine::EngineError;
use crate::metrics::{Outcome, Refusal};

/// The end of a request that did not succeed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// The request's own fault; an engine found it.
    #[error("{0}")]
    Rejected(EngineError),
    /// The client named a rank that does not serve the model.
    #[error("{rank:?} does not serve the model now; these ranks do: {known}")]
    UnknownRank {
        /// What it named.
        rank: String,
        /// Those that do, as node/worker/rank.
        known: String,
    },
    /// The model's router leaves the choice to the client.
    #[error(
        "the model is routed directly (frontend.router.mode): name one of these ranks: {known}"
    )]
    RankNeeded {
        /// Those that serve it, as node/worker/rank.
        known: String,
    },
    /// A limit of this node or its ranks; try again later.
    #[error("{what}: {current} of {limit}; try again in {} s", seconds(*retry_after))]
    TooManyRequests {
        /// Which limit, in words, with its key.
        what: &'static str,
        /// How much there is.
        current: usize,
        /// The limit.
        limit: usize,
        /// When to try again.
        retry_after: Duration,
    },
    /// No rank can serve the model now.
    #[error("model {model} cannot serve now: {reason}")]
    NotReady {
        /// The model's name.
        model: String,
        /// Why, for people.
        reason: String,
        /// When to try again.
        retry_after: Duration,
    },
    /// This node is going away.
    #[error("this node is shutting down and takes no new requests")]
    Draining {
        /// When to try again, at another node.
        retry_after: Duration,
    },
    /// Ranks were lost more often than `frontend.migration_limit` allows.
    #[error(
        "the request was lost with its rank {times} times (frontend.migration_limit); the last time: {last}"
    )]
    RanksLost {
        /// Legs that were lost.
        times: usize,
        /// The last loss.
        last: String,
    },
    /// `frontend.request_timeout_s` has passed.
    #[error("the request took longer than {} s (frontend.request_timeout_s)", after.as_secs())]
    TimedOut {
        /// The limit.
        after: Duration,
    },
    /// The client does not read its stream: `frontend.stream_buffer_bytes` wait for it.
    #[error("the client reads too slowly: {unread} bytes wait (limit {limit})")]
    SlowClient {
        /// Bytes waiting.
        unread: usize,
        /// The limit.
        limit: usize,
    },
    /// A fault of this node, e.g. the request's actor was killed.
    #[error("internal error: {0}")]
    Internal(&'static str),
}

impl Failure {
    /// As the requests metric counts it.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Rejected(_)
            | Self::UnknownRank { .. }
            | Self::RankNeeded { .. }
            | Self::TooManyRequests { .. } => Outcome::Rejected,
            Self::NotReady { .. }
            | Self::Draining { .. }
            | Self::RanksLost { .. }
            | Self::Internal(_) => Outcome::Failed,
            Self::TimedOut { .. } | Self::SlowClient { .. } => Outcome::Cancelled,
        }
    }

    /// As the metric of refused requests counts it, where admission says so.
    pub fn refusal(&self) -> Option<Refusal> {
        match self {
            Self::Rejected(_) | Self::UnknownRank { .. } | Self::RankNeeded { .. } => {
                Some(Refusal::Invalid)
            }
            Self::TooManyRequests { .. } => Some(Refusal::Requests),
            Self::NotReady { .. } => Some(Refusal::NotReady),
            Self::Draining { .. } => Some(Refusal::Draining),
            Self::RanksLost { .. }
            | Self::TimedOut { .. }
            | Self::SlowClient { .. }
            | Self::Internal(_) => None,
        }
    }
}

/// Whole seconds, rounded up and never 0: "at once" would invite a storm.
pub fn seconds(retry_after: Duration) -> u64 {
    retry_after.as_secs_f64().ceil().max(1.0) as u64
}
