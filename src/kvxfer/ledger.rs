//! Which blocks transfers may still read or write: the rule that a block is not reused too early.
//!
//! ```text
//! FREE → RESERVED → EXPOSED → DONE ───────────────────────────→ FREE
//!            │          └──→ ABORTING ── proven quiet ────────→ FREE
//!            │                  └────── not proven in time → QUARANTINE ── proof of quiet → FREE
//!            └─ never exposed ─────────────────────────────────→ FREE
//! ```
//! A *hold* is one transfer's claim on its blocks. Several holds may read a block, one alone may
//! write it. A block is free for the engine when no hold is left on it; each time that it is first
//! held it gets a new generation, so that a peer's late question "is it still generation g?" has a
//! true answer. Every call may be repeated: holds are idempotent by their name.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fmt::Debug;
use std::hash::Hash;

use rustc_hash::{FxHashMap, FxHashSet};

use crate::ids::BlockId;

/// How often a block was taken from free to held, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockGeneration(pub u64);

/// What a hold's transfer does with its blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A peer reads them; others may too.
    Read,
    /// A pull writes them; nobody else may touch them.
    Write,
}

/// Where a hold stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Blocks are set aside; no transfer can touch them yet.
    Reserved,
    /// A transfer may touch them at any time.
    Exposed,
    /// The transfer was told to stop; it may still touch them.
    Aborting,
    /// It did not prove in time that it has stopped. Held until it does.
    Quarantined,
}

/// How full the quarantine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Below the alarm.
    Normal,
    /// At or above the alarm: somebody should look.
    Alarm,
    /// At the cap: no new holds until a peer proves quiet or is ended.
    Full,
}

/// Why a hold did not change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "fields are what the texts name")]
pub enum LedgerError {
    /// A block number from elsewhere is wrong.
    #[error("block {block} is outside of a pool of {blocks} blocks")]
    NoSuchBlock { block: u32, blocks: u32 },
    /// A block is listed twice.
    #[error("block {block} is listed twice")]
    Twice { block: u32 },
    /// Somebody may still write it, or write access was asked while others hold it.
    #[error("block {block} is held by another transfer")]
    Held { block: u32 },
    /// The name stands for other blocks or another access already.
    #[error("{hold} is already another hold")]
    Conflict { hold: String },
    /// The hold has ended; a late message must not bring it back.
    #[error("{hold} has ended")]
    Ended { hold: String },
    /// No such hold.
    #[error("{hold} is not known")]
    Unknown { hold: String },
    /// The phase does not allow it.
    #[error("{hold} is {phase:?}: it cannot be {wanted}")]
    Phase { hold: String, phase: Phase, wanted: &'static str },
    /// The quarantine is full.
    #[error(
        "{quarantined} blocks are in quarantine, the cap is {cap}: end the peers that hold them"
    )]
    QuarantineFull { quarantined: u32, cap: u32 },
}

/// Limits of the quarantine, and of memory for ended holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LedgerLimits {
    /// Quarantined blocks that raise the alarm.
    pub alarm: u32,
    /// Quarantined blocks at which no new hold is taken.
    pub cap: u32,
    /// Ended holds that are remembered, so that late messages about them are harmless.
    pub remembered: usize,
}

/// How many blocks are in which state. A block with several holds counts under the worst of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is named after a state")]
pub struct Census {
    pub free: u32,
    pub reserved: u32,
    pub exposed: u32,
    pub aborting: u32,
    pub quarantined: u32,
    pub holds: u32,
}

/// One block. Free while all counts are 0.
#[derive(Clone, Copy, Debug, Default)]
struct Block {
    generation: u64,
    written: bool,
    /// Holds on it, by [`Phase`].
    holds: [u32; 4],
}

impl Block {
    fn is_free(&self) -> bool {
        self.holds == [0; 4]
    }

    /// 0 for free, else 1 + the worst phase.
    fn class(&self) -> usize {
        self.holds.iter().rposition(|count| *count > 0).map_or(0, |phase| phase + 1)
    }
}

#[derive(Clone, Debug)]
struct Hold {
    access: Access,
    phase: Phase,
    blocks: Vec<BlockId>,
}

/// The states of all blocks of one pool. `K` names holds: transfers on the side that writes, grants
/// on the side that is read.
#[derive(Clone, Debug)]
pub struct Ledger<K> {
    blocks: Vec<Block>,
    holds: FxHashMap<K, Hold>,
    ended: FxHashSet<K>,
    ended_order: VecDeque<K>,
    limits: LedgerLimits,
    /// Blocks by [`Block::class`].
    classes: [u32; 5],
}

