//! `tools` and `tool_choice` of a chat request: what the template is told about functions.

use serde_json::Value;

use super::fields::{self, Fields};
use crate::http::errors::{ApiError, Problem};

/// Tools of one request.
const MAX_TOOLS: usize = 128;

/// The tools to show to the model: none if `tool_choice` is `none`.
pub(super) fn read(fields: Fields<'_>) -> Result<Option<Vec<Value>>, ApiError> {
    let tools = match fields.array("tools")? {
        Some(tools) => tools,
        None => &Vec::new(),
    };
    if tools.len() > MAX_TOOLS {
        let rule = format!("must have at most {MAX_TOOLS} tools");
        return Err(fields.problem(Problem::InvalidValue, "tools", &rule));
    }
    for (i, tool) in tools.iter().enumerate() {
        check(tool, i)?;
    }
    let shown = choice(fields)?;
    Ok((shown && !tools.is_empty()).then(|| tools.clone()))
}

/// Whether the model may see its tools at all.
fn choice(fields: Fields<'_>) -> Result<bool, ApiError> {
    let rule = "must be \"none\" or \"auto\"; calling a function for certain is not supported yet";
    match fields.get("tool_choice") {
        None => Ok(true),
        Some(Value::String(choice)) => match choice.as_str() {
            "auto" => Ok(true),
            "none" => Ok(false),
            "required" => Err(fields.problem(Problem::Unsupported, "tool_choice", rule)),
            _ => Err(fields.problem(Problem::InvalidValue, "tool_choice", rule)),
        },
        Some(Value::Object(_)) => Err(fields.problem(Problem::Unsupported, "tool_choice", rule)),
        Some(_) => Err(fields.problem(Problem::WrongType, "tool_choice", rule)),
    }
}

fn check(tool: &Value, i: usize) -> Result<(), ApiError> {
    let place = format!("tools[{i}]");
    let Some(map) = tool.as_object() else {
        return Err(fields::at(Problem::WrongType, &place, tool, "must be an object"));
    };
    let prefix = format!("{place}.");
    let fields = Fields::within(map, &prefix);
    match fields.text("type")? {
        Some("function") => {}
        Some(_) => {
            let rule = "is not supported; only \"function\" is";
            return Err(fields.problem(Problem::Unsupported, "type", rule));
        }
        None => return Err(fields.missing("type", "give \"function\"")),
    }
    let Some(function) = fields.object("function")? else {
        return Err(fields.missing("function", "give an object with name and parameters"));
    };
    let prefix = format!("{place}.function.");
    let fields = Fields::within(function, &prefix);
    match fields.text("name")? {
        Some("") => Err(fields.problem(Problem::InvalidValue, "name", "must not be empty"))?,
        Some(_) => {}
        None => return Err(fields.missing("name", "give the function's name")),
    }
    fields.text("description")?;
    fields.object("parameters")?;
    fields.flag("strict")?;
    Ok(())
}
