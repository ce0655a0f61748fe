//! [`ChunkCache`]: the tokens of texts' beginnings that came before: instructions, conversations.
//!
//! A long text is cut where a word begins whatever stands around it, at places that only depend on the
//! text up to there: texts with the same beginning have the same chunks. The tokens of a chunk are
//! those of its own text, so they are kept by it and compared with it, byte by byte. A chunk is kept
//! when it comes for the second time; most texts come once.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustc_hash::FxBuildHasher;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Least bytes of a chunk; it goes on to the next place where it may end.
pub(super) const CHUNK: usize = 1024;
/// How far that place is looked for: texts without spaces are not cut.
const REACH: usize = 8192;
/// Locks, so that threads seldom meet.
const SHARDS: usize = 16;
/// What an entry takes besides its text and tokens.
const OVERHEAD: usize = 96;

/// A chunk that came once, or what it comes to.
enum Entry {
    Seen,
    Kept { text: Box<str>, tokens: Box<[u32]> },
}

impl Entry {
    fn bytes(&self) -> usize {
        match self {
            Self::Seen => OVERHEAD,
            Self::Kept { text, tokens } => OVERHEAD + text.len() + size_of_val(&**tokens),
        }
    }
}

type Entries = HashMap<u64, Entry, FxBuildHasher>;

/// What was used since the last change of generations, and what was used before that.
#[derive(Default)]
struct Shard {
    young: Entries,
    old: Entries,
    /// Of `young`.
    bytes: usize,
    /// Of `old`.
    old_bytes: usize,
}

impl Shard {
    /// Takes an entry from the old ones.
    fn take_old(&mut self, key: u64) -> Option<Entry> {
        let entry = self.old.remove(&key)?;
        self.old_bytes -= entry.bytes();
        Some(entry)
    }

    /// Puts an entry among the young; when those fill half the room, the old ones go.
    fn put(&mut self, key: u64, entry: Entry, room: usize) {
        self.bytes += entry.bytes();
        if let Some(before) = self.young.insert(key, entry) {
            self.bytes -= before.bytes();
        }
        if self.bytes > room / 2 {
            self.old = std::mem::take(&mut self.young);
            self.old_bytes = std::mem::take(&mut self.bytes);
        }
    }
}

/// See the module's description. Memory is bounded.
pub(super) struct ChunkCache {
    shards: [Mutex<Shard>; SHARDS],
    /// Nobody knows it: nobody can make two chunks that always meet.
    seed: u64,
    /// Bytes of each shard.
    room: usize,
}

/// What the cache knows of a chunk.
pub(super) enum Found {
    /// Its tokens have been appended.
    Tokens,
    /// It came before: its tokens should be [kept](ChunkCache::keep).
    Again,
    /// It comes for the first time, as far as is known.
    New,
}

impl ChunkCache {
    /// A cache of at most so many bytes; with few it keeps nothing.
    pub(super) fn new(bytes: usize) -> Self {
        let shards = std::array::from_fn(|_| Mutex::default());
        Self { shards, seed: RandomState::new().hash_one(0), room: bytes / SHARDS }
    }

    /// Whether it can keep anything.
    pub(super) fn is_in_use(&self) -> bool {
        self.room > 8 * CHUNK
    }

    /// Names a chunk within this cache.
    pub(super) fn key(&self, text: &str) -> u64 {
        xxh3_64_with_seed(text.as_bytes(), self.seed)
    }

    /// Looks a chunk up.
    pub(super) fn find(&self, key: u64, text: &str, tokens: &mut Vec<u32>) -> Found {
        let mut shard = self.shard(key);
        if let Some(entry) = shard.take_old(key) {
            shard.put(key, entry, self.room);
        }
        let found = match shard.young.get(&key).or_else(|| shard.old.get(&key)) {
            Some(Entry::Kept { text: kept, tokens: of_kept }) if **kept == *text => {
                tokens.extend_from_slice(of_kept);
                return Found::Tokens;
            }
            Some(_) => Found::Again,
            None => Found::New,
        };
        if let Found::New = found {
            shard.put(key, Entry::Seen, self.room);
        }
        found
    }

