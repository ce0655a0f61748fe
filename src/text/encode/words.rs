//! [`WordCache`]: the tokens of words seen before. Reading takes no lock; memory is bounded.

use std::hash::Hasher;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use arc_swap::{ArcSwap, Guard};
use rustc_hash::FxHasher;

/// Longest word kept, in bytes, and most tokens of one: with these a slot fills a cache line.
const MAX_BYTES: usize = 30;
const MAX_TOKENS: usize = 7;
/// Slots that may hold a word, from the one of its hash on.
const WINDOW: usize = 4;
/// Slots of a first table; the next ones have [`GROWTH`] times as many.
const FIRST_SLOTS: usize = 4096;
const GROWTH: usize = 4;
/// Bytes of one slot.
const SLOT_BYTES: usize = 64;

#[derive(Clone)]
struct Word {
    len: u8,
    tokens_len: u8,
    bytes: [u8; MAX_BYTES],
    tokens: [u32; MAX_TOKENS],
}

#[repr(align(64))]
struct Slot(OnceLock<Word>);

const _: () = assert!(size_of::<Slot>() == SLOT_BYTES);

/// A hash table that only gains words.
pub(super) struct Table {
    /// A power of two of them, or none.
    slots: Box<[Slot]>,
    used: AtomicUsize,
}

/// A [`Table`] that makes way for a larger one when it is three quarters full, and at its full size
/// for an empty one: the words in use come back, the others are gone.
pub(super) struct WordCache {
    table: ArcSwap<Table>,
    most_slots: usize,
}

impl WordCache {
    /// A cache with slots for at most `words` words, 64 bytes each; fewer than 16 keep none. The
    /// table before the present one goes when the last text that uses it is done.
    pub(super) fn new(words: usize) -> Self {
        let most_slots = if words < 16 { 0 } else { 1 << words.ilog2() };
        let table = Table::new(most_slots.min(FIRST_SLOTS));
        Self { table: ArcSwap::from_pointee(table), most_slots }
    }

    /// Words that are kept.
    pub(super) fn len(&self) -> usize {
        self.table.load().used.load(Ordering::Relaxed)
    }

    /// The table of now; to be held no longer than one text takes.
    pub(super) fn table(&self) -> Guard<Arc<Table>> {
        self.table.load()
    }

    /// Keeps the tokens of a word in a table that came from [`Self::table`], if it has the room.
    pub(super) fn keep(&self, table: &Table, word: &[u8], tokens: &[u32]) {
        let Some(entry) = Word::new(word, tokens) else { return };
        // Exactly one thread sees the count at which a table is full.
        if table.insert(entry) == Some(table.slots.len() / 4 * 3) {
            let slots = (table.slots.len() * GROWTH).min(self.most_slots);
            let next = Table::new(slots);
            if slots > table.slots.len() {
                for word in table.slots.iter().filter_map(|slot| slot.0.get()) {
                    next.insert(word.clone());
                }
            }
            self.table.store(Arc::new(next));
        }
    }
}

#[inline]
fn hash(word: &[u8]) -> usize {
    let mut hasher = FxHasher::default();
    hasher.write(word);
    hasher.finish() as usize
}

impl Word {
    fn new(word: &[u8], tokens: &[u32]) -> Option<Self> {
        if word.len() > MAX_BYTES || tokens.len() > MAX_TOKENS {
            return None;
        }
        let (mut bytes, mut kept) = ([0; MAX_BYTES], [0; MAX_TOKENS]);
        bytes[..word.len()].copy_from_slice(word);
        kept[..tokens.len()].copy_from_slice(tokens);
        Some(Self { len: word.len() as u8, tokens_len: tokens.len() as u8, bytes, tokens: kept })
    }

    #[inline]
    fn word(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl Table {
    fn new(slots: usize) -> Self {
        let slots = (0..slots).map(|_| Slot(OnceLock::new())).collect();
        Self { slots, used: AtomicUsize::new(0) }
    }

    /// The slots that may hold a word with this hash.
    #[inline]
    fn window(&self, hash: usize) -> impl Iterator<Item = &Slot> {
        let mask = self.slots.len().wrapping_sub(1);
        let window = WINDOW.min(self.slots.len());
        (0..window).map(move |step| &self.slots[hash.wrapping_add(step) & mask])
    }

    /// The tokens of a word.
    #[inline]
    pub(super) fn get(&self, word: &[u8]) -> Option<&[u32]> {
        if word.len() > MAX_BYTES {
            return None;
        }
        for slot in self.window(hash(word)) {
            let kept = slot.0.get()?;
            if kept.word() == word {
                return Some(&kept.tokens[..usize::from(kept.tokens_len)]);
            }
        }
        None
    }

    /// Words in the table with this one; `None` if it had no room, or had the word.
    fn insert(&self, mut word: Word) -> Option<usize> {
        for slot in self.window(hash(word.word())) {
            match slot.0.set(word) {
                Ok(()) => return Some(self.used.fetch_add(1, Ordering::Relaxed) + 1),
                Err(back) => word = back,
            }
            if slot.0.get().is_some_and(|kept| kept.word() == word.word()) {
                return None;
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_word_is_found_and_no_other() {
        let cache = WordCache::new(4096);
        cache.keep(&cache.table(), b"word", &[7, 8]);
        cache.keep(&cache.table(), b"", &[]);
        let table = cache.table();
        assert_eq!(table.get(b"word"), Some(&[7, 8][..]));
        assert_eq!((table.get(b""), table.get(b"wor")), (Some(&[][..]), None));
    }

    #[test]
    fn long_words_and_words_of_many_tokens_are_not_kept() {
        let cache = WordCache::new(4096);
        let (long, most) = ([b'a'; MAX_BYTES + 1], [1; MAX_TOKENS]);
        cache.keep(&cache.table(), &long, &[1]);
        cache.keep(&cache.table(), b"many", &[1; MAX_TOKENS + 1]);
        cache.keep(&cache.table(), &long[1..], &most);
        let table = cache.table();
        assert_eq!((table.get(&long), table.get(b"many")), (None, None));
        assert_eq!(table.get(&long[1..]), Some(&most[..]));
    }

    #[test]
    fn a_cache_grows_with_its_words_then_starts_over_within_its_bound() {
        let cache = WordCache::new(100_000);
        let key = |number: u32| format!("w{number}");
        for number in 0..200_000 {
            cache.keep(&cache.table(), key(number).as_bytes(), &[number]);
            let table = cache.table();
            assert!(table.slots.len() <= 65_536 && table.used.load(Ordering::Relaxed) < 49_152);
            if number == 4000 {
                // The first table has given its words to the second.
                let kept =
                    (0..4000).filter(|n| table.get(key(*n).as_bytes()) == Some(&[*n])).count();
                assert!(kept > 3500, "{kept}");
            }
        }
        assert_eq!(cache.table().slots.len(), 65_536);
        assert_eq!(cache.table().get(b"w5"), None);
    }

    #[test]
    fn a_cache_of_no_words_keeps_none() {
        let cache = WordCache::new(0);
        cache.keep(&cache.table(), b"word", &[1]);
        assert_eq!(cache.table().get(b"word"), None);
    }

    #[test]
    fn many_threads_never_read_the_tokens_of_another_word() {
        let cache = WordCache::new(8192);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for number in (0..10_000_u32).cycle().take(30_000) {
                        let key = number.to_le_bytes();
                        let table = cache.table();
                        match table.get(&key) {
                            Some(tokens) => assert_eq!(tokens, [number, !number]),
                            None => cache.keep(&table, &key, &[number, !number]),
                        }
                    }
                });
            }
        });
    }
}
