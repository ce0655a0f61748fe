//! What of a sequence's KV has been fetched and what can be asked for next: a plain record.

use std::ops::Range;

use crate::engine::PullOut;
use crate::ids::BlockId;
use crate::kvxfer::{KvBlocks, Layout, PlanError, Run, Side, plan};

/// One sequence's blocks on their way.
#[derive(Clone, Debug)]
pub(super) struct Fetch {
    /// The local table from the first token on; what was found here is not written.
    table: Vec<BlockId>,
    /// Blocks of it that are here: those found and those that have come.
    here: usize,
    found: usize,
    /// Blocks of it that are here or asked for.
    asked: usize,
    remote: KvBlocks,
    /// No more can be expected than what is known.
    ended: bool,
}

impl Fetch {
    /// Of what is wanted, `remote` is there.
    pub(super) fn new(pull: &PullOut, remote: KvBlocks) -> Self {
        let found = pull.first as usize;
        let mut table = vec![BlockId(0); found];
        table.extend(&pull.blocks);
        Self { table, here: found, found, asked: found, remote, ended: false }
    }

    /// More can be fetched.
    pub(super) fn more(&mut self, more: KvBlocks) {
        self.remote.append(more);
    }

    /// Nothing can be fetched that was not asked for yet.
    pub(super) fn end(&mut self) {
        self.ended = true;
    }

    /// Blocks that have come.
    pub(super) fn have(&self) -> u32 {
        (self.here - self.found) as u32
    }

    /// Whether all has come that was wanted.
    pub(super) fn is_complete(&self) -> bool {
        self.here == self.table.len()
    }

    /// Whether nothing is on its way.
    pub(super) fn is_idle(&self) -> bool {
        self.asked == self.here
    }

    /// Whether nothing more will come.
    pub(super) fn is_over(&self, remote: &Layout, local: &Layout) -> bool {
        let all_known = self.ended || self.remote.missing == 0;
        self.is_complete() || (self.is_idle() && all_known && self.next(remote, local).is_empty())
    }

    /// Local blocks that can be asked for now.
    fn next(&self, remote: &Layout, local: &Layout) -> Range<usize> {
        let tokens = self.remote.blocks.len() as u64 * u64::from(remote.block_tokens);
        let there = usize::try_from(tokens / u64::from(local.block_tokens)).unwrap_or(usize::MAX);
        let end = if self.ended { self.asked } else { there.min(self.table.len()) };
        self.asked..end.max(self.asked)
    }

    /// What is to be pulled now; empty if there is nothing. It counts as asked for.
    ///
    /// # Errors
    /// The two pools do not fit each other.
    pub(super) fn ask(
        &mut self,
        remote: &Layout,
        local: &Layout,
        most_runs: usize,
    ) -> Result<Vec<Run>, PlanError> {
        let Range { start, mut end } = self.next(remote, local);
        if start == end {
            return Ok(Vec::new());
        }
        let size = u64::from(local.block_tokens);
        let from = Side { layout: remote, blocks: &self.remote.blocks };
        let into = Side { layout: local, blocks: &self.table };
        loop {
            let runs = plan(from, into, start as u64 * size..end as u64 * size)?;
            if runs.len() <= most_runs || end == start + 1 {
                self.asked = end;
                return Ok(runs);
            }
            // Pools that lie differently break blocks into many pieces: the rest comes next.
            end = start + (end - start) * most_runs / runs.len().max(1);
            end = end.max(start + 1);
        }
    }

    /// All that was asked for has come. Blocks before the first one that `is_good` denies count; it is
    /// given each with the checksum of the one it is a copy of, if that is known.
    pub(super) fn came(&mut self, is_good: impl Fn(BlockId, u64) -> bool) -> bool {
        for at in self.here..self.asked {
            let checksum = self.remote.checksums.get(at);
            if checksum.is_some_and(|checksum| !is_good(self.table[at], *checksum)) {
                self.asked = at;
                self.here = at;
                self.end();
                return false;
            }
        }
        self.here = self.asked;
        true
    }

