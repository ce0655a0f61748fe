//! `POST /tokenize` and `POST /detokenize`: from bytes to a checked request.

use super::body::{self, Input};
use super::chat::{self, Conversation};
use super::common;
use super::fields::Fields;
use crate::http::errors::{ApiError, Problem};

/// A checked `/tokenize` request.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenizeRequest {
    /// The name of the model asked for.
    pub model: String,
    /// What to tokenize.
    pub source: Source,
    /// Whether the tokenizer adds its own special tokens.
    pub add_special_tokens: bool,
    /// Whether the answer also has each token's text.
    pub return_token_strs: bool,
}

/// Text, or a conversation to be rendered first.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// `prompt`
    Text(String),
    /// `messages` and what goes with them.
    Chat(Conversation),
}

/// A checked `/detokenize` request.
#[derive(Clone, Debug, PartialEq)]
pub struct DetokenizeRequest {
    /// The name of the model asked for.
    pub model: String,
    /// Token ids.
    pub tokens: Vec<u32>,
    /// Whether special tokens are left out of the text.
    pub skip_special_tokens: bool,
}

/// Parses and checks a `/tokenize` body.
///
/// # Errors
/// Malformed JSON, or the first parameter that is missing, of a wrong type or out of range.
pub fn parse_tokenize(bytes: &[u8]) -> Result<TokenizeRequest, ApiError> {
    let parsed = body::parse(bytes, "prompt")?;
    let fields = Fields::new(&parsed.fields);
    let model = common::model(fields)?;
    let source = match (parsed.input, fields.get("messages")) {
        (Some(Input::Text(text)), None) => {
            // Without messages they change nothing, but not whatever their type.
            chat::options(fields)?;
            Source::Text(text)
        }
        (None, Some(_)) => Source::Chat(chat::conversation(fields)?),
        (None, None) => {
            let text = "prompt is missing: give a string, or messages instead";
            return Err(ApiError::of(Problem::Missing, "prompt", text));
        }
        (Some(_), Some(_)) => {
            let text = "prompt and messages are both given: leave out one of them";
            return Err(ApiError::of(Problem::InvalidValue, "prompt", text));
        }
        (Some(_), None) => {
            let text = "prompt must be a string";
            return Err(ApiError::of(Problem::WrongType, "prompt", text));
        }
    };
    let by_default = matches!(source, Source::Text(_));
    Ok(TokenizeRequest {
        model,
        source,
        add_special_tokens: fields.flag("add_special_tokens")?.unwrap_or(by_default),
        return_token_strs: fields.flag("return_token_strs")?.unwrap_or(false),
    })
}

/// Parses and checks a `/detokenize` body.
///
/// # Errors
/// Malformed JSON, or the first parameter that is missing, of a wrong type or out of range.
pub fn parse_detokenize(bytes: &[u8]) -> Result<DetokenizeRequest, ApiError> {
    let parsed = body::parse(bytes, "tokens")?;
    let fields = Fields::new(&parsed.fields);
    let model = common::model(fields)?;
    let tokens = match parsed.input {
        Some(Input::Ids(ids)) => ids,
        Some(Input::Empty) => Vec::new(),
        None => {
            let text = "tokens is missing: give an array of token ids";
            return Err(ApiError::of(Problem::Missing, "tokens", text));
        }
        Some(_) => {
            let text = "tokens must be an array of token ids";
            return Err(ApiError::of(Problem::WrongType, "tokens", text));
        }
    };
    let skip_special_tokens = fields.flag("skip_special_tokens")?.unwrap_or(false);
    Ok(DetokenizeRequest { model, tokens, skip_special_tokens })
}
