//! What `trtllm-build` has decided: an engine's `config.json`.

use std::path::Path;

use bincode::{Decode, Encode};
use serde_json::Value;
use xxhash_rust::xxh3::xxh3_64;

use super::TrtllmOptions;

/// What an engine was built for.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[non_exhaustive]
pub struct Built {
    /// The release of TensorRT-LLM that has built it; only the same can run it.
    pub version: String,
    /// E.g. `LlamaForCausalLM`.
    pub architecture: String,
    /// Type of its activations, e.g. `bfloat16`.
    pub dtype: String,
    /// Type of its KV: the quantization's, or `dtype`.
    pub kv_dtype: String,
    /// Type of its logits, and of biases on them.
    pub logits_dtype: String,
    /// Rows of the logits.
    pub vocab: usize,
    /// Longest sequence in tokens.
    pub max_seq_len: usize,
    /// Longest prompt in tokens.
    pub max_input_len: usize,
    /// Most sequences in one step.
    pub max_batch_size: usize,
    /// Most tokens in one step.
    pub max_num_tokens: usize,
    /// Draft tokens in one step; `None` if it was not built for any.
    pub max_draft_len: Option<usize>,
    /// Tokens in one KV block.
    pub block_tokens: usize,
    /// GPUs that share each layer.
    pub tensor_parallel: usize,
    /// GPUs that share the layers out.
    pub pipeline_parallel: usize,
    /// GPUs that share the context.
    pub context_parallel: usize,
    /// Hash of what `pretrained_config` says but how it is shared out: of the model's shape and types, not of its
    /// weights, whose bytes differ from one build to the next.
    pub model: u64,
}

impl Built {
    /// Reads the `config.json` in an engine's folder.
    ///
    /// # Errors
    /// Why it is not one, with the way out.
    pub fn read(dir: &Path) -> Result<Self, String> {
        const OUT: &str =
            "name the folder that trtllm-build --output_dir has written, with its config.json";
        let path = dir.join("config.json");
        let shown = path.display();
        let text = std::fs::read_to_string(&path)
            .map_err(|error| format!("{shown} cannot be read: {error}; {OUT}"))?;
        Self::parse(&text).map_err(|why| format!("{shown} {why}; {OUT}"))
    }

    /// Reads the text of an engine's `config.json`; an error says what is wrong with it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let all: Value =
            serde_json::from_str(text).map_err(|error| format!("is no JSON: {error}"))?;
        let of = Fields(&all);
        let max_seq_len = of.number("build_config.max_seq_len")?;
        let dtype = of.text("pretrained_config.dtype")?;
        let text_or = |key: &str, other: &str| {
            of.get(key).and_then(Value::as_str).unwrap_or(other).to_owned()
        };
        let ranks = |key| of.number_or(key, 1).map(|ranks| ranks.min(1 << 16));
        Ok(Self {
            version: of.text("version")?,
            architecture: of.text("pretrained_config.architecture")?,
            kv_dtype: text_or("pretrained_config.quantization.kv_cache_quant_algo", &dtype),
            logits_dtype: text_or("pretrained_config.logits_dtype", "float32"),
            dtype,
            vocab: of.number("pretrained_config.vocab_size")?,
            max_seq_len,
            max_input_len: of
                .number_or("build_config.max_input_len", max_seq_len)?
                .min(max_seq_len),
            max_batch_size: of.number("build_config.max_batch_size")?,
            max_num_tokens: of.number_or("build_config.max_num_tokens", max_seq_len)?,
            max_draft_len: of.get("build_config.max_draft_len").and_then(number).filter(|n| *n > 0),
            block_tokens: of.number("build_config.plugin_config.tokens_per_block")?,
            tensor_parallel: ranks("pretrained_config.mapping.tp_size")?,
            pipeline_parallel: ranks("pretrained_config.mapping.pp_size")?,
            context_parallel: ranks("pretrained_config.mapping.cp_size")?,
            model: of.model(),
        })
    }

    /// Processes, and GPUs, of one engine.
    pub fn world(&self) -> usize {
        self.tensor_parallel * self.pipeline_parallel * self.context_parallel
    }
}

fn number(value: &Value) -> Option<usize> {
    value.as_u64().and_then(|number| usize::try_from(number).ok())
}

struct Fields<'a>(&'a Value);

impl Fields<'_> {
    fn model(&self) -> u64 {
        let mut model = self.get("pretrained_config").cloned().unwrap_or_default();
        if let Some(fields) = model.as_object_mut() {
            fields.shift_remove("mapping");
            fields.sort_keys();
        }
        xxh3_64(model.to_string().as_bytes())
    }

    fn get(&self, key: &str) -> Option<&Value> {
        let found = key.split('.').try_fold(self.0, |value, part| value.get(part))?;
        (!found.is_null()).then_some(found)
    }

    fn need(&self, key: &str) -> Result<&Value, String> {
        self.get(key).ok_or_else(|| format!("has no {key}"))
    }

    fn number(&self, key: &str) -> Result<usize, String> {
        let value = self.need(key)?;
        let number = number(value).filter(|&number| number > 0);
        number.ok_or_else(|| format!("has {key} = {value}, which is no number above 0"))
    }

    fn number_or(&self, key: &str, other: usize) -> Result<usize, String> {
        if self.get(key).is_none() { Ok(other) } else { self.number(key) }
    }

    fn text(&self, key: &str) -> Result<String, String> {
        let value = self.need(key)?;
        let text = value.as_str().map(str::to_owned);
        text.ok_or_else(|| format!("has {key} = {value}, which is no text"))
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
