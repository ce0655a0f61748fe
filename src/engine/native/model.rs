//! The forward pass of a Llama-family transformer, written once for all devices.

use super::backend::{Attention, Backend};
use super::checkpoint::Rope;
use crate::engine::EngineError;
use crate::engine::model::Batch;

/// A transformer on a device.
pub(super) struct Transformer<B: Backend> {
    pub(super) backend: B,
    /// The embedding; `None` if it is `output`.
    pub(super) embedding: Option<B::Matrix>,
    pub(super) layers: Vec<Layer<B>>,
    pub(super) norm: B::Vector,
    /// Hidden state to logits.
    pub(super) output: B::Matrix,
    pub(super) norm_eps: f32,
    pub(super) rope: Rope,
    pub(super) rows: Activations<B>,
    /// The last row of each span whose logits are wanted.
    pub(super) wanted: Vec<usize>,
}

/// The weights of one layer.
pub(super) struct Layer<B: Backend> {
    pub(super) attention_norm: B::Vector,
    /// q, k and v, one after the other.
    pub(super) qkv: B::Matrix,
    pub(super) attention: Attention<B::Vector>,
    pub(super) attention_output: B::Matrix,
    pub(super) mlp_norm: B::Vector,
    /// gate, then up.
    pub(super) gate_up: B::Matrix,
    pub(super) down: B::Matrix,
}

/// Activations, kept from pass to pass.
pub(super) struct Activations<B: Backend> {
    /// The residual stream.
    pub(super) x: B::Rows,
    /// `x` after a norm.
    pub(super) normed: B::Rows,
    pub(super) qkv: B::Rows,
    /// What the heads gathered.
    pub(super) heads: B::Rows,
    pub(super) gate_up: B::Rows,
    pub(super) gated: B::Rows,
    /// What is added to `x`.
    pub(super) delta: B::Rows,
    pub(super) logits: B::Rows,
}

impl<B: Backend> Transformer<B> {
    /// Computes a batch; gives the logits of the wanted spans, row-major.
    pub(super) fn forward(&mut self, batch: &Batch) -> Result<&mut [f32], EngineError> {
        let Self { backend, layers, rows, .. } = self;
        self.wanted.clear();
        self.wanted.extend(
            batch.spans.iter().filter(|s| s.wants_logits).map(|s| s.first_row + s.rows - 1),
        );
        backend.begin(batch, &self.rope);
        backend.embed(self.embedding.as_ref().unwrap_or(&self.output), &batch.tokens, &mut rows.x);
        let last = layers.len() - 1;
        for (index, layer) in layers.iter().enumerate() {
            backend.rms_norm(&rows.x, &layer.attention_norm, self.norm_eps, &mut rows.normed);
            backend.multiply(&rows.normed, &layer.qkv, &mut rows.qkv);
            backend.rotate_and_store(&layer.attention, &mut rows.qkv);
            backend.attend(&layer.attention, &rows.qkv, &mut rows.heads);
            if index == last {
                // The pool is complete; from here on only the wanted rows matter.
                backend.keep(&mut rows.x, &self.wanted);
                backend.keep(&mut rows.heads, &self.wanted);
            }
            backend.multiply(&rows.heads, &layer.attention_output, &mut rows.delta);
            backend.add(&mut rows.x, &rows.delta);
            backend.rms_norm(&rows.x, &layer.mlp_norm, self.norm_eps, &mut rows.normed);
            backend.multiply(&rows.normed, &layer.gate_up, &mut rows.gate_up);
            backend.silu_mul(&rows.gate_up, &mut rows.gated);
            backend.multiply(&rows.gated, &layer.down, &mut rows.delta);
            backend.add(&mut rows.x, &rows.delta);
        }
        backend.rms_norm(&rows.x, &self.norm, self.norm_eps, &mut rows.normed);
        backend.multiply(&rows.normed, &self.output, &mut rows.logits);
        backend.read(&mut rows.logits)
    }
}
