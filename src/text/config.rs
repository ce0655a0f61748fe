//! What a model directory says about its text beside `tokenizer.json`: special tokens, templates.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::TextError;

const TEMPLATE_FORMS: &str =
    "a string, or a list of {\"name\", \"template\"} with one named default";

/// Keys that name one special token each, as transformers knows them.
const TOKEN_KEYS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// The template sources of a model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct TemplateSources {
    /// The file they are from.
    pub(super) path: PathBuf,
    /// For every conversation that has no better one.
    pub(super) default: Option<String>,
    /// For conversations with tools.
    pub(super) tool_use: Option<String>,
}

/// `tokenizer_config.json`, `special_tokens_map.json` and the template files, read.
#[derive(Clone, Debug, Default)]
pub(super) struct TokenizerConfig {
    /// Variables a template sees: `bos_token` and so on; what the files leave out is absent.
    pub(super) special_tokens: Map<String, Value>,
    pub(super) templates: TemplateSources,
    /// Whether `encode` puts (BOS, EOS) around a text, where this file overrules tokenizer.json.
    pub(super) wrap: Option<(bool, bool)>,
}

impl TokenizerConfig {
    pub(super) fn load(dir: &Path) -> Result<Self, TextError> {
        let path = dir.join("tokenizer_config.json");
        let config = read_object(&path)?.unwrap_or_default();
        let mut special_tokens = special_tokens(&config);
        // Older models keep the special tokens in a file of their own.
        let older = read_object(&dir.join("special_tokens_map.json"))?.unwrap_or_default();
        for (key, token) in self::special_tokens(&older) {
            special_tokens.entry(key).or_insert(token);
        }
        Ok(Self { special_tokens, templates: templates(dir, &path, &config)?, wrap: wrap(&config) })
    }

    /// The text of a special token, e.g. of `bos_token`.
    pub(super) fn token(&self, key: &str) -> Option<&str> {
        self.special_tokens.get(key)?.as_str()
    }
}

fn special_tokens(config: &Map<String, Value>) -> Map<String, Value> {
    let mut found = Map::new();
    for key in TOKEN_KEYS {
        if let Some(text) = config.get(key).and_then(token_text) {
            found.insert(key.to_owned(), text.into());
        }
    }
    if let Some(Value::Array(more)) = config.get("additional_special_tokens") {
        let texts: Vec<&str> = more.iter().filter_map(token_text).collect();
        found.insert("additional_special_tokens".to_owned(), texts.into());
    }
    if let Some(Value::Object(named)) = config.get("extra_special_tokens") {
        for (key, token) in named {
            if let Some(text) = token_text(token) {
                found.insert(key.clone(), text.into());
            }
        }
    }
    found
}

/// A token is written as its text or as an object around it.
fn token_text(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token.get("content")?.as_str())
}

/// Llama's tokenizer class builds its own post-processor from these two keys at load time, whatever
/// tokenizer.json says; other classes take tokenizer.json's.
fn wrap(config: &Map<String, Value>) -> Option<(bool, bool)> {
    let class = config.get("tokenizer_class")?.as_str()?;
    if !matches!(
        class.trim_end_matches("Fast"),
        "LlamaTokenizer" | "CodeLlamaTokenizer" | "GemmaTokenizer"
    ) {
        return None;
    }
    let flag = |key, default| config.get(key).and_then(Value::as_bool).unwrap_or(default);
    Some((flag("add_bos_token", true), flag("add_eos_token", false)))
}

/// `chat_template.jinja` comes first, then tokenizer_config.json, then `chat_template.json`.
fn templates(
    dir: &Path,
    path: &Path,
    config: &Map<String, Value>,
) -> Result<TemplateSources, TextError> {
    let mut sources = TemplateSources::default();
    let file = dir.join("chat_template.jinja");
    if let Some(default) = read_text(&file)? {
        sources.path = file;
        sources.default = Some(default);
        sources.tool_use = read_text(&dir.join("additional_chat_templates/tool_use.jinja"))?;
        return Ok(sources);
    }
    let older = dir.join("chat_template.json");
    let (path, template) = match config.get("chat_template") {
        Some(template) if !template.is_null() => (path, template.clone()),
        _ => match read_object(&older)?.and_then(|mut object| object.remove("chat_template")) {
            Some(template) => (older.as_path(), template),
            None => return Ok(sources),
        },
    };
    sources.path = path.to_owned();
    let refuse = |detail: String| TextError::Unsupported {
        path: path.to_owned(),
        field: "chat_template".to_owned(),
        detail,
        supported: TEMPLATE_FORMS,
    };
    match template {
        Value::String(text) => sources.default = Some(text),
        Value::Array(entries) => {
            let mut named = BTreeMap::new();
            for (index, entry) in entries.iter().enumerate() {
                let field = |key: &str| entry.get(key).and_then(Value::as_str);
                let (Some(name), Some(text)) = (field("name"), field("template")) else {
                    return Err(refuse(format!("entry {index} lacks a name or a template")));
                };
                named.insert(name, text);
            }
            let take = |name: &str| named.get(name).map(|text| (*text).to_owned());
            (sources.default, sources.tool_use) = (take("default"), take("tool_use"));
            if sources.default.is_none() {
                let names: Vec<&str> = named.into_keys().collect();
                return Err(refuse(format!("none of {names:?} is named default")));
            }
        }
        other => return Err(refuse(format!("found {}", kind(&other)))),
    }
    Ok(sources)
}

