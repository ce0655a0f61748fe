//! Splits text into the words that byte-level BPE merges within, as the well-known patterns do,
//! with one pass and no regex engine.

use std::ops::ControlFlow;

use tokenizers::SplitDelimiterBehavior;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::split::SplitPattern;

use super::classes::{Class, Classes};

/// The split of Llama 3 and of cl100k.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The split of Qwen 2, 2.5 and 3.
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// What is cut out before the pattern sees the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Digits {
    Stay,
    RunsApart,
    EachApart,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pattern {
    /// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
    Gpt2,
    /// [`LLAMA3`] or [`QWEN2`]: with words of at most so many digits.
    Llama3 { digits: usize },
}

/// A pre-tokenizer that is known by heart.
pub(super) struct Splitter {
    digits: Digits,
    pattern: Pattern,
    classes: &'static Classes,
}

impl Splitter {
    /// `None` for a pre-tokenizer that is not one of the known ones.
    pub(super) fn recognise(pre_tokenizer: &PreTokenizerWrapper) -> Option<Self> {
        let steps = match pre_tokenizer {
            PreTokenizerWrapper::Sequence(sequence) => sequence.as_ref(),
            single => std::slice::from_ref(single),
        };
        let (last, before) = steps.split_last()?;
        let PreTokenizerWrapper::ByteLevel(bytes) = last else { return None };
        let (digits, pattern) = match before {
            _ if bytes.add_prefix_space => return None,
            [] if bytes.use_regex => (Digits::Stay, Pattern::Gpt2),
            [PreTokenizerWrapper::Digits(digits)] if bytes.use_regex => {
                let each = digits.individual_digits;
                (if each { Digits::EachApart } else { Digits::RunsApart }, Pattern::Gpt2)
            }
            [PreTokenizerWrapper::Split(split)]
                if !bytes.use_regex
                    && !split.invert
                    && split.behavior == SplitDelimiterBehavior::Isolated =>
            {
                let SplitPattern::Regex(regex) = &split.pattern else { return None };
                let digits = match regex.as_str() {
                    LLAMA3 => 3,
                    QWEN2 => 1,
                    _ => return None,
                };
                (Digits::Stay, Pattern::Llama3 { digits })
            }
            _ => return None,
        };
        Some(Self { digits, pattern, classes: Classes::shared()? })
    }

    /// Hands over the words of a text in order; together they are the text.
    pub(super) fn words(
        &self,
        text: &str,
        mut each: impl FnMut(&str) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        if self.digits == Digits::Stay {
            return self.by_pattern(text, &mut each);
        }
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            let end = if !first.is_numeric() {
                rest.find(char::is_numeric).unwrap_or(rest.len())
            } else if self.digits == Digits::EachApart {
                first.len_utf8()
            } else {
                rest.find(|c: char| !c.is_numeric()).unwrap_or(rest.len())
            };
            let (piece, after) = rest.split_at(end);
            self.by_pattern(piece, &mut each)?;
            rest = after;
        }
        ControlFlow::Continue(())
    }

    fn by_pattern(
        &self,
        text: &str,
        each: &mut impl FnMut(&str) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let scan = Scan { text, bytes: text.as_bytes(), classes: self.classes };
        let mut start = 0;
        while let Some((class, len)) = scan.at(start) {
            let end = match self.pattern {
                Pattern::Gpt2 => scan.gpt2(start),
                Pattern::Llama3 { digits } => scan.llama3(start, class, len, digits),
            };
            each(&text[start..end])?;
            start = end;
        }
        ControlFlow::Continue(())
    }
}

/// One text under a pattern. Every method takes and gives byte positions between characters.
struct Scan<'a> {
    text: &'a str,
    bytes: &'a [u8],
    classes: &'a Classes,
}

impl Scan<'_> {
    /// Class and length of the character at a position; `None` at the end.
    #[inline]
    fn at(&self, position: usize) -> Option<(Class, usize)> {
        let byte = *self.bytes.get(position)?;
        if byte < 0x80 {
            return Some((self.classes.ascii(byte), 1));
        }
        let c = self.text[position..].chars().next()?;
        Some((self.classes.of(c), c.len_utf8()))
    }

    /// Where the characters of one class that start at a position end.
    #[inline]
    fn run(&self, mut position: usize, wanted: Class) -> usize {
        while let Some((class, len)) = self.at(position)
            && class == wanted
        {
            position += len;
        }
        position
    }

    /// End of the word that starts at `start` by GPT-2's pattern.
    fn gpt2(&self, start: usize) -> usize {
        if self.bytes[start] == b'\''
            && let Some(len) = contraction(&self.bytes[start + 1..], false)
        {
            return start + 1 + len;
        }
        let body = start + usize::from(self.bytes[start] == b' ');
        match self.at(body) {
            Some((class @ (Class::Letter | Class::Number | Class::Other), len)) => {
                self.run(body + len, class)
            }
            _ => self.space(start, false),
        }
    }

    /// End of the word that starts at `start`, with a character of this class and length, by the
    /// pattern of Llama 3 or Qwen 2.
    fn llama3(&self, start: usize, class: Class, len: usize, digits: usize) -> usize {
        let after = start + len;
        match class {
            Class::Letter => self.run(after, Class::Letter),
            Class::Number => {
                let mut end = after;
                for _ in 1..digits {
                    match self.at(end) {
                        Some((Class::Number, len)) => end += len,
                        _ => break,
                    }
                }
                end
            }
            Class::Newline => self.space(start, true),
            Class::Space | Class::Other => {
                if self.bytes[start] == b'\''
                    && let Some(len) = contraction(&self.bytes[after..], true)
                {
                    return after + len;
                }
                match self.at(after) {
                    Some((Class::Letter, len)) => self.run(after + len, Class::Letter),
                    next if class == Class::Other
                        || (self.bytes[start] == b' '
                            && next.is_some_and(|next| next.0 == Class::Other)) =>
                    {
                        self.run(self.run(after, Class::Other), Class::Newline)
                    }
                    _ => self.space(start, true),
                }
            }
        }
    }

    /// End of the word of whitespace at `start`: `\s+(?!\S)|\s+`, which leaves the last character
    /// to a word that follows, after `\s*[\r\n]+` where `lines` says so.
    fn space(&self, start: usize, lines: bool) -> usize {
        let (mut end, mut last, mut line_end) = (start, start, None);
        while let Some((class @ (Class::Space | Class::Newline), len)) = self.at(end) {
            last = end;
            end += len;
            if class == Class::Newline {
                line_end = Some(end);
            }
        }
        match line_end {
            Some(line_end) if lines => line_end,
            _ if end == self.bytes.len() || last == start => end,
            _ => last,
        }
    }
}

/// Bytes of the contraction after an apostrophe: `s t re ve m ll d`, also in capitals if `any_case`,
/// and then `ſ` is an s.
pub(super) fn contraction(rest: &[u8], any_case: bool) -> Option<usize> {
    let at = |index: usize| {
        let byte = rest.get(index).copied().unwrap_or(0);
        if any_case { byte.to_ascii_lowercase() } else { byte }
    };
    match (at(0), at(1)) {
        (b's' | b't' | b'm' | b'd', _) => Some(1),
        (b'r' | b'v', b'e') | (b'l', b'l') => Some(2),
        (0xc5, 0xbf) if any_case => Some(2),
        _ => None,
    }
}
