//! The encoder gives the ids of `tokenizers`, for every pipeline that it takes.

use std::path::Path;

use serde_json::{Value, json};
use tokenizers::normalizers::NFC;
use tokenizers::utils::SysRegex;
use tokenizers::{NormalizedString, Normalizer, Tokenizer};

use super::classes::{Class, Classes, nfc_keeps};
use super::split::contraction;
use super::*;
use crate::text::testing::Rng;

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// A byte-level BPE of the 256 bytes, a few merges, and added tokens that overlap.
fn fixture(pre_tokenizer: Value, edit: impl FnOnce(&mut Value)) -> Tokenizer {
    let mut vocab = serde_json::Map::new();
    for (byte, letter) in letters().into_iter().enumerate() {
        vocab.insert(letter.to_string(), byte.into());
    }
    let merges = [
        "Ġ t",
        "h e",
        "Ġt he",
        "T he",
        "i n",
        "in g",
        "1 2",
        "12 3",
        "Ċ Ċ",
        "Ġ Ġ",
        "ĠĠ ĠĠ",
        "' s",
        "l l",
        "' ll",
        "Ã ©",
        "ã ģ",
        "æ Ĺ",
        ". .",
        ".. .",
        "Ġ a",
        "e r",
        "č Ċ",
    ];
    for merge in merges {
        let id = vocab.len();
        vocab.insert(merge.replace(' ', ""), id.into());
    }
    // Only `ignore_merges` gives this one.
    vocab.insert("Ġquick".to_owned(), vocab.len().into());
    let token = |id: u32, content: &str, normalized: bool, special: bool| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": normalized, "special": special})
    };
    let mut file = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [token(1000, "<tok>", false, true), token(1001, "<tok>x", false, false),
            token(1002, "<tok", true, false), token(1003, "quick", true, false),
            token(1004, "<|end|>", false, true), token(1005, " <b>", true, true)],
        "normalizer": null, "pre_tokenizer": pre_tokenizer, "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null,
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
            "byte_fallback": false, "ignore_merges": false, "vocab": vocab, "merges": merges},
    });
    edit(&mut file);
    Tokenizer::from_bytes(file.to_string()).unwrap()
}

fn byte_level(use_regex: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex})
}

fn after(first: &Value, use_regex: bool) -> Value {
    json!({"type": "Sequence", "pretokenizers": [first, byte_level(use_regex)]})
}

fn split(regex: &str) -> Value {
    json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false})
}

