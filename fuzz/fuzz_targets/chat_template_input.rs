//! Feeds libFuzzer's bytes to `bodies::chat_template_input`.

#![no_main]

#[path = "../bodies.rs"]
mod bodies;

libfuzzer_sys::fuzz_target!(|data: &[u8]| bodies::chat_template_input(data));
