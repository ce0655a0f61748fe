//! From a body to a job for the tree: parse, render, tokenize, compare with the model's limits.
//!
//! Plain functions: short bodies run on the connection's thread, long ones on the pool.

use std::sync::Arc;

use super::errors::{ApiError, Problem};
use super::openai::chat::{self, Conversation};
use super::openai::completions::{self, Prompt};
use super::openai::{Common, Kind, Limits};
use super::random;
use crate::actors::handle::FrontendHandle;
use crate::actors::models::ServedModel;
use crate::engine::Sampling;
use crate::text::{ChatTemplateInput, TextError};

/// A request as far as it can be decided without the tree.
pub(super) struct Job {
    pub(super) kind: Kind,
    pub(super) model: Arc<ServedModel>,
    pub(super) prompts: Vec<Arc<[u32]>>,
    /// The prompts' texts, if they begin the answers.
    pub(super) echo: Option<Arc<[String]>>,
    pub(super) max_tokens: u32,
    pub(super) sampling: Sampling,
    pub(super) common: Common,
    /// Tells the requests of one API key from those of another.
    pub(super) tenant: u64,
}

/// The model of this name.
pub(super) fn model(handle: &FrontendHandle, name: &str) -> Result<Arc<ServedModel>, ApiError> {
    handle.model(name).ok_or_else(|| ApiError::unknown_model(name))
}

/// Prepares `/v1/chat/completions`.
pub(super) fn chat(handle: &FrontendHandle, body: &[u8], limits: Limits) -> Result<Job, ApiError> {
    let request = chat::parse(body, limits)?;
    let model = model(handle, &request.common.model)?;
    let ids = conversation(&model, &request.conversation, request.common.add_special_tokens)?;
    job(Kind::Chat, model, vec![ids.into()], None, request.common)
}

/// Prepares `/v1/completions`.
pub(super) fn completion(
    handle: &FrontendHandle,
    body: &[u8],
    limits: Limits,
) -> Result<Job, ApiError> {
    let request = completions::parse(body, limits)?;
    let model = model(handle, &request.common.model)?;
    let common = request.common;
    let mut prompts = Vec::with_capacity(request.prompts.len());
    let mut echo = Vec::new();
    for prompt in request.prompts {
        let (ids, text) = match prompt {
            Prompt::Text(text) => (text_ids(&model, &text, common.add_special_tokens)?, Some(text)),
            Prompt::Ids(ids) => (known_ids(&model, ids)?, None),
        };
        if request.echo {
            let decode = || model.text.decode(&ids, common.skip_special_tokens);
            echo.push(text.map_or_else(decode, Ok).map_err(|error| text_error("prompt", &error))?);
        }
        prompts.push(ids.into());
    }
    let echo = request.echo.then(|| echo.into());
    job(Kind::Completion, model, prompts, echo, common)
}

/// The prompt of a conversation.
pub(super) fn conversation(
    model: &ServedModel,
    conversation: &Conversation,
    add_special_tokens: bool,
) -> Result<Vec<u32>, ApiError> {
    let input = ChatTemplateInput {
        messages: &conversation.messages,
        tools: conversation.tools.as_deref(),
        documents: None,
        add_generation_prompt: conversation.add_generation_prompt,
        continue_final_message: conversation.continue_final_message,
        kwargs: &conversation.kwargs,
    };
    let text = model.text.render_chat(&input).map_err(|error| text_error("messages", &error))?;
    let encoded = model.text.encode(&text, add_special_tokens);
    encoded.map_err(|error| text_error("messages", &error))
}

/// The token ids of a text.
pub(super) fn text_ids(
    model: &ServedModel,
    text: &str,
    add_special_tokens: bool,
) -> Result<Vec<u32>, ApiError> {
    model.text.encode(text, add_special_tokens).map_err(|error| text_error("prompt", &error))
}

fn known_ids(model: &ServedModel, ids: Vec<u32>) -> Result<Vec<u32>, ApiError> {
    let vocab = model.text.vocab_len();
    match ids.iter().find(|&&id| id as usize >= vocab) {
        None => Ok(ids),
        Some(&token) => Err(text_error("prompt", &TextError::UnknownToken { token, vocab })),
    }
}

/// A tokenizer's or template's error as the client's, unless the model is at fault.
pub(super) fn text_error(param: &str, error: &TextError) -> ApiError {
    if error.is_model_fault() {
        return ApiError::new(Problem::Internal, error.to_string());
    }
    let problem = match error {
        TextError::NoChatTemplate => Problem::Unsupported,
        _ => Problem::InvalidValue,
    };
    ApiError::of(problem, param, error.to_string())
}

