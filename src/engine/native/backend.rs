//! The operations a forward pass is made of: what a device has to implement to run the models.
//!
//! Activations are matrices of `f32` rows, one row a token. An operation whose result has a size of
//! its own sets the number of rows of `out`. Operations do not fail; a device that can lose its
//! memory or its connection reports that from [`Backend::read`].

use super::checkpoint::{Rope, Tensor};
use super::error::LoadError;
use crate::engine::EngineError;
use crate::engine::model::{Batch, KvPool};

/// The sizes that attention and the KV pool have in all layers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Geometry {
    pub(super) layers: usize,
    /// Query heads; a multiple of `kv_heads`.
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    /// Tokens in one KV block, a multiple of 16.
    pub(super) block_tokens: usize,
    /// Blocks in the pool.
    pub(super) blocks: usize,
}

impl Geometry {
    /// Values of q in one row.
    pub(super) fn q_dim(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Values of k, or of v, in one row.
    pub(super) fn kv_dim(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}

/// What differs in attention from layer to layer.
#[derive(Debug)]
pub(super) struct Attention<V> {
    /// The layer's number, its place in the KV pool.
    pub(super) layer: usize,
    /// How many positions back a token sees, itself included; `None` for all.
    pub(super) window: Option<usize>,
    /// Weights of the RMSNorm on each head of q and of k, if the model has it.
    pub(super) qk_norm: Option<(V, V)>,
    /// Added to the mean square in that norm.
    pub(super) norm_eps: f32,
}

/// A device that runs forward passes and owns the KV pool.
pub(super) trait Backend: Send {
    /// The weights of a linear layer, with its bias.
    type Matrix: Send;
    /// The weights of a norm.
    type Vector: Send;
    /// Activations.
    type Rows: Send;

    /// Takes over the weights of a linear layer: the outputs of all parts, one part after the
    /// other. `bias` has a tensor for each part, or none.
    fn matrix(
        &mut self,
        parts: &[Tensor<'_>],
        inputs: usize,
        bias: &[Tensor<'_>],
    ) -> Result<Self::Matrix, LoadError>;

    /// Takes over the weights of a norm.
    fn vector(&mut self, tensor: &Tensor<'_>) -> Result<Self::Vector, LoadError>;

    /// Activations of this width, without rows.
    fn rows(&mut self, width: usize) -> Self::Rows;

    /// Starts a pass: keeps positions, block tables and sines for the operations that follow.
    fn begin(&mut self, batch: &Batch, rope: &Rope);

    /// `out[i] = row tokens[i] of table`.
    fn embed(&mut self, table: &Self::Matrix, tokens: &[u32], out: &mut Self::Rows);

    /// `out = x / sqrt(mean(x²) + eps) * weight` for each row.
    fn rms_norm(&mut self, x: &Self::Rows, weight: &Self::Vector, eps: f32, out: &mut Self::Rows);

    /// `out = x · matrixᵀ + bias`.
    fn multiply(&mut self, x: &Self::Rows, matrix: &Self::Matrix, out: &mut Self::Rows);

    /// Takes rows of q, k and v: norms the heads of q and k if the layer says so, rotates them to
    /// their positions and stores k and v in the pool.
    fn rotate_and_store(&mut self, layer: &Attention<Self::Vector>, qkv: &mut Self::Rows);

    /// Attention of the rows' q over k and v in the pool.
    fn attend(&mut self, layer: &Attention<Self::Vector>, qkv: &Self::Rows, out: &mut Self::Rows);

    /// `out = silu(gate) * up`, where a row of `gate_up` is gate, then up.
    fn silu_mul(&mut self, gate_up: &Self::Rows, out: &mut Self::Rows);

    /// `x += delta`.
    fn add(&mut self, x: &mut Self::Rows, delta: &Self::Rows);

    /// Keeps these rows of `x`, which are ascending, and drops the others.
    fn keep(&mut self, x: &mut Self::Rows, rows: &[usize]);

    /// The KV pool, for transfers.
    fn kv_pool(&self) -> Option<KvPool>;

    /// The values of all rows.
    fn read<'a>(&mut self, x: &'a mut Self::Rows) -> Result<&'a mut [f32], EngineError>;
}
