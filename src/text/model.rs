//! [`TextModel`]: the tokenizer, the token table and the chat template of one model directory.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use tokenizers::Tokenizer;

use super::chat::{ChatTemplateInput, ChatTemplates};
use super::config::TokenizerConfig;
use super::encode::Encoder;
use super::table::{TokenTable, tokenizer_failed};
use super::{StopStrings, TextError};

/// Bounds on the work that one request can cause here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextLimits {
    /// Work one rendering of the chat template may do: about one unit an instruction and one per
    /// 64 bytes of text made. Default 5,000,000, which is a fraction of a second.
    pub template_fuel: u64,
    /// Stop strings one request may have. Default 16.
    pub stop_strings: usize,
    /// Words whose tokens are kept for the next text that has them, at 64 bytes each; rounded down
    /// to a power of two. Default 65,536, which is 4 MiB.
    pub cached_words: usize,
    /// Bytes for parts of long texts and their tokens, kept for the next text that begins alike.
    /// Default 32 MiB.
    pub cached_bytes: usize,
}

impl Default for TextLimits {
    fn default() -> Self {
        Self {
            template_fuel: 5_000_000,
            stop_strings: 16,
            cached_words: 65_536,
            cached_bytes: 32 << 20,
        }
    }
}

/// How much of some [`TextLimits`] is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TextUsage {
    /// Words whose tokens are kept.
    pub cached_words: usize,
    /// Bytes of parts of texts that are kept with their tokens.
    pub cached_bytes: usize,
    /// Most fuel that one rendering of the chat template took.
    pub most_fuel: u64,
}

/// What turns text into tokens and back for one model. Shared: what is kept
/// of texts has locks of its own.
pub struct TextModel {
    pub(super) tokenizer: Tokenizer,
    /// `None` for a tokenizer that only `tokenizers` knows.
    encoder: Option<Encoder>,
    pub(super) table: TokenTable,
    config: TokenizerConfig,
    chat: Option<ChatTemplates>,
    limits: TextLimits,
}

impl TextModel {
    /// Reads tokenizer.json, and tokenizer_config.json, special_tokens_map.json and the chat
    /// template files where they exist, from a Hugging Face model directory.
    ///
    /// Truncation and padding that tokenizer.json may ask for are switched off.
    ///
    /// # Errors
    /// [`TextError::Unreadable`] without a readable tokenizer.json, [`TextError::Unsupported`] for
    /// content that is not understood, also a chat template that does not compile.
    pub fn load(dir: &Path, limits: TextLimits) -> Result<Self, TextError> {
        let path = dir.join("tokenizer.json");
        let json = std::fs::read(&path).map_err(|error| TextError::Unreadable {
            detail: if dir.join("tokenizer.model").exists() {
                "only tokenizer.model is there; convert it to tokenizer.json".to_owned()
            } else {
                error.to_string()
            },
            path: path.clone(),
        })?;
        let tokenizer = read_tokenizer(&json, &path)?;
        let table = TokenTable::new(&tokenizer, &json, &path)?;
        let encoder = Encoder::recognise(&tokenizer, limits.cached_words, limits.cached_bytes);
        let config = TokenizerConfig::load(dir)?;
        let chat = ChatTemplates::compile(&config, limits.template_fuel)?;
        Ok(Self { tokenizer, encoder, table, config, chat, limits })
    }

