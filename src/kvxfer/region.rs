//! Memory that transports read and write while others own it.

mod ffi;

use bincode::{Decode, Encode};

use super::layout::Layout;
use crate::ids::BlockId;

pub use ffi::Memory;
pub(super) use ffi::wake_after;

/// Where a pool lies. Transports say which kinds they can move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub enum MemoryKind {
    /// Main memory.
    Host,
    /// Memory of a CUDA device, of its own allocation (`cuMemAlloc`), not of a pool.
    Cuda,
}

/// A byte range of a [`Memory`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

/// XXH3 of a block's bytes, in ascending order. `None` if the pool has no such block, or lies where the
/// CPU cannot read it.
pub fn block_checksum(memory: &Memory, layout: &Layout, block: BlockId) -> Option<u64> {
    let ranges = layout.ranges(&[block]).ok().filter(|_| memory.kind() == MemoryKind::Host)?;
    let part =
        |range: std::ops::Range<u64>| Part { offset: range.start, bytes: range.end - range.start };
    let parts: Vec<Part> = ranges.into_iter().map(part).collect();
    Some(memory.checksum(&parts))
}
