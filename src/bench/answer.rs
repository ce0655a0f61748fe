//! One streamed answer: its tokens in time, its end, and whether it may be believed.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::Value;

use super::client::{Failure, Sink};
use super::http::Head;
use super::prompt::Api;
use super::record::Record;
use super::slo::Times;
use super::sse::{Event, Lines, Reader};

/// How much of an error is kept to be shown.
const SHOWN_BYTES: usize = 2048;

/// `usage`, as far as it is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub(super) struct Usage {
    #[serde(default)]
    pub(super) prompt_tokens: u64,
    #[serde(default)]
    pub(super) completion_tokens: u64,
    #[serde(default)]
    prompt_tokens_details: Option<Details>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
struct Details {
    #[serde(default)]
    cached_tokens: Option<u64>,
}

#[derive(Deserialize)]
struct LastEvent {
    usage: Option<Usage>,
}

impl Usage {
    pub(super) fn cached_tokens(&self) -> u64 {
        self.prompt_tokens_details.and_then(|details| details.cached_tokens).unwrap_or(0)
    }
}

/// A whole answer.
#[derive(Debug)]
pub(super) struct Complete {
    pub(super) times: Times,
    pub(super) sent: Instant,
    /// Events that brought tokens.
    pub(super) events: u64,
    /// `None` if the server does not tell.
    pub(super) usage: Option<Usage>,
    /// What was said: see [`Answer::new`].
    pub(super) kept: Vec<u8>,
}

impl Complete {
    /// Tokens of the answer, by `usage` or else by the events.
    pub(super) fn output_tokens(&self) -> u64 {
        self.usage.map_or(self.events, |usage| usage.completion_tokens)
    }
}

/// An answer as far as it has come.
pub(super) struct Answer<'a> {
    api: Api,
    reader: &'a Reader,
    record: &'a RefCell<Record>,
    keep: bool,
    lines: Lines,
    sent: Instant,
    first: Option<Instant>,
    last: Instant,
    longest_gap: Duration,
    events: u64,
    /// Events with tokens in this read.
    fresh: u64,
    usage: Option<Usage>,
    done: bool,
    /// The first error event.
    error: Option<String>,
    kept: Vec<u8>,
    /// The start of a body that is no stream of events.
    other: Vec<u8>,
    wrong: Option<String>,
}

impl<'a> Answer<'a> {
    /// An answer to a request that is sent now. If told to `keep` it, what was said is gathered: token ids
    /// between commas (completions), the inside of a JSON string (chat).
    pub(super) fn new(
        api: Api,
        reader: &'a Reader,
        record: &'a RefCell<Record>,
        keep: bool,
    ) -> Self {
        let sent = Instant::now();
        Self {
            api,
            reader,
            record,
            keep,
            lines: Lines::default(),
            sent,
            first: None,
            last: sent,
            longest_gap: Duration::ZERO,
            events: 0,
            fresh: 0,
            usage: None,
            done: false,
            error: None,
            kept: Vec::new(),
            other: Vec::new(),
            wrong: None,
        }
    }

    /// The answer, after its end.
    ///
    /// # Errors
    /// [`Failure`] if it is not a whole and good one.
    pub(super) fn finish(self, head: &Head) -> Result<Complete, Failure> {
        if head.status != 200 {
            return Err(Failure::Status(head.status, message(&self.other)));
        }
        if let Some(error) = self.error {
            return Err(Failure::ErrorEvent(error));
        }
        if let Some(wrong) = self.wrong {
            return Err(Failure::Protocol(wrong));
        }
        if !head.events {
            return Err(Failure::Protocol("the answer is not a text/event-stream".into()));
        }
        if !self.done {
            return Err(Failure::Truncated("the stream ended without [DONE]"));
        }
        let end = Instant::now();
        let tokens = self.usage.map_or(self.events, |usage| usage.completion_tokens);
        let first = self.first.unwrap_or(end);
        // A server may put several tokens into an event, so that the events alone say too much.
        let steps = u32::try_from(tokens.saturating_sub(1)).unwrap_or(u32::MAX);
        let times = Times {
            ttft: first - self.sent,
            tpot: self.last.saturating_duration_since(first).checked_div(steps).unwrap_or_default(),
            longest_gap: self.longest_gap,
            e2e: end - self.sent,
        };
        let Self { sent, events, usage, kept, .. } = self;
        Ok(Complete { times, sent, events, usage, kept })
    }

    fn event(&mut self, data: &[u8]) {
        let event = self.reader.event(data);
        match event {
            Event::Text(_) => self.fresh += 1,
            Event::Done => self.done = true,
            Event::Error(error) => {
                self.error.get_or_insert_with(|| message(error));
            }
            Event::Other(data) => {
                // Only few events come here, and only these are read as JSON.
                match serde_json::from_slice::<LastEvent>(data) {
                    Ok(last) => self.usage = last.usage.or(self.usage),
                    Err(error) => {
                        self.wrong.get_or_insert_with(|| format!("an event is not JSON: {error}"));
                    }
                }
            }
        }
        if self.keep {
            self.keep(&event, data);
        }
    }

