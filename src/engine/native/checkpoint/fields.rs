//! Reading fields of a JSON object, with errors that name file, field and value.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::engine::native::error::LoadError;

/// Largest accepted size field; anything above is a broken file, and products of two fit in `u64`.
pub(super) const LARGEST: usize = 1 << 28;

/// A JSON object together with the file it came from and its place in it.
#[derive(Debug)]
pub(super) struct Fields {
    file: PathBuf,
    prefix: String,
    map: Map<String, Value>,
}

impl Fields {
    /// Reads a file that holds one JSON object.
    pub(super) fn read(file: &Path, hint: &'static str) -> Result<Self, LoadError> {
        let bytes = std::fs::read(file).map_err(|source| LoadError::Io {
            file: file.to_owned(),
            source,
            hint,
        })?;
        let map = serde_json::from_slice(&bytes)
            .map_err(|e| LoadError::Json { file: file.to_owned(), detail: e.to_string() })?;
        Ok(Self { file: file.to_owned(), prefix: String::new(), map })
    }

    /// The field's value; JSON `null` counts as missing.
    pub(super) fn get(&self, field: &str) -> Option<&Value> {
        self.map.get(field).filter(|value| !value.is_null())
    }

    /// Whether the field is there at all, be it `null`.
    pub(super) fn mentions(&self, field: &str) -> bool {
        self.map.contains_key(field)
    }

    /// The error for this field.
    pub(super) fn wrong(&self, field: &str, rule: impl Into<String>) -> LoadError {
        let value = self.map.get(field).map_or_else(|| "(missing)".to_owned(), shorten);
        LoadError::Field {
            file: self.file.clone(),
            field: format!("{}{field}", self.prefix),
            value,
            rule: rule.into(),
        }
    }

    /// An object inside this one.
    pub(super) fn object(&self, field: &str) -> Result<Option<Self>, LoadError> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Self {
                file: self.file.clone(),
                prefix: format!("{}{field}.", self.prefix),
                map: map.clone(),
            })),
            Some(_) => Err(self.wrong(field, "must be an object")),
        }
    }

    /// A whole number of at least 1.
    pub(super) fn count(&self, field: &str, default: Option<usize>) -> Result<usize, LoadError> {
        let rule = || format!("must be a whole number in 1..={LARGEST}");
        let Some(value) = self.get(field) else {
            return default.ok_or_else(|| self.wrong(field, rule()));
        };
        match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
            Some(n) if (1..=LARGEST).contains(&n) => Ok(n),
            _ => Err(self.wrong(field, rule())),
        }
    }

    /// A finite number above 0.
    pub(super) fn positive(&self, field: &str, default: Option<f64>) -> Result<f64, LoadError> {
        match self.number(field)?.or(default) {
            Some(n) if n > 0.0 => Ok(n),
            _ => Err(self.wrong(field, "must be a number above 0")),
        }
    }

    /// A finite number, if there is one.
    pub(super) fn number(&self, field: &str) -> Result<Option<f64>, LoadError> {
        match self.get(field).map(Value::as_f64) {
            None => Ok(None),
            Some(Some(n)) if n.is_finite() => Ok(Some(n)),
            Some(_) => Err(self.wrong(field, "must be a number")),
        }
    }

    /// A truth value.
    pub(super) fn flag(&self, field: &str, default: bool) -> Result<bool, LoadError> {
        match self.get(field) {
            None => Ok(default),
            Some(Value::Bool(b)) => Ok(*b),
            Some(_) => Err(self.wrong(field, "must be true or false")),
        }
    }

    /// A text, if there is one.
    pub(super) fn text(&self, field: &str) -> Result<Option<&str>, LoadError> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong(field, "must be a string")),
        }
    }

    /// A list of texts, if there is one.
    pub(super) fn texts(&self, field: &str) -> Result<Option<Vec<&str>>, LoadError> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::Array(list)) => list
                .iter()
                .map(Value::as_str)
                .collect::<Option<Vec<_>>>()
                .map(Some)
                .ok_or_else(|| self.wrong(field, "must be a list of strings")),
            Some(_) => Err(self.wrong(field, "must be a list of strings")),
        }
    }

    /// An object whose values are all texts.
    pub(super) fn strings(&self, field: &str) -> Result<Vec<(String, String)>, LoadError> {
        let wrong = || self.wrong(field, "must be an object of strings");
        let map = self.get(field).and_then(Value::as_object).ok_or_else(wrong)?;
        map.iter()
            .map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
            .collect::<Option<Vec<_>>>()
            .ok_or_else(wrong)
    }

    /// Token ids, written as one number or as a list.
    pub(super) fn ids(&self, field: &str) -> Result<Option<Vec<u32>>, LoadError> {
        let id = |value: &Value| value.as_u64().and_then(|n| u32::try_from(n).ok());
        let ids = match self.get(field) {
            None => return Ok(None),
            Some(Value::Array(list)) => list.iter().map(id).collect::<Option<Vec<_>>>(),
            Some(value) => id(value).map(|one| vec![one]),
        };
        ids.map(Some).ok_or_else(|| self.wrong(field, "must be a token id or a list of token ids"))
    }
}

/// A value for an error text: whole if short.
fn shorten(value: &Value) -> String {
    const MOST: usize = 80;
    let text = value.to_string();
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
