//! The stand-in's own controls: its tokens and its misbehaviour. Not there with the real TensorRT-LLM.

mod ffi;
mod folder;
mod model;

pub use ffi::{options, reset, set, tokens_by_rule, tokens_from};
pub use folder::engine_folder;
pub use model::{ServeOptions, serve_model};

/// Where tokens come from.
///
/// Called from the executors' own threads; for one executor never twice at once.
pub trait TokenSource: Send + Sync {
    /// The next tokens of a batch, one for each row: the token and its logprob, or logits if they are asked
    /// for. False fails the step, and with it everything in the batch.
    fn forward(&self, model: &str, rows: &mut [SourceRow<'_>]) -> bool;

    /// This sequence has ended.
    fn forget(&self, model: &str, sequence: u64);
}

/// One sequence in one step.
#[derive(Debug)]
pub struct SourceRow<'a> {
    /// Unlike that of any other sequence of the process.
    pub sequence: u64,
    /// Prompt and output so far.
    pub tokens: &'a [i32],
    /// How many of them are prompt.
    pub prompt_len: usize,
    /// How many of them the sequence's call before this one had; 0 in its first.
    pub known_len: usize,
    /// One number for each token of the vocabulary, to be filled in; then `token` is not looked at.
    pub logits: Option<&'a mut [f32]>,
    /// Result: the next token, from 0.
    pub token: i32,
    /// Result: its natural log probability.
    pub logprob: f32,
}

/// What is no option of the stand-in, or no value of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key} = {value}: the stand-in's options are {known}, with numbers from 0 or texts")]
pub struct UnknownOption {
    /// What was to be set.
    pub key: String,
    /// To what.
    pub value: String,
    /// All there are, separated by commas.
    pub known: String,
}
