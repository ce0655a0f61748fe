//! Broken and unsupported checkpoints: an error that names the file, the field or tensor, and what
//! would do; never a panic.
#![allow(clippy::unwrap_used)] // a test

mod native_support;

use std::fs;
use std::path::{Path, PathBuf};

use cuelight::engine::native::checkpoint::{parse_header, read_card};
use cuelight::engine::native::{Instructions, KvSize, NativeModel, Options};
use native_support::{options, repo};
use serde_json::{Value, json};

/// A copy of a fixture that a test may break.
struct Broken(PathBuf);

impl Broken {
    fn new(fixture: &str, test: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("cuelight-{test}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        for entry in fs::read_dir(repo("tests/fixtures/arch").join(fixture)).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), dir.join(entry.file_name())).unwrap();
        }
        Self(dir)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Loads with one field of `config.json` changed; gives the error's text.
    fn with_field(&self, field: &str, value: Option<Value>) -> String {
        let file = self.file("config.json");
        let text = fs::read(&file).unwrap();
        let mut config: Value = serde_json::from_slice(&text).unwrap();
        match value {
            Some(value) => config[field] = value,
            None => drop(config.as_object_mut().unwrap().remove(field)),
        }
        fs::write(&file, config.to_string()).unwrap();
        let error = error(&self.0);
        fs::write(&file, text).unwrap();
        error
    }
}

impl Drop for Broken {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn error(dir: &Path) -> String {
    match NativeModel::load(dir, options()) {
        Ok(_) => "it loads".to_owned(),
        Err(error) => error.to_string(),
    }
}

fn assert_says(error: &str, parts: &[&str]) {
    for part in parts {
        assert!(error.contains(part), "{part:?} is missing in: {error}");
    }
}

#[test]
fn a_wrong_config_field_is_named_with_its_value_and_rule() {
    let broken = Broken::new("llama2", "fields");
    let rope = |rope: Value| Some(rope);
    let cases = [
        ("architectures", Some(json!(["GPT2LMHeadModel"])), "LlamaForCausalLM"),
        ("architectures", None, "(missing)"),
        ("hidden_size", None, "(missing)"),
        ("hidden_size", Some(json!(0)), "whole number"),
        ("hidden_size", Some(json!("64")), "\"64\""),
        ("hidden_size", Some(json!(-1)), "-1"),
        ("hidden_size", Some(json!(65)), "multiple of num_attention_heads"),
        ("num_attention_heads", Some(json!(0)), "whole number"),
        ("num_key_value_heads", Some(json!(3)), "must divide"),
        ("num_hidden_layers", Some(json!(1_000_000)), "at most"),
        ("num_hidden_layers", Some(json!(1e30)), "whole number"),
        ("intermediate_size", None, "(missing)"),
        ("vocab_size", Some(json!(null)), "whole number"),
        ("max_position_embeddings", None, "(missing)"),
        ("head_dim", Some(json!(15)), "even"),
        ("hidden_act", Some(json!("gelu")), "only \"silu\""),
        ("rms_norm_eps", Some(json!(0)), "above 0"),
        ("rope_theta", Some(json!(1)), "above 1"),
        ("tie_word_embeddings", Some(json!("yes")), "true or false"),
        ("quantization_config", Some(json!({"quant_method": "gptq"})), "not supported"),
        ("rope_scaling", rope(json!({"type": "dynamic", "factor": 2.0})), "\"yarn\""),
        ("rope_scaling", rope(json!({"rope_type": "linear"})), "factor"),
        ("rope_scaling", rope(json!(7)), "must be an object"),
        ("eos_token_id", Some(json!("</s>")), "token id"),
    ];
    assert_eq!(error(&broken.0), "it loads");
    for (field, value, rule) in cases {
        let error = broken.with_field(field, value);
        assert_says(&error, &["config.json", field, rule]);
    }
}

#[test]
fn tensors_that_do_not_fit_the_config_are_named_with_both_shapes() {
    let broken = Broken::new("llama2", "tensors");
    let error = broken.with_field("num_hidden_layers", Some(json!(9)));
    assert_says(&error, &["model.safetensors", "model.layers.", "is missing"]);
    let error = broken.with_field("vocab_size", Some(json!(999)));
    assert_says(&error, &["model.safetensors", "model.embed_tokens.weight", "[999, "]);
    let error = broken.with_field("intermediate_size", Some(json!(7)));
    assert_says(&error, &["mlp.gate_proj.weight", "has shape", "asks for [7, "]);
}

#[test]
fn a_dtype_that_is_not_supported_is_named() {
    let broken = Broken::new("llama2", "dtype");
    let file = broken.file("model.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header = String::from_utf8(bytes[8..8 + len].to_vec()).unwrap();
    let header = header.replace("\"F32\"", "\"I32\"").replace("\"BF16\"", "\"I16\" ");
    assert_eq!(header.len(), len);
    bytes[8..8 + len].copy_from_slice(header.as_bytes());
    fs::write(&file, bytes).unwrap();
    let error = error(&broken.0);
    assert_says(&error, &["model.safetensors", "has dtype I", "F32, F16 and BF16"]);
}

#[test]
fn missing_and_damaged_files_are_named() {
    let broken = Broken::new("llama2", "files");
    let weights = broken.file("model.safetensors");
    let whole = fs::read(&weights).unwrap();
    for len in [0, 7, 8, 100, whole.len() / 2, whole.len() - 1] {
        fs::write(&weights, &whole[..len]).unwrap();
        assert_says(&error(&broken.0), &["model.safetensors"]);
    }
    fs::remove_file(&weights).unwrap();
    assert_says(&error(&broken.0), &["model.safetensors", "cannot be read", "convert"]);
    fs::write(broken.file("config.json"), "{\"architectures\": [").unwrap();
    assert_says(&error(&broken.0), &["config.json", "JSON"]);
    assert_says(&read_card(&broken.0).unwrap_err().to_string(), &["config.json", "JSON"]);
    fs::remove_file(broken.file("config.json")).unwrap();
    assert_says(&error(&broken.0), &["config.json", "cannot be read"]);
    let nowhere = broken.file("nowhere");
    assert_says(&error(&nowhere), &["nowhere", "config.json"]);
}

#[test]
fn a_missing_shard_and_a_wrong_index_are_named() {
    let broken = Broken::new("llama_sharded", "shards");
    assert_eq!(error(&broken.0), "it loads");
    let index = broken.file("model.safetensors.index.json");
    let text = fs::read_to_string(&index).unwrap();
    fs::write(&index, text.replace("model-00002-of-00003", "../model-00002")).unwrap();
    assert_says(&error(&broken.0), &["index.json", "weight_map", "plain file names"]);
    fs::write(&index, text.replace("model.norm.weight", "other")).unwrap();
    assert_says(&error(&broken.0), &["index.json", "model.norm.weight", "is missing"]);
    fs::write(&index, "{\"weight_map\": {}}").unwrap();
    assert_says(&error(&broken.0), &["index.json", "weight_map"]);
    fs::write(&index, &text).unwrap();
    fs::remove_file(broken.file("model-00002-of-00003.safetensors")).unwrap();
    assert_says(&error(&broken.0), &["model-00002-of-00003.safetensors", "cannot be read"]);
}

#[test]
fn options_out_of_range_are_named() {
    let dir = repo("tests/fixtures/arch/llama2");
    let cases = [
        (Options { threads: 0, ..options() }, "threads"),
        (Options { block_tokens: 24, ..options() }, "block_tokens"),
        (Options { kv: KvSize::Bytes(10), ..options() }, "kv"),
        (Options { kv: KvSize::Blocks(0), ..options() }, "kv"),
        (Options { vocab_limit: Some(0), ..options() }, "vocab_limit"),
        (Options { max_context: Some(0), ..options() }, "max_context"),
    ];
    for (options, name) in cases {
        let error = NativeModel::load(&dir, options).err().unwrap().to_string();
        assert_says(&error, &[name]);
    }
    let scalar = Options { instructions: Instructions::Scalar, ..options() };
    assert!(NativeModel::load(&dir, scalar).is_ok());
}

#[test]
fn damaged_headers_never_panic() {
    let whole = fs::read(repo("tests/fixtures/arch/llama2/model.safetensors")).unwrap();
    let len = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    for _ in 0..2000 {
        let mut bytes = whole.clone();
        for _ in 0..4 {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            let at = (seed >> 16) as usize % (8 + len);
            bytes[at] = seed as u8;
        }
        if let Ok(tensors) = parse_header(&bytes) {
            assert!(tensors.values().all(|t| t.bytes.end <= bytes.len()), "seed state {seed}");
        }
    }
}
