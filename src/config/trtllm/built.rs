//! What `trtllm-build` has decided: an engine's `config.json`.

use std::path::Path;

use bincode::{Decode, Encode};
use serde_json::Value;

use super::TrtllmOptions;

/// A built engine. What its `config.json` does not say is `None`.
#[derive(Clone, Debug, Default, PartialEq, Encode, Decode)]
#[non_exhaustive]
pub struct Built {
    /// The release that built it.
    pub version: Option<String>,
    /// Type of its weights, such as `bfloat16`.
    pub dtype: Option<String>,
    /// Tokens that it knows.
    pub vocab_size: Option<u64>,
    /// Ranks that share each layer.
    pub tensor_parallel: u64,
    /// Ranks that share the layers out.
    pub pipeline_parallel: u64,
    /// Ranks that share the context.
    pub context_parallel: u64,
    /// Sequences in one step.
    pub max_batch_size: Option<u64>,
    /// Tokens in one step.
    pub max_num_tokens: Option<u64>,
    /// Tokens of a prompt.
    pub max_input_len: Option<u64>,
    /// Tokens of a prompt and its output.
    pub max_seq_len: Option<u64>,
    /// Beams.
    pub max_beam_width: Option<u64>,
    /// Draft tokens in one step.
    pub max_draft_len: Option<u64>,
    /// Tokens in a KV block.
    pub tokens_per_block: Option<u64>,
}

impl Built {
    /// Reads the `config.json` in an engine's folder.
    ///
    /// # Errors
    /// Why it is not one, with the way out.
    pub fn read(dir: &Path) -> Result<Self, String> {
        const OUT: &str = "name the folder that trtllm-build has written, with its config.json";
        let path = dir.join("config.json");
        let shown = path.display();
        let text = std::fs::read_to_string(&path)
            .map_err(|error| format!("{shown} cannot be read: {error}; {OUT}"))?;
        Self::parse(&text).map_err(|why| format!("{shown} {why}; {OUT}"))
    }

    /// Reads the text of an engine's `config.json`; an error says what it lacks.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let all: Value =
            serde_json::from_str(text).map_err(|error| format!("is no JSON: {error}"))?;
        let (model, build) = (&all["pretrained_config"], &all["build_config"]);
        if !model.is_object() || !build.is_object() {
            return Err("has no pretrained_config and build_config".into());
        }
        let number = |value: &Value| value.as_u64();
        let word = |value: &Value| value.as_str().map(str::to_owned);
        let ranks = |name: &str| number(&model["mapping"][name]).unwrap_or(1).clamp(1, 1 << 16);
        Ok(Self {
            version: word(&all["version"]),
            dtype: word(&model["dtype"]),
            vocab_size: number(&model["vocab_size"]),
            tensor_parallel: ranks("tp_size"),
            pipeline_parallel: ranks("pp_size"),
            context_parallel: ranks("cp_size"),
            max_batch_size: number(&build["max_batch_size"]),
            max_num_tokens: number(&build["max_num_tokens"]),
            max_input_len: number(&build["max_input_len"]),
            max_seq_len: number(&build["max_seq_len"]),
            max_beam_width: number(&build["max_beam_width"]),
            max_draft_len: number(&build["max_draft_len"]),
            tokens_per_block: number(&build["plugin_config"]["tokens_per_block"]),
        })
    }

    /// Processes, and GPUs, of one engine.
    pub fn world(&self) -> usize {
        let world = self.tensor_parallel * self.pipeline_parallel * self.context_parallel;
        usize::try_from(world).unwrap_or(usize::MAX)
    }
}

/// Whether the longest prompt that may come fits into the transceiver's buffer: a longer one may
/// never arrive.
///
/// # Errors
/// The key and the value that it needs.
pub fn check_buffer(options: &TrtllmOptions, longest_prompt: usize) -> Result<(), String> {
    let key = "cache_transceiver_config.max_tokens_in_buffer";
    let why = format!(
        "prompts have up to {longest_prompt} tokens, and a longer one than the buffer may never arrive"
    );
    let out = format!("set it to {longest_prompt} or more, or lower worker.max_context");
    match options.transceiver.max_tokens_in_buffer {
        None => Err(format!("{key} is not set: {why}; {out}")),
        Some(tokens) if tokens < longest_prompt as u64 => {
            Err(format!("{key} = {tokens} is too small: {why}; {out}"))
        }
        Some(_) => Ok(()),
    }
}
