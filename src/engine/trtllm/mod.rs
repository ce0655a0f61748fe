//! TensorRT-LLM's C++ Executor, through `cpp/shim`; or the stand-in for it (docs/tensorrt-llm.md).
//!
//! ```text
//! adapter      an `Engine` over it: legs in, tokens and block hashes out
//! ffi          the bridge: options in, rows of tokens, KV events and statistics out
//! ├─ handoff   prompts that one engine computes and another goes on from
//! ├─ configure from the configuration's options
//! ├─ options   `Option`s as they cross it
//! ├─ hook      logits, called from the executor's thread
//! └─ standin   where the stand-in's tokens come from, and how it is made to misbehave
//! ```

pub mod adapter;
mod configure;
pub mod ffi;
pub mod handoff;
pub mod hook;
mod options;
#[cfg(trtllm_standin)]
pub mod standin;
#[cfg(trtllm_standin)]
#[cfg(test)]
mod tests;
