//! Continuous batching with chunked prefill: which legs compute which tokens in the next step.
//!
//! ```text
//! admit → waiting ──start──→ running ──finish / abort──→ gone
//!            ↑                  │ blocks ran out and it is the youngest
//!            └─────preempt──────┘
//! ```
//!
//! A leg whose KV comes from elsewhere *pulls* between waiting and running, and a prefill for others is
//! *held* when it is done (`parts`). They have all the blocks that they need, and give them back when
//! their transfer or lease ends, which depends on no leg here.
//!
//! One step takes decode rows first (one token of every leg that has one left to compute), then
//! chunks of running prefills, then starts waiting legs, oldest first, within `max_batch_tokens`.
//!
//! **Starting takes blocks for all the leg's current tokens**, not only for its first chunk. A
//! half-prefilled leg that runs out of blocks would have spent work and blocks for nothing; so only
//! decoding legs ever ask for more, and one free block per running leg is left over when a leg
//! starts, so that a newcomer is not thrown out again at once.
//!
//! **Preemption is by recompute.** When a decoding leg finds no free block, the youngest running leg
//! goes back to the queue with its tokens, possibly the asking leg itself. Its blocks stay findable
//! until they are reused. The oldest leg is never preempted for another, and fits the pool alone
//! (checked at admission), so it gets its blocks, if need be once transfers and leases have ended,
//! ends, and makes the next one the oldest: no deadlock, no livelock, no starvation.
//!
//! **Equal prefixes are computed once.** A waiting leg whose next uncached block is being computed
//! by a running leg lets others pass (at most `max_running` of them a step are looked past) until
//! that block is findable or that leg no longer runs; it is then the first to be tried.

mod cache;
mod parts;
mod sequence;
#[cfg(test)]
mod tests;

pub use sequence::Sequence;

use std::collections::VecDeque;

use cache::{Start, forget_computing};
use rustc_hash::FxHashMap;
use sequence::{Slots, Stage};

use super::blocks::{BlockManager, HashKey};
use super::model::{Batch, Shape, Span};
use super::{EngineError, KvEvent, Leg, Load, Part, Prefilled, PullOut, Started, Tier};
use crate::ids::{BlockHash, LegId};

/// How much an engine takes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most legs in one step, at least 1.
    pub max_running: usize,
    /// Most legs that wait beyond those the next step has room for; one more is refused.
    pub max_waiting: usize,
    /// Most tokens computed in one step; at least `max_running`, so that every leg can decode.
    pub max_batch_tokens: usize,
    /// Whether blocks are found again by their content.
    pub prefix_cache: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_running: 256, max_waiting: 1024, max_batch_tokens: 2048, prefix_cache: true }
    }
}

/// The tokens of one leg in the current step; entry `i` belongs to span `i` of the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Planned {
    /// Where the leg is kept.
    pub slot: u32,
    /// Tokens it computes.
    pub rows: usize,
    /// Whether the next token follows from this span.
    pub wants_logits: bool,
}

/// The legs of one engine and the blocks they hold.
#[derive(Clone, Debug)]
pub struct Scheduler {
    limits: Limits,
    shape: Shape,
    blocks: BlockManager,
    seqs: Slots,
    by_id: FxHashMap<LegId, u32>,
    /// Oldest first.
    waiting: VecDeque<u32>,
    /// Tokens of the legs that wait.
    waiting_tokens: u64,
    /// Oldest first.
    running: Vec<u32>,
    /// Legs whose blocks are being fetched, aborted ones included.
    pulling: FxHashMap<LegId, u32>,
    /// The aborted ones of them.
    leaving: usize,
    /// Prefills that are done and keep their blocks.
    held: usize,
    prefilled: Vec<Prefilled>,
    pulls: Vec<PullOut>,
    /// Nothing can be planned before something else happens.
    stuck: bool,
    /// Full blocks that running prefills will fill, and the slots of those.
    computing: FxHashMap<BlockHash, u32>,
    plan: Vec<Planned>,
    arrivals: u64,
    preemptions: u64,
}

