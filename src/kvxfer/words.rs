//! Words by which a peer that reads memory by itself sees whether a grant still holds: one for each
//! grant, in memory that it may read too.
//!
//! The word holds the grant's name for as long as the grant holds, and 0 before and after. A peer
//! reads it last: if the name is still there, all that it read before was read under the grant.
//! Names are drawn at random and never come back, so half a name, read while it was being cleared,
//! is none.

use std::sync::Arc;

use super::error::XferError;
use super::region::Memory;
use super::transport::GrantId;

/// Bytes of a word.
pub(super) const WORD_BYTES: u64 = 16;
/// How a pull ends whose word is not its grant's name.
pub(super) const REFUSED: XferError =
    XferError::Refused { why: "the grant is unknown, or was withdrawn" };

/// The words of one transport. The low 32 bits of a grant's name say which one is its own.
#[derive(Debug)]
pub(super) struct Words {
    memory: Arc<Memory>,
    free: Vec<u32>,
    /// Words that were ever used.
    used: u32,
}

impl Words {
    /// As many as there may be grants at a time.
    pub(super) fn new(transport: &'static str, grants: usize) -> Result<Self, XferError> {
        let unavailable = |why: String| XferError::Unavailable { transport, why };
        let count = u32::try_from(grants.max(1)).map_err(|_| {
            unavailable(format!("{grants} grants at a time are too many; {} at most", u32::MAX))
        })?;
        let memory = Memory::zeroed(count as usize * WORD_BYTES as usize)
            .map_err(|error| unavailable(format!("memory for {grants} grants: {error}")))?;
        Ok(Self { memory, free: Vec::new(), used: 0 })
    }

    /// For the transport to register.
    pub(super) fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// Takes a word for a new grant, which it gives a name; there are fewer grants than words.
    pub(super) fn open(&mut self, random: u128) -> GrantId {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.used += 1;
            self.used - 1
        });
        let grant = GrantId(random >> 32 << 32 | u128::from(slot));
        self.memory.publish(place(slot), grant.0);
        grant
    }

    /// Clears the word of a grant that was opened and not yet closed.
    pub(super) fn close(&mut self, grant: GrantId) {
        let slot = slot(grant);
        self.memory.publish(place(slot), 0);
        self.free.push(slot);
    }
}

fn slot(grant: GrantId) -> u32 {
    grant.0 as u32 // the low half of the low half
}

fn place(slot: u32) -> u64 {
    u64::from(slot) * WORD_BYTES
}

/// Where the word of a peer's grant lies in the peer's table of `count` words. `None` for what is
/// the name of none of them: a word that is not in use holds 0, which names nothing.
pub(super) fn word_of(grant: GrantId, count: u32) -> Option<u64> {
    (grant.0 != 0 && slot(grant) < count).then(|| place(slot(grant)))
}

/// Where the words of peers' grants arrive: one place for each pull in flight.
#[derive(Debug)]
pub(super) struct Arrivals {
    memory: Arc<Memory>,
    free: Vec<u64>,
    /// Bytes of places that were ever used.
    used: u64,
}

impl Arrivals {
    /// With places for as many pulls as there may be at a time.
    pub(super) fn new(pulls: usize) -> Result<Self, String> {
        let memory = Memory::zeroed(pulls.max(1).saturating_mul(WORD_BYTES as usize))
            .map_err(|error| format!("memory for {pulls} pulls: {error}"))?;
        Ok(Self { memory, free: Vec::new(), used: 0 })
    }

    /// For the transport to register.
    pub(super) fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// A place for a pull that was admitted, for as long as it may still be written to.
    pub(super) fn take(&mut self) -> u64 {
        self.free.pop().unwrap_or_else(|| {
            self.used += WORD_BYTES;
            self.used - WORD_BYTES
        })
    }

    pub(super) fn give_back(&mut self, place: u64) {
        self.free.push(place);
    }

    /// Forgets what has arrived at a place.
    pub(super) fn clear(&self, place: u64) {
        self.memory.write(place, &[0; WORD_BYTES as usize]);
    }

    /// Whether the grant's name has arrived there.
    pub(super) fn tell(&self, place: u64, grant: GrantId) -> bool {
        let mut found = [0; WORD_BYTES as usize];
        self.memory.read(place, &mut found);
        u128::from_le_bytes(found) == grant.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_serves_one_pull_after_the_other_and_tells_only_of_whole_names() {
        let mut arrivals = Arrivals::new(2).unwrap();
        let (first, second) = (arrivals.take(), arrivals.take());
        assert_ne!(first, second);
        let grant = GrantId(1 << 120 | 7);
        assert!(!arrivals.tell(first, grant));
        arrivals.memory().write(first, &grant.0.to_le_bytes());
        assert!(arrivals.tell(first, grant) && !arrivals.tell(second, grant));
        arrivals.give_back(first);
        assert_eq!(arrivals.take(), first);
        arrivals.clear(first);
        assert!(!arrivals.tell(first, grant));
        arrivals.memory().write(first, &grant.0.to_le_bytes()[..12]);
        assert!(!arrivals.tell(first, grant));
    }

    #[test]
    fn a_word_holds_the_name_until_the_grant_is_closed_and_serves_another_one_then() {
        let mut words = Words::new("test", 2).unwrap();
        let read = |words: &Words, grant: GrantId| {
            let mut bytes = [0; WORD_BYTES as usize];
            words.memory.read(word_of(grant, 2).unwrap(), &mut bytes);
            u128::from_le_bytes(bytes)
        };
        let (first, second) = (words.open(u128::MAX), words.open(u128::MAX));
        assert_ne!(first, second, "the same random bits, another word");
        for grant in [first, second] {
            assert_eq!(read(&words, grant), grant.0);
        }
        words.close(first);
        assert_eq!((read(&words, first), read(&words, second)), (0, second.0));
        let third = words.open(1 << 32);
        assert_eq!(word_of(third, 2), word_of(first, 2));
        assert_eq!(read(&words, first), third.0);
    }

    #[test]
    fn what_names_no_word_has_no_place() {
        let cases = [(0, None), (1 << 32, Some(0)), (1 << 32 | 3, Some(48)), (1 << 32 | 4, None)];
        for (name, expected) in cases {
            assert_eq!(word_of(GrantId(name), 4), expected, "{name:#x}");
        }
        assert!(Words::new("test", usize::MAX).is_err());
        assert_eq!(Words::new("test", 0).unwrap().memory().bytes(), WORD_BYTES);
    }
}
