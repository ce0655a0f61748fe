//! From bytes to JSON fields. Token ids, which come by the hundred thousand, never become `Value`s.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::http::errors::{ApiError, Problem};

/// A parsed body: its fields, except one that may hold text or token ids.
#[derive(Debug, Default)]
pub(super) struct Parsed {
    pub(super) fields: Map<String, Value>,
    pub(super) input: Option<Input>,
}

/// Text or token ids, one or many.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Input {
    Text(String),
    Texts(Vec<String>),
    Ids(Vec<u32>),
    IdLists(Vec<Vec<u32>>),
    /// `[]`: could be any of the lists.
    Empty,
    /// None of these; the field's text says what was found instead.
    Other(String),
}

/// Parses a body. `input` names the field that goes to [`Parsed::input`] (`""`: none does).
///
/// # Errors
/// [`Problem::MalformedBody`]: empty, not JSON, or not an object.
pub(super) fn parse(bytes: &[u8], input: &'static str) -> Result<Parsed, ApiError> {
    let malformed = |text: String| ApiError::new(Problem::MalformedBody, text);
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(malformed("the body is empty; send a JSON object".into()));
    }
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let parsed = Object { input }.deserialize(&mut json);
    match parsed.and_then(|parsed| json.end().map(|()| parsed)) {
        Ok(parsed) => Ok(parsed),
        Err(error) if error.is_data() => Err(malformed("the body must be a JSON object".into())),
        Err(error) => Err(malformed(format!("the body is not valid JSON: {error}"))),
    }
}

struct Object {
    input: &'static str,
}

impl<'de> DeserializeSeed<'de> for Object {
    type Value = Parsed;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Parsed, D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Object {
    type Value = Parsed;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Parsed, A::Error> {
        let mut parsed = Parsed::default();
        while let Some(name) = map.next_key::<String>()? {
            if name == self.input {
                parsed.input = map.next_value_seed(InputSeed)?;
            } else {
                let value = map.next_value()?;
                parsed.fields.insert(name, value);
            }
        }
        Ok(parsed)
    }
}

/// Reads text or ids; anything else becomes [`Input::Other`], never an error of its own.
struct InputSeed;

impl<'de> DeserializeSeed<'de> for InputSeed {
    type Value = Option<Input>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for InputSeed {
    type Value = Option<Input>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Some(Input::Text(text.into())))
    }

