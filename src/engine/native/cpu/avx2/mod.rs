//! AVX2 with FMA: two registers hold the sixteen lanes.

mod ffi;

pub(super) use ffi::Avx2;
