//! OpenAI's wire formats: requests from bytes, answers to bytes. Nothing here knows a socket.
//!
//! ```text
//! bytes ─ body ─► fields ─ chat | completions | tokens ─► checked request
//! Reply calls ─ stream | unary ─► bytes (wire, logprobs, told)
//! ```

mod body;
pub mod chat;
mod common;
pub mod completions;
mod fields;
mod format;
mod logprobs;
mod messages;
mod processors;
mod stream;
pub mod tokens;
mod told;
mod tools;
mod unary;
mod wire;
#[cfg(test)]
mod wire_tests;

pub use common::{Common, Limits, SamplingFields};
pub(super) use stream::{StreamOptions, StreamReply};
pub(super) use told::Told;
pub(super) use unary::UnaryReply;
pub(super) use wire::{Head, Kind};