    fn visit_string<E>(self, text: String) -> Result<Self::Value, E> {
        Ok(Some(Input::Text(text)))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
        Ok(Some(Input::Other(value.to_string())))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Self::Value, E> {
        Ok(Some(Input::Other(value.to_string())))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Self::Value, E> {
        Ok(Some(Input::Other(value.to_string())))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Self::Value, E> {
        Ok(Some(Input::Other(value.to_string())))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Some(Input::Other("an object".into())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut input = Input::Empty;
        while let Some(element) = seq.next_element_seed(ElementSeed)? {
            input = append(input, element);
        }
        Ok(Some(input))
    }
}

/// Adds an element of the same kind; the first of another kind decides what the message says.
fn append(input: Input, element: Element) -> Input {
    match (input, element) {
        (Input::Other(what), _) | (_, Element::Other(what)) => Input::Other(what),
        (Input::Empty, Element::Id(id)) => Input::Ids(vec![id]),
        (Input::Empty, Element::Text(text)) => Input::Texts(vec![text]),
        (Input::Empty, Element::Ids(ids)) => Input::IdLists(vec![ids]),
        (Input::Ids(mut all), Element::Id(id)) => {
            all.push(id);
            Input::Ids(all)
        }
        (Input::Texts(mut all), Element::Text(text)) => {
            all.push(text);
            Input::Texts(all)
        }
        (Input::IdLists(mut all), Element::Ids(ids)) => {
            all.push(ids);
            Input::IdLists(all)
        }
        _ => Input::Other("an array of different kinds of elements".into()),
    }
}

enum Element {
    Text(String),
    Id(u32),
    Ids(Vec<u32>),
    Other(String),
}

struct ElementSeed;

impl<'de> DeserializeSeed<'de> for ElementSeed {
    type Value = Element;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Element, D::Error> {
        json.deserialize_any(self)
    }
}

fn not_an_id(value: impl fmt::Display) -> Element {
    Element::Other(format!("an array with {value}, which is no token id"))
}

impl<'de> Visitor<'de> for ElementSeed {
    type Value = Element;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_unit<E>(self) -> Result<Element, E> {
        Ok(not_an_id("null"))
    }

    fn visit_str<E>(self, text: &str) -> Result<Element, E> {
        Ok(Element::Text(text.into()))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Element, E> {
        Ok(not_an_id(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Element, E> {
        Ok(u32::try_from(value).map_or_else(|_| not_an_id(value), Element::Id))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Element, E> {
        Ok(not_an_id(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Element, E> {
        let whole = value.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(&value);
        Ok(if whole { Element::Id(value as u32) } else { not_an_id(value) })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Element, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(not_an_id("an object"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Element, A::Error> {
        let mut ids = Vec::new();
        let mut other = None;
        // One level only: an array here is an `Element::Ids`, and that is no id.
        while let Some(element) = seq.next_element_seed(IdSeed)? {
            match element {
                Ok(id) => ids.push(id),
                Err(what) => other = other.or(Some(what)),
            }
        }
        Ok(other.map_or(Element::Ids(ids), Element::Other))
    }
}

/// A token id inside an inner list, or what was found instead.
struct IdSeed;

impl<'de> DeserializeSeed<'de> for IdSeed {
    type Value = Result<u32, String>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_any(ElementSeed).map(|element| match element {
            Element::Id(id) => Ok(id),
            Element::Other(what) => Err(what),
            Element::Text(_) => Err("an array with a string inside a list of token ids".into()),
            Element::Ids(_) => Err("an array nested more than twice".into()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(text: &str) -> Option<Input> {
        parse(format!(r#"{{"prompt":{text}}}"#).as_bytes(), "prompt").unwrap().input
    }

    #[test]
    fn a_prompt_is_text_or_ids_one_or_many() {
        let cases = [
            (r#""a""#, Input::Text("a".into())),
            (r#"["a","b"]"#, Input::Texts(vec!["a".into(), "b".into()])),
            ("[1,2.0]", Input::Ids(vec![1, 2])),
            ("[[1],[2,3]]", Input::IdLists(vec![vec![1], vec![2, 3]])),
            ("[]", Input::Empty),
        ];
        for (text, expected) in cases {
            assert_eq!(input(text), Some(expected), "{text}");
        }
        assert_eq!(input("null"), None);
    }

    #[test]
    fn anything_else_is_named_and_not_an_error_of_the_json() {
        for text in [
            "1",
            "-1",
            "0.5",
            "true",
            "{\"a\":[1]}",
            "[-1]",
            "[1,\"a\"]",
            "[[[1]]]",
            "[[\"a\"]]",
            "[null]",
            "[4294967296]",
            "[1.5]",
            "[{}]",
            "[[1],2]",
        ] {
            assert!(matches!(input(text), Some(Input::Other(_))), "{text}: {:?}", input(text));
        }
    }

    #[test]
    fn a_body_that_is_no_object_is_refused_in_words() {
        let cases = [
            ("", "the body is empty; send a JSON object"),
            (" \n", "the body is empty; send a JSON object"),
            ("[1]", "the body must be a JSON object"),
            ("1", "the body must be a JSON object"),
            ("{", "the body is not valid JSON: EOF while parsing an object at line 1 column 1"),
            ("{} x", "the body is not valid JSON: trailing characters at line 1 column 4"),
        ];
        for (body, message) in cases {
            assert_eq!(parse(body.as_bytes(), "").unwrap_err().message, message, "{body}");
        }
        assert!(parse(b"{\"a\":\"\xff\"}", "").is_err());
        assert!(parse("[".repeat(100_000).as_bytes(), "").is_err());
        let deep = format!("{{\"prompt\":{}}}", "[".repeat(100_000));
        assert!(parse(deep.as_bytes(), "prompt").is_err());
    }
}
