//! Reading a Hugging Face checkpoint directory: `config.json`, `generation_config.json`, weights.

mod config;
mod ffi;
mod fields;
mod rope;
mod tensors;

use std::path::Path;

pub use config::Architecture;
pub(super) use config::Config;
pub(super) use rope::Rope;
pub(super) use tensors::{Element, Tensor, Weights};
pub use tensors::{TensorEntry, parse_header};

use super::error::LoadError;
use fields::Fields;

/// What a front end has to know about a checkpoint, without loading it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ModelCard {
    /// Which of the supported architectures it is.
    pub architecture: Architecture,
    /// Longest sequence in tokens, RoPE scaling included.
    pub context: usize,
    /// Rows of the embedding; ids at or above it do not exist. The tokenizer may have fewer.
    pub vocab: usize,
    /// End-of-sequence ids; those of `generation_config.json` if it names any.
    pub eos_ids: Vec<u32>,
    /// What the checkpoint's authors suggest for sampling.
    pub sampling: SuggestedSampling,
    /// Bytes of K and V of one token over all layers in the KV pool.
    pub kv_bytes_per_token: usize,
}

impl ModelCard {
    /// Bytes of one KV block over all layers.
    pub fn block_bytes(&self, block_tokens: usize) -> usize {
        self.kv_bytes_per_token.saturating_mul(block_tokens)
    }
}

/// Sampling values of `generation_config.json`; `None` where it is silent.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct SuggestedSampling {
    /// `Some(false)` asks for greedy decoding.
    pub do_sample: Option<bool>,
    /// At least 0.
    pub temperature: Option<f32>,
    /// In `(0, 1]`.
    pub top_p: Option<f32>,
    /// 0 for all tokens.
    pub top_k: Option<u32>,
    /// In `[0, 1]`.
    pub min_p: Option<f32>,
    /// Above 0; 1 for none.
    pub repetition_penalty: Option<f32>,
}

/// Reads `config.json` and, where present, `generation_config.json`; no weights.
///
/// # Errors
/// [`LoadError::Io`], [`LoadError::Json`] or [`LoadError::Field`]: what is missing or unsupported.
pub fn read_card(dir: &Path) -> Result<ModelCard, LoadError> {
    let config = Config::read(dir)?;
    let mut card = ModelCard {
        architecture: config.architecture,
        context: config.context,
        vocab: config.vocab,
        eos_ids: config.eos_ids.clone(),
        sampling: SuggestedSampling::default(),
        kv_bytes_per_token: kv_bytes_per_token(&config),
    };
    let file = dir.join("generation_config.json");
    if file.exists() {
        let fields = Fields::read(&file, "the checkpoint's suggestions for generation")?;
        if let Some(ids) = fields.ids("eos_token_id")? {
            card.eos_ids = ids;
        }
        card.sampling = suggested_sampling(&fields)?;
    }
    Ok(card)
}

/// Bytes of K and V of one token over all layers, saturating for absurd configs.
pub(super) fn kv_bytes_per_token(config: &Config) -> usize {
    [config.kv_heads, config.head_dim, 2, size_of::<f32>()]
        .into_iter()
        .fold(config.layers(), usize::saturating_mul)
}

fn suggested_sampling(fields: &Fields) -> Result<SuggestedSampling, LoadError> {
    let ranged = |field: &str, low: f64, high: f64| match fields.number(field)? {
        Some(n) if !(low..=high).contains(&n) => {
            Err(fields.wrong(field, format!("must be in {low}..={high}")))
        }
        other => Ok(other.map(|n| n as f32)),
    };
    let most = f64::from(f32::MAX);
    let top_k = fields.number("top_k")?;
    let do_sample = fields.get("do_sample").map(|_| fields.flag("do_sample", false)).transpose()?;
    Ok(SuggestedSampling {
        do_sample,
        temperature: ranged("temperature", 0.0, most)?,
        top_p: ranged("top_p", f64::MIN_POSITIVE, 1.0)?,
        // Negative means all in some checkpoints; `as` saturates it to 0.
        top_k: top_k.map(|k| k as u32),
        min_p: ranged("min_p", 0.0, 1.0)?,
        repetition_penalty: ranged("repetition_penalty", f64::MIN_POSITIVE, most)?,
    })
}
