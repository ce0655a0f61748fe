//! Logits of TensorRT-LLM's requests, handed to Rust.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::ffi::LogitsOf;

/// What a program does with the logits of requests that ask for a processor.
///
/// Called from the executor's own thread, one call at a time, while the whole batch waits.
pub trait OnLogits: Send + Sync {
    /// Changes the logits of one sequence in place.
    ///
    /// `processor` is the name that the request gave ("batched" and "dynamic" included); `tokens` are
    /// its prompt and output so far; `logits` has one number for each row of the vocabulary.
    fn on_logits(&self, processor: &str, of: LogitsOf, tokens: &[i32], logits: &mut [f32]);

    /// [`OnLogits::on_logits`] has panicked for this sequence; its logits may be half changed. The request
    /// should be cancelled; the others go on.
    fn on_panic(&self, of: LogitsOf, text: String);
}

/// Where an engine's logits go; nowhere if it is empty.
pub struct LogitsHook(pub Option<Box<dyn OnLogits>>);

impl LogitsHook {
    /// Called through the bridge, which no panic may cross.
    pub(super) fn row(&self, processor: &str, of: LogitsOf, tokens: &[i32], logits: &mut [f32]) {
        let Some(to) = &self.0 else { return };
        let call = AssertUnwindSafe(|| to.on_logits(processor, of, tokens, logits));
        if let Err(panic) = catch_unwind(call) {
            let text = match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
                (Some(text), _) => (*text).to_owned(),
                (None, Some(text)) => text.clone(),
                (None, None) => "a panic without text".to_owned(),
            };
            // A second panic has nowhere to go: the bridge ends the process.
            to.on_panic(of, text);
        }
    }
}
