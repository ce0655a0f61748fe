//! The rules of a stream, event by event: it has a begin, one end, and says which.

use serde_json::Value;

use super::answer::{Answer, Choice, Ending};

/// How the bytes of a body ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum BodyEnd {
    /// As HTTP says that a body ends; with so many bytes of an event that has no end.
    Whole { left: usize },
    /// The connection broke.
    Cut(String),
    /// Nothing came for too long, or no end.
    Late(String),
}

/// What a stream said so far.
#[derive(Debug)]
pub(crate) struct Transcript {
    choices: Vec<Choice>,
    /// `stream_options.include_usage` was asked for.
    wants_usage: bool,
    usage: Option<[u64; 3]>,
    id: Option<Value>,
    done: bool,
    error: Option<String>,
    /// The first thing that was against the rules.
    wrong: Option<String>,
}

impl Transcript {
    /// Of a request for so many choices.
    pub(crate) fn new(choices: usize, wants_usage: bool) -> Self {
        let choices = vec![Choice::default(); choices];
        let (usage, id, error, wrong) = (None, None, None, None);
        Self { choices, wants_usage, usage, id, done: false, error, wrong }
    }

    /// Takes the next event's data.
    pub(crate) fn event(&mut self, data: &str) {
        if self.wrong.is_none()
            && let Err(wrong) = self.take(data)
        {
            self.wrong = Some(wrong);
        }
    }

    /// Notes that the bytes are no stream of events.
    pub(crate) fn garbage(&mut self, what: &str) {
        self.wrong.get_or_insert_with(|| what.to_owned());
    }

    fn take(&mut self, data: &str) -> Result<(), String> {
        if self.done {
            return Err(format!("an event after [DONE]: {}", shown(data)));
        }
        if let Some(error) = &self.error {
            return Err(format!("an event after the error {error:?}: {}", shown(data)));
        }
        if data == "[DONE]" {
            self.done = true;
            return self.complete();
        }
        let event: Value = serde_json::from_str(data)
            .map_err(|error| format!("an event that is not JSON ({error}): {}", shown(data)))?;
        if let Some(error) = event.get("error") {
            self.error = Some(error_text(error)?);
            return Ok(());
        }
        let id = event.get("id").ok_or_else(|| format!("a chunk without id: {}", shown(data)))?;
        match &self.id {
            None => self.id = Some(id.clone()),
            Some(first) if first != id => return Err(format!("id {id} after {first}")),
            Some(_) => {}
        }
        let choices = event.get("choices").and_then(Value::as_array);
        let choices = choices.ok_or_else(|| format!("a chunk without choices: {}", shown(data)))?;
        if self.usage.is_some() {
            return Err(format!("a chunk after the usage: {}", shown(data)));
        }
        for choice in choices {
            self.delta(choice)?;
        }
        if let Some(usage) = event.get("usage").filter(|usage| !usage.is_null()) {
            if let Some(open) = self.choices.iter().position(|choice| choice.finish.is_none()) {
                return Err(format!("usage before choice {open} has finished"));
            }
            self.usage = Some(tokens(usage)?);
        }
        Ok(())
    }

    fn delta(&mut self, delta: &Value) -> Result<(), String> {
        let index = delta.get("index").and_then(Value::as_u64).unwrap_or(u64::MAX) as usize;
        let asked = self.choices.len();
        let Some(choice) = self.choices.get_mut(index) else {
            return Err(format!("a chunk of a choice that was not asked for ({asked}): {delta}"));
        };
        if choice.finish.is_some() {
            return Err(format!("choice {index} goes on after its finish_reason: {delta}"));
        }
        let text = delta.pointer("/delta/content").or_else(|| delta.get("text"));
        choice.text.push_str(text.and_then(Value::as_str).unwrap_or_default());
        choice.logprobs.append(&mut logprobs(delta));
        if let Some(reason) = delta.get("finish_reason").filter(|reason| !reason.is_null()) {
            let reason = reason.as_str().ok_or_else(|| format!("finish_reason {reason}"))?;
            choice.finish = Some(reason.to_owned());
        }
        Ok(())
    }

    /// What must have been said before `[DONE]`.
    fn complete(&self) -> Result<(), String> {
        if let Some(open) = self.choices.iter().position(|choice| choice.finish.is_none()) {
            return Err(format!("truncated: [DONE] before choice {open} has finished"));
        }
        if self.wants_usage && self.usage.is_none() {
            return Err("[DONE] without the usage that was asked for".to_owned());
        }
        Ok(())
    }

