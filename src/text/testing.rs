//! What the tests of this folder share: temporary model directories, small tokenizers, random text.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use super::{TextLimits, TextModel};

/// A directory that goes away with the value.
pub(super) struct TempDir(PathBuf);

impl TempDir {
    /// A new directory with these (name, content) files.
    pub(super) fn with(files: &[(&str, &str)]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path =
            std::env::temp_dir().join(format!("cuelight-text-{}-{count}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        for (name, content) in files {
            fs::write(path.join(name), content).unwrap();
        }
        Self(path)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

/// The model the repository ships: byte-level BPE.
pub(super) fn shipped() -> TextModel {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/cuelight-tiny");
    TextModel::load(&dir, TextLimits::default()).unwrap()
}

/// Decoder of Llama 2's and Mistral's tokenizer.json.
pub(super) const SPM_DECODER: &str = r#"{"type": "Sequence", "decoders": [
    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
    {"type": "ByteFallback"}, {"type": "Fuse"},
    {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}"#;

/// Decoder of T5's and of some converted Llama tokenizers.
pub(super) const METASPACE_DECODER: &str =
    r#"{"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false}"#;

/// A decoder no table is made for, so that the tokenizer itself decodes.
pub(super) const WORDPIECE_DECODER: &str =
    r###"{"type": "WordPiece", "prefix": "##", "cleanup": true}"###;

/// A model in SentencePiece's manner: ids 0..=2 are `<unk> <s> </s>`, 3..=258 the bytes, then
/// `pieces`; adds a BOS; with the given decoder.
pub(super) fn spm(pieces: &[&str], decoder: &str) -> TextModel {
    spm_with_config(pieces, decoder, "{}")
}

/// [`spm`] with this tokenizer_config.json.
pub(super) fn spm_with_config(pieces: &[&str], decoder: &str, config: &str) -> TextModel {
    let mut vocab = serde_json::Map::new();
    for (id, token) in ["<unk>", "<s>", "</s>"].into_iter().enumerate() {
        vocab.insert(token.to_owned(), id.into());
    }
    for byte in 0..=255_u32 {
        vocab.insert(format!("<0x{byte:02X}>"), (3 + byte).into());
    }
    for (index, piece) in pieces.iter().enumerate() {
        vocab.insert((*piece).to_owned(), (259 + index).into());
    }
    let special = |id: u32, content: &str| {
        serde_json::json!({"id": id, "content": content, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true})
    };
    let decoder: serde_json::Value = serde_json::from_str(decoder).unwrap();
    let tokenizer = serde_json::json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 16}, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>"},
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null,
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": decoder,
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>",
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true,
            "byte_fallback": true, "ignore_merges": false, "vocab": vocab, "merges": []},
    });
    let dir = TempDir::with(&[
        ("tokenizer.json", &tokenizer.to_string()),
        ("tokenizer_config.json", config),
    ]);
    TextModel::load(dir.path(), TextLimits::default()).unwrap()
}

/// Pieces for [`spm`] that meet every rule: leading spaces, spaces alone, none, characters of many
/// bytes, and a piece that looks like a byte but is not one.
pub(super) const PIECES: [&str; 12] =
    ["▁", "▁▁", "a", "b", "▁the", "the", "▁a▁b", "é", "▁日本", "\u{301}", "<0xZZ>", "\n"];

/// A small random number generator; its seed is printed by the tests that use it.
pub(super) struct Rng(u64);

impl Rng {
    /// Seeded from `CUELIGHT_SEED`, else from a constant; prints the seed for a failing test.
    pub(super) fn new() -> Self {
        let seed = std::env::var("CUELIGHT_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or(20_261_122);
        println!("run again with CUELIGHT_SEED={seed}");
        Self(seed)
    }

    /// A number below `bound`.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % bound as u64) as usize
    }
}