impl Scheduler {
    /// A scheduler for a model of this shape. Limits below their minimum are raised to it.
    pub fn new(shape: Shape, limits: Limits, key: &HashKey) -> Self {
        let max_running = limits.max_running.max(1);
        let max_batch_tokens = limits.max_batch_tokens.max(max_running);
        Self {
            limits: Limits { max_running, max_batch_tokens, ..limits },
            shape,
            blocks: BlockManager::new(shape.blocks, shape.host_blocks, shape.block_tokens, key),
            seqs: Slots::default(),
            by_id: FxHashMap::default(),
            waiting: VecDeque::new(),
            waiting_tokens: 0,
            running: Vec::new(),
            pulling: FxHashMap::default(),
            leaving: 0,
            held: 0,
            prefilled: Vec::new(),
            pulls: Vec::new(),
            stuck: false,
            computing: FxHashMap::default(),
            plan: Vec::new(),
            arrivals: 0,
            preemptions: 0,
        }
    }

    /// The limits in force.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Queues a leg and says where it is kept; `None` if its id is known already.
    ///
    /// # Errors
    /// `EmptyPrompt`, `PromptTooLong`, `NoTokensLeft`, `UnknownToken`, `PoolTooSmall` (all the leg's
    /// own fault), `QueueFull`.
    pub fn admit(&mut self, mut leg: Leg) -> Result<Option<u32>, EngineError> {
        if self.by_id.contains_key(&leg.id) {
            return Ok(None);
        }
        leg.prompt_len = leg.prompt_len.min(leg.tokens.len());
        self.cut_prefill(&mut leg)?;
        let limit = self.check_leg(&leg)?;
        let (known, room) = (self.by_id.len(), self.limits.max_running);
        if known >= room + self.limits.max_waiting {
            let (waiting, limit) = (known - room, self.limits.max_waiting);
            return Err(EngineError::QueueFull { waiting, limit });
        }
        let id = leg.id;
        let slot = self.seqs.insert(Sequence::new(leg, self.arrivals, limit));
        self.arrivals += 1;
        self.by_id.insert(id, slot);
        self.waiting.push_back(slot);
        self.waiting_tokens += self.seqs[slot].leg.tokens.len() as u64;
        self.stuck = false;
        Ok(Some(slot))
    }

    /// Refuses what could never run; returns how many tokens the leg may grow to.
    fn check_leg(&self, leg: &Leg) -> Result<usize, EngineError> {
        let (tokens, context, vocab) = (leg.tokens.len(), self.shape.context, self.shape.vocab);
        if tokens == 0 {
            return Err(EngineError::EmptyPrompt);
        }
        if tokens >= context {
            return Err(EngineError::PromptTooLong { tokens, context });
        }
        let (output, max_tokens) = (tokens - leg.prompt_len, leg.max_tokens);
        if output >= max_tokens as usize {
            return Err(EngineError::NoTokensLeft { output, max_tokens });
        }
        if let Some(&token) = leg.tokens.iter().find(|&&token| token as usize >= vocab) {
            return Err(EngineError::UnknownToken { token, vocab });
        }
        let (limit, need) = match leg.part {
            Part::Prefill => (tokens, tokens),
            // The KV of the very last token is never needed.
            Part::Whole | Part::Decode { .. } => {
                let limit = leg.prompt_len.saturating_add(max_tokens as usize).min(context);
                (limit, limit - 1)
            }
        };
        let need = need.div_ceil(self.shape.block_tokens) as u32;
        if need > self.blocks.total() {
            let total = self.blocks.total();
            return Err(EngineError::PoolTooSmall { tokens: limit, need, total });
        }
        Ok(limit)
    }

    /// Forgets a leg and frees its blocks; returns where it was kept, if it was known.
    pub fn abort(&mut self, leg: LegId) -> Option<u32> {
        let slot = *self.by_id.get(&leg)?;
        self.end(slot);
        Some(slot)
    }

    /// Forgets the leg in this slot and frees its blocks: it has finished, failed or was aborted.
    pub fn end(&mut self, slot: u32) {
        let arrival = self.seqs[slot].arrival;
        self.stuck = false;
        self.by_id.remove(&self.seqs[slot].leg.id);
        match self.seqs[slot].stage {
            Stage::Running => {
                self.leave_running(slot);
                self.take_blocks(slot);
            }
            Stage::Waiting => {
                let place = self.waiting.partition_point(|&s| self.seqs[s].arrival < arrival);
                self.waiting.remove(place);
                self.waiting_tokens -= self.seqs[slot].leg.tokens.len() as u64;
            }
            Stage::Held => {
                self.held -= 1;
                self.take_blocks(slot);
            }
            Stage::Pulling { .. } | Stage::Leaving => {
                self.leaving += usize::from(self.seqs[slot].stage != Stage::Leaving);
                let seq = &mut self.seqs[slot];
                forget_computing(&mut self.computing, &seq.hashes[seq.findable..], slot);
                seq.stage = Stage::Leaving;
                return; // until nothing writes to its blocks
            }
        }
        self.seqs.remove(slot);
    }

