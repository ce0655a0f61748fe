//! How legs use the prefix cache: a leg starts from what is found, and waits while another one computes
//! what it needs; what a step has computed can be found from then on.

use rustc_hash::FxHashMap;

use super::Scheduler;
use super::sequence::Stage;
use crate::engine::Part;
use crate::engine::blocks::Filled;
use crate::ids::BlockHash;

/// What became of a waiting leg that asked to start.
pub(super) enum Start {
    Started,
    /// It has its blocks; what some of them hold comes from elsewhere.
    Pulls,
    WaitsForPrefix,
    NoRoom,
}

/// Lets legs that wait for these blocks go on, as far as this slot's leg was computing them.
pub(super) fn forget_computing(
    computing: &mut FxHashMap<BlockHash, u32>,
    hashes: &[BlockHash],
    slot: u32,
) {
    for hash in hashes {
        if computing.get(hash) == Some(&slot) {
            computing.remove(hash);
        }
    }
}

/// The last of these blocks that the leg which is computing the first of them will compute.
fn last_computing(
    computing: &FxHashMap<BlockHash, u32>,
    hashes: &[BlockHash],
) -> Option<BlockHash> {
    let slot = computing.get(hashes.first()?)?;
    let shared = hashes.partition_point(|hash| computing.get(hash) == Some(slot));
    Some(hashes[shared - 1])
}

impl Scheduler {
    /// Gives a waiting leg blocks for all its tokens, those in the cache first, if it may start.
    pub(super) fn start(&mut self, slot: u32) -> Start {
        let headroom = self.occupied() as u32;
        let seq = &mut self.seqs[slot];
        if let Some(hash) = seq.waits_for.take()
            && self.computing.contains_key(&hash)
        {
            seq.waits_for = Some(hash);
            return Start::WaitsForPrefix;
        }
        let (tokens, salt) = (&seq.leg.tokens, seq.leg.salt);
        if self.limits.prefix_cache {
            self.blocks.extend_hashes(tokens, salt, &mut seq.hashes);
        }
        // The last token is computed even if it is cached: the next one follows from its logits.
        let size = self.shape.block_tokens;
        let needed = tokens.len() - usize::from(seq.leg.part != Part::Prefill);
        let usable = seq.hashes.len().min(needed / size);
        let hit = self.blocks.find(tokens, salt, &seq.hashes[..usable], &mut seq.blocks);
        let parent = hit.blocks.checked_sub(1).map(|last| seq.hashes[last]);
        let rest = &tokens[hit.blocks * size..];
        let found = hit.blocks
            + self.blocks.find_in_host(rest, salt, &seq.hashes[hit.blocks..usable], parent);
        if let Some(hash) = last_computing(&self.computing, &seq.hashes[found..usable]) {
            seq.waits_for = Some(hash);
            seq.blocks.clear();
            return Start::WaitsForPrefix;
        }
        let fresh = (tokens.len().div_ceil(size) - hit.blocks) as u32;
        if self.blocks.free() < fresh + hit.idle + headroom {
            seq.blocks.clear();
            return Start::NoRoom;
        }
        self.blocks.hold(&seq.blocks);
        seq.reserve(size);
        // Before others take their places in the host tier.
        let loading = self.blocks.take_from_host(&seq.hashes[hit.blocks..found]);
        let enough = self.blocks.allocate(fresh, &mut seq.blocks);
        debug_assert!(enough, "counted above");
        let (before, fresh) = seq.blocks.split_at(hit.blocks);
        let rest = &seq.leg.tokens[hit.blocks * size..];
        self.blocks.load(loading, fresh, before.last().copied(), rest, salt);
        seq.computed = found * size;
        seq.findable = found;
        (seq.chained, seq.stage) = (self.limits.prefix_cache, Stage::Running);
        for hash in &seq.hashes[found..] {
            self.computing.entry(*hash).or_insert(slot);
        }
        match seq.leg.part {
            // Once: what was fetched and lost by preemption is computed.
            Part::Decode { blocks } if !seq.started && blocks as usize > found => {
                let until = (blocks as usize).min((seq.leg.tokens.len() - 1) / size);
                if until > found {
                    self.pull(slot, found, until);
                    return Start::Pulls;
                }
            }
            Part::Whole | Part::Prefill | Part::Decode { .. } => {}
        }
        Start::Started
    }

    pub(super) fn publish(&mut self, slot: u32) {
        let (seq, size) = (&mut self.seqs[slot], self.shape.block_tokens);
        self.blocks.extend_hashes(&seq.leg.tokens, seq.leg.salt, &mut seq.hashes);
        while (seq.findable + 1) * size <= seq.computed {
            let at = seq.findable;
            let hash = seq.hashes[at];
            let parent = at.checked_sub(1).map(|before| seq.blocks[before]);
            let tokens = &seq.leg.tokens[at * size..(at + 1) * size];
            match self.blocks.fill(seq.blocks[at], parent, hash, tokens, seq.leg.salt) {
                Filled::Stored => {}
                Filled::Same(block) => seq.blocks[at] = block,
                Filled::Taken => {
                    forget_computing(&mut self.computing, &seq.hashes[at..], slot);
                    seq.chained = false;
                    return;
                }
            }
            forget_computing(&mut self.computing, &seq.hashes[at..=at], slot);
            seq.findable += 1;
        }
    }
}
