//! TensorRT-LLM's KV events as events of ours: what a router may know of its prefix cache.
//!
//! Routers find blocks by our hash of (parent, tokens, salt); TensorRT-LLM's hash is an opaque handle that
//! leads from later events to the block. What cannot be named for certain is not told, which costs a
//! router's knowledge and never a wrong token:
//!
//! - partial blocks: they are not found by full blocks' hashes;
//! - windows: a model with sliding windows tells everything once for each; the largest counts;
//! - blocks with a LoRA, images or extra ids, whose names would need them;
//! - **first blocks that a salted leg has, too**: events do not tell the salt, so a first block whose tokens
//!   a leg with a salt had is not told, whoever computed it. Only the last [`SALTED`] of such blocks are
//!   remembered: an event comes within the life of a leg with that block, or soon after;
//! - blocks after a block that is not told.
//!
//! Events that were lost show as a gap in their ids. Then all that was told is withdrawn, since some of it
//! may be gone, and knowledge begins anew with what follows. A block that is still cached is told again
//! when it has been dropped and computed again; until then it is used and not told.

use std::collections::VecDeque;

use rustc_hash::{FxHashMap, FxHashSet};

use super::super::ffi::{KvBlockRow, KvEventKind, KvEventRow, KvEvents};
use crate::engine::blocks::{BlockHasher, HashKey};
use crate::engine::{KvEvent, Tier};
use crate::ids::BlockHash;

/// First blocks of salted legs that are remembered.
const SALTED: usize = 16_384;

/// What TensorRT-LLM's prefix cache has, as far as it can be told.
#[derive(Debug)]
pub(super) struct Mirror {
    hasher: BlockHasher,
    /// By TensorRT-LLM's hash.
    known: FxHashMap<u64, BlockHash>,
    told: FxHashMap<BlockHash, Told>,
    /// The id that the next event must have.
    next: Option<u64>,
    window: Option<i32>,
    salted: FxHashSet<BlockHash>,
    salted_in_order: VecDeque<BlockHash>,
    in_host: u32,
    scratch: (Vec<u32>, Vec<BlockHash>),
}

#[derive(Clone, Copy, Debug)]
struct Told {
    parent: Option<BlockHash>,
    tier: Tier,
    /// TensorRT-LLM's hashes that lead here.
    handles: u32,
}

impl Mirror {
    /// Of an empty cache.
    pub(super) fn new(key: &HashKey, block_tokens: usize) -> Self {
        Self {
            hasher: BlockHasher::new(key, block_tokens),
            known: FxHashMap::default(),
            told: FxHashMap::default(),
            next: None,
            window: None,
            salted: FxHashSet::default(),
            salted_in_order: VecDeque::new(),
            in_host: 0,
            scratch: Default::default(),
        }
    }

    /// A leg with a salt begins so: its first block is not told from here on.
    pub(super) fn salted(&mut self, tokens: &[u32]) {
        let Some(first) = tokens.get(..self.hasher.block_tokens()) else { return };
        let mut hashes = Vec::new();
        self.hasher.extend(first, 0, &mut hashes);
        for hash in hashes {
            if self.salted.insert(hash) {
                self.salted_in_order.push_back(hash);
            }
        }
        while self.salted_in_order.len() > SALTED {
            if let Some(oldest) = self.salted_in_order.pop_front() {
                self.salted.remove(&oldest);
            }
        }
    }

    /// Takes events in and says what they come to.
    pub(super) fn take(&mut self, events: &KvEvents, out: &mut Vec<KvEvent>) {
        for row in &events.rows {
            // Before anything is left out, which would look like a gap.
            if self.next.replace(row.id.wrapping_add(1)).is_some_and(|next| next != row.id) {
                tracing::warn!(id = row.id, "KV events were lost; what was known is withdrawn");
                self.withdraw(out);
            }
            if !self.counts(row, out) {
                continue;
            }
            match row.kind {
                KvEventKind::Stored => self.stored(row, events, out),
                KvEventKind::Removed => {
                    for &handle in part(&events.hashes, row.blocks_at, row.blocks_len) {
                        self.removed(handle, out);
                    }
                }
                KvEventKind::Updated if row.new_level >= 0 => {
                    for handle in part(&events.hashes, row.blocks_at, row.blocks_len) {
                        if let Some(&hash) = self.known.get(handle) {
                            self.moved(hash, tier(row.new_level), out);
                        }
                    }
                }
                _ => {}
            }
        }
    }

    /// Whether the row is of the largest window.
    fn counts(&mut self, row: &KvEventRow, out: &mut Vec<KvEvent>) -> bool {
        match self.window {
            Some(window) if row.window <= window => row.window == window,
            Some(_) => {
                self.withdraw(out);
                self.window = Some(row.window);
                true
            }
            None => {
                self.window = Some(row.window);
                true
            }
        }
    }

