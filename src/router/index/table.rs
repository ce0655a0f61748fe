//! The table from blocks to sets of ranks: open addressing, sorted by key, in many small parts.
//!
//! A part is linear probing whose home positions grow with the key, kept in the order of the keys:
//! a miss ends at the first larger key, a removal leaves no tombstone, and a part grows by one pass
//! over itself. Parts grow one by one, so neither memory nor a pause is ever that of the whole.

use crate::ids::BlockHash;

/// No set: a block nobody holds.
pub(super) const NONE: u32 = u32::MAX;
/// The key of a free place; larger than every other, so it also ends every search.
const FREE: u64 = u64::MAX;
const PART_BITS: u32 = 8;
/// Free places kept behind the last home position when a part is built.
const TAIL: usize = 8;
/// Fewest home positions of a part that holds anything.
const MIN_HOMES: usize = 8;
/// How far behind its home an entry mostly is at most.
const NEAR: usize = 4;

/// The 64 bits that stand for a block here.
///
/// Two blocks may share them. Then a look-up may promise a block that the rank does not have, and
/// the rank computes it: that costs time, and never a wrong answer.
pub(super) fn key(hash: BlockHash) -> u64 {
    let folded = hash.0 as u64 ^ ((hash.0 >> 64) as u64).rotate_left(32);
    // Multiplying by an odd number keeps keys apart and spreads them over the high bits.
    folded.wrapping_mul(0x9E37_79B9_7F4A_7C15).min(FREE - 1)
}

/// From keys to set numbers.
#[derive(Debug)]
pub(super) struct Table {
    parts: Vec<Part>,
    entries: usize,
}

/// How far a sweep has come: everything before `key` of `part` is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cursor {
    part: usize,
    key: u64,
}

/// A key and its set in 12 bytes, so that what is needed together is read together.
#[derive(Clone, Copy, Debug)]
struct Place {
    /// Its low and its high half.
    key: [u32; 2],
    set: u32,
}

#[derive(Clone, Debug)]
struct Part {
    /// In the order of their keys, with free places between; the last one is free.
    places: Vec<Place>,
    homes: usize,
    used: usize,
}

impl Table {
    pub(super) fn new() -> Self {
        Self { parts: vec![Part::sized(0); 1 << PART_BITS], entries: 0 }
    }

    /// Keys in the table.
    pub(super) fn entries(&self) -> usize {
        self.entries
    }

    /// Bytes allocated.
    pub(super) fn bytes(&self) -> usize {
        let places: usize = self.parts.iter().map(|part| part.places.capacity()).sum();
        places * size_of::<Place>() + self.parts.capacity() * size_of::<Part>()
    }

    /// The set of `key`, or [`NONE`].
    pub(super) fn get(&self, key: u64) -> u32 {
        let part = &self.parts[part_of(key)];
        let place = part.places[part.seek(key)];
        if place.key() == key { place.set } else { NONE }
    }

    /// Reads the places of `keys`, so that what follows finds them in the cache: the processor
    /// waits for all of them at once, as no read depends on another.
    pub(super) fn warm(&self, keys: &[u64]) {
        let mut seen = 0;
        for &key in keys {
            let part = &self.parts[part_of(key)];
            let near = &part.places[part.home(key)..];
            seen ^= near.first().map_or(0, |place| place.set);
            seen ^= near.get(NEAR).map_or(0, |place| place.set);
        }
        std::hint::black_box(seen);
    }

    /// Replaces the set of `key`, [`NONE`] standing for no entry before and after.
    pub(super) fn change(&mut self, key: u64, to: impl FnOnce(u32) -> u32) {
        let part = &mut self.parts[part_of(key)];
        let at = part.seek(key);
        let place = &mut part.places[at];
        if place.key() == key {
            place.set = to(place.set);
            if place.set == NONE {
                part.remove(at);
                part.shrink();
                self.entries -= 1;
            }
        } else {
            let set = to(NONE);
            if set != NONE {
                part.insert(at, Place::new(key, set));
                self.entries += 1;
            }
        }
    }

    /// Passes about `places` places from `cursor` on to `to`, as [`change`](Self::change) would.
    /// Returns whether it came to the end, which also sets the cursor back to the beginning.
    pub(super) fn sweep(
        &mut self,
        cursor: &mut Cursor,
        mut places: usize,
        mut to: impl FnMut(u32) -> u32,
    ) -> bool {
        while let Some(part) = self.parts.get_mut(cursor.part) {
            let before = part.used;
            let stopped = part.sweep(cursor.key, &mut places, &mut to);
            self.entries -= before - part.used;
            if let Some(key) = stopped {
                cursor.key = key;
                return false;
            }
            part.shrink();
            *cursor = Cursor { part: cursor.part + 1, key: 0 };
        }
        *cursor = Cursor::default();
        true
    }

