//! [`Encoder`]: text to token ids for byte-level BPE, with the ids of `tokenizers`, many times faster.
//!
//! `tokenizers` keeps for every character where it came from, and runs a backtracking regex engine
//! over the text; ids need neither. This encoder knows the usual pre-tokenizers by heart, and looks
//! words up that it has seen before. What it does not know it leaves to `tokenizers`: a whole
//! tokenizer.json, or one text.

mod chunks;
mod classes;
mod split;
#[cfg(test)]
mod tests;
mod words;

use std::ops::ControlFlow;

use aho_corasick::{AhoCorasick, MatchKind};
use tokenizers::models::bpe::BPE;
use tokenizers::{AddedVocabulary, Model, ModelWrapper, NormalizerWrapper, Tokenizer};

use chunks::{ChunkCache, Found};
use split::Splitter;
use words::{Table, WordCache};

/// Longest word in bytes; with a longer one `tokenizers` may meet a bound of its regex engine.
const MAX_WORD: usize = 1 << 16;

/// The pipeline of one tokenizer.json, without its model.
pub(super) struct Encoder {
    /// Whether the normalizer is NFC; else there is none.
    nfc: bool,
    /// Added tokens that are cut out first, then those that are cut out of what is left.
    added: [AddedTokens; 2],
    splitter: Splitter,
    /// Ids before and after a text with special tokens; `None` if that is not all they are.
    around: Option<(Vec<u32>, Vec<u32>)>,
    /// How the vocabulary writes each byte.
    letters: [char; 256],
    words: WordCache,
    chunks: ChunkCache,
    /// Whether texts may be cut where chunks end.
    is_cut: bool,
}

/// The longest of the leftmost matches wins.
struct AddedTokens {
    finder: Option<AhoCorasick>,
    /// Id of each pattern.
    ids: Vec<u32>,
}

impl Encoder {
    /// An encoder with a cache of so many words and one of so many bytes of texts, or `None` if some
    /// part of the tokenizer is not known here, or if the ids of any trial text differ.
    pub(super) fn recognise(
        tokenizer: &Tokenizer,
        cached_words: usize,
        cached_bytes: usize,
    ) -> Option<Self> {
        let added = tokenizer.get_added_vocabulary();
        let settings = tokenizer.get_truncation().is_some()
            || tokenizer.get_padding().is_some()
            || added.get_encode_special_tokens();
        let nfc = match tokenizer.get_normalizer() {
            None => false,
            Some(NormalizerWrapper::NFC(_)) => true,
            Some(_) => return None,
        };
        if settings || model(tokenizer)?.dropout.is_some_and(|share| share != 0.0) {
            return None;
        }
        let mut encoder = Self {
            nfc,
            added: [AddedTokens::new(added, false, nfc)?, AddedTokens::new(added, true, nfc)?],
            splitter: Splitter::recognise(tokenizer.get_pre_tokenizer()?)?,
            around: around(tokenizer),
            letters: letters(),
            words: WordCache::new(0),
            chunks: ChunkCache::new(0),
            is_cut: !added
                .get_added_tokens_decoder()
                .values()
                .any(|token| chunks::crosses(&token.content)),
        };
        let trials = trials(added);
        let equal = trials.iter().all(|text| encoder.is_right(tokenizer, text));
        encoder.words = WordCache::new(cached_words);
        encoder.chunks = ChunkCache::new(cached_bytes);
        equal.then_some(encoder)
    }

    /// Words, and bytes of chunks, that are kept.
    pub(super) fn cached(&self) -> (usize, usize) {
        (self.words.len(), self.chunks.bytes())
    }

    fn is_right(&self, tokenizer: &Tokenizer, text: &str) -> bool {
        [false, true].into_iter().all(|add_special| {
            let mut tokens = Vec::new();
            !self.encode(tokenizer, text, add_special, &mut tokens)
                || tokenizer
                    .encode_fast(text, add_special)
                    .is_ok_and(|encoding| encoding.get_ids() == tokens)
        })
    }

