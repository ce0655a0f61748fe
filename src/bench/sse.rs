//! Server-sent events, read cheaply: an event with a token costs two searches and no JSON.

use memchr::{memchr, memmem};

use super::prompt::Api;

/// Longest line that is kept while its end has not come.
const LONGEST_LINE: usize = 4 << 20;

/// Cuts bytes into the `data` of events.
#[derive(Debug, Default)]
pub(super) struct Lines {
    held: Vec<u8>,
}

/// A line has no end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event has no end within 4 MiB")]
pub(super) struct LongLine;

impl Lines {
    /// Hands out the data of each line that is now complete.
    ///
    /// # Errors
    /// [`LongLine`]
    pub(super) fn feed(
        &mut self,
        mut bytes: &[u8],
        data: &mut impl FnMut(&[u8]),
    ) -> Result<(), LongLine> {
        while let Some(end) = memchr(b'\n', bytes) {
            if self.held.is_empty() {
                line(&bytes[..end], data);
            } else {
                self.held.extend_from_slice(&bytes[..end]);
                line(&self.held, data);
                self.held.clear();
            }
            bytes = &bytes[end + 1..];
        }
        self.held.extend_from_slice(bytes);
        if self.held.len() > LONGEST_LINE { Err(LongLine) } else { Ok(()) }
    }
}

fn line(line: &[u8], data: &mut impl FnMut(&[u8])) {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if let Some(value) = line.strip_prefix(b"data:") {
        data(value.strip_prefix(b" ").unwrap_or(value));
    }
}

/// What an event is to a load generator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event<'a> {
    /// Output: the inside of a JSON string, never empty.
    Text(&'a [u8]),
    /// Something else, maybe an object `usage`.
    Other(&'a [u8]),
    /// An error.
    Error(&'a [u8]),
    /// `[DONE]`
    Done,
}

/// Knows events by searching for their keys. A quote within a JSON string has a backslash before it, so
/// that no text can look like a key.
#[derive(Debug)]
pub(super) struct Reader {
    text: memmem::Finder<'static>,
    ids: memmem::Finder<'static>,
}

impl Reader {
    pub(super) fn new(api: Api) -> Self {
        // `reasoning_content` is output too.
        let text: &str = match api {
            Api::Completions => "\"text\":",
            Api::Chat => "content\":",
        };
        Self { text: memmem::Finder::new(text), ids: memmem::Finder::new("\"token_ids\":") }
    }

    pub(super) fn event<'a>(&self, data: &'a [u8]) -> Event<'a> {
        let mut from = 0;
        while let Some(at) = self.text.find(&data[from..]) {
            from += at + self.text.needle().len();
            if let Some(text) = string(&data[from..]).filter(|text| !text.is_empty()) {
                return Event::Text(text);
            }
        }
        if data == b"[DONE]" {
            Event::Done
        } else if data.starts_with(b"{\"error\"") || memmem::find(data, b"\"error\":{").is_some() {
            Event::Error(data)
        } else {
            Event::Other(data)
        }
    }

    /// The ids of an event's tokens, with the commas between them; empty if it does not tell.
    pub(super) fn ids<'a>(&self, data: &'a [u8]) -> &'a [u8] {
        let Some(at) = self.ids.find(data) else { return &[] };
        let value = data[at + self.ids.needle().len()..].trim_ascii_start();
        let inside = value.strip_prefix(b"[");
        let end = inside.and_then(|inside| Some(&inside[..memchr(b']', inside)?]));
        end.unwrap_or_default().trim_ascii()
    }
}

/// The inside of the JSON string that comes next, if one does.
fn string(value: &[u8]) -> Option<&[u8]> {
    let inside = value.trim_ascii_start().strip_prefix(b"\"")?;
    let mut from = 0;
    loop {
        let end = from + memchr(b'"', &inside[from..])?;
        let escapes = inside[..end].iter().rev().take_while(|byte| **byte == b'\\').count();
        if escapes % 2 == 0 {
            return Some(&inside[..end]);
        }
        from = end + 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_the_same_wherever_the_reads_are_cut() {
        let bytes = "data: {\"a\":1}\n\n: note\nevent: error\r\ndata:ü\r\n\r\ndata: [DONE]\n\n";
        for size in 1..=bytes.len() {
            let (mut lines, mut events) = (Lines::default(), Vec::new());
            for part in bytes.as_bytes().chunks(size) {
                let mut keep = |data: &[u8]| events.push(String::from_utf8(data.to_vec()).unwrap());
                lines.feed(part, &mut keep).unwrap();
            }
            assert_eq!(events, ["{\"a\":1}", "ü", "[DONE]"], "reads of {size}");
        }
        let endless = vec![b'x'; LONGEST_LINE + 1];
        assert_eq!(Lines::default().feed(&endless, &mut |_| {}), Err(LongLine));
    }

    #[test]
    fn events_are_known_without_reading_their_json() {
        for (api, data, event) in [
            (Api::Completions, r#"{"choices":[{"text":" a"}],"usage":null}"#, Some(" a")),
            (
                Api::Completions,
                r#"{"choices":[{"text": "\"text\":\"b\\"}]}"#,
                Some(r#"\"text\":\"b\\"#),
            ),
            (Api::Completions, r#"{"choices":[{"text":"","finish_reason":"length"}]}"#, None),
            (Api::Completions, r#"{"choices":[],"usage":{"completion_tokens":1}}"#, None),
            (Api::Chat, r#"{"choices":[{"delta":{"role":"assistant","content":""}}]}"#, None),
            (Api::Chat, r#"{"choices":[{"delta":{"content":null,"tool":"x"}}]}"#, None),
            (Api::Chat, r#"{"choices":[{"delta":{"content":"x"}}]}"#, Some("x")),
            (
                Api::Chat,
                r#"{"choices":[{"delta":{"content":"","reasoning_content":"y"}}]}"#,
                Some("y"),
            ),
        ] {
            let found = Reader::new(api).event(data.as_bytes());
            let expected = match event {
                Some(text) => Event::Text(text.as_bytes()),
                None => Event::Other(data.as_bytes()),
            };
            assert_eq!(found, expected, "{data}");
        }
        let reader = Reader::new(Api::Completions);
        assert_eq!(reader.event(b"[DONE]"), Event::Done);
        for error in [&br#"{"error":{"message":"m"}}"#[..], br#"{"id":1,"error":{"code":5}}"#] {
            assert_eq!(reader.event(error), Event::Error(error));
        }
    }

    #[test]
    fn token_ids_are_taken_as_they_are() {
        let reader = Reader::new(Api::Completions);
        for (data, ids) in [
            (r#"{"prompt_token_ids":[1],"token_ids":[5,6]}"#, "5,6"),
            (r#"{"token_ids": [ 5 ]}"#, "5"),
            (r#"{"token_ids":null}"#, ""),
            (r#"{"text":"\"token_ids\":[5]"}"#, ""),
        ] {
            assert_eq!(reader.ids(data.as_bytes()), ids.as_bytes(), "{data}");
        }
    }
}