fn template(single: Value) -> Value {
    json!({"type": "TemplateProcessing", "single": single,
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<tok>": {"id": "<tok>", "ids": [1000], "tokens": ["<tok>"]}}})
}

/// `<tok>` before the text, and after it.
fn tok_text_tok() -> Value {
    let tok = json!({"SpecialToken": {"id": "<tok>", "type_id": 0}});
    template(json!([tok, {"Sequence": {"id": "A", "type_id": 0}}, tok]))
}

fn shipped() -> Tokenizer {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/cuelight-tiny");
    Tokenizer::from_file(dir.join("tokenizer.json")).unwrap()
}

/// Every pipeline that the encoder takes.
fn pipelines() -> Vec<(&'static str, Tokenizer)> {
    let digits = |each: bool| json!({"type": "Digits", "individual_digits": each});
    vec![
        ("shipped", shipped()),
        ("gpt2", fixture(byte_level(true), |_| {})),
        ("each digit", fixture(after(&digits(true), true), |_| {})),
        ("digit runs", fixture(after(&digits(false), true), |_| {})),
        (
            "llama3",
            fixture(after(&split(LLAMA3), false), |file| {
                file["model"]["ignore_merges"] = true.into();
                file["post_processor"] = tok_text_tok();
            }),
        ),
        (
            "qwen2",
            fixture(after(&split(QWEN2), false), |file| {
                file["normalizer"] = json!({"type": "NFC"});
                file["post_processor"] = byte_level(false);
            }),
        ),
    ]
}

fn encoded(
    encoder: &Encoder,
    tokenizer: &Tokenizer,
    text: &str,
    special: bool,
) -> Option<Vec<u32>> {
    let mut tokens = vec![77];
    let done = encoder.encode(tokenizer, text, special, &mut tokens);
    assert_eq!(tokens[0], 77);
    assert!(done || tokens.len() == 1, "{text:?} was left half done");
    done.then(|| tokens.split_off(1))
}

const PIECES: [&str; 84] = [
    "the",
    " the",
    "The",
    "quick",
    " quick",
    "ing",
    "x",
    "I",
    "'s",
    "'S",
    "'\u{17f}",
    "'ll",
    "'LL",
    "'lL",
    "'re",
    "'vE",
    "'d",
    "'M",
    "'t",
    "'",
    "''",
    "' s",
    " ",
    "  ",
    "    ",
    "\t",
    "\n",
    "\r",
    "\r\n",
    "\n\n",
    " \n ",
    "\u{a0}",
    "\u{2003}",
    "\u{3000}",
    "\u{85}",
    "\u{2028}",
    "\u{b}",
    "\u{c}",
    "\u{1c}",
    "\u{1680}",
    "\u{180e}",
    "\u{200b}",
    "\u{feff}",
    "0",
    "12",
    "1234567",
    "½",
    "²",
    "Ⅷ",
    "๑๒",
    "𝟘",
    "㊿",
    "一",
    "é",
    "e\u{301}",
    "ß",
    "ª",
    "日本語",
    "한국어",
    "ひらがな",
    "кот",
    "مرحبا",
    "हिन्दी",
    "😀",
    "👨\u{200d}👩\u{200d}👧",
    "🇫🇷",
    "!",
    "...",
    "\"",
    "-",
    "_",
    "\0",
    "\u{7f}",
    "\u{fffd}",
    "\u{10ffff}",
    "<|im_start|>",
    "<|im_end|>",
    "<|im",
    "<tool_call>",
    "<tok>",
    "<tok>x",
    "<tok",
    " <b>",
    "<|end|>",
];

fn random_text(rng: &mut Rng) -> String {
    let mut text = String::new();
    for _ in 0..rng.below(24) {
        let bound = match rng.below(10) {
            0 => 0x80,
            1 => 0x300,
            2 => 0x1_0000,
            3 => 0x11_0000,
            _ => {
                text.push_str(PIECES[rng.below(PIECES.len())]);
                continue;
            }
        };
        text.extend(char::from_u32(rng.below(bound) as u32));
    }
    text
}

#[test]
fn ids_equal_those_of_tokenizers_for_random_text() {
    let mut rng = Rng::new();
    for (name, tokenizer) in pipelines() {
        // So few words that the cache starts over again and again.
        let encoder = Encoder::recognise(&tokenizer, 256, 1 << 20).expect(name);
        let mut taken = 0;
        for round in 0..4000 {
            let text = random_text(&mut rng);
            let special = round % 2 == 0;
            let wanted = tokenizer.encode_fast(&*text, special).unwrap();
            let Some(tokens) = encoded(&encoder, &tokenizer, &text, special) else { continue };
            assert_eq!(tokens, wanted.get_ids(), "{name}: {text:?}");
            taken += 1;
        }
        assert!(taken == 4000 || (name == "qwen2" && taken > 500), "{name}: {taken}");
    }
}

/// Some thousand bytes with places where they can be cut, and much that is near to one.
fn long_text(rng: &mut Rng) -> String {
    let mut text = String::new();
    while text.len() < 5 * chunks::CHUNK {
        match rng.below(3) {
            0 => text.push_str(&random_text(rng)),
            _ => text.push_str([" and so on", " it's", "x y", " \n a", "the 12 of"][rng.below(5)]),
        }
    }
    text
}

#[test]
fn ids_equal_those_of_tokenizers_for_long_texts_that_begin_alike() {
    let mut rng = Rng::new();
    for (name, tokenizer) in pipelines() {
        let encoder = Encoder::recognise(&tokenizer, 256, 1 << 20).expect(name);
        assert!(encoder.is_cut, "{name}");
        let mut begins: Vec<_> = (0..4).map(|_| long_text(&mut rng)).collect();
        // For those who leave all but some characters to `tokenizers`.
        begins.push(begins[0].chars().filter(char::is_ascii).collect());
        let mut cut = 0;
        for _ in 0..60 {
            let (begin, keep) = (&begins[rng.below(begins.len())], rng.below(2) == 0);
            let mut text = format!("{begin}{}", random_text(&mut rng));
            text.retain(|c| keep || c.is_ascii());
            let wanted = tokenizer.encode_fast(&*text, false).unwrap();
            let Some(tokens) = encoded(&encoder, &tokenizer, &text, false) else { continue };
            assert_eq!(tokens, wanted.get_ids(), "{name}: {text:?}");
            cut += usize::from(chunks::end(&text).is_some());
        }
        assert!(cut > 3, "{name}: {cut}");
    }
}

#[test]
fn ids_equal_those_of_tokenizers_for_long_words_and_up_to_the_bound() {
    for (name, tokenizer) in pipelines() {
        let encoder = Encoder::recognise(&tokenizer, 1024, 0).expect(name);
        for piece in ["a", " ", "\n", "7", "!", "é", "日", "\u{a0}"] {
            for times in [31, 600, 9000] {
                let text = format!("x{} y", piece.repeat(times));
                let wanted = tokenizer.encode_fast(&*text, false).unwrap();
                let tokens = encoded(&encoder, &tokenizer, &text, false).expect(name);
                assert_eq!(tokens, wanted.get_ids(), "{name}: {piece:?} {times} times");
            }
        }
        let bound = "a".repeat(MAX_WORD);
        assert!(encoded(&encoder, &tokenizer, &bound, true).is_some(), "{name}");
        assert_eq!(encoded(&encoder, &tokenizer, &format!("{bound}a"), true), None, "{name}");
    }
}

#[test]
fn threads_that_share_an_encoder_get_the_ids_of_tokenizers() {
    let tokenizer = shipped();
    let encoder = Encoder::recognise(&tokenizer, 256, 1 << 20).unwrap();
    let mut rng = Rng::new();
    let texts: Vec<String> = (0..800).map(|_| random_text(&mut rng)).collect();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for text in &texts {
                    let wanted = tokenizer.encode_fast(text.as_str(), false).unwrap();
                    let tokens = encoded(&encoder, &tokenizer, text, false);
                    assert_eq!(tokens.as_deref(), Some(wanted.get_ids()), "{text:?}");
                }
            });
        }
    });
}

