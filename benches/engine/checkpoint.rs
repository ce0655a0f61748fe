//! A random-weight Llama checkpoint in BF16, written to a directory.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use serde_json::{Map, json};

/// Sizes of a Llama.
#[derive(Clone, Copy)]
pub(crate) struct Llama {
    pub(crate) hidden: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) mlp: usize,
    pub(crate) vocab: usize,
}

impl Llama {
    /// 499,696,640 parameters.
    pub(crate) const HALF_BILLION: Self = Self {
        hidden: 1024,
        layers: 24,
        heads: 16,
        kv_heads: 8,
        head_dim: 64,
        mlp: 4864,
        vocab: 32_000,
    };

    /// For a smoke test.
    pub(crate) const QUICK: Self =
        Self { hidden: 256, layers: 2, heads: 4, kv_heads: 2, head_dim: 64, mlp: 704, vocab: 4096 };

    /// Inputs and outputs of a layer's matrix products, as the engine fuses them.
    pub(crate) fn products(&self) -> [(usize, usize); 4] {
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        [
            (self.hidden, q + 2 * kv),
            (q, self.hidden),
            (self.hidden, 2 * self.mlp),
            (self.mlp, self.hidden),
        ]
    }

    /// Weights that every token is multiplied with, the output matrix left out.
    pub(crate) fn layer_weights(&self) -> usize {
        self.layers
            * self.products().iter().map(|(inputs, outputs)| inputs * outputs).sum::<usize>()
    }

    /// Weights of the output matrix, or of the embedding.
    pub(crate) fn vocab_weights(&self) -> usize {
        self.vocab * self.hidden
    }

    /// All weights.
    pub(crate) fn parameters(&self) -> usize {
        let norms = (2 * self.layers + 1) * self.hidden;
        self.layer_weights() + 2 * self.vocab_weights() + norms
    }

    fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (hidden, mlp) = (self.hidden, self.mlp);
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![self.vocab, hidden])];
        for layer in 0..self.layers {
            for (name, shape) in [
                ("input_layernorm", vec![hidden]),
                ("self_attn.q_proj", vec![q, hidden]),
                ("self_attn.k_proj", vec![kv, hidden]),
                ("self_attn.v_proj", vec![kv, hidden]),
                ("self_attn.o_proj", vec![hidden, q]),
                ("post_attention_layernorm", vec![hidden]),
                ("mlp.gate_proj", vec![mlp, hidden]),
                ("mlp.up_proj", vec![mlp, hidden]),
                ("mlp.down_proj", vec![hidden, mlp]),
            ] {
                tensors.push((format!("model.layers.{layer}.{name}.weight"), shape));
            }
        }
        tensors.push(("model.norm.weight".to_owned(), vec![hidden]));
        tensors.push(("lm_head.weight".to_owned(), vec![self.vocab, hidden]));
        tensors
    }

    fn config(&self) -> serde_json::Value {
        json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.mlp,
            "hidden_act": "silu",
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "tie_word_embeddings": false,
            "torch_dtype": "bfloat16",
            "bos_token_id": 1,
            "eos_token_id": 2,
        })
    }

    /// Writes `config.json` and `model.safetensors`; always the same weights.
    pub(crate) fn write(&self, dir: &Path) -> io::Result<()> {
        fs::create_dir_all(dir)?;
        fs::write(dir.join("config.json"), serde_json::to_vec_pretty(&self.config())?)?;
        let tensors = self.tensors();
        let mut header = Map::new();
        let mut end = 0;
        for (name, shape) in &tensors {
            let start = end;
            end += 2 * shape.iter().product::<usize>();
            let entry = json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, end]});
            header.insert(name.clone(), entry);
        }
        let mut header = serde_json::to_vec(&header)?;
        header.resize(header.len().next_multiple_of(8), b' ');
        let mut file =
            BufWriter::with_capacity(1 << 20, File::create(dir.join("model.safetensors"))?);
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        for (_, shape) in &tensors {
            write_tensor(&mut file, shape, &mut random)?;
        }
        file.flush()
    }
}

/// Norms are 1; matrices are uniform with the variance that keeps activations in range.
fn write_tensor(file: &mut impl Write, shape: &[usize], random: &mut u64) -> io::Result<()> {
    let bits = |value: f32| ((value.to_bits() >> 16) as u16).to_le_bytes();
    let [outputs, inputs] = *shape else {
        return shape.iter().try_for_each(|n| file.write_all(&bits(1.0).repeat(*n)));
    };
    let range = (3.0 / inputs as f32).sqrt();
    let mut row = vec![[0_u8; 2]; inputs];
    for _ in 0..outputs {
        for value in &mut row {
            *random ^= *random << 13;
            *random ^= *random >> 7;
            *random ^= *random << 17;
            *value = bits(((*random >> 40) as f32 / (1 << 23) as f32 - 1.0) * range);
        }
        file.write_all(row.as_flattened())?;
    }
    Ok(())
}
