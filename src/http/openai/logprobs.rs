//! Log probabilities in the two shapes that OpenAI gives them.

use super::wire::Kind;
use crate::actors::reply::DeltaToken;
use crate::http::json;
use crate::text::TextModel;

/// The log probabilities of some consecutive tokens of one choice, as JSON in the making.
#[derive(Debug)]
pub(super) struct Logprobs {
    kind: Kind,
    /// Chat: the entries. Completions: tokens, their log probabilities, the candidates, offsets.
    columns: [Vec<u8>; 4],
    /// Characters in the text before the next token.
    offset: usize,
}

impl Logprobs {
    pub(super) fn new(kind: Kind) -> Self {
        Self { kind, columns: Default::default(), offset: 0 }
    }

    /// Adds tokens; one without log probabilities counts as impossible.
    pub(super) fn push(&mut self, text: &TextModel, tokens: &[DeltaToken]) {
        for token in tokens {
            match self.kind {
                Kind::Chat => self.push_chat(text, token),
                Kind::Completion => self.push_completion(text, token),
            }
        }
    }

    fn push_chat(&mut self, text: &TextModel, token: &DeltaToken) {
        let out = &mut self.columns[0];
        separate(out);
        chat_token(out, text, token.token, chosen(token));
        out.extend_from_slice(br#","top_logprobs":["#);
        for (i, candidate) in top(token).iter().enumerate() {
            if i > 0 {
                out.push(b',');
            }
            chat_token(out, text, candidate.token, candidate.logprob);
            out.push(b'}');
        }
        out.extend_from_slice(b"]}");
    }

    fn push_completion(&mut self, text: &TextModel, token: &DeltaToken) {
        self.columns.iter_mut().for_each(separate);
        let [names, logprobs, candidates, offsets] = &mut self.columns;
        let bytes = text.token_bytes(token.token);
        let name = completion_token(bytes);
        json::string(names, &name);
        json::logprob(logprobs, chosen(token));
        candidates.push(b'{');
        // An object: two tokens of one name would be one key, so the likelier one stays.
        let mut seen = vec![name];
        json::string(candidates, &seen[0]);
        candidates.push(b':');
        json::logprob(candidates, chosen(token));
        for candidate in top(token) {
            let name = completion_token(text.token_bytes(candidate.token));
            if !seen.contains(&name) {
                candidates.push(b',');
                json::string(candidates, &name);
                candidates.push(b':');
                json::logprob(candidates, candidate.logprob);
                seen.push(name);
            }
        }
        candidates.push(b'}');
        json::integer(offsets, self.offset);
        // Characters are counted by their first bytes, so that parts of one count once.
        self.offset += bytes.iter().filter(|&&byte| byte & 0xc0 != 0x80).count();
    }

    /// Appends the object and starts anew after it.
    pub(super) fn render(&mut self, out: &mut Vec<u8>) {
        match self.kind {
            Kind::Chat => {
                out.extend_from_slice(br#"{"content":["#);
                out.append(&mut self.columns[0]);
                out.extend_from_slice(br#"],"refusal":null}"#);
            }
            Kind::Completion => {
                let names: [&[u8]; 4] = [
                    br#"{"tokens":["#,
                    br#"],"token_logprobs":["#,
                    br#"],"top_logprobs":["#,
                    br#"],"text_offset":["#,
                ];
                for (name, column) in names.into_iter().zip(&mut self.columns) {
                    out.extend_from_slice(name);
                    out.append(column);
                }
                out.extend_from_slice(b"]}");
            }
        }
    }
}

fn separate(out: &mut Vec<u8>) {
    if !out.is_empty() {
        out.push(b',');
    }
}

fn chosen(token: &DeltaToken) -> f32 {
    token.logprobs.as_ref().map_or(f32::NEG_INFINITY, |logprobs| logprobs.chosen)
}

fn top(token: &DeltaToken) -> &[crate::engine::Candidate] {
    token.logprobs.as_ref().map_or(&[], |logprobs| &logprobs.top)
}

/// `{"token":…,"logprob":…,"bytes":[…]`, left open.
fn chat_token(out: &mut Vec<u8>, text: &TextModel, token: u32, logprob: f32) {
    out.extend_from_slice(br#"{"token":"#);
    json::string(out, &text.token_text(token));
    out.extend_from_slice(br#","logprob":"#);
    json::logprob(out, logprob);
    out.extend_from_slice(br#","bytes":["#);
    for (i, byte) in text.token_bytes(token).iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        json::integer(out, *byte);
    }
    out.push(b']');
}

/// A token's text; one that is part of a character as OpenAI writes it, `bytes:\xe6`.
fn completion_token(bytes: &[u8]) -> String {
    use std::fmt::Write;
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().fold("bytes:".to_owned(), |mut name, byte| {
            // A `String` takes every write.
            let _ = write!(name, "\\x{byte:02x}");
            name
        }),
    }
}
