//! The host tier: findable blocks that the pool gave to other tokens, kept where loading them back is
//! cheaper than computing them again. A block is in the pool or here, never in both.
//!
//! The pool gives chains up tail first, and this tier what came first: a parent outlives its children
//! here, too.

use rustc_hash::FxHashMap;

use super::list::FreeList;
use crate::ids::BlockHash;

/// What a place holds besides its tokens.
#[derive(Clone, Copy, Debug)]
struct Kept {
    hash: BlockHash,
    parent: Option<BlockHash>,
    salt: u64,
}

/// A block as it is put away or looked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Named<'a> {
    pub(super) hash: BlockHash,
    /// The block before it.
    pub(super) parent: Option<BlockHash>,
    pub(super) tokens: &'a [u32],
    pub(super) salt: u64,
}

/// The bookkeeping; the KV itself is the model's.
#[derive(Clone, Debug)]
pub(super) struct HostTier {
    block_tokens: usize,
    /// By place.
    kept: Vec<Option<Kept>>,
    /// `[places, block_tokens]`
    tokens: Vec<u32>,
    index: FxHashMap<BlockHash, u32>,
    /// Places in the order in which they are used again, but for those that are being loaded.
    order: FreeList,
}

impl HostTier {
    /// With room for so many blocks.
    pub(super) fn new(blocks: u32, block_tokens: usize) -> Self {
        let mut order = FreeList::new(blocks);
        (0..blocks).for_each(|place| order.push_back(place));
        Self {
            block_tokens,
            kept: vec![None; blocks as usize],
            tokens: vec![0; blocks as usize * block_tokens],
            index: FxHashMap::default(),
            order,
        }
    }

    /// Blocks in it.
    pub(super) fn len(&self) -> u32 {
        self.index.len() as u32
    }

    /// The names of all blocks in it.
    pub(super) fn names(&self) -> impl Iterator<Item = BlockHash> {
        self.index.keys().copied()
    }

    /// Takes a block in: its place, and the block that had to go for it. `None` without room.
    pub(super) fn put(&mut self, block: Named<'_>) -> Option<(u32, Option<BlockHash>)> {
        let place = self.order.pop_front()?;
        self.order.push_back(place);
        let Named { hash, parent, tokens, salt } = block;
        let before = self.kept[place as usize].replace(Kept { hash, parent, salt });
        let gone = before.map(|kept| kept.hash);
        if let Some(hash) = gone {
            self.index.remove(&hash);
        }
        let at = place as usize * self.block_tokens;
        self.tokens[at..at + self.block_tokens].copy_from_slice(tokens);
        self.index.insert(hash, place);
        Some((place, gone))
    }

    /// Whether some block of this name is here.
    pub(super) fn knows(&self, hash: BlockHash) -> bool {
        self.index.contains_key(&hash)
    }

    /// Whether exactly this block is here: what a hash alone cannot promise.
    pub(super) fn has(&self, block: Named<'_>) -> bool {
        let Some(&place) = self.index.get(&block.hash) else { return false };
        let at = place as usize * self.block_tokens;
        let same = |kept: &Kept| kept.parent == block.parent && kept.salt == block.salt;
        self.kept[place as usize].as_ref().is_some_and(same)
            && self.tokens[at..at + self.block_tokens] == *block.tokens
    }

    /// Takes a block out to load it; its place is not used again before [`HostTier::loaded`].
    pub(super) fn take(&mut self, hash: BlockHash) -> Option<u32> {
        let place = self.index.remove(&hash)?;
        self.kept[place as usize] = None;
        self.order.remove(place);
        Some(place)
    }

    /// The block that was here has been loaded.
    pub(super) fn loaded(&mut self, place: u32) {
        self.order.push_front(place);
    }

    /// Forgets a block that was computed again.
    pub(super) fn forget(&mut self, hash: BlockHash) {
        if let Some(place) = self.take(hash) {
            self.loaded(place);
        }
    }

    /// Checks its own invariants.
    ///
    /// # Errors
    /// What is wrong, for people.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.order.len() as usize != self.kept.len() {
            return Err(format!(
                "{} of {} host places are left",
                self.order.len(),
                self.kept.len()
            ));
        }
        let named =
            self.kept.iter().zip(0..).filter_map(|(kept, place)| Some((kept.as_ref()?, place)));
        for (kept, place) in named.clone() {
            if self.index.get(&kept.hash) != Some(&place) {
                return Err(format!("host place {place} cannot be found by its hash"));
            }
        }
        match named.count() == self.index.len() {
            true => Ok(()),
            false => Err(format!("{} names in the host tier", self.index.len())),
        }
    }
}
