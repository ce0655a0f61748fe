//! [`Detokenizer`]: tokens one by one into text that will not change any more.

use std::str::from_utf8;

use super::TextModel;
use super::table::{Joining, Start};

/// Tokens of a prompt that are looked at to know how its output goes on.
const PROMPT_TAIL: usize = 24;

/// Tokens the tokenizer may leave undecided before they are taken as they are. A character has at
/// most four bytes, so more undecided tokens than that never become one.
const UNDECIDED_TOKENS: usize = 8;

/// Turns the tokens of one sequence into text, piece by piece.
///
/// What is appended is certain: a character whose bytes are not all there is held back. Together
/// the pieces and [`finish`](Self::finish) give what a whole decode gives, with one exception that
/// no stream can avoid: tokenizers with byte tokens (`<0xE6>`) turn *every* byte of a run of byte
/// tokens into U+FFFD when the run is not UTF-8; the valid beginning of such a run has been sent
/// by then, so only the rest of the run becomes U+FFFD, one a byte.
///
/// It holds a few bytes and no reference: clone it, or push the same tokens again, to move it.
#[derive(Clone, Debug)]
pub struct Detokenizer {
    skip_special: bool,
    start: Start,
    /// The first bytes of a character whose rest has not come.
    pending: [u8; 4],
    pending_len: u8,
    /// Within a run of byte tokens that is known to be no UTF-8.
    bad_run: bool,
    window: Option<Box<Window>>,
}

/// For tokenizers without a table: the tokens that are decoded again with each new one.
#[derive(Clone, Debug, Default)]
struct Window {
    tokens: Vec<u32>,
    /// `tokens[..sent]` decode to `prefix`, which has been sent.
    sent: usize,
    prefix: String,
}

impl Detokenizer {
    /// For a text that starts with its first token: the tokenizer's rules for the start apply.
    pub fn new(model: &TextModel, skip_special: bool) -> Self {
        let (start, window) = match model.table.joining {
            Joining::Bytes => (Start::Keep, None),
            Joining::Pieces(start) => (start, None),
            Joining::Tokenizer => (Start::Keep, Some(Box::default())),
        };
        let pending = [0; 4];
        Self { skip_special, start, pending, pending_len: 0, bad_run: false, window }
    }

    /// For the output that goes on after a prompt: its first token keeps its leading space, as
    /// in vLLM, and completes a character the prompt has left open. A prompt of special tokens
    /// alone counts as none, so that the output is the start of the text.
    pub fn after_prompt(model: &TextModel, prompt: &[u32], skip_special: bool) -> Self {
        let mut detokenizer = Self::new(model, skip_special);
        let tail = prompt.len().saturating_sub(PROMPT_TAIL);
        if tail > 0 {
            detokenizer.start = Start::Keep;
        }
        let mut already_written = String::new();
        for &token in &prompt[tail..] {
            detokenizer.push(model, token, &mut already_written);
        }
        detokenizer
    }

    /// Takes the next token and appends what has become certain.
    ///
    /// `model` must be the one this was made for. Ids outside its vocabulary add nothing.
    pub fn push(&mut self, model: &TextModel, token: u32, out: &mut String) {
        let table = &model.table;
        if self.skip_special && table.is_special(token) {
            return;
        }
        match table.joining {
            Joining::Bytes => self.push_bytes(table.bytes(token), out),
            Joining::Pieces(_) if table.is_one_byte(token) => {
                self.push_run_byte(table.bytes(token)[0], out);
            }
            Joining::Pieces(_) => {
                self.end_run(out);
                if let Start::Unmarked { mark } = self.start {
                    self.push_unmarked(model, token, mark, out);
                } else {
                    // The table holds whole strings here; nothing is lost.
                    self.emit(from_utf8(table.bytes(token)).unwrap_or_default(), out);
                }
            }
            Joining::Tokenizer => {
                if let Some(window) = &mut self.window {
                    window.push(model, token, out);
                }
            }
        }
    }

    /// Appends what is still held back: an unfinished character becomes U+FFFD.
    pub fn finish(&mut self, model: &TextModel, out: &mut String) {
        match &mut self.window {
            Some(window) => window.finish(model, out),
            None if model.table.joining == Joining::Bytes => {
                if self.pending_len > 0 {
                    out.push(char::REPLACEMENT_CHARACTER);
                }
                self.pending_len = 0;
            }
            None => self.end_run(out),
        }
    }

