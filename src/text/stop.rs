//! [`StopScanner`]: finds stop strings in text that comes in pieces, and holds back what may be one.

use std::sync::{Arc, LazyLock};

use super::TextError;

/// The stop strings of one request, compiled; cheap to clone, one for all its choices.
#[derive(Clone, Debug)]
pub struct StopStrings {
    stops: Arc<[Stop]>,
    /// Whether some stop string starts with this byte.
    firsts: Arc<[bool; 256]>,
}

/// What most requests have: one for all of them.
static NONE: LazyLock<StopStrings> =
    LazyLock::new(|| StopStrings { stops: Arc::new([]), firsts: Arc::new([false; 256]) });

#[derive(Debug)]
struct Stop {
    text: Box<str>,
    /// Knuth-Morris-Pratt: after `n` matching bytes and a mismatch, this many still match.
    shorter: Box<[u32]>,
}

impl StopStrings {
    /// Compiles stop strings, at most `limit`.
    ///
    /// # Errors
    /// [`TextError::BadStop`] for too many or an empty one.
    pub fn new(stops: &[String], limit: usize) -> Result<Self, TextError> {
        if stops.len() > limit {
            let detail = format!("{} strings given; at most {limit} are taken", stops.len());
            return Err(TextError::BadStop { detail });
        }
        if stops.is_empty() {
            return Ok(NONE.clone());
        }
        let mut firsts = [false; 256];
        for (index, stop) in stops.iter().enumerate() {
            let Some(first) = stop.bytes().next() else {
                let detail = format!("string {index} is empty; it would stop before any text");
                return Err(TextError::BadStop { detail });
            };
            firsts[usize::from(first)] = true;
        }
        Ok(Self { stops: stops.iter().map(Stop::new).collect(), firsts: Arc::new(firsts) })
    }

    /// Whether there is nothing to look for.
    pub fn is_empty(&self) -> bool {
        self.stops.is_empty()
    }

    /// A stop string by the index that [`StopScanner::push`] gives.
    pub fn get(&self, index: usize) -> Option<&str> {
        self.stops.get(index).map(|stop| &*stop.text)
    }
}

impl Stop {
    fn new(text: &String) -> Self {
        let bytes = text.as_bytes();
        let mut shorter = vec![0_u32; bytes.len()];
        for end in 1..bytes.len() {
            let mut matching = shorter[end - 1];
            while matching > 0 && bytes[matching as usize] != bytes[end] {
                matching = shorter[matching as usize - 1];
            }
            shorter[end] = matching + u32::from(bytes[matching as usize] == bytes[end]);
        }
        Self { text: text.as_str().into(), shorter: shorter.into() }
    }

    /// How many bytes match after one more. A whole match counts the stop's length.
    fn advance(&self, mut matching: u32, byte: u8) -> u32 {
        let text = self.text.as_bytes();
        while matching > 0 && text[matching as usize] != byte {
            matching = self.shorter[matching as usize - 1];
        }
        matching + u32::from(text[matching as usize] == byte)
    }
}

/// Looks for the stop strings in one choice's text.
///
/// The stop string that is complete first wins; of two complete at the same byte, the longer. The
/// result does not depend on how the text is cut into pieces. Text that may still become part of a
/// stop string is held back; nothing is stored for it, since it is the beginning of a stop string.
#[derive(Clone, Debug)]
pub struct StopScanner {
    strings: StopStrings,
    include_stop: bool,
    /// For each stop string, how many of its bytes the text ends with.
    matching: Box<[u32]>,
    /// The longest of `matching`: (which, bytes).
    held: (usize, usize),
    stopped: Option<usize>,
}

impl StopScanner {
    /// `include_stop`: whether a found stop string is part of the text.
    pub fn new(strings: StopStrings, include_stop: bool) -> Self {
        let matching = vec![0; strings.stops.len()].into();
        Self { strings, include_stop, matching, held: (0, 0), stopped: None }
    }

    /// Whether there is nothing to look for, so that text need not pass through here.
    pub fn is_idle(&self) -> bool {
        self.strings.is_empty()
    }