fn job(
    kind: Kind,
    model: Arc<ServedModel>,
    prompts: Vec<Arc<[u32]>>,
    echo: Option<Arc<[String]>>,
    common: Common,
) -> Result<Job, ApiError> {
    let lengths = prompts.iter().map(|prompt| prompt.len());
    let max_tokens = output_room(kind, lengths, model.context, common.max_tokens)?;
    let vocab = model.text.vocab_len();
    let mut sampling = common.sampling.resolve(&model, vocab, random::number)?;
    sampling.priority = common.priority;
    sampling.bad_words = bad_words(&model, &common.bad_words)?;
    if sampling.min_tokens > max_tokens {
        let text = format!(
            "min_tokens = {}: must be at most the {max_tokens} tokens that can follow the prompt",
            sampling.min_tokens
        );
        return Err(ApiError::of(Problem::InvalidValue, "min_tokens", text));
    }
    Ok(Job { kind, model, prompts, echo, max_tokens, sampling, common, tenant: 0 })
}

/// Bad words as tokens: each as it is at the beginning of a text, and as it is after a space.
fn bad_words(model: &ServedModel, words: &[String]) -> Result<Vec<Vec<u32>>, ApiError> {
    let mut all: Vec<Vec<u32>> = Vec::new();
    for word in words {
        let bare = word.trim_start_matches(' ');
        for text in [bare.to_owned(), format!(" {bare}")] {
            let encoded = model.text.encode(&text, false);
            let tokens = encoded.map_err(|error| text_error("bad_words", &error))?;
            if !tokens.is_empty() && !all.contains(&tokens) {
                all.push(tokens);
            }
        }
    }
    Ok(all)
}

/// How many tokens each choice may have: what the client asked for, if it fits into the context
/// after every prompt; else OpenAI's defaults, the rest of the context or 16.
fn output_room(
    kind: Kind,
    prompts: impl Iterator<Item = usize>,
    context: usize,
    asked: Option<u32>,
) -> Result<u32, ApiError> {
    let param = match kind {
        Kind::Chat => "messages",
        Kind::Completion => "prompt",
    };
    let mut room = context;
    for length in prompts {
        if length == 0 {
            let text = format!("{param} made an empty prompt: it needs at least one token");
            return Err(ApiError::of(Problem::InvalidValue, param, text));
        }
        let left = context.saturating_sub(length);
        let needed = asked.map_or(1, |asked| asked as usize);
        if left < needed {
            let text = match asked {
                Some(asked) => format!(
                    "this model's context is {context} tokens; the prompt has {length} and \
                     max_tokens asks for {asked} more, {} in all; shorten one of them",
                    length + asked as usize
                ),
                None => format!(
                    "this model's context is {context} tokens; the prompt has {length} and leaves \
                     no room for an answer; shorten it"
                ),
            };
            return Err(ApiError::of(Problem::ContextLength, param, text));
        }
        room = room.min(left);
    }
    let by_default = match kind {
        Kind::Chat => room,
        Kind::Completion => room.min(16),
    };
    Ok(asked.unwrap_or_else(|| u32::try_from(by_default).unwrap_or(u32::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompt_and_output_fit_the_context_or_the_numbers_are_shown() {
        let room = |kind, prompts: &[usize], asked| {
            output_room(kind, prompts.iter().copied(), 100, asked)
                .map_err(|error| (error.problem, error.message))
        };
        assert_eq!(room(Kind::Chat, &[60], None), Ok(40));
        assert_eq!(room(Kind::Chat, &[60], Some(40)), Ok(40));
        assert_eq!(room(Kind::Completion, &[60], None), Ok(16));
        assert_eq!(room(Kind::Completion, &[60, 95], None), Ok(5));
        let cases = [
            (
                vec![60],
                Some(41),
                "this model's context is 100 tokens; the prompt has 60 and max_tokens asks for 41 more, 101 in all; shorten one of them",
            ),
            (
                vec![1, 100],
                None,
                "this model's context is 100 tokens; the prompt has 100 and leaves no room for an answer; shorten it",
            ),
        ];
        for (prompts, asked, text) in cases {
            let error = room(Kind::Completion, &prompts, asked);
            assert_eq!(error, Err((Problem::ContextLength, text.to_owned())));
        }
        let (problem, _) = room(Kind::Chat, &[0], None).unwrap_err();
        assert_eq!(problem, Problem::InvalidValue);
    }
}
