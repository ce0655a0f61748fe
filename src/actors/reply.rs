//! What a `Request` says to its client, whatever the wire format: implemented by `http/`.

use std::sync::Arc;

use super::failure::Failure;
use super::router::Explanation;
use crate::engine::{Sampling, TokenLogprobs};
use crate::text::StopStrings;

/// The client's side of one request. A `Request` calls `accepted` once, then any number of `delta`
/// and `finished`, then exactly one of `done` and `failed`; `flush` ends each burst of calls.
///
/// Dropped without `done` or `failed` (its `Request` was killed), it must tell the client that the
/// request failed: never a stream that looks complete.
pub trait Reply: Send {
    /// A rank took every choice of the request: the answer can begin.
    fn accepted(&mut self);

    /// A rank, named as people read it, has begun to serve a choice; only if
    /// [`Wishes::tell_ranks`].
    fn started(&mut self, choice: usize, rank: String);

    /// A choice was sent to a rank, for these reasons; only if [`Wishes::explain`].
    fn routed(&mut self, choice: usize, explanation: Explanation);

    /// One choice gained text, tokens or both. Text lags behind tokens while a character or a
    /// possible stop string is incomplete.
    fn delta(&mut self, delta: Delta<'_>);

    /// One choice has ended; no more deltas for it.
    fn finished(&mut self, choice: usize, reason: Finish);

    /// Every choice has ended.
    fn done(&mut self, usage: &Usage);

    /// The request failed. Before `accepted` this becomes the HTTP status.
    fn failed(&mut self, failure: &Failure);

    /// Wakes whoever sends: everything said since the last flush may leave in one write. Returns
    /// the bytes that were said but not yet taken by the connection.
    fn flush(&mut self) -> usize;
}

/// What one choice gained.
#[derive(Clone, Copy, Debug)]
pub struct Delta<'a> {
    /// Index of the choice: prompt × n + the prompt's choice.
    pub choice: usize,
    /// New text, never ending inside a character; may be empty.
    pub text: &'a str,
    /// The tokens since the last delta, in order; a stop id that ended the choice is left out.
    pub tokens: &'a [DeltaToken],
}

/// One token of a delta.
#[derive(Clone, Debug, PartialEq)]
pub struct DeltaToken {
    /// Vocabulary id.
    pub token: u32,
    /// Present if asked for.
    pub logprobs: Option<Box<TokenLogprobs>>,
}

/// Why a choice ended, as a client sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finish {
    /// End of sequence, or a stop id.
    Stop,
    /// This one of the request's stop strings.
    StopString(usize),
    /// `max_tokens` or the end of the context.
    Length,
}

/// Tokens used by the whole request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Prompt tokens, each prompt once.
    pub prompt_tokens: u64,
    /// Output tokens over all choices, stop ids included.
    pub completion_tokens: u64,
    /// Prompt tokens whose KV was found in the prefix cache, over the first choice of each prompt.
    pub cached_tokens: u64,
}

/// What a client wants of the router.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// Whether the reply is to hear which ranks serve the request.
    pub tell_ranks: bool,
    /// Whether the reply is to hear why those.
    pub explain: bool,
    /// The rank that is to serve the request, as node/worker/rank.
    pub rank: Option<String>,
    /// The session that it belongs to, which may stay on its rank.
    pub session: Option<u64>,
    /// Who asks: tenants take turns when all ranks are full.
    pub tenant: u64,
    /// When all ranks are full, lower goes first.
    pub priority: i32,
}

/// A parsed, tokenized, checked request.
pub struct NewRequest {
    /// The model that was asked for.
    pub model: Arc<super::models::ServedModel>,
    /// Token ids of each prompt (chat: one). Each fits the model's context.
    pub prompts: Vec<Arc<[u32]>>,
    /// Choices for each prompt, at least 1.
    pub n: usize,
    /// Most output tokens of each choice; prompt + output fit the context.
    pub max_tokens: u32,
    /// How to choose tokens; `eos_ids` and defaults of the model are already filled in.
    pub sampling: Sampling,
    /// Stop strings.
    pub stop: StopStrings,
    /// Whether a matched stop string is part of the text.
    pub include_stop: bool,
    /// Whether special tokens are left out of the text (the usual case).
    pub skip_special_tokens: bool,
    /// Separates prefix caches (a tenant); 0 for everyone.
    pub salt: u64,
    /// What the client wants of the router.
    pub wishes: Wishes,
    /// The id shown to the client, e.g. `chatcmpl-…`; also in spans.
    pub public_id: String,
    /// Where the answer goes.
    pub reply: Box<dyn Reply>,
}
