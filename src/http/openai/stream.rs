//! An answer as server-sent events.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::logprobs::Logprobs;
use super::told::Told;
use super::wire::{self, Head, Kind};
use crate::actors::failure::Failure;
use crate::actors::reply::{Delta, Finish, Reply, Usage};
use crate::actors::router::Explanation;
use crate::http::errors::ApiError;
use crate::http::json;
use crate::http::outbox::Outlet;
use crate::text::TextModel;

/// What a stream is asked to say besides text.
#[derive(Clone, Default)]
pub(crate) struct StreamOptions {
    /// A last event with the usage.
    pub(crate) include_usage: bool,
    /// A last event with the ranks that served each choice, and with the reasons for them.
    pub(crate) ranks: bool,
    pub(crate) routing: bool,
    /// Log probabilities, with the names of tokens from here.
    pub(crate) logprobs: Option<Arc<TextModel>>,
    /// Completions with `echo`: the prompt of each choice.
    pub(crate) echo: Option<Arc<[String]>>,
    /// Choices for each prompt.
    pub(crate) n: usize,
}

/// Told once whether the answer begins.
pub(crate) type Begun = oneshot::Sender<Result<(), Failure>>;

/// Writes one request's events into its outbox.
pub(crate) struct StreamReply {
    outlet: Outlet,
    begun: Option<Begun>,
    kind: Kind,
    options: StreamOptions,
    /// `data: {…,"choices":[{"index":`
    head: Vec<u8>,
    /// From after the text to the end of the event, without log probabilities.
    plain_tail: Vec<u8>,
    choices: Vec<Choice>,
    told: Option<Box<Told>>,
    ended: bool,
}

struct Choice {
    /// Whether its first event, with role or echo, has left.
    started: bool,
    logprobs: Option<Logprobs>,
}

const NEXT_CHOICE: &[u8] = br#"{"index":"#;

impl StreamReply {
    /// A stream of `choices` choices over all prompts.
    pub(crate) fn new(
        head: &Head,
        choices: usize,
        options: StreamOptions,
        outlet: Outlet,
        begun: Begun,
    ) -> Self {
        let mut start = b"data: ".to_vec();
        head.render(&mut start, true);
        start.extend_from_slice(NEXT_CHOICE);
        let mut plain_tail = text_end(head.kind).to_vec();
        plain_tail.extend_from_slice(br#"null,"finish_reason":null}]"#);
        plain_tail.extend_from_slice(event_end(options.include_usage));
        let logprobs = || options.logprobs.is_some().then(|| Logprobs::new(head.kind));
        Self {
            outlet,
            begun: Some(begun),
            kind: head.kind,
            head: start,
            plain_tail,
            choices: (0..choices)
                .map(|_| Choice { started: false, logprobs: logprobs() })
                .collect(),
            told: Told::new(choices, options.ranks, options.routing),
            options,
            ended: false,
        }
    }

    /// Starts an event of a choice: everything up to its index.
    #[inline]
    fn open(&mut self, choice: usize) -> &mut Vec<u8> {
        open(&mut self.outlet, &self.head, choice)
    }

    /// The choice's first event: the role of a chat's answer, the prompt that is echoed.
    fn start(&mut self, choice: usize) {
        self.choices[choice].started = true;
        match self.kind {
            Kind::Chat => {
                let out = self.open(choice);
                out.extend_from_slice(br#","delta":{"role":"assistant","content":""#);
            }
            Kind::Completion => {
                let Some(echo) = self.options.echo.clone() else { return };
                let Some(prompt) = echo.get(choice / self.options.n.max(1)) else { return };
                let out = self.open(choice);
                out.extend_from_slice(text_start(Kind::Completion));
                json::escape(out, prompt);
            }
        }
        self.outlet.buffer().extend_from_slice(&self.plain_tail);
    }

    fn text_with_logprobs(&mut self, delta: Delta<'_>) {
        let kind = self.kind;
        let out = open(&mut self.outlet, &self.head, delta.choice);
        out.extend_from_slice(text_start(kind));
        json::escape(out, delta.text);
        out.extend_from_slice(text_end(kind));
        let logprobs = &mut self.choices[delta.choice].logprobs;
        if let (Some(logprobs), Some(text)) = (logprobs, &self.options.logprobs) {
            logprobs.push(text, delta.tokens);
            logprobs.render(out);
        }
        out.extend_from_slice(br#","finish_reason":null}]"#);
        out.extend_from_slice(event_end(self.options.include_usage));
    }

    fn end(&mut self) {
        self.ended = true;
        self.outlet.end();
    }
}

#[inline]
fn open<'a>(outlet: &'a mut Outlet, head: &[u8], choice: usize) -> &'a mut Vec<u8> {
    let out = outlet.buffer();
    out.extend_from_slice(head);
    json::integer(out, choice);
    out
}

/// From after the index to the text.
fn text_start(kind: Kind) -> &'static [u8] {
    match kind {
        Kind::Chat => br#","delta":{"content":""#,
        Kind::Completion => br#","text":""#,
    }
}

