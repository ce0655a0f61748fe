//! Messages as clients send them, into what chat templates take.

use minijinja::Value;
use minijinja::value::Serde;
use serde_json::Value as Json;

use super::TextError;
use super::config::kind;

/// Part types whose text counts, and where it is.
const TEXT_PARTS: [(&str, &str); 4] =
    [("text", "text"), ("input_text", "text"), ("output_text", "text"), ("refusal", "refusal")];

/// The form in which a template takes the content of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ContentForm {
    /// A string; the texts of an array are joined by line breaks.
    Text,
    /// An array of parts; a string becomes the only part.
    Parts,
    /// Either, as the client sent it.
    AsSent,
}

impl ContentForm {
    /// What a template's source shows: whether it goes through contents with `for`, and whether it
    /// tells strings from arrays. vLLM looks for the first in the same way.
    pub(super) fn of(template: &str) -> Self {
        if !iterates_content(template) {
            return Self::Text;
        }
        let tells = template.contains("is string") || template.contains("is not string");
        if tells { Self::AsSent } else { Self::Parts }
    }
}

/// The `messages` variable.
pub(super) fn for_template(messages: &[Json], form: ContentForm) -> Result<Value, TextError> {
    let mut converted = Vec::with_capacity(messages.len());
    for (index, message) in messages.iter().enumerate() {
        let Json::Object(fields) = message else {
            return Err(TextError::BadMessage {
                place: format!("messages[{index}]"),
                detail: format!("must be an object, found {}", kind(message)),
            });
        };
        let mut seen = Vec::with_capacity(fields.len() + 1);
        for (key, value) in fields {
            match (key.as_str(), value) {
                ("content", _) | (_, Json::Null) => {}
                ("tool_calls", calls) => seen.push((key.as_str(), tool_calls(calls))),
                _ => seen.push((key.as_str(), Value::from(Serde(value)))),
            }
        }
        let content = content(index, fields.get("content").unwrap_or(&Json::Null), form)?;
        seen.push(("content", content));
        converted.push(Value::from_pairs(seen));
    }
    Ok(Value::from(converted))
}

fn content(message: usize, content: &Json, form: ContentForm) -> Result<Value, TextError> {
    let texts = match content {
        Json::Null => Vec::new(),
        Json::String(text) => vec![text.as_str()],
        Json::Array(parts) => parts
            .iter()
            .enumerate()
            .map(|(index, part)| {
                text_of_part(part, || format!("messages[{message}].content[{index}]"))
            })
            .collect::<Result<_, _>>()?,
        other => {
            return Err(TextError::BadMessage {
                place: format!("messages[{message}].content"),
                detail: format!(
                    "must be a string, null or an array of parts, found {}",
                    kind(other)
                ),
            });
        }
    };
    if form == ContentForm::Text || (form == ContentForm::AsSent && !content.is_array()) {
        return Ok(match texts[..] {
            [text] => Value::from(text),
            _ => Value::from(texts.join("\n")),
        });
    }
    let part =
        |text: &str| Value::from_pairs([("type", Value::from("text")), ("text", text.into())]);
    Ok(texts.into_iter().map(part).collect())
}

fn text_of_part(part: &Json, place: impl Fn() -> String) -> Result<&str, TextError> {
    let Some(type_) = part.get("type").and_then(Json::as_str) else {
        let detail = "must be an object with a type, such as {\"type\": \"text\", \"text\": …}";
        return Err(TextError::BadMessage { place: place(), detail: detail.to_owned() });
    };
    let Some((_, field)) = TEXT_PARTS.iter().find(|(known, _)| *known == type_) else {
        return Err(TextError::BadMessage {
            place: place(),
            detail: format!("type {type_:?} is not supported by this model; send text parts"),
        });
    };
    part.get(field).and_then(Json::as_str).ok_or_else(|| TextError::BadMessage {
        place: place(),
        detail: format!("a part of type {type_:?} needs a string in {field:?}"),
    })
}

/// Tool calls with arguments as objects: clients send them as strings of JSON, templates write them
/// with `tojson`. What is not a string of a JSON object stays as it is.
fn tool_calls(calls: &Json) -> Value {
    let mut calls = calls.clone();
    for call in calls.as_array_mut().into_iter().flatten() {
        let Some(arguments) = call.pointer_mut("/function/arguments") else { continue };
        let parsed = arguments.as_str().and_then(|text| serde_json::from_str(text).ok());
        if let Some(Json::Object(object)) = parsed {
            *arguments = Json::Object(object);
        }
    }
    Value::from(Serde(calls))
}