    /// Keeps the tokens of a chunk.
    pub(super) fn keep(&self, key: u64, text: &str, tokens: &[u32]) {
        let entry = Entry::Kept { text: text.into(), tokens: tokens.into() };
        let mut shard = self.shard(key);
        shard.take_old(key); // or it would come back in the place of this one
        shard.put(key, entry, self.room);
    }

    /// Bytes that are kept.
    pub(super) fn bytes(&self) -> usize {
        let kept = |shard: &Mutex<Shard>| {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            shard.bytes + shard.old_bytes
        };
        self.shards.iter().map(kept).sum()
    }

    fn shard(&self, key: u64) -> MutexGuard<'_, Shard> {
        // The low bits find the place within the shard.
        let shard = &self.shards[(key >> 60) as usize % SHARDS];
        // Whoever panicked left a whole entry or none.
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The end of the first chunk of a text, if there is more after it: before a space between two ASCII
/// letters. There every known splitter ends a word and begins another one, no added token reaches
/// across that does not [cross](crosses) it, and normalization changes nothing.
pub(super) fn end(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let window = bytes.get(CHUNK - 1..)?;
    let window = &window[..window.len().min(REACH)];
    let is_place =
        |at: &[u8]| at[0].is_ascii_alphabetic() && at[1] == b' ' && at[2].is_ascii_alphabetic();
    window.windows(3).position(is_place).map(|at| CHUNK + at)
}

/// Whether an added token may begin before the end of a chunk and go on after it.
pub(super) fn crosses(token: &str) -> bool {
    token.as_bytes().windows(2).any(|pair| pair[0].is_ascii_alphabetic() && pair[1] == b' ')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(cache: &ChunkCache, text: &str) -> (Vec<u32>, bool) {
        let (key, mut tokens) = (cache.key(text), Vec::new());
        let found = cache.find(key, text, &mut tokens);
        if let Found::Again = found {
            cache.keep(key, text, &[text.len() as u32, 7]);
        }
        (tokens, matches!(found, Found::Tokens))
    }

    #[test]
    fn a_chunk_is_kept_when_it_comes_again_and_found_when_it_comes_once_more() {
        let cache = ChunkCache::new(1 << 20);
        for wanted in [(vec![], false), (vec![], false), (vec![3, 7], true), (vec![3, 7], true)] {
            assert_eq!(find(&cache, "abc"), wanted);
        }
        let mut tokens = Vec::new();
        let other = cache.find(cache.key("abc"), "abd", &mut tokens);
        assert!(matches!(other, Found::Again) && tokens.is_empty(), "the same key is not enough");
    }

    #[test]
    fn memory_is_bounded_and_what_is_used_stays() {
        let cache = ChunkCache::new(64 << 20);
        let long = |number: usize| format!("{number} {}", "x".repeat(4000));
        for number in 0..40_000 {
            find(&cache, &long(number));
            find(&cache, &long(number));
            find(&cache, "always");
        }
        let held = |shard: &Mutex<Shard>| -> usize {
            let shard = shard.lock().unwrap();
            shard.young.values().chain(shard.old.values()).map(Entry::bytes).sum()
        };
        let held = cache.shards.iter().map(held).sum::<usize>();
        assert!((16 << 20..65 << 20).contains(&held), "{held}");
        assert!(find(&cache, "always").1 && !find(&cache, &long(0)).1);
        assert!(find(&cache, &long(39_999)).1);
    }

    #[test]
    fn chunks_end_between_letters_and_depend_on_nothing_behind_them() {
        let text = "some words of a text ".repeat(200);
        let first = end(&text).unwrap();
        assert!(first >= CHUNK && text[first..].starts_with(' '));
        for behind in ["", " ", "\u{301}", "x", " 7", "<|eot|>"] {
            let other = format!("{}{behind}", &text[..first + 2]);
            assert_eq!(end(&other), Some(first), "{behind:?}");
        }
        assert_eq!(end(&text[..first + 1]), None, "what comes next is not known");
        assert_eq!(end(&"\u{e9} \u{e9}".repeat(2000)), None);
        assert_eq!(end(&"1 2 3 ".repeat(2000)), None);
        let crossing = ["<|eot|>", " <b>", "  ", "a b", "a "].map(crosses);
        assert_eq!(crossing, [false, false, false, true, true]);
    }
}