    /// Appends the token ids of a text and returns true, or leaves `tokens` as they are and the
    /// text to `tokenizers`.
    ///
    /// `tokenizer` is the one that [`Self::recognise`] saw.
    pub(super) fn encode(
        &self,
        tokenizer: &Tokenizer,
        text: &str,
        add_special: bool,
        tokens: &mut Vec<u32>,
    ) -> bool {
        static NOTHING: (Vec<u32>, Vec<u32>) = (Vec::new(), Vec::new());
        let around = if add_special { self.around.as_ref() } else { Some(&NOTHING) };
        let (Some((before, after)), Some(model)) = (around, model(tokenizer)) else { return false };
        if self.nfc && !text.is_ascii() && !text.chars().all(classes::nfc_keeps) {
            return false;
        }
        let start = tokens.len();
        tokens.extend_from_slice(before);
        let table = self.words.table();
        let mut run = Run { encoder: self, model, table: &table, tokens, word: String::new() };
        if run.chunks(text).is_break() {
            tokens.truncate(start);
            return false;
        }
        tokens.extend_from_slice(after);
        true
    }
}

/// One text on its way to ids. Every method breaks where the text must be left to `tokenizers`.
struct Run<'a> {
    encoder: &'a Encoder,
    model: &'a BPE,
    table: &'a Table,
    tokens: &'a mut Vec<u32>,
    /// A word as the vocabulary writes it.
    word: String,
}

impl Run<'_> {
    /// Chunks that came before come from the cache.
    fn chunks(&mut self, text: &str) -> ControlFlow<()> {
        let (cache, mut rest) = (&self.encoder.chunks, text);
        while self.encoder.is_cut
            && let Some(end) = chunks::end(rest)
        {
            let (chunk, after) = rest.split_at(end);
            rest = after;
            if !cache.is_in_use() {
                self.text(chunk, 0)?;
                continue;
            }
            let (key, start) = (cache.key(chunk), self.tokens.len());
            let found = cache.find(key, chunk, self.tokens);
            if let Found::Tokens = found {
                continue;
            }
            self.text(chunk, 0)?;
            if let Found::Again = found {
                cache.keep(key, chunk, &self.tokens[start..]);
            }
        }
        self.text(rest, 0)
    }

    /// Cuts out the added tokens from the `pass`-th set on.
    fn text(&mut self, text: &str, pass: usize) -> ControlFlow<()> {
        let encoder = self.encoder;
        let Some(added) = encoder.added.get(pass) else {
            return encoder.splitter.words(text, |word| self.word(word));
        };
        let mut rest = 0;
        if let Some(finder) = &added.finder {
            for found in finder.find_iter(text) {
                self.text(&text[rest..found.start()], pass + 1)?;
                self.tokens.push(added.ids[found.pattern().as_usize()]);
                rest = found.end();
            }
        }
        self.text(&text[rest..], pass + 1)
    }

    #[inline]
    fn word(&mut self, word: &str) -> ControlFlow<()> {
        if let Some(tokens) = self.table.get(word.as_bytes()) {
            self.tokens.extend_from_slice(tokens);
            return ControlFlow::Continue(());
        }
        self.new_word(word)
    }

    fn new_word(&mut self, word: &str) -> ControlFlow<()> {
        if word.len() > MAX_WORD {
            return ControlFlow::Break(());
        }
        self.word.clear();
        self.word.extend(word.bytes().map(|byte| self.encoder.letters[usize::from(byte)]));
        let Ok(merged) = self.model.tokenize(&self.word) else { return ControlFlow::Break(()) };
        let start = self.tokens.len();
        self.tokens.extend(merged.iter().map(|token| token.id));
        self.encoder.words.keep(self.table, word.as_bytes(), &self.tokens[start..]);
        ControlFlow::Continue(())
    }
}