/// Whether a template has a `for` over a message's content.
fn iterates_content(source: &str) -> bool {
    source.split("{%").skip(1).any(|block| {
        let tag = block.split("%}").next().unwrap_or_default().trim_start_matches(['-', '+']);
        let Some(rest) = tag.trim_start().strip_prefix("for ") else { return false };
        let Some((_, list)) = rest.split_once(" in ") else { return false };
        let list = list.split([' ', '|', '\n', '-']).next().unwrap_or_default();
        ["content", "content']", "content\"]"].iter().any(|end| list.ends_with(end))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn shown(message: Json, form: ContentForm) -> String {
        match for_template(&[message], form) {
            Ok(messages) => messages.get_item_by_index(0).unwrap().to_string(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn contents_become_what_the_template_takes() {
        let text = |text: &str| json!({"type": "text", "text": text});
        let a = "[{'type': 'text', 'text': 'a'}]";
        let both = "[{'type': 'text', 'text': 'a'}, {'type': 'text', 'text': 'no'}]";
        // (content, as text, as parts, as sent)
        let cases = [
            (json!("a"), "'a'", a, "'a'"),
            (json!(null), "''", "[]", "''"),
            (json!([]), "''", "[]", "[]"),
            (json!([text("a")]), "'a'", a, a),
            (json!([text("a"), {"type": "refusal", "refusal": "no"}]), "'a\\nno'", both, both),
        ];
        for (content, text, parts, sent) in cases {
            let message = json!({"content": content, "name": null, "role": "user"});
            let forms = [
                (ContentForm::Text, text),
                (ContentForm::Parts, parts),
                (ContentForm::AsSent, sent),
            ];
            for (form, wanted) in forms {
                let wanted = format!("{{'role': 'user', 'content': {wanted}}}");
                assert_eq!(shown(message.clone(), form), wanted, "{content} {form:?}");
            }
        }
    }

    #[test]
    fn what_a_template_cannot_take_is_refused_by_place() {
        let cases = [
            (json!("hi"), "messages[0]: must be an object, found a string"),
            (
                json!({"content": 3}),
                "messages[0].content: must be a string, null or an array of parts, found a number",
            ),
            (
                json!({"content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "x"}}]}),
                "messages[0].content[1]: type \"image_url\" is not supported by this model; send text parts",
            ),
            (
                json!({"content": ["a"]}),
                "messages[0].content[0]: must be an object with a type, such as {\"type\": \"text\", \"text\": …}",
            ),
            (
                json!({"content": [{"type": "text"}]}),
                "messages[0].content[0]: a part of type \"text\" needs a string in \"text\"",
            ),
        ];
        for (message, wanted) in cases {
            assert_eq!(shown(message.clone(), ContentForm::Text), wanted, "{message}");
        }
    }

    #[test]
    fn arguments_of_tool_calls_become_objects_in_their_order() {
        let call = |arguments: Json| {
            let call = json!({"function": {"name": "f", "arguments": arguments}});
            shown(json!({"tool_calls": [call]}), ContentForm::Text)
        };
        let wanted = |arguments: &str| {
            let call = format!("{{'function': {{'name': 'f', 'arguments': {arguments}}}}}");
            format!("{{'tool_calls': [{call}], 'content': ''}}")
        };
        assert_eq!(call(json!(r#"{"b": 1, "a": "x"}"#)), wanted("{'b': 1, 'a': 'x'}"));
        assert_eq!(call(json!({"b": 1})), wanted("{'b': 1}"));
        assert_eq!(call(json!("no json")), wanted("'no json'"));
        assert_eq!(call(json!("3")), wanted("'3'"));
    }

    #[test]
    fn templates_that_go_through_contents_are_told_from_those_that_do_not() {
        use ContentForm::{AsSent, Parts, Text};
        let cases = [
            ("{% for part in message['content'] %}", Parts),
            ("{%- for part in message.content -%}", Parts),
            ("{%- for part in message[\"content\"]|list %}", Parts),
            ("{% if content is string %}{% for part in content if part.type %}", AsSent),
            ("{% if m.content is not string %}{% for part in m.content %}", AsSent),
            ("{% for line in message.content.split('\\n') %}", Text),
            ("{% for message in messages %}{{ message.content }}", Text),
            ("{{ 'for x in content' }}", Text),
        ];
        for (template, wanted) in cases {
            assert_eq!(ContentForm::of(template), wanted, "{template}");
        }
    }
}
