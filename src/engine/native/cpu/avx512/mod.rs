//! AVX-512F: one register holds all sixteen lanes.

mod ffi;

pub(super) use ffi::{Avx512, Avx512Dots};
