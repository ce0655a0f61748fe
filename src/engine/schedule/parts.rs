//! Legs that are one part of a choice's work: prefills that keep their blocks when they are done, and
//! decodes that wait for blocks from elsewhere.
//!
//! A decode takes blocks for all its tokens before anything is fetched, as every leg does when it
//! starts, or waits in the queue and holds nothing: so nobody waits while holding what another needs.
//! What is not fetched is computed. A block that may still be written is not used again, also if its
//! leg is gone.

use super::Scheduler;
use super::sequence::Stage;
use crate::engine::{EngineError, Leg, Part, Prefilled, PullOut};
#[cfg(test)]
use crate::ids::BlockId;
use crate::ids::LegId;

impl Scheduler {
    /// Cuts a prefill to the full blocks before the last token: the decode computes the rest.
    pub(super) fn cut_prefill(&self, leg: &mut Leg) -> Result<(), EngineError> {
        if leg.part == Part::Prefill {
            let size = self.shape.block_tokens;
            leg.tokens.truncate(leg.tokens.len().saturating_sub(1) / size * size);
            leg.prompt_len = leg.tokens.len();
            if leg.tokens.is_empty() {
                return Err(EngineError::EmptyPrompt);
            }
        }
        Ok(())
    }

    /// Legs that run or will when their blocks have come.
    pub(super) fn occupied(&self) -> usize {
        self.running.len() + self.pulling.len() - self.leaving
    }

    /// Puts a leg among those that compute.
    pub(super) fn run(&mut self, slot: u32) {
        let arrival = self.seqs[slot].arrival;
        let age = self.running.partition_point(|&s| self.seqs[s].arrival < arrival);
        self.running.insert(age, slot);
    }

    pub(super) fn leave_running(&mut self, slot: u32) {
        let arrival = self.seqs[slot].arrival;
        let place = self.running.partition_point(|&s| self.seqs[s].arrival < arrival);
        self.running.remove(place);
    }

    /// A prefill has come further; when it is done, its blocks stay until it is aborted.
    pub(super) fn tell_prefilled(&mut self, slot: u32) {
        let (seq, size) = (&mut self.seqs[slot], self.shape.block_tokens);
        let (full, all) = (seq.computed / size, seq.leg.tokens.len() / size);
        if full > seq.told {
            let blocks = seq.blocks[seq.told..full].to_vec();
            let missing = (all - full) as u32;
            self.prefilled.push(Prefilled { leg: seq.leg.id, blocks, missing });
            seq.told = full;
        }
        if full == all {
            seq.stage = Stage::Held;
            self.held += 1;
        }
    }

    /// A leg that has its blocks, the first `found` of them filled, waits for more of them.
    pub(super) fn pull(&mut self, slot: u32, found: usize, until: usize) {
        let seq = &mut self.seqs[slot];
        seq.stage = Stage::Pulling { until };
        let blocks = seq.blocks[found..until].to_vec();
        self.pulls.push(PullOut { leg: seq.leg.id, first: found as u32, blocks });
        self.pulling.insert(seq.leg.id, slot);
    }

    /// Of the blocks that a leg waited for the first `have` have come; nothing writes to them any more.
    pub fn pulled(&mut self, leg: LegId, have: u32) {
        let Some(slot) = self.pulling.remove(&leg) else { return };
        self.stuck = false;
        let seq = &mut self.seqs[slot];
        let Stage::Pulling { until } = seq.stage else {
            self.blocks.release(&mut seq.blocks);
            self.seqs.remove(slot);
            self.leaving -= 1;
            return;
        };
        seq.stage = Stage::Running;
        self.run(slot);
        if have > 0 {
            let (seq, size) = (&mut self.seqs[slot], self.shape.block_tokens);
            seq.computed = (seq.computed + have as usize * size).min(until * size);
            if seq.chained {
                self.publish(slot);
            }
        }
    }

    /// Moves what became of parts since the last call to the ends of these.
    pub fn drain_parts(&mut self, prefilled: &mut Vec<Prefilled>, pulls: &mut Vec<PullOut>) {
        prefilled.append(&mut self.prefilled);
        pulls.append(&mut self.pulls);
    }

    /// The blocks of a live leg.
    #[cfg(test)]
    pub(crate) fn table(&self, leg: LegId) -> Option<&[BlockId]> {
        self.by_id.get(&leg).map(|&slot| &self.seqs[slot].blocks[..])
    }

    /// Checks every invariant of the scheduler and its pool; for tests.
    ///
    /// # Errors
    /// What is wrong, for people.
    #[cfg(test)]
    pub(crate) fn check(&self) -> Result<(), String> {
        self.blocks.check(self.seqs.iter().map(|seq| &seq.blocks[..]))?;
        let (waiting, running) = (self.waiting.len(), self.running.len());
        let (live, away) = (self.seqs.iter().count(), self.pulling.len());
        let leaving = self.seqs.iter().filter(|seq| seq.stage == Stage::Leaving).count();
        if live != waiting + running + away + self.held
            || live != self.by_id.len() + leaving
            || leaving != self.leaving
        {
            let held = self.held;
            return Err(format!(
                "{live} legs, but {waiting} wait, {running} run, {away} pull, {held} are held"
            ));
        }
        if self.stuck && self.running.is_empty() && waiting > 0 && away + self.held == 0 {
            return Err(format!("{waiting} legs wait for nobody"));
        }
        let by_age = |&(a, b): &(u32, u32)| self.seqs[a].arrival < self.seqs[b].arrival;
        let queue: Vec<u32> = self.waiting.iter().copied().collect();
        for list in [&queue, &self.running] {
            if !list.iter().copied().zip(list.iter().skip(1).copied()).all(|pair| by_age(&pair)) {
                return Err(format!("not by age: {list:?}"));
            }
        }
        if let Some(&slot) = self.waiting.iter().find(|&&slot| !self.seqs[slot].blocks.is_empty()) {
            return Err(format!("waiting leg {} holds blocks", self.seqs[slot].leg.id));
        }
        let computes =
            |slot: &u32| self.running.contains(slot) || self.pulling.values().any(|s| s == slot);
        if let Some(slot) = self.computing.values().find(|slot| !computes(slot)) {
            return Err(format!("slot {slot} computes a block but does not run"));
        }
        Ok(())
    }
}
