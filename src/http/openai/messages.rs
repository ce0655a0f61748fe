//! `messages` of a chat request: checked, and reduced to what chat templates may see.

use serde_json::{Map, Value, json};

use super::fields::{self, Fields};
use crate::http::errors::{ApiError, Problem};

const ROLES: &str =
    "must be one of \"system\", \"developer\", \"user\", \"assistant\", \"tool\", \"function\"";

/// Every message with what templates may see of it, and nothing else.
pub(super) fn read(fields: Fields<'_>) -> Result<Vec<Value>, ApiError> {
    let Some(messages) = fields.array("messages")? else {
        return Err(fields.missing("messages", "give an array of messages"));
    };
    if messages.is_empty() {
        let rule = "must have at least one message";
        return Err(fields.problem(Problem::InvalidValue, "messages", rule));
    }
    messages.iter().enumerate().map(|(i, message)| one(message, i)).collect()
}

fn one(message: &Value, i: usize) -> Result<Value, ApiError> {
    let place = format!("messages[{i}]");
    let Some(map) = message.as_object() else {
        return Err(fields::at(Problem::WrongType, &place, message, "must be an object"));
    };
    let prefix = format!("{place}.");
    let fields = Fields::within(map, &prefix);
    let Some(role) = fields.text("role")? else { return Err(fields.missing("role", ROLES)) };
    // Templates know no developer; OpenAI's developer messages are what system messages were.
    let shown_role = if role == "developer" { "system" } else { role };
    let mut out = Map::new();
    out.insert("role".into(), shown_role.into());
    out.insert("content".into(), content(fields, role)?);
    if let Some(name) = fields.text("name")? {
        out.insert("name".into(), name.into());
    }
    match role {
        "system" | "developer" | "user" => {}
        "assistant" => {
            fields.text("refusal")?;
            if let Some(calls) = tool_calls(fields, &place)? {
                out.insert("tool_calls".into(), calls);
            }
            for name in ["reasoning_content", "reasoning"] {
                if let Some(text) = fields.text(name)? {
                    out.insert(name.into(), text.into());
                }
            }
        }
        "tool" => match fields.text("tool_call_id")? {
            Some(id) => drop(out.insert("tool_call_id".into(), id.into())),
            None => return Err(fields.missing("tool_call_id", "give the id of the call answered")),
        },
        "function" if !out.contains_key("name") => {
            return Err(fields.missing("name", "give the function's name"));
        }
        "function" => {}
        _ => return Err(fields.problem(Problem::InvalidValue, "role", ROLES)),
    }
    Ok(Value::Object(out))
}

/// The text of a message, or its text parts.
fn content(fields: Fields<'_>, role: &str) -> Result<Value, ApiError> {
    let rule = "must be a string or an array of text parts";
    match fields.get("content") {
        Some(Value::String(text)) => Ok(text.as_str().into()),
        Some(Value::Array(parts)) => {
            let param = fields.param("content");
            parts.iter().enumerate().map(|(i, part)| text_part(part, &param, i)).collect()
        }
        Some(_) => Err(fields.problem(Problem::WrongType, "content", rule)),
        // Only these roles may have nothing to say; templates add texts, so it is an empty one.
        None if matches!(role, "assistant" | "function") => Ok("".into()),
        None => Err(fields.missing("content", rule)),
    }
}

fn text_part(part: &Value, param: &str, i: usize) -> Result<Value, ApiError> {
    let place = format!("{param}[{i}]");
    let Some(map) = part.as_object() else {
        return Err(fields::at(Problem::WrongType, &place, part, "must be an object"));
    };
    let prefix = format!("{place}.");
    let fields = Fields::within(map, &prefix);
    let name = match fields.text("type")? {
        Some("text") => "text",
        Some("refusal") => "refusal",
        Some(_) => {
            let rule = "is not supported; only \"text\" parts are";
            return Err(fields.problem(Problem::Unsupported, "type", rule));
        }
        None => return Err(fields.missing("type", "give \"text\"")),
    };
    match fields.text(name)? {
        Some(text) => Ok(json!({ "type": "text", "text": text })),
        None => Err(fields.missing(name, "give the part's text")),
    }
}

/// The calls an assistant made.
fn tool_calls(fields: Fields<'_>, place: &str) -> Result<Option<Value>, ApiError> {
    let Some(calls) = fields.array("tool_calls")? else { return Ok(None) };
    if calls.is_empty() {
        return Ok(None);
    }
    let calls: Result<Vec<_>, _> = calls
        .iter()
        .enumerate()
        .map(|(i, call)| tool_call(call, &format!("{place}.tool_calls[{i}]")))
        .collect();
    Ok(Some(Value::Array(calls?)))
}

fn tool_call(call: &Value, place: &str) -> Result<Value, ApiError> {
    let Some(map) = call.as_object() else {
        return Err(fields::at(Problem::WrongType, place, call, "must be an object"));
    };
    let prefix = format!("{place}.");
    let fields = Fields::within(map, &prefix);
    let id = fields.text("id")?;
    if !matches!(fields.text("type")?, None | Some("function")) {
        let rule = "is not supported; only \"function\" is";
        return Err(fields.problem(Problem::Unsupported, "type", rule));
    }
    let Some(function) = fields.object("function")? else {
        return Err(fields.missing("function", "give an object with name and arguments"));
    };
    let prefix = format!("{place}.function.");
    let fields = Fields::within(function, &prefix);
    let Some(name) = fields.text("name")? else {
        return Err(fields.missing("name", "give the function's name"));
    };
    let arguments = match fields.get("arguments") {
        None => Value::Object(Map::new()),
        Some(arguments @ (Value::Object(_) | Value::String(_))) => arguments.clone(),
        Some(_) => {
            let rule = "must be a string with a JSON object";
            return Err(fields.problem(Problem::WrongType, "arguments", rule));
        }
    };
    let function = json!({ "name": name, "arguments": arguments });
    let mut out = Map::new();
    if let Some(id) = id {
        out.insert("id".into(), id.into());
    }
    out.insert("type".into(), "function".into());
    out.insert("function".into(), function);
    Ok(Value::Object(out))
}
