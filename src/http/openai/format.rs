//! `response_format`: the form that the answer must have.
//!
//! `text`, `json_object` and `json_schema` are OpenAI's; `regex`, `ebnf` and `structural_tag` are what
//! TensorRT-LLM's own server takes besides. Whether a form can be kept to is for the engine to say.

use serde_json::{Map, Value};

use super::fields::Fields;
use crate::engine::Guide;
use crate::http::errors::{ApiError, Problem};

/// Bytes of a schema, a grammar or an expression.
const MAX_BYTES: usize = 64 << 10;
const TYPES: &str =
    "\"text\", \"json_object\", \"json_schema\", \"regex\", \"ebnf\" or \"structural_tag\"";

/// Reads `response_format`; `None`: any text will do.
pub(super) fn read(fields: Fields<'_>) -> Result<Option<Guide>, ApiError> {
    let Some(map) = fields.object("response_format")? else { return Ok(None) };
    let format = Fields::within(map, "response_format.");
    let guide = match format.text("type")? {
        Some("text") => return Ok(None),
        Some("json_object" | "json") => match format.object("schema")? {
            Some(schema) => Guide::JsonSchema(json(schema)),
            None => Guide::Json,
        },
        Some("json_schema") => Guide::JsonSchema(schema(format)?),
        Some("regex") => Guide::Regex(text(format, "regex")?),
        Some("ebnf") => Guide::Grammar(text(format, "ebnf")?),
        Some("structural_tag") => Guide::StructuralTag(json(map)),
        Some(_) => {
            let rule = format!("must be {TYPES}");
            return Err(format.problem(Problem::InvalidValue, "type", &rule));
        }
        None => return Err(format.missing("type", &format!("give {TYPES}"))),
    };
    let bytes = match &guide {
        Guide::Json => 0,
        Guide::JsonSchema(text)
        | Guide::Regex(text)
        | Guide::Grammar(text)
        | Guide::StructuralTag(text) => text.len(),
    };
    if bytes > MAX_BYTES {
        let text =
            format!("response_format: must have at most {MAX_BYTES} bytes, this has {bytes}");
        return Err(ApiError::of(Problem::InvalidValue, "response_format", text));
    }
    Ok(Some(guide))
}

/// OpenAI wraps the schema in an object with a name; others give it as it is.
fn schema(format: Fields<'_>) -> Result<String, ApiError> {
    if let Some(wrapped) = format.object("json_schema")? {
        let wrapped = Fields::within(wrapped, "response_format.json_schema.");
        return match wrapped.object("schema")? {
            Some(schema) => Ok(json(schema)),
            None => {
                Err(wrapped.missing("schema", "give the JSON schema that the answer must have"))
            }
        };
    }
    match format.object("schema")? {
        Some(schema) => Ok(json(schema)),
        None => Err(format.missing("json_schema", "give {\"name\": …, \"schema\": {…}}")),
    }
}

fn text(format: Fields<'_>, name: &str) -> Result<String, ApiError> {
    match format.text(name)? {
        Some("") => Err(format.problem(Problem::InvalidValue, name, "must not be empty")),
        Some(text) => Ok(text.to_owned()),
        None => Err(format.missing(name, "give what the answer must match")),
    }
}

fn json(map: &Map<String, Value>) -> String {
    Value::Object(map.clone()).to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parsed(format: Value) -> Result<Option<Guide>, String> {
        let body = json!({ "response_format": format });
        read(Fields::new(body.as_object().unwrap())).map_err(|error| error.message)
    }

    #[test]
    fn forms_are_read_as_openai_and_tensorrt_llm_write_them() {
        let schema = json!({ "type": "object", "b": 1, "a": 2 });
        let of_schema = Ok(Some(Guide::JsonSchema(r#"{"type":"object","b":1,"a":2}"#.to_owned())));
        let wrapped = json!({ "name": "n", "strict": true, "schema": schema });
        for (format, guide) in [
            (json!({ "type": "text" }), Ok(None)),
            (json!({ "type": "json_object" }), Ok(Some(Guide::Json))),
            (json!({ "type": "json_schema", "json_schema": wrapped }), of_schema.clone()),
            (json!({ "type": "json_schema", "schema": schema }), of_schema.clone()),
            (json!({ "type": "json", "schema": schema }), of_schema),
            (json!({ "type": "regex", "regex": "a+" }), Ok(Some(Guide::Regex("a+".to_owned())))),
            (
                json!({ "type": "ebnf", "ebnf": "r ::= x" }),
                Ok(Some(Guide::Grammar("r ::= x".into()))),
            ),
        ] {
            assert_eq!(parsed(format.clone()), guide, "{format}");
        }
        let tag = json!({ "type": "structural_tag", "structures": [], "triggers": [] });
        assert_eq!(parsed(tag.clone()), Ok(Some(Guide::StructuralTag(tag.to_string()))));
    }

    #[test]
    fn what_is_wrong_is_shown() {
        for (format, says) in [
            (json!({}), "response_format.type"),
            (
                json!({ "type": "xml" }),
                "response_format.type = \"xml\": must be \"text\", \"json_object\"",
            ),
            (json!({ "type": "json_schema" }), "response_format.json_schema"),
            (
                json!({ "type": "json_schema", "json_schema": {} }),
                "response_format.json_schema.schema",
            ),
            (json!({ "type": "json_schema", "json_schema": 3 }), "response_format.json_schema = 3"),
            (json!({ "type": "regex" }), "response_format.regex"),
            (
                json!({ "type": "ebnf", "ebnf": "" }),
                "response_format.ebnf = \"\": must not be empty",
            ),
            (
                json!({ "type": "regex", "regex": "a".repeat(MAX_BYTES + 1) }),
                "must have at most 65536 bytes, this has 65537",
            ),
        ] {
            let error = parsed(format.clone()).unwrap_err();
            assert!(error.contains(says), "{format}: {error}");
        }
    }
}
