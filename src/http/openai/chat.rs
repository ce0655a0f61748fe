//! `POST /v1/chat/completions`: from bytes to a checked request.

use serde_json::{Map, Value};

use super::common::{self, Common, Limits};
use super::fields::Fields;
use super::{body, messages, tools};
use crate::http::errors::{ApiError, Problem};

/// A checked chat request, not yet compared with the model's limits.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatRequest {
    /// What completions have too.
    pub common: Common,
    /// What the template is given.
    pub conversation: Conversation,
}

/// What a chat template turns into a prompt.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conversation {
    /// Objects with `role` and `content`; at least one.
    pub messages: Vec<Value>,
    /// Function definitions the model may call; absent if there are none or none may be called.
    pub tools: Option<Vec<Value>>,
    /// Whether the prompt ends with the start of the assistant's answer.
    pub add_generation_prompt: bool,
    /// Whether the prompt ends within the last message, for the model to go on with it.
    pub continue_final_message: bool,
    /// More variables for the template.
    pub kwargs: Map<String, Value>,
}

/// Parses and checks a request body.
///
/// # Errors
/// Malformed JSON, or the first parameter that is missing, of a wrong type, out of range, or asks
/// for what is not supported.
pub fn parse(bytes: &[u8], limits: Limits) -> Result<ChatRequest, ApiError> {
    let parsed = body::parse(bytes, "")?;
    let fields = Fields::new(&parsed.fields);
    let mut common = common::read(fields, limits, false)?;
    common.sampling.logprobs = logprobs(fields)?;
    let conversation = conversation(fields)?;
    unsupported(fields)?;
    Ok(ChatRequest { common, conversation })
}

/// Reads the part of a request that makes the prompt; `/tokenize` takes it too.
pub(super) fn conversation(fields: Fields<'_>) -> Result<Conversation, ApiError> {
    let continues = fields.flag("continue_final_message")?.unwrap_or(false);
    let generates = fields.flag("add_generation_prompt")?;
    if continues && generates == Some(true) {
        let rule = "is not allowed together with add_generation_prompt = true";
        return Err(fields.problem(Problem::InvalidValue, "continue_final_message", rule));
    }
    Ok(Conversation {
        messages: messages::read(fields)?,
        tools: tools::read(fields)?,
        add_generation_prompt: generates.unwrap_or(!continues),
        continue_final_message: continues,
        kwargs: fields.object("chat_template_kwargs")?.cloned().unwrap_or_default(),
    })
}

fn logprobs(fields: Fields<'_>) -> Result<Option<u8>, ApiError> {
    let wanted = fields.flag("logprobs")?.unwrap_or(false);
    let top = common::logprobs_count(fields, "top_logprobs")?;
    match (wanted, top) {
        (true, top) => Ok(Some(top.unwrap_or(0))),
        (false, None | Some(0)) => Ok(None),
        (false, Some(_)) => {
            let rule = "is only allowed together with logprobs = true";
            Err(fields.problem(Problem::InvalidValue, "top_logprobs", rule))
        }
    }
}

/// Refuses what would change the answer and is not done here.
fn unsupported(fields: Fields<'_>) -> Result<(), ApiError> {
    if let Some(format) = fields.object("response_format")? {
        let format = Fields::within(format, "response_format.");
        match format.text("type")? {
            Some("text") => {}
            Some(_) => {
                let rule = "is not supported yet; only \"text\" is";
                return Err(format.problem(Problem::Unsupported, "type", rule));
            }
            None => return Err(format.missing("type", "give \"text\"")),
        }
    }
    if let Some(modalities) = fields.array("modalities")?
        && modalities.iter().any(|modality| modality != "text")
    {
        let rule = "is not supported; only [\"text\"] is";
        return Err(fields.problem(Problem::Unsupported, "modalities", rule));
    }
    for name in ["audio", "functions", "function_call", "web_search_options", "prediction"] {
        if fields.get(name).is_some() {
            let rule = match name {
                "functions" | "function_call" => "is not supported; use tools and tool_choice",
                _ => "is not supported; leave it out",
            };
            return Err(fields.problem(Problem::Unsupported, name, rule));
        }
    }
    Ok(())
}
