//! The KV pool: paged blocks with reference counts, prefix caching and an LRU of free blocks.
//!
//! A block is *held* by the sequences whose tables list it, or free. A full block whose KV is
//! completely computed is *findable* by the hash of its tokens and everything before them, held or
//! free, until it is given to other tokens. Free blocks are reused in this order: those nobody can
//! find, then the findable ones, least recently held first. Where the model has a host tier, those
//! move there instead of being lost, and come back when they are asked for.
//!
//! Two rules make a hit safe:
//! - A hit compares tokens, salt and parent block, not only hashes: a collision is a miss.
//! - A findable block's parent is findable, in the same place, for as long as the block is. It holds
//!   because sequences hold and release whole chains, tail first, and because a sequence that fills
//!   a block somebody else has filled already continues on that one ([`Filled::Same`]).

mod hash;
mod host;
mod list;
#[cfg(test)]
mod tests;

pub use hash::{BlockHasher, HashKey};

use host::{HostTier, Named};
use list::FreeList;
use rustc_hash::FxHashMap;

use super::model::Move;
use super::{KvEvent, Tier};
use crate::ids::{BlockHash, BlockId};

/// Parent of a sequence's first block.
const NO_PARENT: u32 = u32::MAX;

/// What the pool knows of one block.
#[derive(Clone, Copy, Debug)]
struct Meta {
    /// Sequences that hold it.
    refs: u32,
    /// The block before it; meaningful while findable.
    parent: u32,
    /// Whether `hash` leads to it.
    findable: bool,
    salt: u64,
    hash: BlockHash,
}

/// What became of a block that was filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filled {
    /// It is findable now.
    Stored,
    /// This block already holds the same: the caller now holds it instead of its own.
    Same(BlockId),
    /// Its hash belongs to other tokens: it and what follows it cannot be made findable.
    Taken,
}

/// Cached blocks a sequence could start from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hit {
    /// Leading blocks that were found.
    pub blocks: usize,
    /// How many of them nobody holds: taking them makes that many fewer blocks free.
    pub idle: u32,
}

/// The pool's bookkeeping; the KV itself is the model's.
#[derive(Clone, Debug)]
pub struct BlockManager {
    hasher: BlockHasher,
    meta: Vec<Meta>,
    /// `[blocks, block_tokens]`: the tokens of findable blocks.
    tokens: Vec<u32>,
    index: FxHashMap<BlockHash, u32>,
    free: FreeList,
    /// Free blocks that are findable.
    idle: u32,
    host: HostTier,
    events: Vec<KvEvent>,
    /// Between the pool and the host tier, in order, not carried out yet.
    moves: Vec<Move>,
    /// How many of them are loads.
    loads: usize,
}

/// Blocks of the host tier on their way into the pool; to be handed to [`BlockManager::load`].
#[derive(Debug)]
#[must_use]
pub struct Loading(Vec<(BlockHash, u32)>);

impl BlockManager {
    /// A pool of `blocks` free blocks of `block_tokens` tokens, above a host tier of `host_blocks`.
    pub fn new(blocks: u32, host_blocks: u32, block_tokens: usize, key: &HashKey) -> Self {
        let empty =
            Meta { refs: 0, parent: NO_PARENT, findable: false, salt: 0, hash: BlockHash(0) };
        let mut free = FreeList::new(blocks);
        (0..blocks).for_each(|block| free.push_back(block));
        Self {
            hasher: BlockHasher::new(key, block_tokens),
            meta: vec![empty; blocks as usize],
            tokens: vec![0; blocks as usize * block_tokens],
            index: FxHashMap::default(),
            free,
            idle: 0,
            host: HostTier::new(host_blocks, block_tokens),
            events: Vec::new(),
            moves: Vec::new(),
            loads: 0,
        }
    }

    /// Tokens in one block.
    pub fn block_tokens(&self) -> usize {
        self.hasher.block_tokens()
    }

    /// Blocks in the pool.
    pub fn total(&self) -> u32 {
        self.meta.len() as u32
    }

    /// Blocks nobody holds, the findable ones included.
    pub fn free(&self) -> u32 {
        self.free.len()
    }

    /// Blocks that sequences hold.
    pub fn used(&self) -> u32 {
        self.total() - self.free()
    }

    /// Blocks nobody holds that can still be found.
    pub fn cached(&self) -> u32 {
        self.idle
    }

    /// Blocks in the host tier.
    pub fn in_host(&self) -> u32 {
        self.host.len()
    }

    /// Appends the hashes of the full blocks of `tokens` that `hashes` does not have yet.
    pub fn extend_hashes(&mut self, tokens: &[u32], salt: u64, hashes: &mut Vec<BlockHash>) {
        self.hasher.extend(tokens, salt, hashes);
    }

