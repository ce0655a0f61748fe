//! Prompts that one engine computes and another one goes on from: what crosses between them, and what is
//! remembered on either side. TensorRT-LLM moves the KV itself; here are the rules around it, as plain values.
//!
//! ```text
//! prefill: ContextOnly ──▶ State (this engine's Identity + opaque) ──Request──▶ decode: GenerationOnly
//!    Ledger: KV that stays pinned until it was pulled                  Pulls: those that have no token yet
//! ```

mod ledger;
mod pulls;
mod state;

pub use ledger::{Ledger, Limits};
pub use pulls::Pulls;
pub use state::{Identity, State, StateError};
