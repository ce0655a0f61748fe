//! What each fuzz target does with its bytes; it panics where a promise is broken.
//!
//! Used by the targets in `fuzz_targets/` and, on stable, by `tests/fuzz_smoke.rs`.

#![allow(dead_code)] // each target uses one of these

use std::path::Path;
use std::sync::LazyLock;

use cuelight::engine::native::checkpoint::parse_header;
use cuelight::http::openai::{Limits, chat, completions, tokens};
use cuelight::text::{ChatTemplateInput, Detokenizer, OutputText, StopScanner};
use cuelight::text::{TextLimits, TextModel};
use serde_json::{Map, Value};

/// The shipped model, found from the crate and from `fuzz/`.
static MODEL: LazyLock<TextModel> = LazyLock::new(|| {
    let dirs = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    let mut dirs = dirs.map(|dir| dir.join("models/cuelight-tiny"));
    let dir = dirs.find(|dir| dir.is_dir()).expect("models/cuelight-tiny is in the repository");
    TextModel::load(&dir, TextLimits::default()).expect("the shipped model can be read")
});

/// JSON bytes: `{"messages": [...], "tools": [...], "chat_template_kwargs": {...}, ...}`. Whatever
/// comes, rendering ends, and what was rendered comes back from its token ids.
pub(crate) fn chat_template_input(data: &[u8]) {
    let Ok(Value::Object(request)) = serde_json::from_slice(data) else { return };
    let list = |key: &str| request.get(key).and_then(Value::as_array).map(Vec::as_slice);
    let flag = |key: &str| request.get(key).and_then(Value::as_bool).unwrap_or(false);
    let none = Map::new();
    let rendered = MODEL.render_chat(&ChatTemplateInput {
        messages: list("messages").unwrap_or_default(),
        tools: list("tools"),
        documents: list("documents"),
        add_generation_prompt: flag("add_generation_prompt"),
        continue_final_message: flag("continue_final_message"),
        kwargs: request.get("chat_template_kwargs").and_then(Value::as_object).unwrap_or(&none),
    });
    match rendered {
        Ok(prompt) => {
            let tokens = MODEL.encode(&prompt, false).expect("byte-level BPE encodes all text");
            assert!(tokens.iter().all(|token| (*token as usize) < MODEL.vocab_len()));
            assert_eq!(MODEL.decode(&tokens, false).as_ref(), Ok(&prompt));
        }
        Err(error) => assert!(!error.is_model_fault(), "{error}"),
    }
}

/// Bytes: how many stop strings, their lengths, their text, then token ids of two bytes each. The
/// streamed text is the whole decode up to the first stop string.
pub(crate) fn output_text(data: &[u8]) {
    let Some((&count, mut rest)) = data.split_first() else { return };
    let mut stops: Vec<String> = Vec::new();
    for _ in 0..count % 5 {
        let Some((&length, more)) = rest.split_first() else { return };
        let (text, more) = more.split_at(usize::from(length % 8).min(more.len()));
        rest = more;
        if !text.is_empty() {
            stops.push(String::from_utf8_lossy(text).into_owned());
        }
    }
    let id = |pair: &[u8]| u32::from(u16::from_le_bytes([pair[0], pair[1]])) % 2_100;
    let tokens: Vec<u32> = rest.chunks_exact(2).map(id).collect();

    let scanner = StopScanner::new(MODEL.stop_strings(&stops).expect("at most four"), false);
    let mut output = OutputText::new(Detokenizer::new(&MODEL, true), scanner, 0);
    let (mut text, mut found) = (String::new(), None);
    for &token in &tokens {
        found = output.push(&MODEL, token, &mut text);
    }
    found = output.finish(&MODEL, &mut text).or(found);

    let known: Vec<u32> =
        tokens.into_iter().filter(|token| (*token as usize) < MODEL.vocab_len()).collect();
    let whole = MODEL.decode(&known, true).expect("only known ids are left");
    assert!(whole.starts_with(&text), "{whole:?} was streamed as {text:?}");
    match found {
        None => {
            assert!(whole == text && !stops.iter().any(|stop| whole.contains(stop)), "{stops:?}")
        }
        Some(stop) => assert!(whole[text.len()..].starts_with(&stops[stop]), "{stops:?} {stop}"),
    }
}

/// Bytes of a request body, for every endpoint that takes one: what is refused is the client's
/// fault and says so.
pub(crate) fn request_parsing(data: &[u8]) {
    let limits = Limits { max_choices: 8 };
    let refusals = [
        chat::parse(data, limits).err(),
        completions::parse(data, limits).err(),
        tokens::parse_tokenize(data).err(),
        tokens::parse_detokenize(data).err(),
    ];
    for error in refusals.into_iter().flatten() {
        let (status, ..) = error.problem.row();
        assert!(status.is_client_error() && !error.message.is_empty(), "{error:?}");
    }
}

/// A whole safetensors file: every range lies in the file and is as long as shape and type say.
pub(crate) fn safetensors_header(data: &[u8]) {
    let Ok(tensors) = parse_header(data) else { return };
    for (name, entry) in tensors {
        let bytes = data.get(entry.bytes.clone()).unwrap_or_else(|| panic!("{name}: {entry:?}"));
        let elements: usize = entry.shape.iter().product();
        let size = match entry.dtype.as_str() {
            "F32" => 4,
            "F16" | "BF16" => 2,
            _ => continue,
        };
        assert_eq!(bytes.len(), elements * size, "{name}: {entry:?}");
    }
}