    fn withdraw(&mut self, out: &mut Vec<KvEvent>) {
        self.known.clear();
        self.in_host = 0;
        out.extend(self.told.drain().map(|(hash, _)| KvEvent::Removed { hash }));
    }

    fn stored(&mut self, row: &KvEventRow, events: &KvEvents, out: &mut Vec<KvEvent>) {
        let mut parent = match row.has_parent {
            false => None,
            true => match self.known.get(&row.parent) {
                Some(&hash) => Some(hash),
                None => return,
            },
        };
        for block in part(&events.blocks, row.blocks_at, row.blocks_len) {
            let Some(hash) = self.name(parent, block, events) else { return };
            if parent.is_none() && self.salted.contains(&hash) {
                return;
            }
            self.has(block, hash, parent, out);
            parent = Some(hash);
        }
    }

    /// The block's name, if it has one.
    fn name(
        &mut self,
        parent: Option<BlockHash>,
        block: &KvBlockRow,
        events: &KvEvents,
    ) -> Option<BlockHash> {
        let full = block.tokens_len as usize == self.hasher.block_tokens();
        if !full || block.has_lora || block.images > 0 {
            return None;
        }
        let extra = part(&events.token_extra_ids, block.tokens_at, block.tokens_len);
        if extra.iter().any(|&id| id != 0) {
            return None;
        }
        let (tokens, hashes) = &mut self.scratch;
        tokens.clear();
        hashes.clear();
        // `extend` looks at the tokens after the known hashes only: those before are filled up.
        if let Some(parent) = parent {
            hashes.push(parent);
            tokens.resize(self.hasher.block_tokens(), 0);
        }
        let own = part(&events.tokens, block.tokens_at, block.tokens_len);
        tokens.extend(own.iter().map(|&token| token as u32));
        self.hasher.extend(tokens, 0, hashes);
        hashes.get(usize::from(parent.is_some())).copied()
    }

    fn has(
        &mut self,
        block: &KvBlockRow,
        hash: BlockHash,
        parent: Option<BlockHash>,
        out: &mut Vec<KvEvent>,
    ) {
        let tier = tier(block.level);
        let known = self.known.insert(block.hash, hash);
        if let Some(told) = self.told.get_mut(&hash) {
            told.handles += u32::from(known != Some(hash));
            self.moved(hash, tier, out);
        } else {
            self.told.insert(hash, Told { parent, tier, handles: 1 });
            self.in_host += u32::from(tier != Tier::Device);
            out.push(KvEvent::Stored { hash, parent, tier });
        }
        if let Some(before) = known.filter(|&before| before != hash) {
            self.let_go(before, out);
        }
    }

    fn moved(&mut self, hash: BlockHash, tier: Tier, out: &mut Vec<KvEvent>) {
        let Some(told) = self.told.get_mut(&hash).filter(|told| told.tier != tier) else { return };
        self.in_host -= u32::from(told.tier != Tier::Device);
        self.in_host += u32::from(tier != Tier::Device);
        told.tier = tier;
        out.push(KvEvent::Stored { hash, parent: told.parent, tier });
    }

    fn removed(&mut self, handle: u64, out: &mut Vec<KvEvent>) {
        if let Some(hash) = self.known.remove(&handle) {
            self.let_go(hash, out);
        }
    }

    fn let_go(&mut self, hash: BlockHash, out: &mut Vec<KvEvent>) {
        let Some(told) = self.told.get_mut(&hash) else { return };
        told.handles -= 1;
        if told.handles == 0 {
            self.in_host -= u32::from(told.tier != Tier::Device);
            self.told.remove(&hash);
            out.push(KvEvent::Removed { hash });
        }
    }

    /// Appends all that is told now.
    pub(super) fn findable(&self, out: &mut Vec<(BlockHash, Tier)>) {
        out.extend(self.told.iter().map(|(hash, told)| (*hash, told.tier)));
    }

    /// Blocks that are told: on the device, and beyond.
    pub(super) fn counted(&self) -> (u32, u32) {
        (self.told.len() as u32 - self.in_host, self.in_host)
    }
}

/// The level of TensorRT-LLM's cache as a tier of ours.
fn tier(level: i32) -> Tier {
    match level {
        ..=0 => Tier::Device,
        1 => Tier::Host,
        2.. => Tier::Disk,
    }
}

fn part<T>(list: &[T], at: u32, len: u32) -> &[T] {
    let from = list.len().min(at as usize);
    let to = list.len().min(from + len as usize);
    &list[from..to]
}