    /// What was asked for will not come.
    pub(super) fn failed(&mut self) {
        self.asked = self.here;
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{LegId, RequestId};
    use crate::kvxfer::Sizes;

    fn layout(block_tokens: u32) -> Layout {
        let sizes =
            Sizes { blocks: 99, layers: 1, planes: 2, heads: 0..1, block_tokens, head_bytes: 4 };
        Layout::block_major(sizes).unwrap()
    }

    fn blocks(range: Range<u32>, missing: u32) -> KvBlocks {
        let blocks: Vec<_> = range.map(BlockId).collect();
        let checksums = blocks.iter().map(|block| u64::from(block.0)).collect();
        KvBlocks { blocks, checksums, missing }
    }

    fn fetch(first: u32, count: u32, remote: KvBlocks) -> Fetch {
        let leg = LegId { request: RequestId(1), choice: 0, attempt: 0 };
        let blocks = (50..50 + count).map(BlockId).collect();
        Fetch::new(&PullOut { leg, first, blocks }, remote)
    }

    fn bytes(runs: &[Run]) -> u64 {
        runs.iter().map(|run| run.bytes).sum()
    }

    #[test]
    fn what_is_there_is_asked_for_once_and_the_rest_as_it_comes() {
        let size = layout(16);
        let mut fetch = fetch(2, 6, blocks(0..4, 4));
        assert_eq!(bytes(&fetch.ask(&size, &size, 4096).unwrap()), 2 * size.block_bytes());
        assert!(fetch.ask(&size, &size, 4096).unwrap().is_empty(), "it is on its way");
        fetch.more(blocks(4..7, 1));
        assert!(fetch.came(|_, _| true) && fetch.is_idle() && !fetch.is_over(&size, &size));
        assert_eq!(fetch.have(), 2);
        assert_eq!(bytes(&fetch.ask(&size, &size, 4096).unwrap()), 3 * size.block_bytes());
        fetch.came(|_, _| true);
        fetch.more(blocks(7..8, 0));
        assert_eq!(bytes(&fetch.ask(&size, &size, 4096).unwrap()), size.block_bytes());
        fetch.came(|_, _| true);
        assert!(fetch.is_complete() && fetch.is_over(&size, &size));
        assert_eq!(fetch.have(), 6);
    }

    #[test]
    fn what_fails_or_ends_leaves_what_has_come() {
        let size = layout(16);
        let mut one = fetch(0, 6, blocks(0..4, 2));
        one.ask(&size, &size, 4096).unwrap();
        one.came(|_, _| true);
        one.end();
        assert!(one.is_over(&size, &size) && !one.is_complete());
        assert_eq!(one.have(), 4);
        let mut other = fetch(0, 6, blocks(0..4, 2));
        other.ask(&size, &size, 4096).unwrap();
        other.failed();
        assert!(other.is_over(&size, &size) && other.have() == 0);
    }

    #[test]
    fn a_block_that_differs_is_computed_and_all_after_it() {
        let size = layout(16);
        let mut fetch = fetch(1, 5, blocks(0..6, 0));
        fetch.ask(&size, &size, 4096).unwrap();
        // Local block 50 is the copy of block 1 there, and so on.
        assert!(!fetch.came(|local, checksum| {
            assert_eq!(u64::from(local.0 - 49), checksum);
            checksum != 3
        }));
        assert_eq!(fetch.have(), 2);
        assert!(fetch.is_over(&size, &size));
    }

    #[test]
    fn a_pull_has_no_more_runs_than_it_may_have() {
        let size = layout(16);
        // Every second block there: no two lie side by side.
        let remote =
            KvBlocks { blocks: (0..40).map(|b| BlockId(2 * b)).collect(), ..KvBlocks::default() };
        let mut fetch = fetch(0, 40, remote);
        let mut pulls = 0;
        while !fetch.is_complete() {
            let runs = fetch.ask(&size, &size, 15).unwrap();
            assert!((1..=15).contains(&runs.len()), "{}", runs.len());
            fetch.came(|_, _| true);
            pulls += 1;
        }
        assert_eq!((pulls, fetch.have()), (3, 40));
    }

    #[test]
    fn blocks_of_another_size_are_asked_for_once_they_are_whole_here() {
        let (small, large) = (layout(16), layout(64));
        let mut fetch = fetch(0, 2, blocks(0..3, 5));
        assert!(fetch.ask(&small, &large, 4096).unwrap().is_empty(), "48 of 64 tokens");
        fetch.more(blocks(3..5, 3));
        assert_eq!(bytes(&fetch.ask(&small, &large, 4096).unwrap()), large.block_bytes());
        fetch.came(|_, _| true);
        fetch.more(blocks(5..8, 0));
        assert_eq!(bytes(&fetch.ask(&small, &large, 4096).unwrap()), large.block_bytes());
        fetch.came(|_, _| true);
        assert!(fetch.is_complete());
    }
}