/// The JSON kind of a value, for people.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

fn read_text(path: &Path) -> Result<Option<String>, TextError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => {
            Err(TextError::Unreadable { path: path.to_owned(), detail: error.to_string() })
        }
    }
}

fn read_object(path: &Path) -> Result<Option<Map<String, Value>>, TextError> {
    let Some(text) = read_text(path)? else { return Ok(None) };
    match serde_json::from_str(&text) {
        Ok(object) => Ok(Some(object)),
        Err(error) => Err(TextError::Unsupported {
            path: path.to_owned(),
            field: "the file".to_owned(),
            detail: error.to_string(),
            supported: "one JSON object",
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::testing::TempDir;

    #[test]
    fn templates_come_from_every_place_transformers_looks_at_and_in_its_order() {
        let one = r#"{"chat_template": "one"}"#;
        let list = r#"{"chat_template": [{"name": "default", "template": "one"},
            {"name": "tool_use", "template": "two"}, {"name": "rag", "template": "three"}]}"#;
        // (files, default, tool_use)
        type Case<'a> = (&'a [(&'a str, &'a str)], Option<&'a str>, Option<&'a str>);
        let cases: [Case; 6] = [
            (&[], None, None),
            (&[("tokenizer_config.json", r#"{"chat_template": null}"#)], None, None),
            (&[("tokenizer_config.json", one)], Some("one"), None),
            (&[("tokenizer_config.json", list)], Some("one"), Some("two")),
            (&[("chat_template.json", one), ("tokenizer_config.json", "{}")], Some("one"), None),
            (
                &[("chat_template.jinja", "file"), ("tokenizer_config.json", list)],
                Some("file"),
                None,
            ),
        ];
        for (files, default, tool_use) in cases {
            let dir = TempDir::with(files);
            let found = TokenizerConfig::load(dir.path()).unwrap().templates;
            assert_eq!(
                (found.default.as_deref(), found.tool_use.as_deref()),
                (default, tool_use),
                "{files:?}"
            );
        }
    }

    #[test]
    fn a_broken_file_is_refused_with_its_name_the_field_and_what_is_supported() {
        let cases = [
            (r#"{"chat_template": 3}"#, "chat_template: found a number; supported: a string"),
            (r#"{"chat_template": [{"name": "rag", "template": ""}]}"#, "none of [\"rag\"]"),
            (r#"{"chat_template": [{"name": "rag"}]}"#, "entry 0 lacks"),
            ("[]", "the file: invalid type: sequence"),
            ("{", "the file: EOF"),
        ];
        for (text, wanted) in cases {
            let dir = TempDir::with(&[("tokenizer_config.json", text)]);
            let error = TokenizerConfig::load(dir.path()).unwrap_err();
            let shown = error.to_string();
            assert!(shown.contains(wanted) && shown.contains("tokenizer_config.json"), "{shown}");
            assert!(error.is_model_fault(), "{shown}");
        }
    }

    #[test]
    fn special_tokens_are_read_in_both_forms_and_from_the_older_file() {
        let dir = TempDir::with(&[
            (
                "tokenizer_config.json",
                r#"{"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": null,
                    "additional_special_tokens": ["<a>", {"content": "<b>"}]}"#,
            ),
            ("special_tokens_map.json", r#"{"bos_token": "<old>", "unk_token": "<unk>"}"#),
        ]);
        let config = TokenizerConfig::load(dir.path()).unwrap();
        assert_eq!(config.token("bos_token"), Some("<s>"));
        assert_eq!(config.token("eos_token"), Some("</s>"));
        assert_eq!(config.token("unk_token"), Some("<unk>"));
        assert_eq!(config.token("pad_token"), None);
        let more = serde_json::json!(["<a>", "<b>"]);
        assert_eq!(config.special_tokens.get("additional_special_tokens"), Some(&more));
    }
}
