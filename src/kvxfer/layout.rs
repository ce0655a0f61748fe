//! Where in a KV pool each element lies: sizes, strides, and which of the model's heads it holds.

use std::ops::Range;

use bincode::{Decode, Encode};

use super::plan::PlanError;
use crate::ids::BlockId;

/// How a KV pool lies in memory.
///
/// One *element* is one head of one token in one plane of one layer: `head_bytes` that always stay
/// together. It starts at `block·strides.block + layer·strides.layer + plane·strides.plane +
/// (head − heads.start)·strides.head + token·strides.token`.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Layout {
    /// Blocks in the pool.
    pub blocks: u32,
    /// Transformer layers.
    pub layers: u32,
    /// 2 for K and V; 1 where both are one latent vector.
    pub planes: u32,
    /// The model's KV heads that this pool holds: all, or the shard of one tensor-parallel rank.
    pub heads: Range<u32>,
    /// Tokens in one block.
    pub block_tokens: u32,
    /// Bytes of one element: `head_dim × bytes of a number`.
    pub head_bytes: u64,
    /// Distances in bytes.
    pub strides: Strides,
}

/// Bytes from one block, layer, plane, head or token to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[expect(missing_docs, reason = "each is named after its axis")]
pub struct Strides {
    pub block: u64,
    pub layer: u64,
    pub plane: u64,
    pub head: u64,
    pub token: u64,
}

/// The sizes of a densely packed pool; see [`Layout`] for the meaning of each.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "documented at Layout's fields of the same names")]
pub struct Sizes {
    pub blocks: u32,
    pub layers: u32,
    pub planes: u32,
    pub heads: Range<u32>,
    pub block_tokens: u32,
    pub head_bytes: u64,
}

impl Layout {
    /// `[blocks, layers, planes, heads, block_tokens, head_bytes]`: the native engine's pool.
    ///
    /// # Errors
    /// [`PlanError::Layout`] for sizes that are 0 or do not fit the address space.
    pub fn block_major(sizes: Sizes) -> Result<Self, PlanError> {
        let token = sizes.head_bytes;
        let head = times(token, sizes.block_tokens);
        let plane = times(head, head_count(&sizes.heads));
        let layer = times(plane, sizes.planes);
        let block = times(layer, sizes.layers);
        Self::from_parts(sizes, Strides { block, layer, plane, head, token })
    }

    /// `[layers, planes, blocks, block_tokens, heads, head_bytes]`: paged attention on GPUs.
    ///
    /// # Errors
    /// As [`Self::block_major`].
    pub fn layer_major(sizes: Sizes) -> Result<Self, PlanError> {
        let head = sizes.head_bytes;
        let token = times(head, head_count(&sizes.heads));
        let block = times(token, sizes.block_tokens);
        let plane = times(block, sizes.blocks);
        let layer = times(plane, sizes.planes);
        Self::from_parts(sizes, Strides { block, layer, plane, head, token })
    }

    /// Any other arrangement.
    ///
    /// # Errors
    /// [`PlanError::Layout`] if two elements overlap, or as [`Self::block_major`].
    pub fn from_parts(sizes: Sizes, strides: Strides) -> Result<Self, PlanError> {
        let Sizes { blocks, layers, planes, heads, block_tokens, head_bytes } = sizes;
        let layout = Self { blocks, layers, planes, heads, block_tokens, head_bytes, strides };
        layout.check()?;
        Ok(layout)
    }

    /// Checks a layout that came from elsewhere; the constructors have done so.
    ///
    /// # Errors
    /// [`PlanError::Layout`], naming the rule.
    pub fn check(&self) -> Result<(), PlanError> {
        let refuse = |why: &'static str| Err(PlanError::Layout { why, layout: self.to_string() });
        let counts = [self.blocks, self.layers, self.planes, self.head_count(), self.block_tokens];
        if counts.contains(&0) || self.head_bytes == 0 {
            return refuse("no size may be 0");
        }
        let mut axes = self.axes().map(|(count, stride)| (stride, u64::from(count)));
        axes.sort_unstable();
        let mut extent = self.head_bytes;
        for (stride, count) in axes.into_iter().filter(|(_, count)| *count > 1) {
            if stride < extent {
                return refuse("two elements overlap: give each axis a larger stride");
            }
            let Some(wider) = stride.checked_mul(count - 1).and_then(|b| b.checked_add(extent))
            else {
                return refuse("it does not fit the address space");
            };
            extent = wider;
        }
        if isize::try_from(extent).is_err() {
            return refuse("it does not fit the address space");
        }
        Ok(())
    }

    /// Bytes from the first to the end of the last element.
    pub fn bytes(&self) -> u64 {
        self.axes().into_iter().map(|(count, stride)| (u64::from(count) - 1) * stride).sum::<u64>()
            + self.head_bytes
    }

    /// KV heads in this pool.
    pub fn head_count(&self) -> u32 {
        head_count(&self.heads)
    }

    /// Bytes of the elements of one block, gaps left out.
    pub fn block_bytes(&self) -> u64 {
        u64::from(self.layers)
            * u64::from(self.planes)
            * u64::from(self.head_count())
            * u64::from(self.block_tokens)
            * self.head_bytes
    }

    /// Whether the bytes of a block, in ascending order, mean the same in both pools.
    pub fn is_arranged_like(&self, other: &Self) -> bool {
        let shape = |l: &Self| (l.layers, l.planes, l.heads.clone(), l.block_tokens, l.head_bytes);
        let order = |l: &Self| {
            let s = &l.strides;
            let mut axes = [(s.layer, 0), (s.plane, 1), (s.head, 2), (s.token, 3)];
            axes.sort_unstable();
            axes.map(|(_, axis)| axis)
        };
        shape(self) == shape(other) && order(self) == order(other)
    }

    /// The byte ranges of blocks, ascending, neighbours merged: what a grant on them covers.
    ///
    /// # Errors
    /// [`PlanError::NoSuchBlock`].
    pub fn ranges(&self, blocks: &[BlockId]) -> Result<Vec<Range<u64>>, PlanError> {
        let side = super::plan::Side { layout: self, blocks };
        let tokens = 0..blocks.len() as u64 * u64::from(self.block_tokens);
        // A plan from a pool to itself visits each byte of the blocks once, in ascending order.
        let runs = super::plan::plan(side, side, tokens)?;
        Ok(runs.into_iter().map(|run| run.local..run.local + run.bytes).collect())
    }

    fn axes(&self) -> [(u32, u64); 5] {
        let s = &self.strides;
        [
            (self.blocks, s.block),
            (self.layers, s.layer),
            (self.planes, s.plane),
            (self.head_count(), s.head),
            (self.block_tokens, s.token),
        ]
    }
}

impl std::fmt::Display for Layout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { blocks, layers, planes, heads, block_tokens, head_bytes, strides: s } = self;
        write!(
            f,
            "{blocks} blocks × {layers} layers × {planes} planes × heads {heads:?} × {block_tokens} \
             tokens × {head_bytes} B, strides {}/{}/{}/{}/{} B",
            s.block, s.layer, s.plane, s.head, s.token
        )
    }
}

fn head_count(heads: &Range<u32>) -> u32 {
    heads.end.saturating_sub(heads.start)
}

/// Saturates: `check` then finds that it does not fit.
fn times(bytes: u64, count: u32) -> u64 {
    bytes.saturating_mul(u64::from(count))
}
