//! Large zeroed memory straight from the system.

mod ffi;

pub(super) use ffi::{Bf16Cell, F16Cell, F32Cell, Pages, Plain, Shared};
