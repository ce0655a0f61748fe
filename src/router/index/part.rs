//! One part of the table: buckets of a cache line each, linear probing from bucket to bucket.
//!
//! An entry is in the bucket its key's share of the part falls into or, where that is full, in the
//! next with room. Each bucket counts the entries that had to go past it: a search that comes to a
//! bucket nobody went past is over, and a removal leaves nothing behind and moves at most one entry,
//! within its bucket.

use super::ffi::prefetch;
use super::table::{NONE, PART_BITS};

/// The key of a free place.
pub(super) const FREE: u64 = u64::MAX;
/// Places of a bucket: with the count they fill a cache line.
const PLACES: usize = 5;
/// Used places of a bucket, on average, at which a part grows: more would often not find room where
/// they belong.
const FULL: usize = 4;
/// One entry that went past a bucket, in its counts.
const PAST: u32 = 8;
/// Buckets that are emptied at once as a part is built: soon enough to still be in the cache.
const STRIDE: usize = 64;
/// Room kept for buckets behind the last that keys belong to.
const SPARE: usize = 2;
/// Fewest buckets of a part that holds anything.
const MIN_HOMES: usize = 2;

/// Keys and their sets, those in use first.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct Bucket {
    keys: [u64; PLACES],
    sets: [u32; PLACES],
    /// Places in use, and [`PAST`] for each entry that belongs here or before and is behind.
    counts: u32,
}

/// Some of the keys, and their sets.
#[derive(Clone, Debug)]
pub(super) struct Part {
    /// Those that keys belong to, and what the last of these had no room for.
    buckets: Vec<Bucket>,
    homes: usize,
    used: usize,
    /// How often entries may have changed places.
    builds: u32,
}

/// How far a sweep of a part has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Swept {
    buckets: usize,
    /// Of the part, when that was so.
    builds: u32,
}

impl Bucket {
    const EMPTY: Self = Self { keys: [FREE; PLACES], sets: [NONE; PLACES], counts: 0 };

    fn used(&self) -> usize {
        (self.counts % PAST) as usize
    }

    /// The place of `key`. Always looks at all: which it is cannot be foreseen, and a wrong guess
    /// costs the processor more than the few comparisons.
    fn place(&self, key: u64) -> Option<usize> {
        let mut found = PLACES;
        for (place, &other) in self.keys.iter().enumerate() {
            found = if other == key { place } else { found };
        }
        (found < PLACES).then_some(found)
    }

    /// Adds an entry if there is room; returns whether.
    fn push(&mut self, key: u64, set: u32) -> bool {
        let place = self.used();
        if place < PLACES {
            (self.keys[place], self.sets[place]) = (key, set);
            self.counts += 1;
        }
        place < PLACES
    }

    /// Fills a gap with the last entry.
    fn remove(&mut self, place: usize) {
        let last = self.used() - 1;
        (self.keys[place], self.sets[place]) = (self.keys[last], self.sets[last]);
        self.keys[last] = FREE;
        self.counts -= 1;
    }
}

impl Part {
    /// A part that holds nothing.
    pub(super) const EMPTY: Self = Self { buckets: Vec::new(), homes: 0, used: 0, builds: 0 };

    /// Keys in the part.
    pub(super) fn used(&self) -> usize {
        self.used
    }

    /// Bytes allocated.
    pub(super) fn bytes(&self) -> usize {
        self.buckets.capacity() * size_of::<Bucket>()
    }

    /// Where `key` belongs: its share of the part's keys is its share of the buckets.
    fn home(&self, key: u64) -> usize {
        ((u128::from(key << PART_BITS) * self.homes as u128) >> 64) as usize
    }

    /// Brings into the cache where `key` belongs, and the next bucket, which is often needed, too.
    pub(super) fn prefetch(&self, key: u64) {
        let home = self.home(key);
        self.buckets.get(home..).into_iter().flatten().take(2).for_each(prefetch);
    }

    /// The set of `key`, or [`NONE`].
    pub(super) fn get(&self, key: u64) -> u32 {
        self.seek(key).map_or(NONE, |(at, place)| self.buckets[at].sets[place])
    }

    /// The bucket and the place of `key`.
    fn seek(&self, key: u64) -> Option<(usize, usize)> {
        let mut at = self.home(key);
        while let Some(bucket) = self.buckets.get(at) {
            if let Some(place) = bucket.place(key) {
                return Some((at, place));
            }
            if bucket.counts < PAST {
                return None;
            }
            at += 1;
        }
        None
    }

