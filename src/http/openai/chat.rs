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
    /// Objects with `role` and `content`; a chat request has at least one.
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
    Ok(Conversation { messages: messages::read(fields)?, ..options(fields)? })
}

/// Reads a conversation's options, without its messages.
pub(super) fn options(fields: Fields<'_>) -> Result<Conversation, ApiError> {
    let continues = fields.flag("continue_final_message")?.unwrap_or(false);
    let generates = fields.flag("add_generation_prompt")?;
    if continues && generates == Some(true) {
        let rule = "is not allowed together with add_generation_prompt = true";
        return Err(fields.problem(Problem::InvalidValue, "continue_final_message", rule));
    }
    Ok(Conversation {
        messages: Vec::new(),
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parsed(mut body: Value) -> Result<ChatRequest, ApiError> {
        let map = body.as_object_mut().unwrap();
        map.entry("model").or_insert(json!("m"));
        map.entry("messages").or_insert(json!([{ "role": "user", "content": "hi" }]));
        parse(body.to_string().as_bytes(), Limits { max_choices: 4 })
    }

    /// Request, the parameter at fault, and what is said of it.
    type Mistake = (Value, &'static str, &'static str);

    fn message(message: Value) -> Value {
        json!({ "messages": [message] })
    }

    fn tool(tool: Value) -> Value {
        json!({ "tools": [tool] })
    }

    fn mistakes_1() -> Vec<Mistake> {
        vec![
            (
                json!({ "model": null }),
                "model",
                "model is missing: name one of the models of GET /v1/models",
            ),
            (json!({ "model": 1 }), "model", "model = 1: must be a string"),
            (
                json!({ "messages": null }),
                "messages",
                "messages is missing: give an array of messages",
            ),
            (
                json!({ "messages": [] }),
                "messages",
                "messages = []: must have at least one message",
            ),
            (message(json!("x")), "messages[0]", "messages[0] = \"x\": must be an object"),
            (
                message(json!({ "role": "king", "content": "x" })),
                "messages[0].role",
                "messages[0].role = \"king\": must be one of \"system\", \"developer\", \"user\", \"assistant\", \"tool\", \"function\"",
            ),
            (
                message(json!({ "role": "user" })),
                "messages[0].content",
                "messages[0].content is missing: must be a string or an array of text parts",
            ),
            (
                message(json!({ "role": "user", "content": 5 })),
                "messages[0].content",
                "messages[0].content = 5: must be a string or an array of text parts",
            ),
            (
                message(json!({ "role": "user", "content": [{ "type": "image_url" }] })),
                "messages[0].content[0].type",
                "messages[0].content[0].type = \"image_url\": is not supported; only \"text\" parts are",
            ),
            (
                message(json!({ "role": "tool", "content": "x" })),
                "messages[0].tool_call_id",
                "messages[0].tool_call_id is missing: give the id of the call answered",
            ),
            (
                message(json!({ "role": "assistant", "tool_calls": [{ "id": "a" }] })),
                "messages[0].tool_calls[0].function",
                "messages[0].tool_calls[0].function is missing: give an object with name and arguments",
            ),
            (
                json!({ "temperature": "hot" }),
                "temperature",
                "temperature = \"hot\": must be a number from 0 to 2",
            ),
        ]
    }

    fn mistakes_2() -> Vec<Mistake> {
        vec![
            (
                json!({ "temperature": 2.5 }),
                "temperature",
                "temperature = 2.5: must be a number from 0 to 2",
            ),
            (json!({ "top_p": 0 }), "top_p", "top_p = 0: must be a number above 0 and at most 1"),
            (
                json!({ "repetition_penalty": 0 }),
                "repetition_penalty",
                "repetition_penalty = 0: must be a number from 0.01 to 10",
            ),
            (json!({ "n": 5 }), "n", "n = 5: must be a whole number from 1 to 4"),
            (
                json!({ "max_tokens": 1.5 }),
                "max_tokens",
                "max_tokens = 1.5: must be a whole number from 1 to 4294967295",
            ),
            (
                json!({ "min_tokens": 3, "max_tokens": 2 }),
                "min_tokens",
                "min_tokens = 3: must be at most max_tokens, which is 2",
            ),
            (
                json!({ "seed": 0.5 }),
                "seed",
                "seed = 0.5: must be a whole number of at most 64 bits",
            ),
            (
                json!({ "seed": 1e30 }),
                "seed",
                "seed = 1e+30: must be a whole number of at most 64 bits",
            ),
            (
                json!({ "stop": ["a", ""] }),
                "stop",
                "stop = [… 2 items]: must be a string or an array of at most 16 strings, none empty",
            ),
            (
                json!({ "stop": vec!["x"; 17] }),
                "stop",
                "stop = [… 17 items]: must be a string or an array of at most 16 strings, none empty",
            ),
            (
                json!({ "stop_token_ids": [1, -1] }),
                "stop_token_ids[1]",
                "stop_token_ids[1] = -1: must be a token id",
            ),
            (
                json!({ "logit_bias": { "x": 1 } }),
                "logit_bias.x",
                "logit_bias.x = 1: the names in logit_bias must be token ids, such as \"42\"",
            ),
        ]
    }

    fn mistakes_3() -> Vec<Mistake> {
        vec![
            (
                json!({ "logit_bias": { "1": 101 } }),
                "logit_bias.1",
                "logit_bias.1 = 101: must be a number from -100 to 100",
            ),
            (
                json!({ "top_logprobs": 2 }),
                "top_logprobs",
                "top_logprobs = 2: is only allowed together with logprobs = true",
            ),
            (
                json!({ "logprobs": true, "top_logprobs": 21 }),
                "top_logprobs",
                "top_logprobs = 21: must be a whole number from 0 to 20",
            ),
            (
                json!({ "stream_options": { "include_usage": true } }),
                "stream_options",
                "stream_options = {… 1 fields}: is only allowed together with stream = true",
            ),
            (
                json!({ "stream": true, "stream_options": { "include_usage": 1 } }),
                "stream_options.include_usage",
                "stream_options.include_usage = 1: must be true or false",
            ),
            (
                json!({ "tool_choice": "required" }),
                "tool_choice",
                "tool_choice = \"required\": must be \"none\" or \"auto\"; calling a function for certain is not supported yet",
            ),
            (
                tool(json!({ "type": "function", "function": {} })),
                "tools[0].function.name",
                "tools[0].function.name is missing: give the function's name",
            ),
            (
                tool(json!({ "type": "retrieval" })),
                "tools[0].type",
                "tools[0].type = \"retrieval\": is not supported; only \"function\" is",
            ),
            (
                json!({ "response_format": { "type": "xml" } }),
                "response_format.type",
                "response_format.type = \"xml\": must be \"text\", \"json_object\", \"json_schema\", \"regex\", \"ebnf\" or \"structural_tag\"",
            ),
            (
                json!({ "bad_words": ["a", ""] }),
                "bad_words[1]",
                "bad_words[1] = \"\": must have at most 128 texts, each of 1 to 256 bytes",
            ),
            (json!({ "lora": "" }), "lora", "lora = \"\": must not be empty"),
            (
                json!({ "bad_words": ["a", 3] }),
                "bad_words[1]",
                "bad_words[1] = 3: must have at most 128 texts, each of 1 to 256 bytes",
            ),
            (
                json!({ "functions": [] }),
                "functions",
                "functions = []: is not supported; use tools and tool_choice",
            ),
            (json!({ "cache_salt": "" }), "cache_salt", "cache_salt = \"\": must not be empty"),
            (json!({ "user": 7 }), "user", "user = 7: must be a string"),
        ]
    }

    fn mistakes_4() -> Vec<Mistake> {
        vec![(
            json!({ "add_generation_prompt": true, "continue_final_message": true }),
            "continue_final_message",
            "continue_final_message = true: is not allowed together with add_generation_prompt = true",
        )]
    }

    #[test]
    fn a_mistake_is_answered_with_its_parameter_value_and_rule() {
        let cases = [mistakes_1(), mistakes_2(), mistakes_3(), mistakes_4()].concat();
        for (body, param, message) in cases {
            let error = parsed(body.clone()).expect_err(&body.to_string());
            assert_eq!((error.param.as_deref(), error.message.as_str()), (Some(param), message));
        }
    }

    #[test]
    fn what_openai_clients_send_is_taken() {
        let request = parsed(json!({
            "messages": [
                { "role": "developer", "content": [{ "type": "text", "text": "be brief" }] },
                { "role": "user", "content": "hi", "name": "ann" },
                { "role": "assistant", "content": null, "tool_calls": [
                    { "id": "c", "type": "function", "function": { "name": "f", "arguments": "{}" } },
                ] },
                { "role": "tool", "content": "42", "tool_call_id": "c" },
            ],
            "tools": [{ "type": "function", "function": { "name": "f", "parameters": {} } }],
            "tool_choice": "auto", "n": 2, "max_tokens": 5, "max_completion_tokens": 7,
            "temperature": 0.5, "seed": -1, "stop": "x", "stream": true, "user": "u",
            "stream_options": { "include_usage": true }, "metadata": {}, "store": false,
            "logprobs": true, "top_logprobs": 3, "response_format": { "type": "json_object" },
            "unknown_field": [1, 2], "presence_penalty": null, "cache_salt": "tenant",
            "bad_words": ["bad", "very bad"], "lora": "french", "priority": -3,
        }))
        .unwrap();
        let common = &request.common;
        assert_eq!((common.n, common.max_tokens, common.stop.len()), (2, Some(7), 1));
        assert!(common.stream && common.include_usage && common.salt != 0);
        assert_eq!(common.sampling.logprobs, Some(3));
        assert_eq!((common.bad_words.len(), common.priority), (2, -3));
        let messages = Value::Array(request.conversation.messages).to_string();
        expect_test::expect![[r#"[{"role":"system","content":[{"type":"text","text":"be brief"}]},{"role":"user","content":"hi","name":"ann"},{"role":"assistant","content":"","tool_calls":[{"id":"c","type":"function","function":{"name":"f","arguments":"{}"}}]},{"role":"tool","content":"42","tool_call_id":"c"}]"#]]
            .assert_eq(&messages);
    }

    #[test]
    fn tools_are_hidden_by_tool_choice_none() {
        let tools = json!([{ "type": "function", "function": { "name": "f" } }]);
        let shown = |choice| {
            let request = parsed(json!({ "tools": tools, "tool_choice": choice })).unwrap();
            request.conversation.tools.is_some()
        };
        assert!(shown(Value::Null) && shown(json!("auto")) && !shown(json!("none")));
    }

    #[test]
    fn a_salt_is_never_everyones() {
        let salt = |salt: &str| parsed(json!({ "cache_salt": salt })).unwrap().common.salt;
        assert_eq!(parsed(json!({})).unwrap().common.salt, 0);
        assert_ne!(salt("a"), salt("b"));
        assert_ne!(salt("a"), 0);
    }
}