#[test]
fn every_character_has_the_class_that_the_regex_engine_gives_it() {
    let classes = Classes::shared().unwrap();
    let every = || ('\0'..=char::MAX).map(|c| (c, classes.of(c)));
    let all: String = ('\0'..=char::MAX).collect();
    let found = |pattern: &str| -> String {
        SysRegex::new(pattern)
            .unwrap()
            .find_iter(&all)
            .map(|(start, end)| &all[start..end])
            .collect()
    };
    let ours = |wanted: &[Class]| -> String {
        every().filter(|(_, class)| wanted.contains(class)).map(|(c, _)| c).collect()
    };
    assert!(found(r"\p{L}") == ours(&[Class::Letter]));
    assert!(found(r"\p{N}") == ours(&[Class::Number]));
    assert!(found(r"\s") == ours(&[Class::Space, Class::Newline]));
    assert!(found(r"[\r\n]") == ours(&[Class::Newline]));
    assert!(found(r"[^\s\p{L}\p{N}]") == ours(&[Class::Other]));
}

#[test]
fn contractions_are_those_of_the_patterns() {
    let cases = [("(?i:'s|'t|'re|'ve|'m|'ll|'d)", true), ("'s|'t|'re|'ve|'m|'ll|'d", false)];
    for (pattern, any_case) in cases {
        let regex = SysRegex::new(pattern).unwrap();
        for (before, after) in [("", ""), ("", "e"), ("r", ""), ("V", ""), ("l", ""), ("", "L")] {
            // Each apostrophe starts one case.
            let text: String = ('\0'..=char::MAX).map(|c| format!("'{before}{c}{after}")).collect();
            let wanted: Vec<(usize, usize)> = regex.find_iter(&text).collect();
            let ours: Vec<(usize, usize)> = text
                .match_indices('\'')
                .filter_map(|(at, _)| {
                    Some((at, at + 1 + contraction(&text.as_bytes()[at + 1..], any_case)?))
                })
                .collect();
            assert!(!wanted.is_empty() || before == "V", "{pattern} {before} {after}");
            assert!(wanted == ours, "{pattern} {before} {after}");
        }
    }
}

