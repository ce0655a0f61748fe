//! What chat templates expect of Python where the template engine differs: `json.dumps`, dates.

use std::fmt::Write;

use jiff::Zoned;
use jiff::fmt::strtime;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

/// Deepest nesting `tojson` writes; deeper values cannot come from a request.
const MAX_DEPTH: usize = 200;

/// `tojson` as transformers has it: `json.dumps` that keeps non-ASCII text and the keys' order.
pub(super) fn tojson(state: &State, value: &Value, args: Kwargs) -> Result<Value, Error> {
    let ascii = args.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    let indent = match args.get::<Option<Value>>("indent")? {
        None => None,
        Some(indent) => match indent.as_str() {
            Some(text) => Some(text.to_owned()),
            None => Some(" ".repeat(usize::try_from(indent)?.min(64))),
        },
    };
    let separators = args.get::<Option<Vec<String>>>("separators")?;
    let sort_keys = args.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    args.assert_all_used()?;
    let (item, key) = match separators.as_deref() {
        None if indent.is_some() => (",".to_owned(), ": ".to_owned()),
        None => (", ".to_owned(), ": ".to_owned()),
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => return Err(invalid("separators of tojson are two strings")),
    };
    let mut writer = JsonWriter { out: String::new(), ascii, indent, item, key, sort_keys };
    writer.value(value, 0)?;
    // The result is charged by the engine; what it took to write it is charged here.
    state.consume_fuel(writer.out.len() as u64 / 64)?;
    Ok(Value::from(writer.out))
}

/// `is iterable` as Jinja has it; `tools is iterable` must be false for none.
pub(super) fn is_iterable(value: &Value) -> bool {
    value.is_undefined() || (!value.is_none() && value.try_iter().is_ok())
}

/// `is sequence` as Jinja has it: what has a length and items, strings and objects included.
pub(super) fn is_sequence(value: &Value) -> bool {
    value.is_undefined() || (!value.is_none() && value.len().is_some())
}

/// `strftime_now(format)`: the local time in Python's `strftime` format.
pub(super) fn strftime_now(format: &str) -> Result<String, Error> {
    strtime::format(format, &Zoned::now())
        .map_err(|error| invalid(format!("strftime_now({format:?}): {error}")))
}

fn invalid(detail: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, detail.into())
}

struct JsonWriter {
    out: String,
    ascii: bool,
    indent: Option<String>,
    item: String,
    key: String,
    sort_keys: bool,
}

impl JsonWriter {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(invalid("tojson of a value that is nested too deep"));
        }
        match value.kind() {
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => self.sequence(value, depth)?,
            ValueKind::Map => self.object(value, depth)?,
            _ => {
                let text = scalar(value)?;
                self.out.push_str(&text);
            }
        }
        Ok(())
    }

    fn sequence(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        self.out.push('[');
        let mut empty = true;
        for item in value.try_iter()? {
            self.before_item(empty, depth + 1);
            empty = false;
            self.value(&item, depth + 1)?;
        }
        self.after_items(empty, depth);
        self.out.push(']');
        Ok(())
    }

    fn object(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        let mut keys: Vec<Value> = value.try_iter()?.collect();
        if self.sort_keys {
            keys.sort();
        }
        self.out.push('{');
        for (index, key) in keys.iter().enumerate() {
            self.before_item(index == 0, depth + 1);
            match key.as_str() {
                Some(text) => self.string(text),
                None => {
                    let text = scalar(key)?;
                    self.string(&text);
                }
            }
            self.out.push_str(&self.key);
            self.value(&value.get_item(key)?, depth + 1)?;
        }
        self.after_items(keys.is_empty(), depth);
        self.out.push('}');
        Ok(())
    }

    fn before_item(&mut self, first: bool, depth: usize) {
        if !first {
            self.out.push_str(&self.item);
        }
        self.new_line(depth);
    }

    fn after_items(&mut self, empty: bool, depth: usize) {
        if !empty {
            self.new_line(depth);
        }
    }

    fn new_line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            for _ in 0..depth {
                self.out.push_str(indent);
            }
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for character in text.chars() {
            match character {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                '\0'..='\u{1f}' => self.escape(&mut [character as u16]),
                '\u{7f}'.. if self.ascii => {
                    self.escape(character.encode_utf16(&mut [0; 2]));
                }
                _ => self.out.push(character),
            }
        }
        self.out.push('"');
    }

    fn escape(&mut self, units: &mut [u16]) {
        for unit in units {
            // Writing to a string cannot fail.
            let _ = write!(self.out, "\\u{unit:04x}");
        }
    }
}

