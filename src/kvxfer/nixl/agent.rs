//! NIXL's objects with their lifetimes kept by Rust; all of them stay on the thread that made them.

mod ffi;

pub(super) use ffi::{Agent, Read};
