//! Text to tokens and tokens to text: what a front end does before and after the engine.
//!
//! ```text
//! messages ─ TextModel::render_chat ─► prompt text ─ TextModel::encode ─► token ids ─► engine
//! token ids ─ Detokenizer ─► text that is certain ─ StopScanner ─► text for the client
//!             └───────────────── OutputText ─────────────────┘
//! ```
//!
//! All of it is synchronous and knows no actor and no HTTP. A [`TextModel`] is read once, then
//! shared; a [`Detokenizer`] and a [`StopScanner`] belong to one choice of one request, are cheap
//! to clone, and can be rebuilt by pushing the same tokens again.

mod chat;
mod config;
mod detokenize;
mod encode;
mod error;
mod messages;
mod model;
mod output;
mod python;
mod stop;
mod table;
#[cfg(test)]
mod testing;

pub use chat::ChatTemplateInput;
pub use detokenize::Detokenizer;
pub use error::TextError;
pub use model::{TextLimits, TextModel, TextUsage};
pub use output::OutputText;
pub use stop::{StopScanner, StopStrings};