/// A value without parts, as JSON.
fn scalar(value: &Value) -> Result<String, Error> {
    match value.kind() {
        ValueKind::None => Ok("null".to_owned()),
        ValueKind::Bool => Ok(if value.is_true() { "true" } else { "false" }.to_owned()),
        ValueKind::Number if value.is_integer() => Ok(value.to_string()),
        ValueKind::Number => Ok(float(f64::try_from(value.clone())?)),
        kind => Err(invalid(format!("tojson cannot write a value of kind {kind}"))),
    }
}

/// Python's `repr` of a float: the shortest digits, with an exponent below 1e-4 and from 1e16 on.
fn float(value: f64) -> String {
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "Infinity" } else { "-Infinity" }.to_owned();
    }
    let size = value.abs();
    if size != 0.0 && !(1e-4..1e16).contains(&size) {
        let text = format!("{value:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = match exponent.strip_prefix('-') {
            Some(exponent) => ('-', exponent),
            None => ('+', exponent),
        };
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    let text = value.to_string();
    if text.contains('.') { text } else { text + ".0" }
}

#[cfg(test)]
mod tests {
    use minijinja::Environment;
    use minijinja::value::Serde;

    use super::*;

    fn render(expression: &str) -> String {
        let mut env = Environment::new();
        env.add_filter("tojson", tojson);
        let x = serde_json::json!({"b": [1, 2.5, true, null], "a": {"é": "日\u{1}\"\\\n/<&'\u{7f}"}, "e": [], "o": {}});
        env.render_str(&format!("{{{{ {expression} }}}}"), minijinja::context! { x => Serde(x) })
            .unwrap_or_else(|error| error.to_string())
    }

    /// The expectations are what CPython 3.11's `json.dumps` writes.
    #[test]
    fn tojson_writes_what_python_writes() {
        let plain = "{\"b\": [1, 2.5, true, null], \"a\": {\"é\": \"日\\u0001\\\"\\\\\\n/<&'\u{7f}\"}, \"e\": [], \"o\": {}}";
        let cases = [
            ("x|tojson", plain.to_owned()),
            (
                "x.a|tojson(ensure_ascii=true)",
                "{\"\\u00e9\": \"\\u65e5\\u0001\\\"\\\\\\n/<&'\\u007f\"}".to_owned(),
            ),
            ("'🦊'|tojson(ensure_ascii=true)", "\"\\ud83e\\udd8a\"".to_owned()),
            ("x.b|tojson(indent=2)", "[\n  1,\n  2.5,\n  true,\n  null\n]".to_owned()),
            (
                "{'e': [], 'o': {}, 'n': [[1]]}|tojson(indent=1)",
                "{\n \"e\": [],\n \"o\": {},\n \"n\": [\n  [\n   1\n  ]\n ]\n}".to_owned(),
            ),
            ("x.b|tojson(separators=[',', ':'])", "[1,2.5,true,null]".to_owned()),
            (
                "{'b': 1, 'a': {'d': 1, 'c': 2}}|tojson(sort_keys=true)",
                "{\"a\": {\"c\": 2, \"d\": 1}, \"b\": 1}".to_owned(),
            ),
            ("{1: 2}|tojson", "{\"1\": 2}".to_owned()),
            ("'<b>'|tojson ~ '</b>'", "\"<b>\"</b>".to_owned()),
        ];
        for (expression, wanted) in cases {
            assert_eq!(render(expression), wanted, "{expression}");
        }
        assert!(
            render("nothing|tojson").contains("kind undefined"),
            "{}",
            render("nothing|tojson")
        );
    }

    #[test]
    fn floats_are_written_as_python_writes_them() {
        let cases = [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1e-4, "0.0001"),
            (1.5e-5, "1.5e-05"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (-1.25e300, "-1.25e+300"),
            (f64::NAN, "NaN"),
            (f64::NEG_INFINITY, "-Infinity"),
        ];
        for (value, wanted) in cases {
            assert_eq!(float(value), wanted, "{value:e}");
        }
    }

    #[test]
    fn the_local_date_is_written_in_pythons_format() {
        let year = strftime_now("%d %b %Y").unwrap();
        assert!(year.len() == 11 && year.contains(" 20"), "{year}");
        assert!(strftime_now("%!").is_err());
    }
}
