//! `POST /v1/completions`: from bytes to a checked request.

use super::body::{self, Input};
use super::common::{self, Common, Limits};
use super::fields::Fields;
use crate::http::errors::{ApiError, Problem};

/// A checked completions request, not yet compared with the model's limits.
#[derive(Clone, Debug, PartialEq)]
pub struct CompletionRequest {
    /// What chat has too.
    pub common: Common,
    /// At least one.
    pub prompts: Vec<Prompt>,
    /// Whether each choice's text begins with its prompt.
    pub echo: bool,
}

/// One prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// To be tokenized.
    Text(String),
    /// Token ids, at least one.
    Ids(Vec<u32>),
}

/// Parses and checks a request body.
///
/// # Errors
/// Malformed JSON, or the first parameter that is missing, of a wrong type, out of range, or asks
/// for what is not supported.
pub fn parse(bytes: &[u8], limits: Limits) -> Result<CompletionRequest, ApiError> {
    let parsed = body::parse(bytes, "prompt")?;
    let fields = Fields::new(&parsed.fields);
    let mut common = common::read(fields, limits, true)?;
    common.sampling.logprobs = common::logprobs_count(fields, "logprobs")?;
    let echo = fields.flag("echo")?.unwrap_or(false);
    if echo && common.sampling.logprobs.is_some() {
        let rule = "is not supported together with logprobs: log probabilities of prompt tokens \
                    are not computed; leave out one of them";
        return Err(fields.problem(Problem::Unsupported, "echo", rule));
    }
    if fields.text("suffix")?.is_some_and(|suffix| !suffix.is_empty()) {
        let rule = "is not supported: the models served here only continue text; leave it out";
        return Err(fields.problem(Problem::Unsupported, "suffix", rule));
    }
    if fields.integer("best_of", 0, i64::MAX)?.is_some_and(|n| n > 1 && n as usize != common.n) {
        let rule = "is not supported; only 1 or the value of n is";
        return Err(fields.problem(Problem::Unsupported, "best_of", rule));
    }
    let prompts = prompts(parsed.input)?;
    let choices = prompts.len().saturating_mul(common.n);
    if choices > limits.max_choices {
        let text = format!(
            "{} prompts × n = {} are {choices} choices: at most {} are allowed in one request \
             (frontend.max_choices)",
            prompts.len(),
            common.n,
            limits.max_choices
        );
        return Err(ApiError::of(Problem::InvalidValue, "prompt", text));
    }
    Ok(CompletionRequest { common, prompts, echo })
}

fn prompts(input: Option<Input>) -> Result<Vec<Prompt>, ApiError> {
    const RULE: &str =
        "must be a string, an array of strings, an array of token ids or an array of such arrays";
    let empty = || {
        let text = "prompt is empty: give at least one token of text";
        ApiError::of(Problem::InvalidValue, "prompt", text)
    };
    let prompts: Vec<_> = match input {
        None => {
            let text = format!("prompt is missing: it {RULE}");
            return Err(ApiError::of(Problem::Missing, "prompt", text));
        }
        Some(Input::Other(what)) => {
            let text = format!("prompt = {what}: {RULE}");
            return Err(ApiError::of(Problem::WrongType, "prompt", text));
        }
        Some(Input::Empty) => return Err(empty()),
        Some(Input::Text(text)) => vec![Prompt::Text(text)],
        Some(Input::Texts(texts)) => texts.into_iter().map(Prompt::Text).collect(),
        Some(Input::Ids(ids)) => vec![Prompt::Ids(ids)],
        Some(Input::IdLists(lists)) => lists.into_iter().map(Prompt::Ids).collect(),
    };
    let is_empty = |prompt: &Prompt| match prompt {
        Prompt::Text(text) => text.is_empty(),
        Prompt::Ids(ids) => ids.is_empty(),
    };
    if prompts.iter().any(is_empty) { Err(empty()) } else { Ok(prompts) }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn parsed(mut body: Value) -> Result<CompletionRequest, ApiError> {
        body.as_object_mut().unwrap().entry("model").or_insert(json!("m"));
        parse(body.to_string().as_bytes(), Limits { max_choices: 4 })
    }

    #[test]
    fn every_form_of_prompt_is_taken() {
        let text = |text: &str| Prompt::Text(text.into());
        let cases = [
            (json!("a"), vec![text("a")]),
            (json!(["a", "b"]), vec![text("a"), text("b")]),
            (json!([1, 2]), vec![Prompt::Ids(vec![1, 2])]),
            (json!([[1], [2]]), vec![Prompt::Ids(vec![1]), Prompt::Ids(vec![2])]),
        ];
        for (prompt, expected) in cases {
            assert_eq!(parsed(json!({ "prompt": prompt })).unwrap().prompts, expected);
        }
    }

    #[test]
    fn a_mistake_is_answered_with_its_parameter_value_and_rule() {
        let cases = [
            (
                json!({}),
                "prompt",
                "prompt is missing: it must be a string, an array of strings, an array of token ids or an array of such arrays",
            ),
            (json!({ "prompt": "" }), "prompt", "prompt is empty: give at least one token of text"),
            (
                json!({ "prompt": [[1], []] }),
                "prompt",
                "prompt is empty: give at least one token of text",
            ),
            (
                json!({ "prompt": [1, "a"] }),
                "prompt",
                "prompt = an array of different kinds of elements: must be a string, an array of strings, an array of token ids or an array of such arrays",
            ),
            (
                json!({ "prompt": [-1] }),
                "prompt",
                "prompt = an array with -1, which is no token id: must be a string, an array of strings, an array of token ids or an array of such arrays",
            ),
            (
                json!({ "prompt": ["a", "b", "c"], "n": 2 }),
                "prompt",
                "3 prompts × n = 2 are 6 choices: at most 4 are allowed in one request (frontend.max_choices)",
            ),
            (
                json!({ "prompt": "a", "suffix": "b" }),
                "suffix",
                "suffix = \"b\": is not supported: the models served here only continue text; leave it out",
            ),
            (
                json!({ "prompt": "a", "best_of": 3 }),
                "best_of",
                "best_of = 3: is not supported; only 1 or the value of n is",
            ),
            (
                json!({ "prompt": "a", "logprobs": true }),
                "logprobs",
                "logprobs = true: must be a whole number from 0 to 20",
            ),
            (
                json!({ "prompt": "a", "logprobs": 0, "echo": true }),
                "echo",
                "echo = true: is not supported together with logprobs: log probabilities of prompt tokens are not computed; leave out one of them",
            ),
        ];
        for (body, param, message) in cases {
            let error = parsed(body.clone()).expect_err(&body.to_string());
            assert_eq!((error.param.as_deref(), error.message.as_str()), (Some(param), message));
        }
    }
}
