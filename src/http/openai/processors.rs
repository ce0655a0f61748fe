//! `logits_processors`: what a request wants to change its logits, by name and with arguments.

use serde_json::Value;

use super::fields::{Fields, at};
use crate::engine::processors::Wanted;
use crate::http::errors::{ApiError, Problem};

/// Processors of one request.
const MOST: usize = 8;
/// Bytes of all their names and arguments: a leg must fit into a frame.
const MOST_BYTES: usize = 8 << 10;

/// Whether a rank knows them it will say itself.
pub(super) fn read(fields: Fields<'_>) -> Result<Vec<Wanted>, ApiError> {
    const NAME: &str = "logits_processors";
    let Some(items) = fields.array(NAME)? else { return Ok(Vec::new()) };
    if items.len() > MOST {
        let rule = format!("must have at most {MOST} items");
        return Err(fields.problem(Problem::InvalidValue, NAME, &rule));
    }
    let each = items.iter().enumerate();
    let wanted: Vec<_> = each
        .map(|(index, item)| one(&format!("{}[{index}]", fields.param(NAME)), item))
        .collect::<Result<_, _>>()?;
    if wanted.iter().map(|one| one.name.len() + one.arguments.len()).sum::<usize>() > MOST_BYTES {
        let rule = format!("names and arguments must have at most {MOST_BYTES} bytes in all");
        return Err(fields.problem(Problem::InvalidValue, NAME, &rule));
    }
    Ok(wanted)
}

fn one(param: &str, item: &Value) -> Result<Wanted, ApiError> {
    const RULE: &str = "must be a name, or an object with `name` and `arguments`";
    let map = match item {
        Value::String(name) => {
            return Ok(Wanted { name: name.clone(), arguments: "{}".to_owned() });
        }
        Value::Object(map) => map,
        other => return Err(at(Problem::WrongType, param, other, RULE)),
    };
    let prefix = format!("{param}.");
    let inner = Fields::within(map, &prefix);
    if let Some(other) = map.keys().find(|key| !["name", "arguments"].contains(&key.as_str())) {
        return Err(inner.problem(
            Problem::InvalidValue,
            other,
            "there are `name` and `arguments`",
        ));
    }
    let Some(name) = inner.text("name")? else {
        return Err(inner.missing("name", "name one, such as \"temperature\""));
    };
    let arguments = inner.object("arguments")?.map(|map| Value::Object(map.clone()).to_string());
    Ok(Wanted { name: name.to_owned(), arguments: arguments.unwrap_or_else(|| "{}".to_owned()) })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parsed(value: Value) -> Result<Vec<Wanted>, ApiError> {
        let body = json!({ "logits_processors": value });
        read(Fields::new(body.as_object().unwrap()))
    }

    #[test]
    fn a_name_alone_will_do() {
        let wanted = |name: &str, arguments: &str| Wanted {
            name: name.to_owned(),
            arguments: arguments.to_owned(),
        };
        let both = json!(["forced_text", { "name": "temperature", "arguments": { "value": 2 } }]);
        let expected = [wanted("forced_text", "{}"), wanted("temperature", r#"{"value":2}"#)];
        assert_eq!(parsed(both).unwrap(), expected);
        assert_eq!(parsed(json!([])).unwrap(), []);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let many = vec![json!("x"); MOST + 1];
        let long = json!([{ "name": "x", "arguments": { "text": "x".repeat(MOST_BYTES) } }]);
        for (value, param) in [
            (json!("x"), "logits_processors"),
            (json!([1]), "logits_processors[0]"),
            (json!([{ "args": {} }]), "logits_processors[0].args"),
            (json!(["x", { "arguments": {} }]), "logits_processors[1].name"),
            (json!([{ "name": "x", "arguments": [] }]), "logits_processors[0].arguments"),
            (json!(many), "logits_processors"),
            (json!(["x".repeat(MOST_BYTES)]), "logits_processors"),
            (json!([{ "name": "x".repeat(MOST_BYTES) }]), "logits_processors"),
            (long, "logits_processors"),
        ] {
            let error = parsed(value.clone()).unwrap_err();
            assert!(error.to_string().starts_with(param), "{value}: {error}");
        }
    }
}