    /// The leg in this slot.
    pub fn sequence(&self, slot: u32) -> &Sequence {
        &self.seqs[slot]
    }

    /// Appends the next token of a leg whose tokens are all computed.
    pub fn push_token(&mut self, slot: u32, token: u32) -> &Sequence {
        let seq = &mut self.seqs[slot];
        seq.leg.tokens.push(token);
        seq
    }

    /// Whether a step would do anything: a leg runs, or waits for something that only a step can tell.
    pub fn has_work(&self) -> bool {
        !self.running.is_empty() || (!self.waiting.is_empty() && !self.stuck)
    }

    /// The pressure now.
    pub fn load(&self) -> Load {
        // A leg that decodes has one token to compute, which is not of its prompt.
        let rest = |&slot: &u32| self.seqs[slot].remaining().saturating_sub(1) as u64;
        Load {
            prefill_tokens: self.running.iter().map(rest).sum(),
            waiting_tokens: self.waiting_tokens,
            running: self.running.len() as u32,
            waiting: self.waiting.len() as u32,
            blocks_used: self.blocks.used(),
            blocks_cached: self.blocks.cached(),
            blocks_total: self.blocks.total(),
            blocks_in_host: self.blocks.in_host(),
            preemptions: self.preemptions,
        }
    }

    /// Appends the names of all blocks that can be found, and where.
    pub fn findable(&self, out: &mut Vec<(BlockHash, Tier)>) {
        out.extend(self.blocks.findable());
    }

    /// Moves changes of the prefix cache since the last call to the end of `out`.
    pub fn drain_events(&mut self, out: &mut Vec<KvEvent>) {
        self.blocks.drain_events(out);
    }

    /// The current step's legs, in the order of the batch's spans.
    pub fn planned(&self) -> &[Planned] {
        &self.plan
    }

    /// Fills `batch` with the next step's work. Never empty while a leg runs; while legs wait, only if
    /// others hold what they wait for and compute nothing.
    pub fn plan(&mut self, batch: &mut Batch, started: &mut Vec<Started>) {
        batch.clear();
        self.plan.clear();
        self.plan_decodes(batch);
        self.plan_chunks(batch);
        self.start_waiting(batch, started);
        // What was loaded may have been all that this step had time for.
        self.stuck = batch.spans.is_empty() && self.blocks.loads() == 0;
        self.blocks.drain_moves(&mut batch.moves);
    }

    fn budget(&self, batch: &Batch) -> usize {
        self.limits.max_batch_tokens - batch.tokens.len()
    }

    fn plan_decodes(&mut self, batch: &mut Batch) {
        let mut place = 0;
        while let Some(&slot) = self.running.get(place) {
            if self.seqs[slot].remaining() == 1 {
                if !self.grow(slot) {
                    continue; // it was the youngest itself, and is not there any more
                }
                self.push(batch, slot, 1);
            }
            place += 1;
        }
    }

    /// Makes sure that a decoding leg has a block for its next token, at the expense of younger
    /// legs; `false` if it was the youngest and went back to the queue.
    fn grow(&mut self, slot: u32) -> bool {
        let seq = &mut self.seqs[slot];
        if seq.leg.tokens.len() <= seq.blocks.len() * self.shape.block_tokens {
            return true;
        }
        while !self.blocks.allocate(1, &mut self.seqs[slot].blocks) {
            if self.preempt_youngest() == Some(slot) {
                return false;
            }
        }
        true
    }

