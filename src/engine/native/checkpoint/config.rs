//! `config.json`: everything the forward pass has to know about an architecture, checked.

use std::path::Path;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::fields::Fields;
use super::rope::Rope;
use crate::engine::native::error::LoadError;

/// The supported architectures, by the name in `architectures`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Architecture {
    /// Llama 2 and 3.
    Llama,
    /// Mistral: sliding window.
    Mistral,
    /// Qwen2 and 2.5: bias on q, k, v.
    Qwen2,
    /// Qwen3: RMSNorm on each head of q and k.
    Qwen3,
}

impl Architecture {
    const ALL: [(&'static str, Self); 4] = [
        ("LlamaForCausalLM", Self::Llama),
        ("MistralForCausalLM", Self::Mistral),
        ("Qwen2ForCausalLM", Self::Qwen2),
        ("Qwen3ForCausalLM", Self::Qwen3),
    ];

    /// The name as it stands in `config.json`.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, it)| *it == self).map_or("", |(name, _)| name)
    }
}

/// Largest head that the attention kernel handles.
const MAX_HEAD_DIM: usize = 512;

/// More layers than any model has; keeps a broken number from taking all memory.
const MAX_LAYERS: usize = 4096;

/// A model's sizes and switches.
#[derive(Clone, Debug)]
pub(in crate::engine::native) struct Config {
    pub(in crate::engine::native) architecture: Architecture,
    /// Longest sequence in tokens, RoPE scaling included.
    pub(in crate::engine::native) context: usize,
    pub(in crate::engine::native) vocab: usize,
    pub(in crate::engine::native) hidden: usize,
    pub(in crate::engine::native) intermediate: usize,
    pub(in crate::engine::native) heads: usize,
    pub(in crate::engine::native) kv_heads: usize,
    pub(in crate::engine::native) head_dim: usize,
    pub(in crate::engine::native) norm_eps: f32,
    /// The output matrix is the embedding matrix.
    pub(in crate::engine::native) tied: bool,
    pub(in crate::engine::native) qkv_bias: bool,
    pub(in crate::engine::native) output_bias: bool,
    pub(in crate::engine::native) mlp_bias: bool,
    /// RMSNorm on each head of q and k.
    pub(in crate::engine::native) qk_norm: bool,
    /// For each layer, how many positions back a token sees, itself included.
    pub(in crate::engine::native) windows: Vec<Option<usize>>,
    pub(in crate::engine::native) rope: Rope,
    /// End-of-sequence ids of `config.json`.
    pub(in crate::engine::native) eos_ids: Vec<u32>,
}

impl Config {
    /// Hash of all that was read, on top of `seed`.
    pub(in crate::engine::native) fn fingerprint(&self, seed: u64) -> u64 {
        xxh3_64_with_seed(format!("{self:?}").as_bytes(), seed)
    }

    /// Reads and checks `config.json` of a checkpoint directory.
    pub(in crate::engine::native) fn read(dir: &Path) -> Result<Self, LoadError> {
        let fields = Fields::read(
            &dir.join("config.json"),
            "a Hugging Face checkpoint directory with config.json is needed",
        )?;
        refuse_unsupported(&fields)?;
        let architecture = architecture(&fields)?;
        let hidden = fields.count("hidden_size", None)?;
        let heads = fields.count("num_attention_heads", None)?;
        let kv_heads = fields.count("num_key_value_heads", Some(heads))?;
        if !heads.is_multiple_of(kv_heads) {
            let rule = format!("must divide num_attention_heads = {heads}");
            return Err(fields.wrong("num_key_value_heads", rule));
        }
        let head_dim = head_dim(&fields, architecture, hidden, heads)?;
        let layers = fields.count("num_hidden_layers", None)?;
        if layers > MAX_LAYERS {
            return Err(fields.wrong("num_hidden_layers", format!("at most {MAX_LAYERS}")));
        }
        let positions = fields.count("max_position_embeddings", None)?;
        let (rope, context) = Rope::read(&fields, head_dim, positions)?;
        let attention_bias = fields.flag("attention_bias", false)?;
        let (qkv_bias, output_bias) = match architecture {
            Architecture::Llama | Architecture::Qwen3 => (attention_bias, attention_bias),
            Architecture::Qwen2 => (true, false),
            Architecture::Mistral => (false, false),
        };
        Ok(Self {
            architecture,
            context,
            vocab: fields.count("vocab_size", None)?,
            hidden,
            intermediate: fields.count("intermediate_size", None)?,
            heads,
            kv_heads,
            head_dim,
            norm_eps: fields.positive("rms_norm_eps", Some(1e-6))? as f32,
            tied: fields.flag("tie_word_embeddings", false)?,
            qkv_bias,
            output_bias,
            mlp_bias: architecture == Architecture::Llama && fields.flag("mlp_bias", false)?,
            qk_norm: architecture == Architecture::Qwen3,
            windows: windows(&fields, architecture, layers)?,
            rope,
            eos_ids: fields.ids("eos_token_id")?.unwrap_or_default(),
        })
    }