    /// Replaces the set of `key`, [`NONE`] standing for no entry before and after.
    pub(super) fn change(&mut self, key: u64, to: impl FnOnce(u32) -> u32) {
        let home = self.home(key);
        let mut at = home;
        while let Some(bucket) = self.buckets.get_mut(at) {
            if let Some(place) = bucket.place(key) {
                let set = &mut bucket.sets[place];
                *set = to(*set);
                if *set == NONE {
                    self.remove(at, place);
                    self.shrink();
                }
                return;
            }
            if bucket.counts < PAST {
                break;
            }
            at += 1;
        }
        let set = to(NONE);
        if set != NONE {
            if self.used >= self.homes * FULL {
                self.rebuild((self.homes * 2).max(MIN_HOMES));
                self.insert(key, set);
            } else if at > home || !self.buckets[home].push(key, set) {
                self.insert(key, set);
            } else {
                self.used += 1;
            }
        }
    }

    /// Adds a key that is not here.
    fn insert(&mut self, key: u64, set: u32) {
        self.used += 1;
        let mut at = self.home(key);
        loop {
            if at >= self.buckets.len() {
                self.pad((at + STRIDE).min(self.homes).max(at + 1));
            }
            if self.buckets[at].push(key, set) {
                return;
            }
            self.buckets[at].counts += PAST;
            at += 1;
        }
    }

    /// Adds empty buckets up to that number.
    fn pad(&mut self, count: usize) {
        self.buckets.reserve_exact(count - self.buckets.len());
        self.buckets.resize(count, Bucket::EMPTY);
    }

    fn remove(&mut self, at: usize, place: usize) {
        let home = self.home(self.buckets[at].keys[place]);
        self.buckets[home..at].iter_mut().for_each(|bucket| bucket.counts -= PAST);
        self.buckets[at].remove(place);
        self.used -= 1;
    }

    /// Gives memory back once less than a quarter of what may be used is.
    fn shrink(&mut self) {
        if self.homes > MIN_HOMES && self.used < self.homes * FULL / 4 {
            self.rebuild(if self.used == 0 { 0 } else { (self.used * 2 / FULL).max(MIN_HOMES) });
        }
    }

    fn rebuild(&mut self, homes: usize) {
        let builds = self.builds.wrapping_add(1);
        let mut new = Self { buckets: Vec::with_capacity(homes + SPARE), homes, used: 0, builds };
        for bucket in &self.buckets {
            for place in 0..bucket.used() {
                new.insert(bucket.keys[place], bucket.sets[place]);
            }
        }
        new.pad(homes.max(new.buckets.len()));
        *self = new;
    }

    /// Passes up to `places` places on to `to`, from `swept` on. Returns whether it came to the end.
    /// Entries stay where they are unless the part is rebuilt: then it begins again.
    pub(super) fn sweep(
        &mut self,
        swept: &mut Swept,
        places: &mut usize,
        to: &mut impl FnMut(u32) -> u32,
    ) -> bool {
        if swept.builds != self.builds {
            *swept = Swept { buckets: 0, builds: self.builds };
        }
        while let Some(bucket) = self.buckets.get(swept.buckets) {
            if *places == 0 {
                return false;
            }
            *places = places.saturating_sub(PLACES);
            for place in (0..bucket.used()).rev() {
                let set = to(self.buckets[swept.buckets].sets[place]);
                self.buckets[swept.buckets].sets[place] = set;
                if set == NONE {
                    self.remove(swept.buckets, place);
                }
            }
            swept.buckets += 1;
        }
        self.shrink();
        true
    }
}

#[cfg(test)]
impl Part {
    /// All entries.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, u32)> + '_ {
        let used = |bucket: &Bucket| bucket.keys.into_iter().zip(bucket.sets).take(bucket.used());
        self.buckets.iter().flat_map(used)
    }

    /// Checks that every key is found, and what is counted.
    pub(super) fn check(&self) {
        assert_eq!(self.iter().count(), self.used);
        let mut past = vec![0; self.buckets.len()];
        for (key, set) in self.iter() {
            assert_eq!(self.get(key), set, "key not found");
            let (at, _) = self.seek(key).expect("a key");
            past[self.home(key)..at].iter_mut().for_each(|past| *past += 1);
        }
        assert!(
            past.into_iter().eq(self.buckets.iter().map(|bucket| bucket.counts / PAST)),
            "miscounted"
        );
    }
}
