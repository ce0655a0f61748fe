//! Requests as bytes: token ids or words out of segments, and a conversation that grows by its turns.

use std::io::Write as _;

use serde_json::{Map, Value, json};

use super::draw;
use super::workload::Segment;

/// Which API is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Api {
    /// `/v1/completions` with token ids: prompts have exactly the length that was asked for.
    Completions,
    /// `/v1/chat/completions` with words: about a token each.
    Chat,
}

/// Keys of a body that the load itself decides.
pub const OWN_KEYS: [&str; 6] =
    ["prompt", "messages", "stream", "stream_options", "max_tokens", "ignore_eos"];

/// Words for chats, each a token of most tokenizers.
const WORDS: [&str; 64] = [
    "the", "of", "and", "to", "in", "is", "was", "for", "on", "with", "as", "by", "at", "from",
    "it", "an", "are", "this", "that", "be", "or", "had", "not", "but", "one", "two", "first",
    "last", "new", "old", "time", "year", "day", "way", "man", "world", "life", "hand", "part",
    "place", "case", "work", "week", "point", "home", "water", "room", "area", "money", "story",
    "fact", "month", "lot", "right", "study", "book", "eye", "job", "word", "side", "kind", "head",
    "house", "far",
];

/// What the requests of a run have in common.
#[derive(Debug)]
pub(super) struct Template {
    api: Api,
    vocab: u32,
    /// The head up to the value of `content-length`.
    head: String,
    /// The body from its start up to the value of `max_tokens`.
    body: String,
}

impl Template {
    /// `headers` are sent as they are; `extra` is put into each body.
    pub(super) fn new(
        api: Api,
        vocab: u32,
        host: &str,
        model: &str,
        ignore_eos: bool,
        headers: &[(String, String)],
        extra: &Map<String, Value>,
    ) -> Self {
        let path = match api {
            Api::Completions => "/v1/completions",
            Api::Chat => "/v1/chat/completions",
        };
        let mut head = format!("POST {path} HTTP/1.1\r\nhost: {host}\r\n");
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str(
            "content-type: application/json\r\naccept: text/event-stream\r\ncontent-length: ",
        );
        let mut fields = json!({
            "model": model,
            "temperature": 0,
            "stream": true,
            "stream_options": { "include_usage": true },
        });
        if let Value::Object(fields) = &mut fields {
            if ignore_eos {
                fields.insert("ignore_eos".into(), true.into());
            }
            fields.extend(extra.clone());
        }
        let fields = fields.to_string();
        let body = format!("{},\"max_tokens\":", &fields[..fields.len() - 1]);
        Self { api, vocab, head, body }
    }
}

/// A prompt, and what was said since.
#[derive(Debug, Default)]
pub(super) struct Conversation {
    /// Token ids, or messages: the inside of a JSON array.
    said: Vec<u8>,
}

impl Conversation {
    /// The user goes on.
    pub(super) fn user(&mut self, template: &Template, text: &[Segment]) {
        match template.api {
            Api::Completions => text.iter().for_each(|segment| self.ids(template.vocab, *segment)),
            Api::Chat => self.message("user", |said| words(said, text)),
        }
    }

    /// The server has answered with `raw`: ids between commas, or the inside of a JSON string. Ids that
    /// it did not tell are replaced by as many of `stand_in`.
    pub(super) fn answer(&mut self, template: &Template, raw: &[u8], stand_in: Segment) {
        match template.api {
            Api::Completions if raw.is_empty() => self.ids(template.vocab, stand_in),
            Api::Completions => {
                self.comma();
                self.said.extend_from_slice(raw);
            }
            Api::Chat => self.message("assistant", |said| said.extend_from_slice(raw)),
        }
    }

    /// The request that asks for `output` tokens.
    pub(super) fn request(&self, template: &Template, output: u32) -> Vec<u8> {
        let Template { api, head, body, .. } = template;
        let (name, end) = match api {
            Api::Completions => (",\"prompt\":[", "]}"),
            Api::Chat => (",\"messages\":[", "]}"),
        };
        let mut digits = itoa::Buffer::new();
        let output = digits.format(output);
        let length = body.len() + output.len() + name.len() + self.said.len() + end.len();
        let mut request = Vec::with_capacity(head.len() + 24 + length);
        request.extend_from_slice(head.as_bytes());
        // Writing into memory cannot fail.
        let _ = write!(request, "{length}\r\n\r\n{body}{output}{name}");
        request.extend_from_slice(&self.said);
        request.extend_from_slice(end.as_bytes());
        request
    }