    fn push_bytes(&mut self, mut bytes: &[u8], out: &mut String) {
        while let (true, [first, rest @ ..]) = (self.pending_len > 0, bytes) {
            self.push_pending(*first, out);
            bytes = rest;
        }
        loop {
            let error = match from_utf8(bytes) {
                Ok(text) => return out.push_str(text),
                Err(error) => error,
            };
            let (valid, rest) = bytes.split_at(error.valid_up_to());
            out.push_str(from_utf8(valid).unwrap_or_default());
            let Some(invalid) = error.error_len() else {
                self.pending[..rest.len()].copy_from_slice(rest);
                self.pending_len = rest.len() as u8;
                return;
            };
            out.push(char::REPLACEMENT_CHARACTER);
            bytes = &rest[invalid..];
        }
    }

    /// Adds one byte to the open character.
    fn push_pending(&mut self, byte: u8, out: &mut String) {
        self.pending[usize::from(self.pending_len)] = byte;
        self.pending_len += 1;
        while self.pending_len > 0 {
            let open = usize::from(self.pending_len);
            match from_utf8(&self.pending[..open]) {
                Ok(text) => {
                    out.push_str(text);
                    self.pending_len = 0;
                }
                Err(error) => {
                    let Some(invalid) = error.error_len() else { return };
                    out.push(char::REPLACEMENT_CHARACTER);
                    self.pending.copy_within(invalid..open, 0);
                    self.pending_len = (open - invalid) as u8;
                }
            }
        }
    }

    /// Takes the next byte of a run of byte tokens.
    fn push_run_byte(&mut self, byte: u8, out: &mut String) {
        if self.bad_run {
            return self.emit("\u{fffd}", out);
        }
        let open = usize::from(self.pending_len);
        self.pending[open] = byte;
        self.pending_len += 1;
        let pending = self.pending;
        match from_utf8(&pending[..=open]) {
            Ok(text) => {
                self.pending_len = 0;
                self.emit(text, out);
            }
            Err(error) if error.error_len().is_some() => {
                self.end_run(out);
                self.bad_run = true;
            }
            Err(_) => {}
        }
    }

    /// Ends a run of byte tokens; each byte of an open character becomes U+FFFD.
    fn end_run(&mut self, out: &mut String) {
        self.bad_run = false;
        for _ in 0..std::mem::take(&mut self.pending_len) {
            self.emit("\u{fffd}", out);
        }
    }

    /// The first token of a text: the marks in it are no spaces.
    fn push_unmarked(&mut self, model: &TextModel, token: u32, mark: char, out: &mut String) {
        if let Some(name) = model.token_name(token) {
            out.extend(name.chars().filter(|character| *character != mark));
            self.start = Start::Keep;
        }
    }

    #[inline]
    fn emit(&mut self, mut text: &str, out: &mut String) {
        while let Start::Strip { content, most } = self.start {
            if text.is_empty() {
                return;
            }
            match text.strip_prefix(content) {
                Some(rest) if most > 0 => {
                    text = rest;
                    self.start = Start::Strip { content, most: most - 1 };
                }
                _ => self.start = Start::Keep,
            }
        }
        out.push_str(text);
    }
}

impl Window {
    fn push(&mut self, model: &TextModel, token: u32, out: &mut String) {
        self.tokens.push(token);
        let undecided = self.tokens.len() - self.sent;
        let text = self.decode(model, 0);
        if text.len() <= self.prefix.len() && undecided < UNDECIDED_TOKENS {
            return;
        }
        if text.ends_with(char::REPLACEMENT_CHARACTER) && undecided < UNDECIDED_TOKENS {
            return;
        }
        self.send(model, &text, out);
        self.tokens.drain(..self.sent);
        self.sent = self.tokens.len();
        self.prefix = self.decode(model, 0);
    }

    fn finish(&mut self, model: &TextModel, out: &mut String) {
        if self.sent < self.tokens.len() {
            let text = self.decode(model, 0);
            self.send(model, &text, out);
        }
        *self = Self::default();
    }

    fn send(&self, model: &TextModel, text: &str, out: &mut String) {
        match text.strip_prefix(&self.prefix) {
            Some(new) => out.push_str(new),
            // A decoder that rewrites what it wrote before: what was sent stays, so the new tokens
            // are decoded by themselves.
            None => out.push_str(&self.decode(model, self.sent)),
        }
    }

    /// Decodes from a token on. A window that the tokenizer cannot decode adds nothing.
    fn decode(&self, model: &TextModel, from: usize) -> String {
        model.tokenizer.decode(&self.tokens[from..], false).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