/// From after the text to the value of `logprobs`.
fn text_end(kind: Kind) -> &'static [u8] {
    match kind {
        Kind::Chat => br#""},"logprobs":"#,
        Kind::Completion => br#"","logprobs":"#,
    }
}

/// From after the choices to the end of the event. Who asked for usage sees the field in each one.
fn event_end(include_usage: bool) -> &'static [u8] {
    if include_usage { b",\"usage\":null}\n\n" } else { b"}\n\n" }
}

impl Reply for StreamReply {
    fn accepted(&mut self) {
        if let Some(begun) = self.begun.take() {
            // Nobody listens: the client is gone, and its guard says so.
            let _ = begun.send(Ok(()));
        }
    }

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
        if !self.choices[delta.choice].started {
            self.start(delta.choice);
        }
        if self.options.logprobs.is_some() {
            if !(delta.text.is_empty() && delta.tokens.is_empty()) {
                self.text_with_logprobs(delta);
            }
        } else if !delta.text.is_empty() {
            let size = self.head.len() + self.plain_tail.len() + delta.text.len() + 48;
            self.outlet.buffer().reserve(size);
            let out = open(&mut self.outlet, &self.head, delta.choice);
            out.extend_from_slice(text_start(self.kind));
            json::escape(out, delta.text);
            out.extend_from_slice(&self.plain_tail);
        }
    }

    fn finished(&mut self, choice: usize, reason: Finish) {
        if !self.choices[choice].started {
            self.start(choice);
        }
        let kind = self.kind;
        let include_usage = self.options.include_usage;
        let out = self.open(choice);
        out.extend_from_slice(match kind {
            Kind::Chat => br#","delta":{},"logprobs":null,"finish_reason":""#,
            Kind::Completion => br#","text":"","logprobs":null,"finish_reason":""#,
        });
        out.extend_from_slice(wire::finish_reason(&reason).as_bytes());
        out.extend_from_slice(b"\"}]");
        out.extend_from_slice(event_end(include_usage));
    }

    fn done(&mut self, usage: &Usage) {
        let out = self.outlet.buffer();
        if self.options.include_usage || self.told.is_some() {
            out.extend_from_slice(&self.head[..self.head.len() - NEXT_CHOICE.len()]);
            out.push(b']');
            if self.options.include_usage {
                out.push(b',');
                wire::usage(out, usage);
            }
            if let Some(told) = &self.told {
                told.render(out);
            }
            out.extend_from_slice(b"}\n\n");
        }
        out.extend_from_slice(b"data: [DONE]\n\n");
        self.end();
    }

    fn failed(&mut self, failure: &Failure) {
        match self.begun.take() {
            Some(begun) => drop(begun.send(Err(failure.clone()))),
            None => {
                let out = self.outlet.buffer();
                out.extend_from_slice(b"data: ");
                ApiError::from(failure).render(out);
                out.extend_from_slice(b"\n\n");
            }
        }
        self.end();
    }

    fn flush(&mut self) -> usize {
        self.outlet.flush()
    }
}

impl Drop for StreamReply {
    /// The request was killed: its client must not take what came so far for all.
    fn drop(&mut self) {
        if !self.ended {
            self.failed(&Failure::Internal(
                "the request was stopped before its answer was complete",
            ));
        }
    }
}
