//! An answer as one JSON body.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::logprobs::Logprobs;
use super::told::Told;
use super::wire::{self, Head, Kind};
use crate::actors::failure::Failure;
use crate::actors::reply::{Delta, Finish, Reply, Usage};
use crate::actors::router::Explanation;
use crate::http::json;
use crate::text::TextModel;

/// Gets the whole body, once.
pub(crate) type Answered = oneshot::Sender<Result<Vec<u8>, Failure>>;

/// Gathers one request's answer.
pub(crate) struct UnaryReply {
    head: Head,
    answered: Option<Answered>,
    text_model: Option<Arc<TextModel>>,
    choices: Vec<Choice>,
    told: Option<Box<Told>>,
}

struct Choice {
    /// Escaped for JSON as it came.
    text: Vec<u8>,
    logprobs: Option<Logprobs>,
    finish: Option<Finish>,
}

impl UnaryReply {
    /// An answer of `choices` choices over all prompts, `n` for each; `logprobs` gives the names of
    /// tokens, `echo` the prompts that begin the texts.
    pub(crate) fn new(
        head: Head,
        choices: usize,
        n: usize,
        logprobs: Option<Arc<TextModel>>,
        echo: Option<&[String]>,
        told: Option<Box<Told>>,
        answered: Answered,
    ) -> Self {
        let choice = |i: usize| {
            let mut text = Vec::new();
            if let Some(prompt) = echo.and_then(|prompts| prompts.get(i / n.max(1))) {
                json::escape(&mut text, prompt);
            }
            let logprobs = logprobs.is_some().then(|| Logprobs::new(head.kind));
            Choice { text, logprobs, finish: None }
        };
        let choices = (0..choices).map(choice).collect();
        Self { head, answered: Some(answered), text_model: logprobs, choices, told }
    }

    fn render(&mut self, usage: &Usage) -> Vec<u8> {
        let size: usize = self.choices.iter().map(|choice| choice.text.len() + 160).sum();
        let mut out = Vec::with_capacity(size + 320);
        self.head.render(&mut out, false);
        for (i, choice) in self.choices.iter_mut().enumerate() {
            if i > 0 {
                out.push(b',');
            }
            out.extend_from_slice(br#"{"index":"#);
            json::integer(&mut out, i);
            out.extend_from_slice(match self.head.kind {
                Kind::Chat => br#","message":{"role":"assistant","content":""#,
                Kind::Completion => br#","text":""#,
            });
            out.append(&mut choice.text);
            out.extend_from_slice(match self.head.kind {
                Kind::Chat => br#"","refusal":null},"logprobs":"#,
                Kind::Completion => br#"","logprobs":"#,
            });
            match &mut choice.logprobs {
                Some(logprobs) => logprobs.render(&mut out),
                None => out.extend_from_slice(b"null"),
            }
            out.extend_from_slice(br#","finish_reason":""#);
            let finish = choice.finish.as_ref().unwrap_or(&Finish::Stop);
            out.extend_from_slice(wire::finish_reason(finish).as_bytes());
            out.extend_from_slice(b"\"}");
        }
        out.extend_from_slice(b"],");
        wire::usage(&mut out, usage);
        if let Some(told) = &self.told {
            told.render(&mut out);
        }
        out.push(b'}');
        out
    }
}

impl Reply for UnaryReply {
    fn accepted(&mut self) {}

    fn started(&mut self, choice: usize, rank: String) {
        if let Some(told) = &mut self.told {
            told.started(choice, rank);
        }
    }

    fn routed(&mut self, choice: usize, explanation: Explanation) {
        if let Some(told) = &mut self.told {
            told.routed(choice, &explanation);
        }
    }

    fn delta(&mut self, delta: Delta<'_>) {
        let choice = &mut self.choices[delta.choice];
        json::escape(&mut choice.text, delta.text);
        if let (Some(logprobs), Some(text)) = (&mut choice.logprobs, &self.text_model) {
            logprobs.push(text, delta.tokens);
        }
    }

    fn finished(&mut self, choice: usize, reason: Finish) {
        self.choices[choice].finish = Some(reason);
    }

    fn done(&mut self, usage: &Usage) {
        let body = self.render(usage);
        if let Some(answered) = self.answered.take() {
            // Nobody listens: the client is gone.
            let _ = answered.send(Ok(body));
        }
    }

    fn failed(&mut self, failure: &Failure) {
        if let Some(answered) = self.answered.take() {
            let _ = answered.send(Err(failure.clone()));
        }
    }

    /// Nothing waits for the connection before the answer is whole.
    fn flush(&mut self) -> usize {
        0
    }
}
