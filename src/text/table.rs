//! The bytes of every token, worked out once, and the rule that joins them into text.

use std::path::Path;

use serde::Deserialize;
use serde::de::IgnoredAny;
use tokenizers::Tokenizer;

use super::TextError;

/// Most ids a vocabulary may have; far above any real one, so that a wild id cannot eat the memory.
const MAX_VOCAB: usize = 1 << 24;

/// How tokens become text: what the `decoder` of tokenizer.json comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Joining {
    /// Tokens are bytes; the text is their concatenation.
    Bytes,
    /// Tokens are characters, some are single bytes of a character (`<0xE6>`).
    Pieces(Start),
    /// No table says it: the tokenizer itself decodes a window of tokens.
    Tokenizer,
}

/// What happens at the very start of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// Nothing.
    Keep,
    /// Up to `most` leading characters `content` go away.
    Strip { content: char, most: usize },
    /// The first token loses every mark that stands for a space.
    Unmarked { mark: char },
}

/// One row per id.
#[derive(Clone, Debug)]
pub(super) struct TokenTable {
    pub(super) joining: Joining,
    bytes: Vec<u8>,
    /// `ends[id]` is where the bytes of `id` end; they start where those of `id - 1` end.
    ends: Vec<u32>,
    flags: Vec<u8>,
}

const SPECIAL: u8 = 1;
const ONE_BYTE: u8 = 2;

impl TokenTable {
    /// Works out the table of the tokenizer that was read from `json` at `path`.
    pub(super) fn new(tokenizer: &Tokenizer, json: &[u8], path: &Path) -> Result<Self, TextError> {
        let vocab = tokenizer.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1);
        if vocab == 0 || vocab > MAX_VOCAB {
            return Err(TextError::Unsupported {
                path: path.to_owned(),
                field: "model.vocab".to_owned(),
                detail: format!("ids end at {vocab}"),
                supported: "ids from 0 to at most 16777215, at least one",
            });
        }
        // The tokenizers crate has read the same bytes, so what cannot be read here is a decoder
        // newer than this table, and the tokenizer decodes.
        let decoder = serde_json::from_slice::<DecoderOf>(json).ok().and_then(|file| file.decoder);
        let rule = decoder.map_or(Rule::tokenizer(), Rule::of);
        let mut table = Self {
            joining: rule.joining.clone(),
            bytes: Vec::with_capacity(vocab * 8),
            ends: Vec::with_capacity(vocab),
            flags: Vec::with_capacity(vocab),
        };
        for id in 0..vocab as u32 {
            table.add(tokenizer, &rule, id)?;
        }
        Ok(table)
    }

    fn add(&mut self, tokenizer: &Tokenizer, rule: &Rule, id: u32) -> Result<(), TextError> {
        let mut flags = 0;
        if let Some(token) = tokenizer.id_to_token(id) {
            if tokenizer.get_added_vocabulary().is_special_token(&token) {
                flags |= SPECIAL;
            }
            match rule.joining {
                Joining::Bytes => push_byte_level(&token, &mut self.bytes),
                Joining::Pieces(_) => {
                    let text = rule.replaced(token);
                    if let Some(byte) = rule.byte_fallback.then(|| single_byte(&text)).flatten() {
                        flags |= ONE_BYTE;
                        self.bytes.push(byte);
                    } else {
                        self.bytes.extend_from_slice(text.as_bytes());
                    }
                }
                Joining::Tokenizer => {
                    let text = tokenizer.decode(&[id], false).map_err(tokenizer_failed)?;
                    self.bytes.extend_from_slice(text.as_bytes());
                }
            }
        }
        let end = u32::try_from(self.bytes.len()).map_err(|error| TextError::TokenizerFailed {
            detail: format!("the vocabulary's text is too long: {error}"),
        })?;
        self.ends.push(end);
        self.flags.push(flags);
        Ok(())
    }

    /// Highest id + 1.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The bytes of a token; none for an id that is not in the vocabulary.
    pub(super) fn bytes(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let Some(&end) = self.ends.get(id) else { return &[] };
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        &self.bytes[start as usize..end as usize]
    }

    /// Whether the token is a control token such as `</s>`.
    pub(super) fn is_special(&self, id: u32) -> bool {
        self.flags.get(id as usize).is_some_and(|flags| flags & SPECIAL != 0)
    }

    /// Whether the token is one byte of a character (`<0xE6>`).
    pub(super) fn is_one_byte(&self, id: u32) -> bool {
        self.flags.get(id as usize).is_some_and(|flags| flags & ONE_BYTE != 0)
    }
}

/// The tokenizer's own words, as ours.
pub(super) fn tokenizer_failed(error: tokenizers::Error) -> TextError {
    TextError::TokenizerFailed { detail: error.to_string() }
}

/// The one field of tokenizer.json the table needs beside the tokenizer.
#[derive(Deserialize)]
struct DecoderOf {
    decoder: Option<Decoder>,
}