    pub(in crate::engine::native) fn layers(&self) -> usize {
        self.windows.len()
    }

    /// Values of K, or of V, of one token in one layer.
    pub(in crate::engine::native) fn kv_dim(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}

fn refuse_unsupported(fields: &Fields) -> Result<(), LoadError> {
    if fields.get("quantization_config").is_some() {
        let rule = "quantized weights are not supported; use an F32, F16 or BF16 checkpoint";
        return Err(fields.wrong("quantization_config", rule));
    }
    if let Some(act) = fields.text("hidden_act")?
        && act != "silu"
    {
        return Err(fields.wrong("hidden_act", "only \"silu\" is supported"));
    }
    if fields.number("partial_rotary_factor")?.is_some_and(|share| share != 1.0) {
        return Err(fields.wrong("partial_rotary_factor", "only 1.0 is supported"));
    }
    Ok(())
}

fn architecture(fields: &Fields) -> Result<Architecture, LoadError> {
    let named = fields.texts("architectures")?.unwrap_or_default();
    Architecture::ALL
        .iter()
        .find(|(name, _)| named.contains(name))
        .map(|(_, architecture)| *architecture)
        .ok_or_else(|| {
            let supported = Architecture::ALL.map(|(name, _)| name).join(", ");
            fields.wrong("architectures", format!("supported are {supported}"))
        })
}

fn head_dim(
    fields: &Fields,
    architecture: Architecture,
    hidden: usize,
    heads: usize,
) -> Result<usize, LoadError> {
    let default = match architecture {
        Architecture::Qwen3 => 128,
        _ if fields.get("head_dim").is_none() && !hidden.is_multiple_of(heads) => {
            let rule = format!(
                "must be a multiple of num_attention_heads = {heads} where head_dim is not given"
            );
            return Err(fields.wrong("hidden_size", rule));
        }
        _ => hidden / heads,
    };
    let head_dim = fields.count("head_dim", Some(default.max(1)))?;
    if !head_dim.is_multiple_of(2) || head_dim > MAX_HEAD_DIM {
        let rule = format!("must be even and at most {MAX_HEAD_DIM}; it is {head_dim}");
        return Err(fields.wrong("head_dim", rule));
    }
    Ok(head_dim)
}

/// Each layer's window, by `layer_types` where given, else by the architecture's own rule.
fn windows(
    fields: &Fields,
    architecture: Architecture,
    layers: usize,
) -> Result<Vec<Option<usize>>, LoadError> {
    // What transformers assumes for a Mistral or Qwen config that does not say.
    const DEFAULT_WINDOW: usize = 4096;
    let window = match architecture {
        Architecture::Llama => return Ok(vec![None; layers]),
        Architecture::Mistral if fields.mentions("sliding_window") => fields
            .get("sliding_window")
            .map(|_| fields.count("sliding_window", None))
            .transpose()?,
        Architecture::Mistral => Some(DEFAULT_WINDOW),
        Architecture::Qwen2 | Architecture::Qwen3 => {
            let used = fields.flag("use_sliding_window", false)?;
            let size = fields.count("sliding_window", Some(DEFAULT_WINDOW))?;
            used.then_some(size)
        }
    };
    if let Some(types) = fields.texts("layer_types")? {
        return layer_types(fields, &types, layers, window);
    }
    let full_below = match architecture {
        Architecture::Qwen2 | Architecture::Qwen3 => match fields.get("max_window_layers") {
            Some(zero) if zero.as_u64() == Some(0) => 0,
            _ => fields.count("max_window_layers", Some(28))?,
        },
        _ => 0,
    };
    Ok((0..layers).map(|layer| window.filter(|_| layer >= full_below)).collect())
}

fn layer_types(
    fields: &Fields,
    types: &[&str],
    layers: usize,
    window: Option<usize>,
) -> Result<Vec<Option<usize>>, LoadError> {
    if types.len() != layers {
        let rule =
            format!("must have num_hidden_layers = {layers} entries; it has {}", types.len());
        return Err(fields.wrong("layer_types", rule));
    }
    types
        .iter()
        .map(|kind| match (*kind, window) {
            ("full_attention", _) => Ok(None),
            ("sliding_attention", Some(window)) => Ok(Some(window)),
            ("sliding_attention", None) => Err(fields.wrong(
                "layer_types",
                "\"sliding_attention\" needs sliding_window (and use_sliding_window for Qwen)",
            )),
            _ => Err(fields.wrong(
                "layer_types",
                "supported are \"full_attention\" and \"sliding_attention\"",
            )),
        })
        .collect()
}