impl<K: Copy + Eq + Hash + Debug> Ledger<K> {
    /// A pool of free blocks.
    pub fn new(blocks: u32, limits: LedgerLimits) -> Self {
        Self {
            blocks: vec![Block::default(); blocks as usize],
            holds: FxHashMap::default(),
            ended: FxHashSet::default(),
            ended_order: VecDeque::new(),
            limits,
            classes: [blocks, 0, 0, 0, 0],
        }
    }

    /// Takes all of `blocks`, or none. Repeated with the same arguments it gives the same answer.
    ///
    /// # Errors
    /// All but [`LedgerError::Unknown`] and [`LedgerError::Phase`]; nothing was taken.
    pub fn reserve(
        &mut self,
        hold: K,
        access: Access,
        blocks: &[BlockId],
    ) -> Result<Vec<BlockGeneration>, LedgerError> {
        if self.ended.contains(&hold) {
            return Err(LedgerError::Ended { hold: name(hold) });
        }
        if let Some(known) = self.holds.get(&hold) {
            if known.access != access || known.blocks != blocks {
                return Err(LedgerError::Conflict { hold: name(hold) });
            }
            return Ok(self.generations(blocks));
        }
        if self.level() == Level::Full {
            let (quarantined, cap) = (self.classes[4], self.limits.cap);
            return Err(LedgerError::QuarantineFull { quarantined, cap });
        }
        self.check(access, blocks)?;
        for id in blocks {
            let block = &mut self.blocks[id.0 as usize];
            if block.is_free() {
                block.generation += 1;
                block.written = access == Access::Write;
            }
        }
        self.shift(blocks, None, Some(Phase::Reserved));
        self.holds.insert(hold, Hold { access, phase: Phase::Reserved, blocks: blocks.to_vec() });
        Ok(self.generations(blocks))
    }

    /// From now on the transfer may touch the blocks. Call it before it can.
    ///
    /// # Errors
    /// [`LedgerError::Unknown`], [`LedgerError::Ended`]; [`LedgerError::Phase`] once it aborts.
    pub fn expose(&mut self, hold: K) -> Result<(), LedgerError> {
        match self.phase_of(hold)? {
            Phase::Reserved | Phase::Exposed => {
                self.enter(hold, Phase::Exposed);
                Ok(())
            }
            phase @ (Phase::Aborting | Phase::Quarantined) => {
                Err(LedgerError::Phase { hold: name(hold), phase, wanted: "exposed" })
            }
        }
    }

    /// The transfer is complete and touches nothing any more. Returns the blocks that became free.
    ///
    /// # Errors
    /// [`LedgerError::Unknown`]; [`LedgerError::Phase`] if it never was exposed. One that has ended
    /// frees nothing.
    pub fn done(&mut self, hold: K) -> Result<Vec<BlockId>, LedgerError> {
        if self.ended.contains(&hold) {
            return Ok(Vec::new());
        }
        match self.phase_of(hold)? {
            phase @ Phase::Reserved => {
                Err(LedgerError::Phase { hold: name(hold), phase, wanted: "done" })
            }
            Phase::Exposed | Phase::Aborting | Phase::Quarantined => Ok(self.end(hold)),
        }
    }

    /// The transfer shall stop. What was never exposed is free at once and returned; the rest waits
    /// for [`Self::quiesced`].
    ///
    /// # Errors
    /// [`LedgerError::Unknown`]. One that has ended frees nothing.
    pub fn abort(&mut self, hold: K) -> Result<Vec<BlockId>, LedgerError> {
        if self.ended.contains(&hold) {
            return Ok(Vec::new());
        }
        match self.phase_of(hold)? {
            Phase::Reserved => return Ok(self.end(hold)),
            Phase::Exposed => self.enter(hold, Phase::Aborting),
            Phase::Aborting | Phase::Quarantined => {}
        }
        Ok(Vec::new())
    }

    /// It is proven that the transfer touches nothing any more: its side said so after its requests
    /// had ended and were flushed, or its process is dead. Returns the blocks that became free.
    ///
    /// # Errors
    /// [`LedgerError::Unknown`]; [`LedgerError::Phase`] if nobody told it to stop. One that has
    /// ended frees nothing.
    pub fn quiesced(&mut self, hold: K) -> Result<Vec<BlockId>, LedgerError> {
        if self.ended.contains(&hold) {
            return Ok(Vec::new());
        }
        match self.phase_of(hold)? {
            Phase::Aborting | Phase::Quarantined => Ok(self.end(hold)),
            phase @ (Phase::Reserved | Phase::Exposed) => {
                Err(LedgerError::Phase { hold: name(hold), phase, wanted: "quiesced" })
            }
        }
    }