    /// All entries, in the order of their keys.
    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, u32)> + '_ {
        let used = self.parts.iter().flat_map(|part| &part.places).filter(|place| !place.is_free());
        used.map(|place| (place.key(), place.set))
    }
}

/// Places of a part, for all home positions and what may not fit into the last of them.
fn places_for(homes: usize) -> usize {
    if homes == 0 { 1 } else { homes + TAIL }
}

fn part_of(key: u64) -> usize {
    (key >> (64 - PART_BITS)) as usize
}

impl Place {
    const EMPTY: Self = Self::new(FREE, NONE);

    const fn new(key: u64, set: u32) -> Self {
        Self { key: [key as u32, (key >> 32) as u32], set }
    }

    fn key(self) -> u64 {
        u64::from(self.key[1]) << 32 | u64::from(self.key[0])
    }

    fn is_free(self) -> bool {
        self.set == NONE
    }
}

impl Part {
    fn sized(homes: usize) -> Self {
        Self { places: vec![Place::EMPTY; places_for(homes)], homes, used: 0 }
    }

    /// Where a search for `key` begins: its share of the part's keys is its share of the places.
    fn home(&self, key: u64) -> usize {
        ((u128::from(key << PART_BITS) * self.homes as u128) >> 64) as usize
    }

    /// The place of `key` or, if it is not here, the place it would take.
    fn seek(&self, key: u64) -> usize {
        let mut at = self.home(key);
        while self.places[at].key() < key {
            at += 1;
        }
        at
    }

    /// Puts an entry where [`seek`](Self::seek) says and moves what is there on by one.
    fn insert(&mut self, mut at: usize, mut place: Place) {
        if self.is_full() {
            self.rebuild((self.homes * 2).max(MIN_HOMES));
            at = self.seek(place.key());
        }
        while !place.is_free() {
            std::mem::swap(&mut self.places[at], &mut place);
            at += 1;
        }
        // The last place stays free.
        self.pad(at + 1);
        self.used += 1;
    }

    /// Sees to it that there are `count` places, by adding a few if need be.
    fn pad(&mut self, count: usize) {
        if count > self.places.len() {
            self.places.reserve_exact(TAIL);
            self.places.resize(count + TAIL - 1, Place::EMPTY);
        }
    }

    /// Moves what follows back by one, up to a key that is already at home.
    fn remove(&mut self, mut at: usize) {
        loop {
            let next = self.places[at + 1];
            if next.is_free() || self.home(next.key()) > at {
                break;
            }
            self.places[at] = next;
            at += 1;
        }
        self.places[at] = Place::EMPTY;
        self.used -= 1;
    }

    /// Above three quarters searches grow long; twice the places are then well filled, too.
    fn is_full(&self) -> bool {
        self.used * 4 >= self.homes * 3
    }

    /// Gives memory back once less than a quarter is used.
    fn shrink(&mut self) {
        if self.homes > MIN_HOMES && self.used * 4 < self.homes {
            self.rebuild(if self.used == 0 { 0 } else { (self.used * 3 / 2).max(MIN_HOMES) });
        }
    }

    fn rebuild(&mut self, homes: usize) {
        let mut new = Self::sized(homes);
        let mut next = 0;
        for place in self.places.iter().filter(|place| !place.is_free()) {
            let at = new.home(place.key()).max(next);
            next = at + 1;
            new.pad(next + 1);
            new.places[at] = *place;
        }
        new.used = self.used;
        *self = new;
    }

    /// Returns the key to go on with if `places` ran out. What goes leaves a gap, and what follows
    /// moves up to it as far as its home, so it can only stop where nothing is left to move.
    fn sweep(
        &mut self,
        from: u64,
        places: &mut usize,
        to: &mut impl FnMut(u32) -> u32,
    ) -> Option<u64> {
        let first = self.seek(from);
        let mut next = first;
        for at in first..self.places.len() {
            let mut place = self.places[at];
            if place.is_free() {
                next = at + 1;
            } else {
                let target = self.home(place.key()).max(next);
                if *places == 0 && target == at {
                    return Some(place.key());
                }
                place.set = to(place.set);
                self.places[at] = Place::EMPTY;
                if place.is_free() {
                    self.used -= 1;
                } else {
                    self.places[target] = place;
                    next = target + 1;
                }
            }
            *places = places.saturating_sub(1);
        }
        None
    }
}