    fn comma(&mut self) {
        if !self.said.is_empty() {
            self.said.push(b',');
        }
    }

    fn ids(&mut self, vocab: u32, segment: Segment) {
        let mut digits = itoa::Buffer::new();
        self.said.reserve(segment.tokens as usize * 4);
        for index in 0..u64::from(segment.tokens) {
            self.comma();
            let id = draw::at(segment.key, index, vocab);
            self.said.extend_from_slice(digits.format(id).as_bytes());
        }
    }

    fn message(&mut self, role: &str, content: impl FnOnce(&mut Vec<u8>)) {
        self.comma();
        let _ = write!(self.said, "{{\"role\":\"{role}\",\"content\":\"");
        content(&mut self.said);
        self.said.extend_from_slice(b"\"}");
    }
}

fn words(said: &mut Vec<u8>, text: &[Segment]) {
    let mut space = "";
    for segment in text {
        for index in 0..u64::from(segment.tokens) {
            let word = WORDS[draw::at(segment.key, index, WORDS.len() as u32) as usize];
            said.extend_from_slice(space.as_bytes());
            said.extend_from_slice(word.as_bytes());
            space = " ";
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(api: Api) -> Template {
        let headers = [("authorization".to_owned(), "Bearer k".to_owned())];
        let extra = json!({ "priority": 3, "temperature": 0.5 });
        Template::new(api, 50, "h:1", "m", true, &headers, extra.as_object().unwrap())
    }

    /// The head and the body of a request.
    fn parsed(request: &[u8]) -> (String, Value) {
        let text = String::from_utf8(request.to_vec()).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.ends_with(&format!("content-length: {}", body.len())), "{head}");
        (head.to_owned(), serde_json::from_str(body).unwrap())
    }

    #[test]
    fn a_prompt_of_ids_has_exactly_its_length_and_stays_in_the_vocabulary() {
        let (template, mut talk) = (template(Api::Completions), Conversation::default());
        talk.user(&template, &[Segment { key: 1, tokens: 300 }, Segment { key: 2, tokens: 1 }]);
        let (head, body) = parsed(&talk.request(&template, 7));
        assert!(head.starts_with(
            "POST /v1/completions HTTP/1.1\r\nhost: h:1\r\nauthorization: Bearer k\r\n"
        ));
        let ids: Vec<_> = body["prompt"].as_array().unwrap().iter().map(|id| id.as_u64()).collect();
        assert!(ids.len() == 301 && ids.iter().all(|id| id.unwrap() < 50), "{ids:?}");
        assert_eq!((&body["max_tokens"], &body["priority"]), (&json!(7), &json!(3)));
        assert_eq!((&body["ignore_eos"], &body["temperature"]), (&json!(true), &json!(0.5)));
        assert_eq!(body["stream_options"], json!({ "include_usage": true }));
    }

    #[test]
    fn a_conversation_repeats_what_was_said() {
        let (template, mut talk) = (template(Api::Completions), Conversation::default());
        let ids = |talk: &Conversation| parsed(&talk.request(&template, 1)).1["prompt"].clone();
        talk.user(&template, &[Segment { key: 1, tokens: 3 }]);
        let first = ids(&talk);
        talk.answer(&template, b"7,8", Segment { key: 5, tokens: 2 });
        talk.answer(&template, b"", Segment { key: 5, tokens: 2 });
        let both = ids(&talk);
        assert_eq!(both.as_array().unwrap()[..3], first.as_array().unwrap()[..]);
        assert_eq!((&both[3], &both[4], both.as_array().unwrap().len()), (&json!(7), &json!(8), 7));
    }

    #[test]
    fn a_chat_has_words_and_the_answer_as_it_came() {
        let (template, mut talk) = (template(Api::Chat), Conversation::default());
        talk.user(&template, &[Segment { key: 1, tokens: 2 }, Segment { key: 2, tokens: 2 }]);
        talk.answer(&template, b"a\\n\\\"\\u00e9", Segment { key: 5, tokens: 2 });
        let (head, body) = parsed(&talk.request(&template, 1));
        assert!(head.starts_with("POST /v1/chat/completions "));
        assert_eq!(body["messages"][0]["content"].as_str().unwrap().split(' ').count(), 4);
        assert_eq!(body["messages"][1], json!({ "role": "assistant", "content": "a\n\"é" }));
    }
}