#[test]
fn nfc_leaves_text_of_the_characters_that_pass() {
    let kept: Vec<char> = ('\0'..=char::MAX).filter(|c| nfc_keeps(*c)).collect();
    let mut rng = Rng::new();
    let random: String = (0..400_000).map(|_| kept[rng.below(kept.len())]).collect();
    let each: String = kept.iter().flat_map(|c| ['e', *c]).collect();
    for text in [random, each] {
        let mut normalized = NormalizedString::from(text.as_str());
        NFC.normalize(&mut normalized).unwrap();
        assert!(normalized.get() == text);
    }
}

#[test]
fn what_is_not_known_is_left_to_tokenizers() {
    type Edit = fn(&mut Value);
    let cases: [(&str, Edit); 10] = [
        ("lstrip", |file| file["added_tokens"][0]["lstrip"] = true.into()),
        ("rstrip", |file| file["added_tokens"][1]["rstrip"] = true.into()),
        ("single_word", |file| file["added_tokens"][2]["single_word"] = true.into()),
        ("normalizer", |file| file["normalizer"] = json!({"type": "Lowercase"})),
        ("a token that NFC rewrites", |file| {
            file["normalizer"] = json!({"type": "NFC"});
            file["added_tokens"][3]["content"] = "\u{212a}".into();
        }),
        ("prefix space", |file| file["pre_tokenizer"]["add_prefix_space"] = true.into()),
        ("no pattern", |file| file["pre_tokenizer"] = byte_level(false)),
        ("another pattern", |file| file["pre_tokenizer"] = after(&split(r"\p{L}+"), false)),
        ("inverted", |file| {
            let mut inverted = split(LLAMA3);
            inverted["invert"] = true.into();
            file["pre_tokenizer"] = after(&inverted, false);
        }),
        ("dropout", |file| file["model"]["dropout"] = 0.5.into()),
    ];
    for (name, edit) in cases {
        let tokenizer = fixture(byte_level(true), edit);
        assert!(Encoder::recognise(&tokenizer, 16, 0).is_none(), "{name}");
    }
    assert!(Encoder::recognise(&fixture(byte_level(true), |_| {}), 16, 0).is_some());
}

#[test]
fn a_template_is_followed_only_if_it_is_ids_around_the_text() {
    let text = json!({"Sequence": {"id": "A", "type_id": 0}});
    let tok = json!({"SpecialToken": {"id": "<tok>", "type_id": 0}});
    let cases = [
        (json!([tok, text, tok]), Some((vec![1000], vec![1000]))),
        (json!([text, tok, tok]), Some((vec![], vec![1000, 1000]))),
        (json!([text]), Some((vec![], vec![]))),
        (json!([text, tok, text]), None),
    ];
    for (single, wanted) in cases {
        let tokenizer =
            fixture(byte_level(true), |file| file["post_processor"] = template(single.clone()));
        assert_eq!(around(&tokenizer), wanted, "{single}");
        let Some(encoder) = Encoder::recognise(&tokenizer, 16, 0) else {
            assert_eq!(wanted, None, "{single}");
            continue;
        };
        let ids = tokenizer.encode_fast("the thing", true).unwrap();
        let own = encoded(&encoder, &tokenizer, "the thing", true);
        assert_eq!(own.as_deref(), wanted.is_some().then_some(ids.get_ids()), "{single}");
    }
}
