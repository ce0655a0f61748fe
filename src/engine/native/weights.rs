//! From a checkpoint's tensors to a [`Transformer`]: names, shapes, what is fused with what.

use super::backend::{Attention, Backend};
use super::checkpoint::{Config, Tensor, Weights};
use super::error::LoadError;
use super::model::{Activations, Layer, Transformer};

/// Loads all weights into the backend. `vocab` rows of the embedding and the output are kept.
pub(super) fn load<B: Backend>(
    weights: &Weights,
    config: &Config,
    vocab: usize,
    mut backend: B,
) -> Result<Transformer<B>, LoadError> {
    let (hidden, all) = (config.hidden, config.vocab);
    let embedding = weights.tensor("model.embed_tokens.weight", &[all, hidden])?;
    let embedding = backend.matrix(&[embedding.cut(vocab, hidden)], hidden, &[])?;
    let (embedding, output) = if config.tied {
        (None, embedding)
    } else {
        let output = weights.tensor("lm_head.weight", &[all, hidden])?;
        (Some(embedding), backend.matrix(&[output.cut(vocab, hidden)], hidden, &[])?)
    };
    let norm = backend.vector(&weights.tensor("model.norm.weight", &[hidden])?)?;
    let layers = (0..config.layers())
        .map(|index| layer(weights, config, index, &mut backend))
        .collect::<Result<Vec<_>, _>>()?;
    let q_dim = config.heads * config.head_dim;
    let rows = Activations {
        x: backend.rows(hidden),
        normed: backend.rows(hidden),
        qkv: backend.rows(q_dim + 2 * config.kv_dim()),
        heads: backend.rows(q_dim),
        gate_up: backend.rows(2 * config.intermediate),
        gated: backend.rows(config.intermediate),
        delta: backend.rows(hidden),
        logits: backend.rows(vocab),
    };
    Ok(Transformer {
        backend,
        embedding,
        layers,
        norm,
        output,
        norm_eps: config.norm_eps,
        rope: config.rope.clone(),
        rows,
        wanted: Vec::new(),
    })
}

fn layer<B: Backend>(
    weights: &Weights,
    config: &Config,
    index: usize,
    backend: &mut B,
) -> Result<Layer<B>, LoadError> {
    let (hidden, mlp) = (config.hidden, config.intermediate);
    let (q_dim, kv_dim) = (config.heads * config.head_dim, config.kv_dim());
    let tensor = |name: &str, shape: &[usize]| {
        weights.tensor(&format!("model.layers.{index}.{name}"), shape)
    };
    let mut matrix = |parts: &[(&str, usize)], inputs: usize, biased: bool| {
        let mut matrices: Vec<Tensor<'_>> = Vec::new();
        let mut biases = Vec::new();
        for (name, outputs) in parts {
            matrices.push(tensor(&format!("{name}.weight"), &[*outputs, inputs])?);
            if biased {
                biases.push(tensor(&format!("{name}.bias"), &[*outputs])?);
            }
        }
        backend.matrix(&matrices, inputs, &biases)
    };
    let qkv =
        [("self_attn.q_proj", q_dim), ("self_attn.k_proj", kv_dim), ("self_attn.v_proj", kv_dim)];
    let qkv = matrix(&qkv, hidden, config.qkv_bias)?;
    let attention_output = matrix(&[("self_attn.o_proj", hidden)], q_dim, config.output_bias)?;
    let gate_up = [("mlp.gate_proj", mlp), ("mlp.up_proj", mlp)];
    let gate_up = matrix(&gate_up, hidden, config.mlp_bias)?;
    let down = matrix(&[("mlp.down_proj", hidden)], mlp, config.mlp_bias)?;
    let mut vector = |name: &str, width: usize| backend.vector(&tensor(name, &[width])?);
    let qk_norm = if config.qk_norm {
        let q = vector("self_attn.q_norm.weight", config.head_dim)?;
        Some((q, vector("self_attn.k_norm.weight", config.head_dim)?))
    } else {
        None
    };
    Ok(Layer {
        attention_norm: vector("input_layernorm.weight", hidden)?,
        qkv,
        attention: Attention {
            layer: index,
            window: config.windows[index],
            qk_norm,
            norm_eps: config.norm_eps,
        },
        attention_output,
        mlp_norm: vector("post_attention_layernorm.weight", hidden)?,
        gate_up,
        down,
    })
}