    /// Takes more text, appends what cannot be part of a stop string any more, and says which stop
    /// string was found. After that all text is dropped and the answer stays.
    pub fn push(&mut self, text: &str, out: &mut String) -> Option<usize> {
        if self.stopped.is_some() {
            return self.stopped;
        }
        if self.strings.is_empty() {
            out.push_str(text);
            return None;
        }
        let held = self.held;
        let bytes = text.as_bytes();
        let mut at = 0;
        while at < bytes.len() {
            if self.held.1 == 0 {
                let firsts = &self.strings.firsts;
                match bytes[at..].iter().position(|byte| firsts[usize::from(*byte)]) {
                    Some(skipped) => at += skipped,
                    None => break,
                }
            }
            let found = self.step(bytes[at]);
            at += 1;
            if let Some(found) = found {
                let cut = if self.include_stop { 0 } else { self.strings.stops[found].text.len() };
                self.emit(held, &text[..at], cut, out);
                self.stopped = Some(found);
                return self.stopped;
            }
        }
        self.emit(held, text, self.held.1, out);
        None
    }

    /// Takes text in which stop strings do not count (before `min_tokens`), also not in part.
    pub fn push_unsearched(&mut self, text: &str, out: &mut String) {
        if self.stopped.is_none() {
            self.finish(out);
            out.push_str(text);
        }
    }

    /// Appends what is held back: the text has ended without a stop string.
    pub fn finish(&mut self, out: &mut String) {
        if self.stopped.is_none() && self.held.1 > 0 {
            self.emit(self.held, "", 0, out);
            self.matching.fill(0);
            self.held = (0, 0);
        }
    }

    /// Takes one byte; gives the longest stop string that it completes.
    fn step(&mut self, byte: u8) -> Option<usize> {
        let mut found: Option<usize> = None;
        self.held = (0, 0);
        for (index, stop) in self.strings.stops.iter().enumerate() {
            let matching = stop.advance(self.matching[index], byte);
            self.matching[index] = matching;
            let matching = matching as usize;
            if matching == stop.text.len()
                && found.is_none_or(|other| matching > self.strings.stops[other].text.len())
            {
                found = Some(index);
            }
            if matching > self.held.1 {
                self.held = (index, matching);
            }
        }
        found
    }

