//! Feeds libFuzzer's bytes to `bodies::output_text`.

#![no_main]

#[path = "../bodies.rs"]
mod bodies;

libfuzzer_sys::fuzz_target!(|data: &[u8]| bodies::output_text(data));
