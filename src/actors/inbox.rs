//! The inbox of one request: what its legs' ranks said since it last looked.
//!
//! A link puts events in; the first one since the last look wakes the `Request` with one message,
//! so that a burst of tokens costs one wake-up and the mailbox stays short whatever a rank does.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use ractor::ActorRef;

use super::request::Msg;
use crate::engine::{EngineError, FinishReason, TokenLogprobs};
use crate::ids::LegId;

/// What can happen to a leg.
#[derive(Debug)]
pub enum LegEvent {
    /// Its rank has queued it.
    Accepted,
    /// It left the queue.
    Started {
        /// Tokens found in the prefix cache.
        cached_tokens: u32,
    },
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
    /// The leg's own actor ended on its rank.
    #[error("its sequence was lost")]
    Sequence,
}

/// See the module's description. Bounded by what the legs may produce (`max_tokens` each).
pub struct Inbox {
    request: ActorRef<Msg>,
    woken: AtomicBool,
    events: Mutex<Vec<(LegId, LegEvent)>>,
}

impl Inbox {
    /// An empty inbox that wakes `request`.
    pub fn new(request: ActorRef<Msg>) -> Self {
        Self { request, woken: AtomicBool::new(false), events: Mutex::new(Vec::new()) }
    }

    /// Puts an event in and wakes the request if it does not know yet.
    pub fn put(&self, leg: LegId, event: LegEvent) {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).push((leg, event));
        if !self.woken.swap(true, Ordering::AcqRel) {
            // A request that has ended does not need to know.
            let _ = self.request.cast(Msg::Wake);
        }
    }

    /// Swaps everything that came into `events`, which must be empty.
    pub fn take(&self, events: &mut Vec<(LegId, LegEvent)>) {
        self.woken.store(false, Ordering::Release);
        std::mem::swap(&mut *self.events.lock().unwrap_or_else(PoisonError::into_inner), events);
    }
}
