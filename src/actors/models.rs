//! `Models`: which model is served by which ranks, readiness and its reasons.

use std::path::PathBuf;
use std::sync::Arc;

use crate::engine::Sampling;
use crate::text::TextModel;

/// A model as a front end knows it: how to talk to it, whoever computes it.
pub struct ServedModel {
    /// The name clients ask for.
    pub name: String,
    /// Unix seconds of this node's start.
    pub created: u64,
    /// Where its files are.
    pub dir: PathBuf,
    /// Tokenizer, chat template, detokenizer tables.
    pub text: Arc<TextModel>,
    /// Longest sequence (prompt + output) in tokens.
    pub context: usize,
    /// The model's own defaults (`generation_config.json`), end-of-sequence ids included.
    pub sampling: Sampling,
}

/// Whether a model can serve, and why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Readiness {
    /// The model's name.
    pub model: String,
    /// `None`: ready. Else the reason, for people.
    pub reason: Option<String>,
    /// Ranks that can take work.
    pub ranks_ready: usize,
}