    /// Of those whose blocks nobody else may read.
    fn preempt_youngest(&mut self) -> Option<u32> {
        let place = self.running.iter().rposition(|&slot| self.seqs[slot].told == 0)?;
        let slot = self.running.remove(place);
        self.take_blocks(slot);
        let arrival = self.seqs[slot].arrival;
        let place = self.waiting.partition_point(|&s| self.seqs[s].arrival < arrival);
        self.waiting.insert(place, slot);
        self.waiting_tokens += self.seqs[slot].leg.tokens.len() as u64;
        self.preemptions += 1;
        Some(slot)
    }

    /// Takes all blocks from a leg that stops running.
    fn take_blocks(&mut self, slot: u32) {
        let seq = &mut self.seqs[slot];
        self.blocks.release(&mut seq.blocks);
        forget_computing(&mut self.computing, &seq.hashes[seq.findable..], slot);
        (seq.computed, seq.findable, seq.stage) = (0, 0, Stage::Waiting);
    }

    fn plan_chunks(&mut self, batch: &mut Batch) {
        for place in 0..self.running.len() {
            let slot = self.running[place];
            let rows = self.seqs[slot].remaining().min(self.budget(batch));
            // A leg with one token left has its row already.
            if self.seqs[slot].remaining() > 1 && rows > 0 {
                self.push(batch, slot, rows);
            }
        }
    }

    fn start_waiting(&mut self, batch: &mut Batch, started: &mut Vec<Started>) {
        let mut place = 0;
        let most = self.limits.max_batch_tokens.div_ceil(self.shape.block_tokens);
        let has_room = |this: &Self| this.occupied() < this.limits.max_running;
        // Loads take time, too: of a leg all that there are, but then nobody else starts.
        while has_room(self) && self.budget(batch) > 0 && self.blocks.loads() < most {
            let Some(&slot) = self.waiting.get(place) else { return };
            match self.start(slot) {
                Start::Started | Start::Pulls => {}
                Start::WaitsForPrefix if place < self.limits.max_running => {
                    place += 1;
                    continue;
                }
                Start::WaitsForPrefix | Start::NoRoom => return,
            }
            self.waiting.remove(place);
            let seq = &mut self.seqs[slot];
            self.waiting_tokens -= seq.leg.tokens.len() as u64;
            if !std::mem::replace(&mut seq.started, true) {
                let cached_tokens = seq.computed as u32;
                let fetches = seq.stage != Stage::Running;
                started.push(Started { leg: seq.leg.id, cached_tokens, fetches });
            }
            let remaining = seq.remaining();
            match seq.stage {
                Stage::Running if remaining == 0 => self.tell_prefilled(slot),
                Stage::Running => {
                    self.run(slot);
                    self.push(batch, slot, remaining.min(self.budget(batch)));
                }
                _ => {} // its blocks come from elsewhere first
            }
        }
    }

    /// Adds the next `rows` tokens of a running leg to the batch.
    fn push(&mut self, batch: &mut Batch, slot: u32, rows: usize) {
        let seq = &self.seqs[slot];
        let end = seq.computed + rows;
        let (first_row, first_block) = (batch.tokens.len(), batch.blocks.len());
        let blocks = end.div_ceil(self.shape.block_tokens);
        let wants_logits = end == seq.leg.tokens.len() && seq.leg.part != Part::Prefill;
        batch.tokens.extend_from_slice(&seq.leg.tokens[seq.computed..end]);
        batch.blocks.extend_from_slice(&seq.blocks[..blocks]);
        let start = seq.computed;
        batch.spans.push(Span { first_row, rows, start, first_block, blocks, wants_logits });
        self.plan.push(Planned { slot, rows, wants_logits });
    }

    /// Notes that the planned step was computed: full blocks become findable.
    pub fn computed(&mut self) {
        for place in 0..self.plan.len() {
            let Planned { slot, rows, .. } = self.plan[place];
            let seq = &mut self.seqs[slot];
            seq.computed += rows;
            if seq.chained && (seq.findable + 1) * self.shape.block_tokens <= seq.computed {
                self.publish(slot);
            }
            let seq = &self.seqs[slot];
            if seq.leg.part == Part::Prefill {
                if seq.remaining() == 0 {
                    self.leave_running(slot);
                }
                self.tell_prefilled(slot);
            }
        }
    }

    /// Slot and id of the oldest running leg.
    #[cfg(test)]
    pub(crate) fn oldest_running(&self) -> Option<(u32, LegId)> {
        self.running.first().map(|&slot| (slot, self.seqs[slot].leg.id))
    }
}
