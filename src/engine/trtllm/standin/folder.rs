//! An engine folder for the stand-in: `config.json` as trtllm-build writes it, and `standin.conf` to match.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::engine::EngineError;

/// Tokens in one KV block, of the engine and of the model behind it.
pub(super) const TOKENS_PER_BLOCK: usize = 16;
/// Sequences at once.
pub(super) const MAX_BATCH_SIZE: usize = 64;
const MAX_NUM_TOKENS: usize = 2048;
/// The KV pool: so many sequences of full length.
const FULL_SEQUENCES: usize = 32;
/// The KV of the native engine is F32.
const KV_VALUE_BYTES: usize = 4;

/// Makes the folder `at` for the checkpoint in `model_dir`. It has no `rank0.engine`: only the stand-in takes it.
///
/// # Errors
/// `Lost`: what cannot be read, understood or written.
pub fn engine_folder(model_dir: &Path, at: &Path) -> Result<(), EngineError> {
    let lost = |detail| EngineError::Lost { during: "making an engine folder".into(), detail };
    let (config, standin) = texts(model_dir).map_err(lost)?;
    let written = fs::create_dir_all(at)
        .and_then(|()| fs::write(at.join("config.json"), config))
        .and_then(|()| fs::write(at.join("standin.conf"), standin));
    written.map_err(|error| lost(format!("cannot write the folder {}: {error}", at.display())))
}

/// `config.json` and `standin.conf`.
fn texts(model_dir: &Path) -> Result<(String, String), String> {
    let file = model_dir.join("config.json");
    let text = fs::read_to_string(&file)
        .map_err(|error| format!("cannot read {}: {error}", file.display()))?;
    let model: Value = serde_json::from_str(&text)
        .map_err(|error| format!("{} is not JSON: {error}", file.display()))?;
    let size = |field: &str| {
        let value = model[field].as_u64().and_then(|value| usize::try_from(value).ok());
        value.ok_or_else(|| format!("{}: {field} must be a number", file.display()))
    };
    let heads = size("num_attention_heads")?;
    let layers = size("num_hidden_layers")?;
    let vocab = size("vocab_size")?;
    let context = size("max_position_embeddings")?;
    let hidden = size("hidden_size")?;
    let kv_heads = size("num_key_value_heads").unwrap_or(heads);
    let head = size("head_dim").unwrap_or(hidden / heads.max(1));
    let config = json!({
        "version": "1.2.1",
        "pretrained_config": {
            "architecture": model["architectures"][0],
            "dtype": model["torch_dtype"],
            "vocab_size": vocab,
            "hidden_size": hidden,
            "intermediate_size": size("intermediate_size")?,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_size": head,
            "max_position_embeddings": context,
            "mapping": { "world_size": 1, "tp_size": 1, "pp_size": 1, "cp_size": 1, "gpus_per_node": 8 },
            "quantization": { "quant_algo": null, "kv_cache_quant_algo": null },
        },
        "build_config": {
            "max_input_len": context - 1,
            "max_seq_len": context,
            "max_batch_size": MAX_BATCH_SIZE,
            "max_beam_width": 1,
            "max_num_tokens": MAX_NUM_TOKENS,
            "plugin_config": {
                "paged_kv_cache": true,
                "tokens_per_block": TOKENS_PER_BLOCK,
                "use_paged_context_fmha": true,
            },
        },
    });
    let block_bytes = TOKENS_PER_BLOCK * layers * 2 * kv_heads * head * KV_VALUE_BYTES;
    let options = [
        ("vocab", vocab),
        ("tokens_per_block", TOKENS_PER_BLOCK),
        ("max_seq_len", context),
        ("blocks", FULL_SEQUENCES * context.div_ceil(TOKENS_PER_BLOCK)),
        ("block_bytes", block_bytes),
        ("max_batch_size", MAX_BATCH_SIZE),
        ("max_num_tokens", MAX_NUM_TOKENS),
    ];
    let lines = options.map(|(key, value)| format!("{key}={value}\n"));
    let standin = format!("# Options of the stand-in (docs/tensorrt-llm.md).\n{}", lines.concat());
    Ok((format!("{config:#}\n"), standin))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(path: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
    }

    #[test]
    fn the_folder_of_the_tests_is_the_one_of_the_tiny_model() {
        let made = texts(&at("models/cuelight-tiny")).unwrap();
        let read = |name| fs::read_to_string(at("tests/trtllm/engine").join(name)).unwrap();
        assert_eq!((read("config.json"), read("standin.conf")), made);
    }

    #[test]
    fn a_folder_without_a_model_is_named() {
        let error = engine_folder(&at("tests/trtllm"), &at("tests/trtllm/engine")).unwrap_err();
        assert!(error.to_string().contains("tests/trtllm/config.json"), "{error}");
    }
}
