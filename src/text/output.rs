//! [`OutputText`]: one choice's tokens into the text its client gets.

use super::{Detokenizer, StopScanner, TextModel};

/// A [`Detokenizer`] with a [`StopScanner`] behind it. Without stop strings, text goes straight to
/// the caller's buffer.
#[derive(Clone, Debug)]
pub struct OutputText {
    detokenizer: Detokenizer,
    scanner: StopScanner,
    /// Tokens before which stop strings do not count.
    min_tokens: usize,
    tokens: usize,
    /// Text between the two, kept for its memory.
    piece: String,
}

impl OutputText {
    /// Joins the two; stop strings count only in text of tokens after the first `min_tokens`.
    pub fn new(detokenizer: Detokenizer, scanner: StopScanner, min_tokens: usize) -> Self {
        Self { detokenizer, scanner, min_tokens, tokens: 0, piece: String::new() }
    }

    /// Takes the next token, appends the text that is certain, and says which stop string ended
    /// the text, if one did; then nothing follows.
    pub fn push(&mut self, model: &TextModel, token: u32, out: &mut String) -> Option<usize> {
        self.tokens += 1;
        if self.scanner.is_idle() {
            self.detokenizer.push(model, token, out);
            return None;
        }
        self.piece.clear();
        self.detokenizer.push(model, token, &mut self.piece);
        self.pass_on(out)
    }

    /// Appends what is held back; also this text can end with a stop string.
    pub fn finish(&mut self, model: &TextModel, out: &mut String) -> Option<usize> {
        self.piece.clear();
        self.detokenizer.finish(model, &mut self.piece);
        let found = self.pass_on(out);
        self.scanner.finish(out);
        found
    }

    fn pass_on(&mut self, out: &mut String) -> Option<usize> {
        if self.tokens > self.min_tokens {
            return self.scanner.push(&self.piece, out);
        }
        self.scanner.push_unsearched(&self.piece, out);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::testing;

    #[test]
    fn stop_strings_are_found_across_tokens_and_not_before_min_tokens() {
        let model = testing::shipped();
        let tokens = model.encode("The capital of France is Paris. Paris is old.", false).unwrap();
        // (stop strings, min_tokens, text, which)
        let cases: [(&[&str], usize, &str, Option<usize>); 5] = [
            (&[], 0, "The capital of France is Paris. Paris is old.", None),
            (&["is P"], 0, "The capital of France ", Some(0)),
            (&["zzz", "aris. P"], 0, "The capital of France is P", Some(1)),
            // The first seven tokens end with the first "Paris.".
            (&["Paris"], 7, "The capital of France is Paris. ", Some(0)),
            (&["old.."], 0, "The capital of France is Paris. Paris is old.", None),
        ];
        for (stops, min_tokens, text, which) in cases {
            let stops: Vec<String> = stops.iter().map(|stop| (*stop).to_owned()).collect();
            let scanner = StopScanner::new(model.stop_strings(&stops).unwrap(), false);
            let mut output = OutputText::new(Detokenizer::new(&model, true), scanner, min_tokens);
            let mut out = String::new();
            let mut found = None;
            for &token in &tokens {
                found = found.or(output.push(&model, token, &mut out));
            }
            found = found.or(output.finish(&model, &mut out));
            assert_eq!((out.as_str(), found), (text, which), "{stops:?}, {min_tokens}");
        }
    }
}
