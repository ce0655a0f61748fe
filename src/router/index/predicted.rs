//! Blocks that a rank will hold because requests were just sent there: a guess with an end.
//!
//! It serves ranks that publish no events, and bridges the time until events arrive, so that a
//! burst of equal prompts does not scatter. Guesses are kept in a few *ages*, each with whole
//! chains; the oldest is forgotten at once, by time or for want of room. A prompt sent again is
//! noted again in the newest age, so what is used often stays.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::blocks::Blocks;
use super::{Scratch, Slot};
use crate::ids::BlockHash;

/// How finely time and room are divided.
const AGES: u32 = 4;

/// What ranks will hold, by what was sent there.
#[derive(Debug)]
pub struct Predicted {
    /// From the oldest to the newest.
    ages: VecDeque<Age>,
    ttl: Duration,
    max_blocks: usize,
}

#[derive(Debug)]
struct Age {
    began: Instant,
    blocks: Blocks,
    /// Pairs of a rank and a block.
    noted: usize,
}

impl Predicted {
    /// Guesses that end after `ttl` at the latest, and after three quarters of it at the earliest,
    /// unless there are more than `max_blocks` (one block on two ranks counts twice).
    pub fn new(ttl: Duration, max_blocks: usize) -> Self {
        Self { ages: VecDeque::new(), ttl, max_blocks }
    }

    /// A request with these blocks was sent to that rank. `now` does not go back.
    pub fn route(&mut self, slot: Slot, chain: &[BlockHash], now: Instant) {
        self.expire(now);
        // The end of a chain too long to keep is of no use without its beginning.
        let chain = &chain[..chain.len().min(self.max_blocks)];
        if chain.is_empty() {
            return;
        }
        let (span, room) = (self.ttl / AGES, self.max_blocks.div_ceil(AGES as usize));
        let fits = |age: &Age| {
            now.saturating_duration_since(age.began) < span
                && (age.noted == 0 || age.noted + chain.len() <= room)
                && !age.blocks.is_dead(slot.0)
        };
        if !self.ages.back().is_some_and(fits) {
            self.ages.push_back(Age { began: now, blocks: Blocks::new(), noted: 0 });
        }
        if let Some(age) = self.ages.back_mut() {
            age.noted += age.blocks.store(slot.0, chain) as usize;
        }
        // Ranks that come and go begin ages of their own: those are bounded, too.
        while self.blocks() > self.max_blocks || self.ages.len() > 2 * AGES as usize {
            self.ages.pop_front();
        }
    }

    /// Forgets what has reached its end. [`route`](Self::route) does so too.
    pub fn expire(&mut self, now: Instant) {
        let over = |age: &Age| now.saturating_duration_since(age.began) >= self.ttl;
        while self.ages.front().is_some_and(over) {
            self.ages.pop_front();
        }
    }

    /// The rank is gone: nothing is told of it any more, unless something is sent there again.
    pub fn retire(&mut self, slot: Slot) {
        self.ages.iter_mut().for_each(|age| age.blocks.set_dead(slot.0, true));
    }

    /// Raises `depths[slot]` to the number of leading blocks of `chain` that the rank will hold.
    pub fn raise(&self, chain: &[BlockHash], scratch: &mut Scratch, depths: &mut [u32]) {
        for age in &self.ages {
            age.blocks.find(chain, scratch).raise(depths);
        }
    }

    /// Pairs of a rank and a block noted; what was sent again may count once an age.
    pub fn blocks(&self) -> usize {
        self.ages.iter().map(|age| age.noted).sum()
    }

    /// Bytes of memory.
    pub fn bytes(&self) -> usize {
        self.ages.iter().map(|age| age.blocks.bytes()).sum::<usize>()
            + self.ages.capacity() * size_of::<Age>()
    }
}
