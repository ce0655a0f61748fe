//! What the folder of a compiled engine says of it: the `config.json` that `trtllm-build` leaves.

use std::path::{Path, PathBuf};

use serde_json::Value;
use xxhash_rust::xxh3::xxh3_64;

/// What an engine was built for.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// Tokens in one KV block.
    pub block_tokens: usize,
    /// GPUs that share each layer.
    pub tensor_parallel: usize,
    /// GPUs that share the layers.
    pub pipeline_parallel: usize,
    /// Hash of what `pretrained_config` says but how it is shared out: of the model's shape and types, not of its
    /// weights.
    pub model: u64,
}

/// Why nothing can be known of an engine.
#[derive(Debug, thiserror::Error)]
pub enum NotBuilt {
    /// The file is not there.
    #[error(
        "cannot read {path}: {why}; an engine is the folder that trtllm-build --output_dir has written"
    )]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        why: std::io::Error,
    },
    /// It is no JSON.
    #[error("{path} is no JSON: {why}")]
    NoJson {
        /// The file.
        path: PathBuf,
        /// Where it is wrong.
        why: serde_json::Error,
    },
    /// Something is missing in it, or not of its kind.
    #[error("{path}: {key} {what}; build the engine again with trtllm-build")]
    Wrong {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        key: &'static str,
        /// What is wrong with it.
        what: String,
    },
}

impl Built {
    /// Of the engine in this folder.
    ///
    /// # Errors
    /// [`NotBuilt`].
    pub fn read(folder: &Path) -> Result<Self, NotBuilt> {
        let path = folder.join("config.json");
        let text =
            std::fs::read(&path).map_err(|why| NotBuilt::Unreadable { path: path.clone(), why })?;
        Self::parse(&path, &text)
    }

    fn parse(path: &Path, text: &[u8]) -> Result<Self, NotBuilt> {
        let all: Value = serde_json::from_slice(text)
            .map_err(|why| NotBuilt::NoJson { path: path.to_owned(), why })?;
        let of = Fields { path, all: &all };
        let max_seq_len = of.number("build_config.max_seq_len")?;
        let dtype = of.text("pretrained_config.dtype")?;
        let kv_dtype = of.get("pretrained_config.quantization.kv_cache_quant_algo");
        let kv_dtype = kv_dtype.and_then(Value::as_str).unwrap_or(&dtype).to_owned();
        let logits = of.get("pretrained_config.logits_dtype");
        Ok(Self {
            version: of.text("version")?,
            architecture: of.text("pretrained_config.architecture")?,
            kv_dtype,
            dtype,
            logits_dtype: logits.and_then(Value::as_str).unwrap_or("float32").to_owned(),
            vocab: of.number("pretrained_config.vocab_size")?,
            max_seq_len,
            max_input_len: of
                .number_or("build_config.max_input_len", max_seq_len)?
                .min(max_seq_len),
            max_batch_size: of.number("build_config.max_batch_size")?,
            max_num_tokens: of.number_or("build_config.max_num_tokens", max_seq_len)?,
            block_tokens: of.number("build_config.plugin_config.tokens_per_block")?,
            tensor_parallel: of.number_or("pretrained_config.mapping.tp_size", 1)?,
            pipeline_parallel: of.number_or("pretrained_config.mapping.pp_size", 1)?,
            model: of.model(),
        })
    }
}

struct Fields<'a> {
    path: &'a Path,
    all: &'a Value,
}

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
        let found = key.split('.').try_fold(self.all, |value, part| value.get(part))?;
        (!found.is_null()).then_some(found)
    }

    fn wrong(&self, key: &'static str, what: String) -> NotBuilt {
        NotBuilt::Wrong { path: self.path.to_owned(), key, what }
    }

    fn number(&self, key: &'static str) -> Result<usize, NotBuilt> {
        let Some(value) = self.get(key) else {
            return Err(self.wrong(key, "is missing".to_owned()));
        };
        let number = value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|&n| n > 0);
        number.ok_or_else(|| self.wrong(key, format!("is {value}, not a number above 0")))
    }

    fn number_or(&self, key: &'static str, other: usize) -> Result<usize, NotBuilt> {
        if self.get(key).is_none() { Ok(other) } else { self.number(key) }
    }

    fn text(&self, key: &'static str) -> Result<String, NotBuilt> {
        let Some(value) = self.get(key) else {
            return Err(self.wrong(key, "is missing".to_owned()));
        };
        let text = value.as_str().map(str::to_owned);
        text.ok_or_else(|| self.wrong(key, format!("is {value}, not a text")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"version": "1.2.1",
        "pretrained_config": {"architecture": "LlamaForCausalLM", "dtype": "bfloat16", "vocab_size": 128256,
            "mapping": {"world_size": 2, "tp_size": 2, "pp_size": 1},
            "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}},
        "build_config": {"max_seq_len": 8192, "max_input_len": 4096, "max_batch_size": 64,
            "max_num_tokens": 2048, "plugin_config": {"tokens_per_block": 32}}}"#;

    fn parse(text: &str) -> Result<Built, String> {
        Built::parse(Path::new("config.json"), text.as_bytes()).map_err(|error| error.to_string())
    }

    #[test]
    fn the_limits_of_a_build_are_read() {
        let built = parse(GOOD).unwrap();
        assert_eq!((built.vocab, built.max_seq_len, built.max_input_len), (128_256, 8192, 4096));
        assert_eq!((built.block_tokens, built.tensor_parallel, built.max_batch_size), (32, 2, 64));
        assert_eq!((built.kv_dtype.as_str(), built.dtype.as_str()), ("FP8", "bfloat16"));
        let plain =
            GOOD.replace(r#""kv_cache_quant_algo": "FP8""#, r#""kv_cache_quant_algo": null"#);
        assert_eq!(parse(&plain).unwrap().kv_dtype, "bfloat16");
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        let error = parse(&GOOD.replace("tokens_per_block", "other")).unwrap_err();
        assert!(
            error.contains("build_config.plugin_config.tokens_per_block is missing"),
            "{error}"
        );
        let error = parse(&GOOD.replace("8192", "\"long\"")).unwrap_err();
        assert!(error.contains("max_seq_len is \"long\", not a number"), "{error}");
        assert!(parse("{").unwrap_err().contains("is no JSON"));
        let error = Built::read(Path::new("/nowhere")).unwrap_err().to_string();
        assert!(
            error.contains("/nowhere/config.json") && error.contains("trtllm-build"),
            "{error}"
        );
    }
}