    /// How the request ended, given how the body did.
    pub(crate) fn end(self, body: BodyEnd) -> Ending {
        if let Some(wrong) = self.wrong {
            return Ending::Wrong(wrong);
        }
        match body {
            BodyEnd::Late(why) => Ending::Wrong(format!("never ended: {why}")),
            BodyEnd::Whole { left } if left > 0 => {
                Ending::Wrong(format!("truncated: the stream ends {left} bytes into an event"))
            }
            // What matters was said; what broke came after it.
            _ if self.done => Ending::Complete(Answer { choices: self.choices, usage: self.usage }),
            _ if self.error.is_some() => Ending::Error(self.error.unwrap_or_default()),
            BodyEnd::Cut(why) => Ending::Broken(why),
            BodyEnd::Whole { .. } => {
                let done = "truncated: the stream ends like a complete one, without [DONE]";
                Ending::Wrong(format!("{done} and without an error event"))
            }
        }
    }
}

/// The ending that a body which is no stream tells of. `choices`: so many were asked for.
pub(crate) fn unary(status: u16, body: &[u8], choices: usize) -> Ending {
    let value: Result<Value, _> = serde_json::from_slice(body);
    let Ok(value) = value else {
        let text = String::from_utf8_lossy(body);
        return Ending::Wrong(format!("status {status} with no JSON: {}", shown(&text)));
    };
    if status != 200 {
        let text = value.get("error").map_or(Err("no error object".to_owned()), error_text);
        return match (status, text) {
            (_, Err(wrong)) => Ending::Wrong(format!("status {status}: {wrong}")),
            (429 | 503, Ok(text)) => Ending::Refused(format!("{status}: {text}")),
            (_, Ok(text)) => Ending::Error(format!("{status}: {text}")),
        };
    }
    match unary_answer(&value, choices) {
        Ok(answer) => Ending::Complete(answer),
        Err(wrong) => Ending::Wrong(wrong),
    }
}

fn unary_answer(value: &Value, asked: usize) -> Result<Answer, String> {
    let found = value.get("choices").and_then(Value::as_array);
    let found = found.ok_or_else(|| format!("an answer without choices: {value}"))?;
    if found.len() != asked {
        return Err(format!("{} choices instead of {asked}", found.len()));
    }
    let mut choices = Vec::with_capacity(asked);
    for (index, choice) in found.iter().enumerate() {
        if choice.get("index").and_then(Value::as_u64) != Some(index as u64) {
            return Err(format!("choice {index} has another index: {choice}"));
        }
        let text = choice.pointer("/message/content").or_else(|| choice.get("text"));
        let text = text.and_then(Value::as_str).unwrap_or_default().to_owned();
        let finish = choice.get("finish_reason").and_then(Value::as_str).map(str::to_owned);
        if finish.is_none() {
            return Err(format!("truncated: choice {index} has no finish_reason"));
        }
        choices.push(Choice { text, logprobs: logprobs(choice), finish });
    }
    let usage = value.get("usage").ok_or("an answer without usage")?;
    Ok(Answer { choices, usage: Some(tokens(usage)?) })
}

/// The log probabilities of a choice in either shape, one row a token.
fn logprobs(choice: &Value) -> Vec<Value> {
    let Some(logprobs) = choice.get("logprobs") else { return Vec::new() };
    if let Some(rows) = logprobs.get("content").and_then(Value::as_array) {
        return rows.clone();
    }
    let column = |name: &str| logprobs.get(name).and_then(Value::as_array);
    let Some(names) = column("tokens") else { return Vec::new() };
    let cell = |name: &str, row: usize| column(name).and_then(|column| column.get(row)).cloned();
    let row = |(row, name): (usize, &Value)| {
        let columns = ["token_logprobs", "top_logprobs", "text_offset"];
        let cells = columns.into_iter().map(|name| cell(name, row).unwrap_or_default());
        Value::Array(std::iter::once(name.clone()).chain(cells).collect())
    };
    names.iter().enumerate().map(row).collect()
}

/// Prompt, completion and total tokens, which must add up.
fn tokens(usage: &Value) -> Result<[u64; 3], String> {
    let count = |name: &str| usage.get(name).and_then(Value::as_u64);
    let counts = (count("prompt_tokens"), count("completion_tokens"), count("total_tokens"));
    match counts {
        (Some(prompt), Some(completion), Some(total)) if prompt + completion == total => {
            Ok([prompt, completion, total])
        }
        _ => Err(format!("a usage that does not add up: {usage}")),
    }
}

/// `message (type)` of an error object in OpenAI's shape.
fn error_text(error: &Value) -> Result<String, String> {
    let field = |name: &str| error.get(name).and_then(Value::as_str);
    match (field("message"), field("type")) {
        (Some(message), Some(kind)) => Ok(format!("{message} ({kind})")),
        _ => Err(format!("an error without message and type: {error}")),
    }
}

/// The first part of what was found.
fn shown(text: &str) -> String {
    let short: String = text.chars().take(120).collect();
    if short.len() < text.len() { format!("{short}…") } else { short }
}

#[cfg(test)]
#[path = "transcript_tests.rs"]
mod tests;
