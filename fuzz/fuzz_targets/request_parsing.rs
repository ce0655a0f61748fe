//! Feeds libFuzzer's bytes to `bodies::request_parsing`.

#![no_main]

#[path = "../bodies.rs"]
mod bodies;

libfuzzer_sys::fuzz_target!(|data: &[u8]| bodies::request_parsing(data));
