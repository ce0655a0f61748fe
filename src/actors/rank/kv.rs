//! What one front end has still to hear of a rank's prefix cache. Plain, like the rest that decides.

use crate::engine::{KvEvent, Tier};
use crate::ids::{BlockHash, RankIndex};
use crate::router::KvNews;

/// Most changes in one frame: some 300 KiB between nodes.
const CHUNK: usize = 16 << 10;

/// See the module's description. It begins with everything that is cached.
#[derive(Debug)]
pub(in crate::actors) struct KvOut {
    /// Of the last news.
    number: u64,
    /// The next news replace all before.
    reset: bool,
    /// There was more to tell than may wait, or the front end has asked: all must be told.
    stale: bool,
    changes: Vec<(BlockHash, Option<Tier>)>,
    /// How many of them have been sent.
    sent: usize,
    /// How many of them say what was cached at one moment: they do not count as waiting changes.
    snapshot: usize,
    /// Most changes that may wait.
    limit: usize,
}

impl KvOut {
    pub(in crate::actors) fn new(limit: usize) -> Self {
        Self {
            number: 0,
            reset: false,
            stale: true,
            changes: Vec::new(),
            sent: 0,
            snapshot: 0,
            limit,
        }
    }

    /// Notes what a step changed.
    pub(in crate::actors) fn add(&mut self, events: &[KvEvent]) {
        if self.stale {
            return; // all of it will be told
        }
        let waiting = self.changes.len() - self.sent.max(self.snapshot);
        if waiting + events.len() > self.limit {
            return self.restart();
        }
        self.changes.extend(events.iter().map(KvEvent::change));
    }

    /// All that is cached must be told again.
    pub(in crate::actors) fn restart(&mut self) {
        (self.stale, self.sent, self.snapshot) = (true, 0, 0);
        self.changes = Vec::new();
    }

    /// The number of the last news; 0 before the first.
    pub(in crate::actors) fn number(&self) -> u64 {
        self.number
    }

    /// Whether there is something to tell.
    pub(in crate::actors) fn has_news(&self) -> bool {
        self.stale || self.reset || self.sent < self.changes.len()
    }

    /// The next news; `cached` lists all that is cached. `None` if there are none.
    pub(in crate::actors) fn take(
        &mut self,
        rank: RankIndex,
        cached: impl FnOnce(&mut Vec<(BlockHash, Tier)>),
    ) -> Option<KvNews> {
        if std::mem::take(&mut self.stale) {
            let mut blocks = Vec::new();
            cached(&mut blocks);
            self.changes = blocks.into_iter().map(|(hash, tier)| (hash, Some(tier))).collect();
            (self.sent, self.reset, self.snapshot) = (0, true, self.changes.len());
        }
        if !self.has_news() {
            return None;
        }
        let end = self.changes.len().min(self.sent + CHUNK);
        let changes = self.changes[self.sent..end].to_vec();
        self.sent = end;
        if end == self.changes.len() {
            self.changes.clear();
            (self.sent, self.snapshot) = (0, 0);
        }
        self.number += 1;
        let reset = std::mem::take(&mut self.reset);
        Some(KvNews { rank, number: self.number, reset, changes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(hash: u128) -> KvEvent {
        KvEvent::Stored { hash: BlockHash(hash), parent: None, tier: Tier::Device }
    }

    fn take(out: &mut KvOut, cached: &[u128]) -> Option<(u64, bool, usize)> {
        let news = out.take(RankIndex(3), |blocks| {
            blocks.extend(cached.iter().map(|hash| (BlockHash(*hash), Tier::Device)))
        });
        news.map(|news| (news.number, news.reset, news.changes.len()))
    }

    #[test]
    fn it_begins_with_all_that_is_cached_and_goes_on_with_changes() {
        let mut out = KvOut::new(100);
        out.add(&[stored(9)]);
        assert_eq!(take(&mut out, &[]), Some((1, true, 0)), "an empty cache is news as well");
        assert_eq!(take(&mut out, &[]), None);
        out.add(&[stored(1), KvEvent::Removed { hash: BlockHash(1) }]);
        assert!(out.has_news());
        let news = out.take(RankIndex(3), |_| panic!("nothing is asked for")).unwrap();
        assert_eq!(news.changes, [(BlockHash(1), Some(Tier::Device)), (BlockHash(1), None)]);
        assert_eq!((news.number, news.rank, out.has_news()), (2, RankIndex(3), false));
    }

    #[test]
    fn more_than_may_wait_becomes_a_snapshot() {
        let mut out = KvOut::new(2);
        take(&mut out, &[]);
        out.add(&[stored(1), stored(2)]);
        out.add(&[stored(3)]);
        assert_eq!(take(&mut out, &[1, 2, 3]), Some((2, true, 3)));
        out.restart();
        assert_eq!(take(&mut out, &[1]), Some((3, true, 1)), "as a front end may ask");
    }

    #[test]
    fn a_large_cache_comes_in_parts_and_changes_come_after_it() {
        let mut out = KvOut::new(10);
        let cached: Vec<u128> = (0..CHUNK as u128 + 5).collect();
        assert_eq!(take(&mut out, &cached), Some((1, true, CHUNK)));
        out.add(&[stored(1)]); // while more waits than may, but of the cache itself
        assert_eq!(take(&mut out, &cached), Some((2, false, 6)));
        out.add(&[stored(1)]);
        assert_eq!(take(&mut out, &cached), Some((3, false, 1)));
        assert_eq!(take(&mut out, &cached), None);
    }
}