    /// Appends the formerly held text and `text`, without the last `cut` bytes.
    fn emit(&self, held: (usize, usize), text: &str, cut: usize, out: &mut String) {
        // Both cuts fall between characters: what is cut off is the beginning of a stop string.
        let before = &self.strings.stops[held.0].text[..held.1];
        if let Some(kept) = text.len().checked_sub(cut) {
            out.push_str(before);
            out.push_str(&text[..kept]);
        } else {
            out.push_str(&before[..before.len() + text.len() - cut]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::testing::Rng;

    /// What the scanner promises, in the plainest words: (text, which stop).
    fn naive(stops: &[String], text: &str, include: bool) -> (String, Option<usize>) {
        for end in 1..=text.len() {
            let before = &text.as_bytes()[..end];
            let found = (0..stops.len())
                .filter(|index| before.ends_with(stops[*index].as_bytes()))
                .max_by_key(|index| (stops[*index].len(), stops.len() - index));
            if let Some(index) = found {
                let kept = if include { end } else { end - stops[index].len() };
                return (text[..kept].to_owned(), Some(index));
            }
        }
        (text.to_owned(), None)
    }

    fn scan(stops: &[String], pieces: &[&str], include: bool) -> (String, Option<usize>) {
        let strings = StopStrings::new(stops, 16).unwrap();
        let mut scanner = StopScanner::new(strings, include);
        let (mut out, mut found) = (String::new(), None);
        for piece in pieces {
            found = scanner.push(piece, &mut out);
        }
        scanner.finish(&mut out);
        (out, found)
    }

    fn owned(stops: &[&str]) -> Vec<String> {
        stops.iter().map(|stop| (*stop).to_owned()).collect()
    }

    #[test]
    fn a_stop_string_is_found_whatever_borders_cut_the_text() {
        // Every way to cut each text into up to three pieces, and into single characters.
        let cases: [(&[&str], &str); 10] = [
            (&["stop"], "go on and stopped"),
            (&["stop"], "sto st stostop!"),
            (&["aab"], "aaaaab"),
            (&["abab", "ba"], "aabab"),
            (&["abc", "bc"], "xabcx"),
            (&["abcd", "b"], "abcd"),
            (&["日本", "本語"], "日日本語"),
            (&["é"], "e\u{301}éa"),
            (&["\n\n", "User:"], "hi\nUser\n\nUser:"),
            (&["never"], "neve nev ne n"),
        ];
        for (stops, text) in cases {
            let stops = owned(stops);
            let borders: Vec<usize> =
                (0..=text.len()).filter(|border| text.is_char_boundary(*border)).collect();
            for include in [false, true] {
                let wanted = naive(&stops, text, include);
                for &first in &borders {
                    for &second in borders.iter().filter(|second| **second >= first) {
                        let pieces = [&text[..first], &text[first..second], &text[second..]];
                        assert_eq!(scan(&stops, &pieces, include), wanted, "{stops:?} {pieces:?}");
                    }
                }
                let singles: Vec<&str> = borders.windows(2).map(|w| &text[w[0]..w[1]]).collect();
                assert_eq!(scan(&stops, &singles, include), wanted, "{stops:?} {singles:?}");
            }
        }
    }

    #[test]
    fn random_stops_in_random_text_are_found_as_a_plain_search_finds_them() {
        let mut rng = Rng::new();
        let letters = ["a", "b", "é", "日"];
        let mut word = |most: usize| -> String {
            (0..1 + rng.below(most)).map(|_| letters[rng.below(letters.len())]).collect()
        };
        for _ in 0..5_000 {
            let count = word(5).chars().count();
            let stops: Vec<String> = (0..count).map(|_| word(4)).collect();
            let pieces: Vec<String> = (0..count * 2).map(|_| word(4)).collect();
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            for include in [false, true] {
                let wanted = naive(&stops, &pieces.concat(), include);
                assert_eq!(scan(&stops, &pieces, include), wanted, "{stops:?} {pieces:?}");
            }
        }
    }

    #[test]
    fn only_what_may_become_a_stop_string_is_held_back() {
        let strings = StopStrings::new(&owned(&["</s>", "<|end|>"]), 16).unwrap();
        let mut scanner = StopScanner::new(strings, false);
        let mut out = String::new();
        // (piece, all that is out after it)
        let cases =
            [("a <", "a "), ("|e", "a "), ("x", "a <|ex"), ("<", "a <|ex"), ("<", "a <|ex<")];
        for (piece, wanted) in cases {
            assert_eq!(scanner.push(piece, &mut out), None);
            assert_eq!(out, wanted, "after {piece:?}");
        }
        assert_eq!(scanner.push("/s>never", &mut out), Some(0));
        assert_eq!(scanner.push("after", &mut out), Some(0));
        scanner.finish(&mut out);
        assert_eq!(out, "a <|ex<");
    }

    #[test]
    fn text_before_min_tokens_is_not_searched() {
        let strings = StopStrings::new(&owned(&["end"]), 16).unwrap();
        let mut scanner = StopScanner::new(strings, false);
        let mut out = String::new();
        scanner.push_unsearched("the end en", &mut out);
        assert_eq!(scanner.push("d the e", &mut out), None);
        assert_eq!(out, "the end end the ");
        assert_eq!(scanner.push("nd", &mut out), Some(0));
        assert_eq!(out, "the end end the ");
    }

    #[test]
    fn too_many_and_empty_stop_strings_are_refused() {
        let shown = |stops: &[&str]| StopStrings::new(&owned(stops), 2).unwrap_err().to_string();
        assert_eq!(shown(&["a", "b", "c"]), "stop: 3 strings given; at most 2 are taken");
        assert_eq!(shown(&["a", ""]), "stop: string 1 is empty; it would stop before any text");
        let none = StopStrings::new(&[], 0).unwrap();
        assert!(none.is_empty() && StopScanner::new(none, true).is_idle());
    }
}