    /// Finds the longest cached prefix of `tokens` among its blocks named `hashes`, in `found`.
    /// Takes nothing: call [`hold`](Self::hold) before anything else changes the pool.
    pub fn find(
        &self,
        tokens: &[u32],
        salt: u64,
        hashes: &[BlockHash],
        found: &mut Vec<BlockId>,
    ) -> Hit {
        found.clear();
        let mut hit = Hit::default();
        let mut parent = NO_PARENT;
        for (hash, tokens) in hashes.iter().zip(tokens.chunks_exact(self.block_tokens())) {
            let Some(&block) = self.index.get(hash) else { break };
            if !self.holds(block, parent, tokens, salt) {
                break;
            }
            hit.idle += u32::from(self.meta[block as usize].refs == 0);
            found.push(BlockId(block));
            parent = block;
        }
        hit.blocks = found.len();
        hit
    }

    /// How many of the blocks named `hashes`, of which `tokens` are the tokens, the host tier has;
    /// `parent` is the block before them.
    pub fn find_in_host(
        &self,
        tokens: &[u32],
        salt: u64,
        hashes: &[BlockHash],
        parent: Option<BlockHash>,
    ) -> usize {
        if self.host.len() == 0 {
            return 0;
        }
        let parents = parent.into_iter().map(Some).chain(hashes.iter().copied().map(Some));
        let parents = parent.is_none().then_some(None).into_iter().chain(parents);
        let chain = hashes.iter().zip(parents).zip(tokens.chunks_exact(self.block_tokens()));
        chain
            .take_while(|((hash, parent), tokens)| {
                self.host.has(Named { hash: **hash, parent: *parent, tokens, salt })
            })
            .count()
    }

    /// Takes blocks that were found in the host tier out of it.
    pub fn take_from_host(&mut self, hashes: &[BlockHash]) -> Loading {
        let take = |hash: &BlockHash| Some((*hash, self.host.take(*hash)?));
        Loading(hashes.iter().filter_map(take).collect())
    }

    /// Loads blocks of the host tier into fresh ones, which are findable from now on.
    pub fn load(
        &mut self,
        loading: Loading,
        blocks: &[BlockId],
        mut parent: Option<BlockId>,
        tokens: &[u32],
        salt: u64,
    ) {
        let tokens = tokens.chunks_exact(self.hasher.block_tokens());
        for (((hash, place), block), tokens) in loading.0.into_iter().zip(blocks).zip(tokens) {
            self.moves.push(Move::Load { place, block: *block });
            self.loads += 1;
            self.host.loaded(place);
            let filled = self.fill(*block, parent, hash, tokens, salt);
            debug_assert_eq!(filled, Filled::Stored, "it was in the host tier alone");
            parent = Some(*block);
        }
    }

    /// Blocks that have to be loaded before the next forward pass.
    pub fn loads(&self) -> usize {
        self.loads
    }

    /// Moves what has to be carried out before the next forward pass to the end of `out`.
    pub fn drain_moves(&mut self, out: &mut Vec<Move>) {
        self.loads = 0;
        out.append(&mut self.moves);
    }

    /// Whether a findable block holds exactly this: what a hash alone cannot promise.
    fn holds(&self, block: u32, parent: u32, tokens: &[u32], salt: u64) -> bool {
        let meta = &self.meta[block as usize];
        meta.parent == parent && meta.salt == salt && self.tokens_of(block) == tokens
    }

    fn tokens_of(&self, block: u32) -> &[u32] {
        let size = self.block_tokens();
        &self.tokens[block as usize * size..][..size]
    }

    /// Takes one more reference of each block.
    pub fn hold(&mut self, blocks: &[BlockId]) {
        for block in blocks {
            self.hold_one(block.0);
        }
    }

    fn hold_one(&mut self, block: u32) {
        let meta = &mut self.meta[block as usize];
        if meta.refs == 0 {
            self.free.remove(block);
            self.idle -= u32::from(meta.findable);
        }
        meta.refs += 1;
    }

    /// Appends `count` fresh blocks to `table`, or nothing and `false` if fewer are free.
    pub fn allocate(&mut self, count: u32, table: &mut Vec<BlockId>) -> bool {
        if self.free() < count {
            return false;
        }
        for _ in 0..count {
            let Some(block) = self.free.pop_front() else { return false };
            self.forget(block);
            self.meta[block as usize].refs = 1;
            table.push(BlockId(block));
        }
        true
    }

    /// Makes a free block unfindable in the pool, and says so: it moves to the host tier or is gone.
    fn forget(&mut self, block: u32) {
        let meta = &mut self.meta[block as usize];
        if !meta.findable {
            return;
        }
        meta.findable = false;
        let Meta { hash, parent, salt, .. } = *meta;
        self.idle -= 1;
        self.index.remove(&hash);
        let parent = (parent != NO_PARENT).then(|| self.meta[parent as usize].hash);
        let size = self.block_tokens();
        let tokens = &self.tokens[block as usize * size..][..size];
        let Some((place, gone)) = self.host.put(Named { hash, parent, tokens, salt }) else {
            self.events.push(KvEvent::Removed { hash });
            return;
        };
        self.moves.push(Move::Save { block: BlockId(block), place });
        self.events.extend(gone.map(|hash| KvEvent::Removed { hash }));
        self.events.push(KvEvent::Stored { hash, parent, tier: Tier::Host });
    }

