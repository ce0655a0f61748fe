//! The KV pool: `[blocks, layers, 2, kv_heads, block_tokens, head_dim]`, row-major; axis 2 is K, V.

use super::memory::Shared;
use crate::engine::model::KvPool;
use crate::engine::native::backend::Geometry;
use crate::engine::native::error::LoadError;
use crate::kvxfer::{Layout, Sizes};

/// K and V of all blocks and layers.
pub(super) struct Pool {
    values: Shared<f32>,
    pub(super) geometry: Geometry,
}

impl Pool {
    pub(super) fn new(geometry: Geometry) -> Result<Self, LoadError> {
        let len = [geometry.layers, 2, geometry.kv_dim(), geometry.block_tokens]
            .into_iter()
            .fold(geometry.blocks, usize::saturating_mul);
        let values = Shared::zeroed(len.max(1)).map_err(|source| LoadError::Memory {
            what: "the KV pool",
            bytes: len.saturating_mul(size_of::<f32>()),
            source,
        })?;
        Ok(Self { values, geometry })
    }

    /// Its memory and how blocks lie in it, for transfers.
    pub(super) fn shared(&self) -> Option<KvPool> {
        let g = &self.geometry;
        let size = |size: usize| u32::try_from(size).ok();
        let layout = Layout::block_major(Sizes {
            blocks: size(g.blocks)?,
            layers: size(g.layers)?,
            planes: 2,
            heads: 0..size(g.kv_heads)?,
            block_tokens: size(g.block_tokens)?,
            head_bytes: (g.head_dim * size_of::<f32>()) as u64,
        });
        Some(KvPool { memory: self.values.memory().clone(), layout: layout.ok()? })
    }

    /// Where K of one head starts in a block; V of that head is `kv_dim * block_tokens` further.
    fn start(&self, block: usize, layer: usize, kv_head: usize) -> usize {
        let g = &self.geometry;
        ((block * g.layers + layer) * 2 * g.kv_heads + kv_head) * g.block_tokens * g.head_dim
    }

    /// Stores a row of k, then v, of all heads at a block's token.
    pub(super) fn store(&mut self, layer: usize, (block, token): (usize, usize), kv: &[f32]) {
        let Geometry { head_dim, block_tokens, .. } = self.geometry;
        let first = self.start(block, layer, 0) + token * head_dim;
        for (head, values) in kv.chunks_exact(head_dim).enumerate() {
            let at = first + head * block_tokens * head_dim;
            self.values.part_mut(at, head_dim).copy_from_slice(values);
        }
    }

    /// K and V of one head for `tokens` tokens of a block, each `[tokens, head_dim]`.
    #[inline(always)]
    pub(super) fn tile(
        &self,
        layer: usize,
        kv_head: usize,
        block: usize,
        tokens: std::ops::Range<usize>,
    ) -> (&[f32], &[f32]) {
        let g = &self.geometry;
        let keys = self.start(block, layer, kv_head);
        let values = keys + g.kv_dim() * g.block_tokens;
        let part = |start: usize| {
            self.values.part(start + tokens.start * g.head_dim, tokens.len() * g.head_dim)
        };
        (part(keys), part(values))
    }
}
