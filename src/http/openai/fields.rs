//! Reading the fields of a JSON object: each mistake names the parameter, its value and the rule.

use serde_json::{Map, Value};

use crate::http::errors::{ApiError, Problem};
use crate::http::json::shortened;

/// One JSON object of a request. `null` means absent, as clients mean it.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a> {
    map: &'a Map<String, Value>,
    /// What stands before a field's name in messages, e.g. `messages[0].`.
    prefix: &'a str,
}

impl<'a> Fields<'a> {
    pub(super) fn new(map: &'a Map<String, Value>) -> Self {
        Self { map, prefix: "" }
    }

    /// An object inside another one.
    pub(super) fn within(map: &'a Map<String, Value>, prefix: &'a str) -> Self {
        Self { map, prefix }
    }

    pub(super) fn get(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    /// The field's full name.
    pub(super) fn param(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// A problem with this field's value: `name = value: rule`.
    pub(super) fn problem(&self, problem: Problem, name: &str, rule: &str) -> ApiError {
        at(problem, &self.param(name), self.map.get(name).unwrap_or(&Value::Null), rule)
    }

    pub(super) fn missing(&self, name: &str, rule: &str) -> ApiError {
        let param = self.param(name);
        let message = format!("{param} is missing: {rule}");
        ApiError::of(Problem::Missing, param, message)
    }

    pub(super) fn flag(&self, name: &str) -> Result<Option<bool>, ApiError> {
        let read = |value: &Value| value.as_bool();
        self.read(name, read, "must be true or false")
    }

    pub(super) fn text(&self, name: &str) -> Result<Option<&'a str>, ApiError> {
        self.read(name, |value| value.as_str(), "must be a string")
    }

    pub(super) fn array(&self, name: &str) -> Result<Option<&'a Vec<Value>>, ApiError> {
        self.read(name, |value| value.as_array(), "must be an array")
    }

    pub(super) fn object(&self, name: &str) -> Result<Option<&'a Map<String, Value>>, ApiError> {
        self.read(name, |value| value.as_object(), "must be an object")
    }

    fn read<T>(
        &self,
        name: &str,
        read: impl Fn(&'a Value) -> Option<T>,
        rule: &str,
    ) -> Result<Option<T>, ApiError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match read(value) {
            Some(read) => Ok(Some(read)),
            None => Err(self.problem(Problem::WrongType, name, rule)),
        }
    }

    /// A number from `low` to `high`, both included.
    pub(super) fn number(&self, name: &str, low: f64, high: f64) -> Result<Option<f32>, ApiError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let rule = || format!("must be a number from {low} to {high}");
        match value.as_f64() {
            Some(number) if (low..=high).contains(&number) => Ok(Some(number as f32)),
            Some(_) => Err(self.problem(Problem::InvalidValue, name, &rule())),
            None => Err(self.problem(Problem::WrongType, name, &rule())),
        }
    }

    /// A whole number from `low` to `high`, both included. `2.0` is a whole number, as in JSON
    /// Schema.
    pub(super) fn integer(&self, name: &str, low: i64, high: i64) -> Result<Option<i64>, ApiError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let rule = || match high {
            i64::MAX => format!("must be a whole number of at least {low}"),
            _ => format!("must be a whole number from {low} to {high}"),
        };
        match whole(value) {
            Some(number) if (i128::from(low)..=i128::from(high)).contains(&number) => {
                Ok(Some(number as i64))
            }
            Some(_) => Err(self.problem(Problem::InvalidValue, name, &rule())),
            None => Err(self.problem(Problem::WrongType, name, &rule())),
        }
    }
}

/// A problem with the value of `param`: `param = value: rule`.
pub(super) fn at(problem: Problem, param: &str, value: &Value, rule: &str) -> ApiError {
    ApiError::of(problem, param, format!("{param} = {}: {rule}", shown(value)))
}

/// The value as a whole number, if it is one.
pub(super) fn whole(value: &Value) -> Option<i128> {
    let number = value.as_number()?;
    if let Some(number) = number.as_i64() {
        return Some(number.into());
    }
    if let Some(number) = number.as_u64() {
        return Some(number.into());
    }
    let number = number.as_f64()?;
    // At ±2^63 and beyond, one and the same float stands for many numbers.
    (number.fract() == 0.0 && number.abs() < 9_223_372_036_854_775_808.0).then_some(number as i128)
}

/// A value as error messages show it.
pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => shortened(text, 60),
        Value::Array(items) if !items.is_empty() => format!("[… {} items]", items.len()),
        Value::Object(map) if !map.is_empty() => format!("{{… {} fields}}", map.len()),
        small => small.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(text: &str) -> Map<String, Value> {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn a_mistake_names_the_parameter_the_value_and_the_rule() {
        let map = object(r#"{"t":3.5,"s":"hot","n":1.5,"b":1,"a":{"x":1},"big":1e300}"#);
        let fields = Fields::new(&map);
        let cases = [
            (fields.number("t", 0.0, 2.0).err(), "t = 3.5: must be a number from 0 to 2"),
            (fields.number("s", 0.0, 2.0).err(), "s = \"hot\": must be a number from 0 to 2"),
            (fields.integer("n", 1, 4).err(), "n = 1.5: must be a whole number from 1 to 4"),
            (fields.integer("big", 1, 4).err(), "big = 1e+300: must be a whole number from 1 to 4"),
            (fields.flag("b").err(), "b = 1: must be true or false"),
            (fields.array("a").err(), "a = {… 1 fields}: must be an array"),
        ];
        for (error, text) in cases {
            assert_eq!(error.unwrap().message, text);
        }
    }

    #[test]
    fn null_is_absent_and_an_integral_float_is_a_whole_number() {
        let map = object(r#"{"x":null,"n":2.0}"#);
        let fields = Fields::new(&map);
        assert_eq!(fields.integer("x", 0, 9).unwrap(), None);
        assert_eq!(fields.integer("n", 0, 9).unwrap(), Some(2));
    }
}