    /// The token ids of a text.
    ///
    /// `add_special` puts BOS and EOS around it where the model wants them: true for completions,
    /// false for a rendered chat, whose template writes them itself.
    ///
    /// # Errors
    /// [`TextError::TokenizerFailed`], e.g. for a character that a vocabulary without an unknown
    /// token does not have.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TextError> {
        let (wrap, by_tokenizer) = match self.config.wrap {
            Some(wrap) if add_special => (wrap, false),
            _ => ((false, false), add_special),
        };
        let wanted = |wanted: bool, key| if wanted { self.special_id(key) } else { None };
        let (bos, eos) = (wanted(wrap.0, "bos_token"), wanted(wrap.1, "eos_token"));
        let mut tokens = Vec::with_capacity(text.len() / 4 + 16);
        tokens.extend(bos);
        let encoder = self.encoder.as_ref();
        if !encoder.is_some_and(|own| own.encode(&self.tokenizer, text, by_tokenizer, &mut tokens))
        {
            let encoding = self.tokenizer.encode_fast(text, by_tokenizer);
            tokens.extend_from_slice(encoding.map_err(tokenizer_failed)?.get_ids());
        }
        tokens.extend(eos);
        Ok(tokens)
    }

    /// The whole text of some tokens, as the tokenizer itself decodes them. Spaces before
    /// punctuation stay also where tokenizer_config.json asks for `clean_up_tokenization_spaces`,
    /// so that this and a [`Detokenizer`](super::Detokenizer) give the same text.
    ///
    /// # Errors
    /// [`TextError::UnknownToken`] for an id at or above [`Self::vocab_len`],
    /// [`TextError::TokenizerFailed`].
    pub fn decode(&self, tokens: &[u32], skip_special: bool) -> Result<String, TextError> {
        let vocab = self.vocab_len();
        if let Some(&token) = tokens.iter().find(|token| **token as usize >= vocab) {
            return Err(TextError::UnknownToken { token, vocab });
        }
        self.tokenizer.decode(tokens, skip_special).map_err(tokenizer_failed)
    }

    /// The prompt of a conversation, written by the model's chat template.
    ///
    /// # Errors
    /// [`TextError::NoChatTemplate`], [`TextError::BadMessage`], [`TextError::Refused`],
    /// [`TextError::TemplateFailed`], [`TextError::TemplateTooCostly`].
    pub fn render_chat(&self, input: &ChatTemplateInput<'_>) -> Result<String, TextError> {
        self.chat.as_ref().ok_or(TextError::NoChatTemplate)?.render(input)
    }

    /// Compiles the stop strings of a request.
    ///
    /// # Errors
    /// [`TextError::BadStop`] for more than [`TextLimits::stop_strings`] or an empty one.
    pub fn stop_strings(&self, stops: &[String]) -> Result<StopStrings, TextError> {
        StopStrings::new(stops, self.limits.stop_strings)
    }

    /// How much of the limits is used.
    pub fn usage(&self) -> TextUsage {
        let (cached_words, cached_bytes) =
            self.encoder.as_ref().map_or((0, 0), |encoder| encoder.cached());
        let most_fuel = self.chat.as_ref().map_or(0, ChatTemplates::most_fuel);
        TextUsage { cached_words, cached_bytes, most_fuel }
    }

    /// Whether [`Self::render_chat`] has a template.
    pub fn has_chat_template(&self) -> bool {
        self.chat.is_some()
    }

    /// Highest token id + 1, added tokens included: ids at or above it must never be sampled.
    pub fn vocab_len(&self) -> usize {
        self.table.len()
    }

    /// The bytes a token adds to a text; empty for an id that is not in the vocabulary.
    ///
    /// Together the tokens of a text give its bytes, save for what the tokenizer strips at the
    /// start, and for tokenizers whose decoder looks at a token's neighbours.
    pub fn token_bytes(&self, token: u32) -> &[u8] {
        self.table.bytes(token)
    }

    /// [`Self::token_bytes`] as text; bytes that are no text read as U+FFFD.
    pub fn token_text(&self, token: u32) -> Cow<'_, str> {
        String::from_utf8_lossy(self.table.bytes(token))
    }

    /// A token as the vocabulary writes it (`Ġthe`, `▁the`).
    pub fn token_name(&self, token: u32) -> Option<String> {
        self.tokenizer.id_to_token(token)
    }

    /// Whether a token is a control token (`<|im_end|>`), which text leaves out.
    pub fn is_special(&self, token: u32) -> bool {
        self.table.is_special(token)
    }

    /// The id of a special token by its key in tokenizer_config.json, e.g. `eos_token`.
    pub fn special_id(&self, key: &str) -> Option<u32> {
        self.tokenizer.token_to_id(self.config.token(key)?)
    }
}