#[derive(Deserialize)]
#[serde(tag = "type")]
enum Decoder {
    ByteLevel,
    ByteFallback,
    Fuse,
    Metaspace {
        replacement: char,
        prepend_scheme: Option<String>,
    },
    Replace {
        pattern: Pattern,
        content: String,
    },
    Sequence {
        decoders: Vec<Decoder>,
    },
    Strip {
        content: char,
        start: usize,
        stop: usize,
    },
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
enum Pattern {
    String(String),
    Regex(IgnoredAny),
}

/// What a decoder does to one token, and what to all.
struct Rule {
    joining: Joining,
    /// (what, by what), in order.
    replace: Vec<(String, String)>,
    byte_fallback: bool,
}

impl Rule {
    fn tokenizer() -> Self {
        Self { joining: Joining::Tokenizer, replace: Vec::new(), byte_fallback: false }
    }

    fn of(decoder: Decoder) -> Self {
        let steps = match decoder {
            Decoder::Sequence { decoders } => decoders,
            single => vec![single],
        };
        if let [Decoder::ByteLevel] = steps[..] {
            return Self { joining: Joining::Bytes, ..Self::tokenizer() };
        }
        Self::pieces(steps).unwrap_or_else(Self::tokenizer)
    }

    /// `(Replace | Metaspace)* ByteFallback? (Fuse Strip?)?`; anything else is not for the table.
    fn pieces(steps: Vec<Decoder>) -> Option<Self> {
        let mut rule =
            Self { joining: Joining::Tokenizer, replace: Vec::new(), byte_fallback: false };
        let (mut start, mut fused) = (Start::Keep, false);
        for step in steps {
            match step {
                Decoder::Replace { pattern: Pattern::String(what), content }
                    if !fused && !rule.byte_fallback && !what.is_empty() =>
                {
                    rule.replace.push((what, content));
                }
                Decoder::Metaspace { replacement, prepend_scheme: Some(scheme) }
                    if rule.replace.is_empty() && !fused && !rule.byte_fallback =>
                {
                    rule.replace.push((replacement.to_string(), " ".to_owned()));
                    if scheme != "never" {
                        start = Start::Unmarked { mark: replacement };
                    }
                }
                Decoder::ByteFallback if !fused && start == Start::Keep => {
                    rule.byte_fallback = true;
                }
                Decoder::Fuse => fused = true,
                Decoder::Strip { content, start: most, stop: 0 }
                    if fused && start == Start::Keep =>
                {
                    start = Start::Strip { content, most };
                }
                _ => return None,
            }
        }
        rule.joining = Joining::Pieces(start);
        Some(rule)
    }

    fn replaced(&self, token: String) -> String {
        self.replace.iter().fold(token, |text, (what, by)| text.replace(what, by))
    }
}

/// The byte that a token such as `<0xE6>` stands for.
fn single_byte(token: &str) -> Option<u8> {
    if token.len() != 6 || !token.starts_with("<0x") || !token.ends_with('>') {
        return None;
    }
    u8::from_str_radix(token.get(3..5)?, 16).ok()
}

/// Appends what a byte-level token stands for: bytes, one a character, or, where a character
/// stands for none, the token as it is written.
fn push_byte_level(token: &str, bytes: &mut Vec<u8>) {
    let before = bytes.len();
    for character in token.chars() {
        let Some(byte) = byte_of(character) else {
            bytes.truncate(before);
            bytes.extend_from_slice(token.as_bytes());
            return;
        };
        bytes.push(byte);
    }
}

/// GPT-2's map: printable Latin-1 stands for itself, the 68 other bytes follow from U+0100 on.
fn byte_of(character: char) -> Option<u8> {
    match u32::from(character) {
        code @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => Some(code as u8),
        code @ 0x100..=0x120 => Some((code - 0x100) as u8),
        code @ 0x121..=0x142 => Some((code - 0x121 + 0x7f) as u8),
        0x143 => Some(0xad),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::testing;

    #[test]
    fn the_byte_map_covers_every_byte_once() {
        let mut seen = [false; 256];
        for code in 0..0x200 {
            if let Some(byte) = byte_of(char::from_u32(code).unwrap()) {
                assert!(!seen[byte as usize], "byte {byte:#x} twice, again for {code:#x}");
                seen[byte as usize] = true;
            }
        }
        assert!(seen.iter().all(|seen| *seen), "{seen:?}");
    }

    #[test]
    fn each_decoder_is_recognized_or_left_to_the_tokenizer() {
        let strip = Joining::Pieces(Start::Strip { content: ' ', most: 1 });
        let cases = [
            (testing::SPM_DECODER, strip),
            (testing::METASPACE_DECODER, Joining::Pieces(Start::Unmarked { mark: '▁' })),
            (testing::WORDPIECE_DECODER, Joining::Tokenizer),
            (r#"{"type": "ByteLevel", "add_prefix_space": true}"#, Joining::Bytes),
            (r#"{"type": "Sequence", "decoders": [{"type": "ByteLevel"}]}"#, Joining::Bytes),
            (
                r#"{"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]}"#,
                Joining::Pieces(Start::Keep),
            ),
            (
                r#"{"type": "Sequence", "decoders": [{"type": "Fuse"},
                    {"type": "Replace", "pattern": {"Regex": "x+"}, "content": " "}]}"#,
                Joining::Tokenizer,
            ),
            (r#"{"type": "CTC", "pad_token": "<pad>"}"#, Joining::Tokenizer),
        ];
        for (json, joining) in cases {
            let decoder = serde_json::from_str(json).unwrap();
            assert_eq!(Rule::of(decoder).joining, joining, "{json}");
        }
    }
}