    fn keep(&mut self, event: &Event<'_>, data: &[u8]) {
        match (self.api, event) {
            (Api::Chat, Event::Text(text)) => self.kept.extend_from_slice(text),
            (Api::Completions, Event::Text(_) | Event::Other(_)) => {
                let ids = self.reader.ids(data);
                if !ids.is_empty() && !self.kept.is_empty() {
                    self.kept.push(b',');
                }
                self.kept.extend_from_slice(ids);
            }
            _ => {}
        }
    }
}

impl Sink for Answer<'_> {
    fn body(&mut self, head: &Head, bytes: &[u8]) {
        if !head.events || head.status != 200 {
            let room = SHOWN_BYTES.saturating_sub(self.other.len());
            self.other.extend_from_slice(&bytes[..bytes.len().min(room)]);
            return;
        }
        let mut lines = std::mem::take(&mut self.lines);
        if let Err(error) = lines.feed(bytes, &mut |data| self.event(data)) {
            self.wrong.get_or_insert_with(|| error.to_string());
        }
        self.lines = lines;
    }

    fn read(&mut self, now: Instant) {
        let fresh = std::mem::take(&mut self.fresh);
        if fresh == 0 {
            return;
        }
        // Events of one read came at the same time.
        let gap = self.first.map(|_| now - self.last);
        self.first.get_or_insert(now);
        self.last = now;
        self.longest_gap = self.longest_gap.max(gap.unwrap_or_default());
        self.events += fresh;
        self.record.borrow_mut().tokens(now, gap, fresh);
    }
}

/// What an error says: its `error.message`, or its first bytes.
fn message(bytes: &[u8]) -> String {
    let json = serde_json::from_slice::<Value>(bytes).ok();
    let said = json.as_ref().and_then(|json| json.pointer("/error/message")?.as_str());
    let text = said.map_or_else(|| String::from_utf8_lossy(bytes).into_owned(), str::to_owned);
    text.chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: Head = Head { status: 200, events: true, closes: false };

    fn answered(head: Head, api: Api, body: &str) -> Result<Complete, Failure> {
        let (reader, record) = (Reader::new(api), RefCell::new(Record::new(None, 0)));
        let mut answer = Answer::new(api, &reader, &record, true);
        answer.body(&head, body.as_bytes());
        answer.read(Instant::now());
        answer.finish(&head)
    }

    #[test]
    fn a_whole_answer_has_its_tokens_its_usage_and_its_text() {
        let body = "data: {\"choices\":[{\"text\":\"a\",\"token_ids\":[4,5]}]}\n\n\
                    data: {\"choices\":[{\"text\":\"b\",\"token_ids\":[6]}]}\n\n\
                    data: {\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":3,\
                    \"prompt_tokens_details\":{\"cached_tokens\":8}}}\n\ndata: [DONE]\n\n";
        let complete = answered(HEAD, Api::Completions, body).unwrap();
        let usage = complete.usage.unwrap();
        assert_eq!((usage.prompt_tokens, usage.cached_tokens()), (9, 8));
        assert_eq!((complete.events, complete.output_tokens()), (2, 3));
        assert_eq!(complete.kept, b"4,5,6");
        let body = "data: {\"choices\":[{\"delta\":{\"content\":\"a\\n\"}}]}\n\n\
                    data: {\"choices\":[{\"delta\":{\"content\":\"b\"}}],\"usage\":null}\n\ndata: [DONE]\n\n";
        let complete = answered(HEAD, Api::Chat, body).unwrap();
        assert_eq!((&complete.kept[..], complete.output_tokens()), (&b"a\\nb"[..], 2));
    }

    #[test]
    fn an_answer_that_may_not_be_believed_is_a_failure() {
        let token = "data: {\"choices\":[{\"text\":\"a\"}]}\n\n";
        let error = "data: {\"error\":{\"message\":\"worker lost\"}}\n\n";
        let plain = Head { events: false, ..HEAD };
        for (head, body, kind, words) in [
            (HEAD, token.to_owned(), "truncated", "without [DONE]"),
            (HEAD, format!("{token}event: error\n{error}"), "error_event", "worker lost"),
            (HEAD, "data: {x\n\ndata: [DONE]\n\n".to_owned(), "protocol", "not JSON"),
            (plain, "{}".to_owned(), "protocol", "not a text/event-stream"),
            (
                Head { status: 429, ..plain },
                "{\"error\":{\"message\":\"too many\"}}".to_owned(),
                "http_429",
                "too many",
            ),
            (Head { status: 502, ..plain }, "<html>".to_owned(), "http_502", "<html>"),
        ] {
            let failure = answered(head, Api::Completions, &body).unwrap_err();
            assert_eq!(failure.kind(), kind, "{body}");
            assert!(failure.to_string().contains(words), "{failure}");
        }
    }
}