    /// Gives back a sequence's whole table, tail first, so that tails are reused before heads.
    pub fn release(&mut self, table: &mut Vec<BlockId>) {
        while let Some(block) = table.pop() {
            self.release_one(block.0);
        }
    }

    fn release_one(&mut self, block: u32) {
        let meta = &mut self.meta[block as usize];
        debug_assert!(meta.refs > 0, "block {block} was released twice");
        meta.refs -= 1;
        if meta.refs > 0 {
            return;
        }
        if meta.findable {
            self.idle += 1;
            self.free.push_back(block);
        } else {
            self.free.push_front(block);
        }
    }

    /// Makes a held block findable whose KV is now completely computed. `parent` is the block
    /// before it in its sequence, itself findable; `hash` names `tokens` after that parent.
    pub fn fill(
        &mut self,
        block: BlockId,
        parent: Option<BlockId>,
        hash: BlockHash,
        tokens: &[u32],
        salt: u64,
    ) -> Filled {
        let parent_index = parent.map_or(NO_PARENT, |parent| parent.0);
        if let Some(&other) = self.index.get(&hash) {
            if !self.holds(other, parent_index, tokens, salt) {
                return Filled::Taken;
            }
            self.hold_one(other);
            self.release_one(block.0);
            return Filled::Same(BlockId(other));
        }
        let named = parent.map(|parent| self.meta[parent.0 as usize].hash);
        if self.host.knows(hash) && !self.host.has(Named { hash, parent: named, tokens, salt }) {
            return Filled::Taken;
        }
        self.host.forget(hash);
        self.index.insert(hash, block.0);
        let size = self.block_tokens();
        self.tokens[block.0 as usize * size..][..size].copy_from_slice(tokens);
        let meta = &mut self.meta[block.0 as usize];
        (meta.parent, meta.salt, meta.hash, meta.findable) = (parent_index, salt, hash, true);
        let parent = parent.map(|parent| self.meta[parent.0 as usize].hash);
        self.events.push(KvEvent::Stored { hash, parent, tier: Tier::Device });
        Filled::Stored
    }

    /// The names of all blocks that can be found, and where they are.
    pub fn findable(&self) -> impl Iterator<Item = (BlockHash, Tier)> {
        let in_pool = self.index.keys().map(|hash| (*hash, Tier::Device));
        in_pool.chain(self.host.names().map(|hash| (hash, Tier::Host)))
    }

    /// Moves what became or ceased to be findable since the last call to the end of `out`.
    pub fn drain_events(&mut self, out: &mut Vec<KvEvent>) {
        out.append(&mut self.events);
    }

    /// Checks every invariant of the pool against the tables of all live sequences.
    ///
    /// # Errors
    /// What is wrong, for people.
    pub fn check<'a>(&self, tables: impl Iterator<Item = &'a [BlockId]>) -> Result<(), String> {
        let mut refs = vec![0_u32; self.meta.len()];
        for table in tables {
            for block in table {
                refs[block.0 as usize] += 1;
            }
        }
        self.host.check()?;
        if let Some(hash) = self.host.names().find(|hash| self.index.contains_key(hash)) {
            return Err(format!("block {hash:?} is in the pool and in the host tier"));
        }
        let mut place = vec![None; self.meta.len()];
        for (position, block) in self.free.iter().enumerate() {
            if place[block as usize].replace(position).is_some() {
                return Err(format!("block {block} is in the free list twice"));
            }
        }
        if place.iter().flatten().count() != self.free.len() as usize {
            return Err(format!("the free list does not have its {} blocks", self.free.len()));
        }
        for block in 0..self.total() {
            self.check_block(block, refs[block as usize], &place)?;
        }
        let findable = self.meta.iter().filter(|meta| meta.findable);
        let idle = findable.clone().filter(|meta| meta.refs == 0).count();
        if findable.count() != self.index.len() || idle != self.idle as usize {
            return Err(format!("{} names, {} idle blocks", self.index.len(), self.idle));
        }
        Ok(())
    }

    fn check_block(&self, block: u32, refs: u32, place: &[Option<usize>]) -> Result<(), String> {
        let meta = &self.meta[block as usize];
        let position = place[block as usize];
        if meta.refs != refs {
            return Err(format!("block {block} counts {} holders, has {refs}", meta.refs));
        }
        if (refs == 0) != position.is_some() {
            return Err(format!("block {block} with {refs} holders: in free list {position:?}"));
        }
        if !meta.findable {
            return Ok(());
        }
        if self.index.get(&meta.hash) != Some(&block) {
            return Err(format!("block {block} cannot be found by its hash"));
        }
        if meta.parent == NO_PARENT {
            return Ok(());
        }
        let parent = &self.meta[meta.parent as usize];
        let outlives = match (position, place[meta.parent as usize]) {
            (_, None) => true,
            (Some(own), Some(parents)) => own < parents,
            (None, Some(_)) => false,
        };
        if parent.findable && outlives {
            Ok(())
        } else {
            Err(format!("block {block} is findable beyond its parent {}", meta.parent))
        }
    }
}