impl AddedTokens {
    /// Those that are matched in normalized text, or those that are not; `None` if one of them
    /// takes more than its own characters, or looks at its neighbours.
    fn new(added: &AddedVocabulary, normalized: bool, nfc: bool) -> Option<Self> {
        let mut tokens: Vec<(u32, &str)> = Vec::new();
        for (&id, token) in added.get_added_tokens_decoder() {
            if token.normalized != normalized {
                continue;
            }
            // NFC may write a token with other characters as well.
            let rewritten = nfc && normalized && !token.content.is_ascii();
            if token.single_word || token.lstrip || token.rstrip || rewritten {
                return None;
            }
            tokens.push((id, &token.content));
        }
        let finder = (!tokens.is_empty()).then(|| {
            let contents = tokens.iter().map(|token| token.1);
            AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(contents)
        });
        let ids = tokens.iter().map(|token| token.0).collect();
        Some(Self { finder: finder.transpose().ok()?, ids })
    }
}

fn model(tokenizer: &Tokenizer) -> Option<&BPE> {
    match tokenizer.get_model() {
        ModelWrapper::BPE(model) => Some(model),
        _ => None,
    }
}

/// What special tokens come to: the ids before a text and those after it.
fn around(tokenizer: &Tokenizer) -> Option<(Vec<u32>, Vec<u32>)> {
    let ids = |text, add_special| {
        let encoding = tokenizer.encode_fast(text, add_special).ok()?;
        Some(encoding.get_ids().to_vec())
    };
    let all = ids("", true)?;
    let texts = ["a", "b c"];
    let bare = [ids(texts[0], false)?, ids(texts[1], false)?];
    let whole = [ids(texts[0], true)?, ids(texts[1], true)?];
    (0..=all.len()).map(|cut| all.split_at(cut)).find_map(|(before, after)| {
        let fits = bare.iter().zip(&whole).all(|(bare, whole)| {
            whole.strip_prefix(before).and_then(|rest| rest.strip_suffix(after)) == Some(&bare[..])
        });
        fits.then(|| (before.to_vec(), after.to_vec()))
    })
}

/// The characters that GPT-2 gave the bytes: printable ones stand for themselves, the others are
/// numbered from U+0100 on.
fn letters() -> [char; 256] {
    let mut unprintable = (0x100..).filter_map(char::from_u32);
    std::array::from_fn(|byte| match byte as u8 {
        printable @ (b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff) => char::from(printable),
        _ => unprintable.next().unwrap_or(char::REPLACEMENT_CHARACTER),
    })
}

/// Short texts in which a wrong rule would show.
fn trials(added: &AddedVocabulary) -> Vec<String> {
    let mut trials: Vec<String> = [
        "",
        " ",
        "The quick brown fox, it's 2024: they'LL say \"don't\" 1234567 times!\n\n  Yes.",
        "a  b   c \t d\r\n\r\n e\n \n  \u{a0} f\u{3000}g  ",
        "'s 'S '\u{17f} 'RE're x'd' ''ll",
        "caf\u{e9} \u{1f600}\u{1f468}\u{200d}\u{1f469} \u{65e5}\u{672c}\u{8a9e} \u{0e51}\u{0e52} \u{bd}\u{2167}",
        "e\u{301} \u{1d7d8}\u{1d400}\u{10ffff}\0\u{7f}\u{85}x \u{2028}y",
        "(x)  ...\n\t\tfn main() { println!(\"{}\", 0x1F); }\n",
    ]
    .map(str::to_owned)
    .into();
    let mut tokens: Vec<&str> =
        added.get_added_tokens_decoder().values().map(|token| token.content.as_str()).collect();
    tokens.sort_unstable();
    trials.extend(tokens.iter().take(8).map(|token| format!("it{token} {token}{token}\n1")));
    trials.push(trials[2].repeat(2 * chunks::CHUNK / trials[2].len() + 1)); // is cut
    trials
}
