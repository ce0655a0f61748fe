//! What the load client asks: chat requests of about so many tokens, each prompt unlike the others.

use std::net::SocketAddr;

/// Words that are one token each (with the space before them) in the shipped model's vocabulary.
const WORDS: [&str; 64] = [
    "name", "call", "found", "said", "home", "named", "called", "before", "time", "friend", "lost",
    "they", "lived", "went", "that", "came", "word", "wind", "tree", "under", "this", "wait",
    "help", "secret", "year", "near", "moon", "cold", "bread", "have", "could", "dark", "happy",
    "every", "again", "night", "when", "cried", "walked", "loved", "used", "upon", "blew", "away",
    "works", "show", "long", "looked", "talked", "some", "until", "shared", "gave", "smiled",
    "better", "than", "lying", "road", "never", "such", "seen", "best", "were", "fell",
];

/// Tokens that the chat template of the shipped model adds around the words.
const TEMPLATE_TOKENS: usize = 9;

/// Writes requests; the same seed writes the same ones.
pub(crate) struct Prompts {
    state: u64,
    head: String,
    words: usize,
    tail: String,
}

impl Prompts {
    /// Requests to `model` at `addr` with prompts of about `prompt` tokens and exactly `output`
    /// tokens of answer.
    pub(crate) fn new(
        addr: SocketAddr,
        model: &str,
        prompt: usize,
        output: u32,
        seed: u64,
    ) -> Self {
        Self {
            state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            head: format!(
                "POST /v1/chat/completions HTTP/1.1\r\nhost: {addr}\r\n\
                 content-type: application/json\r\ncontent-length: "
            ),
            words: prompt.saturating_sub(TEMPLATE_TOKENS).max(1),
            tail: format!(
                "\"}}],\"model\":\"{model}\",\"stream\":true,\
                 \"stream_options\":{{\"include_usage\":true}},\
                 \"ignore_eos\":true,\"max_tokens\":{output}}}"
            ),
        }
    }

    /// Replaces `out` with the next request.
    pub(crate) fn write(&mut self, out: &mut Vec<u8>) {
        let mut body = String::with_capacity(64 + self.words * 7 + self.tail.len());
        body.push_str("{\"messages\":[{\"role\":\"user\",\"content\":\"");
        for _ in 0..self.words {
            body.push(' ');
            body.push_str(WORDS[self.next() % WORDS.len()]);
        }
        body.push_str(&self.tail);
        out.clear();
        out.extend_from_slice(self.head.as_bytes());
        out.extend_from_slice(format!("{}\r\n\r\n", body.len()).as_bytes());
        out.extend_from_slice(body.as_bytes());
    }

    /// xorshift64*: the upper bits.
    fn next(&mut self) -> usize {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        (self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 40) as usize
    }
}
