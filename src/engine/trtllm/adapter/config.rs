//! What an [`Adapter`](super::Adapter) needs to know: plain values, to be made from a configuration.

use std::time::Duration;

use xxhash_rust::xxh3::xxh3_64;

use super::super::ffi::{Capabilities, EngineOptions};
use super::{HandoverConfig, Lora};
use crate::config::trtllm::Built;
use crate::engine::blocks::HashKey;

/// KV events that the executor keeps until they are taken, if the options do not say.
pub const EVENTS_KEPT: u64 = 65_536;

/// One engine of TensorRT-LLM, and how it is driven.
#[derive(Clone, Debug)]
pub struct AdapterConfig {
    /// What the executor is opened with. `vocab_size` and `kv.event_buffer_max_size` are filled in where
    /// they are not set.
    pub engine: EngineOptions,
    /// Longest sequence in tokens; at most the engine's `max_seq_len`.
    pub context: usize,
    /// Longest prompt in tokens, tokens delivered before a migration included.
    pub max_input: usize,
    /// Engines that compute different tokens from the same prompt should differ here.
    pub model: u64,
    /// Rows of the logits without padding.
    pub vocab: usize,
    /// Tokens in one KV block, as the engine was built with.
    pub block_tokens: usize,
    /// KV blocks of the pool; 0 if only the engine itself knows, which then tells with its first step.
    pub blocks: u32,
    /// Bytes of one KV block over all layers; 0 if unknown.
    pub block_bytes: usize,
    /// Most legs in one step.
    pub max_running: usize,
    /// Most legs beyond those; one more is refused.
    pub max_waiting: usize,
    /// What block hashes are keyed with; the same as the front ends'.
    pub hash_key: HashKey,
    /// Whether changes of its prefix cache are told to routers.
    pub events: bool,
    /// Legs live and neither a response nor a step for so long: the engine is lost.
    pub step_timeout: Duration,
    /// How it hands prompts over to others, or takes them on; `None`: not at all.
    pub handover: Option<HandoverConfig>,
    /// How long an orderly end may take before the engine is left behind.
    pub shutdown_timeout: Duration,
    /// Adapters that requests may name.
    pub loras: Vec<Lora>,
}

impl AdapterConfig {
    /// For an engine that was built so, with the limits of its build.
    pub fn new(engine: EngineOptions, built: &Built, hash_key: HashKey) -> Self {
        Self {
            engine,
            context: built.max_seq_len,
            max_input: built.max_input_len,
            model: built.model,
            vocab: built.vocab,
            block_tokens: built.block_tokens,
            blocks: 0,
            block_bytes: 0,
            max_running: built.max_batch_size,
            max_waiting: 1024,
            hash_key,
            events: true,
            step_timeout: Duration::from_secs(30),
            handover: None,
            shutdown_timeout: Duration::from_secs(10),
            loras: Vec::new(),
        }
    }

    /// Of what determines tokens, and of what requests may ask for: an answer that goes on elsewhere needs it there.
    /// Weights are not looked at but those of adapters.
    pub(super) fn fingerprint(&self, can: &Capabilities) -> u64 {
        let guides = self.engine.guided.backend.some;
        let own = format!("{:016x} {} {} {guides}", self.model, can.library, self.vocab);
        let loras = self.loras.iter().map(Lora::fingerprint);
        loras.fold(xxh3_64(own.as_bytes()), |all, one| all ^ one)
    }

    /// The executor's options, with what follows from the rest.
    pub(super) fn options(&self) -> EngineOptions {
        let mut options = self.engine.clone();
        if options.vocab_size == 0 {
            options.vocab_size = u32::try_from(self.vocab).unwrap_or(u32::MAX);
        }
        match self.events {
            true if !options.kv.event_buffer_max_size.some => {
                options.kv.event_buffer_max_size = EVENTS_KEPT.into();
            }
            true => {}
            false => options.kv.event_buffer_max_size = Default::default(),
        }
        options
    }
}
