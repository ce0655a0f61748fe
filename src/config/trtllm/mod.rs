//! TensorRT-LLM's own YAML keys, and how a worker's engines get their GPUs and processes.
//!
//! ```text
//! settings     worker.trtllm: the engine's folder, the file of options, mode, GPUs
//! ├─ read      that file: all that is wrong at once
//! │  ├─ keys         what is read, and what it does
//! │  ├─ refused      what is not, and why
//! │  └─ speculative  speculative_config
//! ├─ built     what trtllm-build has decided
//! └─ options   what comes of it
//! ```
//!
//! Nothing here needs TensorRT-LLM, or the features that build the bridge to it.

mod built;
mod keys;
mod options;
mod read;
mod reference;
mod refused;
mod settings;
mod speculative;

#[cfg(test)]
mod tests;

pub use built::{Built, check_buffer};
pub use options::{
    GuidedOptions, KvCacheOptions, LoraCacheOptions, ParallelOptions, SpeculativeOptions,
    TransceiverOptions, TrtllmOptions,
};
pub use read::read;
pub use reference::reference;
pub use settings::{TrtllmMode, TrtllmSettings};

pub(super) use settings::settings;