fn read_tokenizer(json: &[u8], path: &Path) -> Result<Tokenizer, TextError> {
    let refuse = |field: &str, error: tokenizers::Error| TextError::Unsupported {
        path: PathBuf::from(path),
        field: field.to_owned(),
        detail: error.to_string(),
        supported: "tokenizer.json of version 1.0 with a BPE, Unigram, WordPiece or WordLevel model",
    };
    let mut tokenizer = Tokenizer::from_bytes(json).map_err(|error| refuse("the file", error))?;
    tokenizer.with_truncation(None).map_err(|error| refuse("truncation", error))?;
    tokenizer.with_padding(None);
    Ok(tokenizer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::testing::{self, PIECES, SPM_DECODER, TempDir};

    #[test]
    fn a_missing_or_broken_tokenizer_is_refused_by_name() {
        let cases: [(&[(&str, &str)], &str); 4] = [
            (&[], "tokenizer.json: "),
            (&[("tokenizer.model", "")], "only tokenizer.model is there"),
            (&[("tokenizer.json", "{}")], "tokenizer.json: the file: "),
            (
                &[("tokenizer.json", r#"{"version": "1.0", "model": {"type": "Rune"}}"#)],
                "supported: tokenizer.json of version 1.0",
            ),
        ];
        for (files, wanted) in cases {
            let dir = TempDir::with(files);
            let error = TextModel::load(dir.path(), TextLimits::default()).err().unwrap();
            let shown = error.to_string();
            assert!(shown.contains(wanted) && error.is_model_fault(), "{files:?}: {shown}");
        }
    }

    #[test]
    fn the_vocabulary_ends_after_the_last_added_token() {
        let model = testing::shipped();
        assert_eq!(model.vocab_len(), 2042);
        assert_eq!(model.special_id("eos_token"), Some(2));
        assert_eq!(model.special_id("bos_token"), None);
        assert_eq!(model.token_name(2041).as_deref(), Some("</think>"));
        assert!(model.is_special(2) && !model.is_special(2041) && !model.is_special(9_999));
        assert_eq!(model.token_bytes(2), b"<|im_end|>");
        assert!(model.token_bytes(9_999).is_empty());
        let unknown = TextError::UnknownToken { token: 2042, vocab: 2042 };
        assert_eq!(model.decode(&[2042], true), Err(unknown));
    }

    #[test]
    fn truncation_and_padding_of_the_file_are_switched_off() {
        let model = testing::spm(&PIECES, SPM_DECODER);
        // The file truncates to 4 tokens and pads to 16.
        let tokens = model.encode("ab ab ab ab", false).unwrap();
        assert_eq!(tokens.len(), 12);
        assert_eq!(model.encode("ab ab ab ab", true).unwrap()[1..], tokens);
    }

    #[test]
    fn llama_tokenizers_follow_add_bos_token_and_others_the_post_processor() {
        // The fixture's post-processor adds <s>.
        let base = r#""bos_token": "<s>", "eos_token": "</s>""#;
        let cases = [
            (String::new(), vec![1], vec![]),
            (
                r#", "tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": false"#.into(),
                vec![1],
                vec![],
            ),
            (r#", "tokenizer_class": "LlamaTokenizerFast""#.into(), vec![1], vec![]),
            (
                r#", "tokenizer_class": "LlamaTokenizer", "add_bos_token": false"#.into(),
                vec![],
                vec![],
            ),
            (
                r#", "tokenizer_class": "LlamaTokenizer", "add_eos_token": true"#.into(),
                vec![1],
                vec![2],
            ),
        ];
        for (more, before, after) in cases {
            let model =
                testing::spm_with_config(&PIECES, SPM_DECODER, &format!("{{{base}{more}}}"));
            let bare = model.encode("ab", false).unwrap();
            assert_eq!(model.encode("ab", true).unwrap(), [before, bare, after].concat(), "{more}");
        }
    }

    #[test]
    fn a_token_that_is_part_of_a_character_has_its_bytes() {
        let model = testing::shipped();
        let tokens = model.encode("日", false).unwrap();
        let bytes: Vec<u8> =
            tokens.iter().flat_map(|token| model.token_bytes(*token).to_vec()).collect();
        assert_eq!(bytes, "日".as_bytes());
        assert!(tokens.len() > 1, "{tokens:?}");
        assert_eq!(model.token_text(tokens[0]), "\u{fffd}");
        let spm = testing::spm(&PIECES, SPM_DECODER);
        assert_eq!(
            (spm.token_bytes(3 + 0xe6), spm.token_bytes(259 + 4)),
            (&b"\xe6"[..], &b" the"[..])
        );
    }
}
