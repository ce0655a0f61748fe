//! Memory that transports read and write while others own it.

mod ffi;

use bincode::{Decode, Encode};

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
