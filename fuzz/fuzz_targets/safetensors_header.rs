//! Feeds libFuzzer's bytes to `bodies::safetensors_header`.

#![no_main]

#[path = "../bodies.rs"]
mod bodies;

libfuzzer_sys::fuzz_target!(|data: &[u8]| bodies::safetensors_header(data));