    /// No proof came in time. Never refused for want of room: blocks are rather lost than reused.
    ///
    /// # Errors
    /// [`LedgerError::Unknown`], [`LedgerError::Ended`]; [`LedgerError::Phase`] if it was never
    /// exposed (abort it).
    pub fn quarantine(&mut self, hold: K) -> Result<Level, LedgerError> {
        match self.phase_of(hold)? {
            phase @ Phase::Reserved => {
                return Err(LedgerError::Phase { hold: name(hold), phase, wanted: "quarantined" });
            }
            Phase::Exposed | Phase::Aborting | Phase::Quarantined => {
                self.enter(hold, Phase::Quarantined);
            }
        }
        Ok(self.level())
    }

    /// Where a hold stands; `None` for an unknown or ended one.
    pub fn phase(&self, hold: K) -> Option<Phase> {
        self.holds.get(&hold).map(|hold| hold.phase)
    }

    /// Whether the engine may give the block new content.
    pub fn is_free(&self, block: BlockId) -> bool {
        self.blocks.get(block.0 as usize).is_some_and(Block::is_free)
    }

    /// Whether the block has been held since it got that generation, so that what was read from it
    /// is what was meant.
    pub fn is_current(&self, block: BlockId, generation: BlockGeneration) -> bool {
        let block = self.blocks.get(block.0 as usize);
        block.is_some_and(|b| !b.is_free() && b.generation == generation.0)
    }

    /// How full the quarantine is.
    pub fn level(&self) -> Level {
        match self.classes[4] {
            quarantined if quarantined >= self.limits.cap => Level::Full,
            quarantined if quarantined >= self.limits.alarm => Level::Alarm,
            _ => Level::Normal,
        }
    }

    /// How many blocks are in which state.
    pub fn census(&self) -> Census {
        let [free, reserved, exposed, aborting, quarantined] = self.classes;
        let holds = self.holds.len() as u32;
        Census { free, reserved, exposed, aborting, quarantined, holds }
    }

    fn check(&self, access: Access, blocks: &[BlockId]) -> Result<(), LedgerError> {
        let mut seen = FxHashSet::default();
        for id in blocks {
            let blocks = self.blocks.len() as u32;
            let Some(block) = self.blocks.get(id.0 as usize) else {
                return Err(LedgerError::NoSuchBlock { block: id.0, blocks });
            };
            if !seen.insert(id.0) {
                return Err(LedgerError::Twice { block: id.0 });
            }
            if !block.is_free() && (block.written || access == Access::Write) {
                return Err(LedgerError::Held { block: id.0 });
            }
        }
        Ok(())
    }

    fn generations(&self, blocks: &[BlockId]) -> Vec<BlockGeneration> {
        blocks.iter().map(|id| BlockGeneration(self.blocks[id.0 as usize].generation)).collect()
    }

    fn phase_of(&self, hold: K) -> Result<Phase, LedgerError> {
        match self.phase(hold) {
            Some(phase) => Ok(phase),
            None if self.ended.contains(&hold) => Err(LedgerError::Ended { hold: name(hold) }),
            None => Err(LedgerError::Unknown { hold: name(hold) }),
        }
    }

    fn enter(&mut self, hold: K, phase: Phase) {
        let Some(mut held) = self.holds.remove(&hold) else { return };
        self.shift(&held.blocks, Some(held.phase), Some(phase));
        held.phase = phase;
        self.holds.insert(hold, held);
    }

    fn end(&mut self, hold: K) -> Vec<BlockId> {
        let Some(held) = self.holds.remove(&hold) else { return Vec::new() };
        self.shift(&held.blocks, Some(held.phase), None);
        self.ended.insert(hold);
        self.ended_order.push_back(hold);
        while self.ended_order.len() > self.limits.remembered {
            if let Some(oldest) = self.ended_order.pop_front() {
                self.ended.remove(&oldest);
            }
        }
        held.blocks.into_iter().filter(|block| self.is_free(*block)).collect()
    }

    /// Moves one hold's count on its blocks, and the census with it.
    fn shift(&mut self, blocks: &[BlockId], from: Option<Phase>, to: Option<Phase>) {
        for id in blocks {
            let block = &mut self.blocks[id.0 as usize];
            self.classes[block.class()] -= 1;
            if let Some(phase) = from {
                block.holds[phase as usize] -= 1;
            }
            if let Some(phase) = to {
                block.holds[phase as usize] += 1;
            }
            self.classes[block.class()] += 1;
        }
    }
}

fn name(hold: impl Debug) -> String {
    format!("{hold:?}")
}
