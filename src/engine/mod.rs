//! Engines: what turns admitted legs into tokens, one step at a time.
//!
//! ```text
//! Engine (trait)      admit, abort, step → what happened; synchronous, driven from one thread
//! ├─ Remote            an engine in a process of its own (`process`)
//! └─ Embedded<M: Model>   scheduler + block pool + processors + sampler, the same for every embedded model
//!    ├─ native        Llama-family transformers on this machine's CPU
//!    └─ sim           tokens computed from the prompt, timing from the config
//! ```
//!
//! Nothing in this folder knows tokio, ractor or HTTP. Pools are memory of `kvxfer`, so that blocks can
//! be moved between ranks. What is decided is decided in plain functions
//! (`schedule`, `blocks`, `sample`); an engine never blocks on anything but its own computation.

pub mod blocks;
pub mod embedded;
pub mod error;
pub mod faulty;
pub mod leg;
pub mod model;
pub mod native;
pub mod process;
pub mod processors;
pub mod sample;
pub mod schedule;
pub mod sim;
#[cfg(feature = "trtllm-bridge")]
pub mod trtllm;

use faulty::ProcessFault;

pub use error::{EngineError, Reach};
pub use leg::{Candidate, FinishReason, Guide, Leg, Part, Sampling, TokenLogprobs};
pub use model::KvPool;

use std::sync::Arc;

use bincode::{Decode, Encode};

use crate::ids::{BlockHash, BlockId, LegId};
use crate::word::Word;

/// What an engine can do and how large it is: data, not downcasts.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Description {
    /// The engine's kind: `native`, `sim`, …
    pub kind: Word,
    /// Engines that compute different tokens from the same prompt differ here (weights by sample).
    pub fingerprint: u64,
    /// Longest sequence (prompt + output) in tokens.
    pub context: usize,
    /// Rows of the logits; ids at or above it are never sampled.
    pub vocab: usize,
    /// Tokens in one KV block.
    pub block_tokens: usize,
    /// KV blocks in the pool.
    pub blocks: u32,
    /// Bytes of one KV block over all layers.
    pub block_bytes: usize,
    /// Most legs in one step.
    pub max_running: usize,
    /// Most legs that wait for their turn; one more is refused.
    pub max_waiting: usize,
    /// What others can know of its prefix cache.
    pub prefix_cache: PrefixCache,
    /// The slowest place where it keeps cached blocks.
    pub slowest_tier: Tier,
    /// Whether it moves the KV of prompts to other engines of its kind by itself: [`StepOutput::handed`].
    pub hands_over: bool,
}

/// Where a cached block is, the fastest place first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub enum Tier {
    /// In the KV pool: it can be used as it is.
    Device,
    /// In the host's memory: it must be loaded.
    Host,
    /// On a disk or beyond.
    Disk,
}

/// What others can know of an engine's prefix cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum PrefixCache {
    /// It has none.
    None,
    /// It has one, and does not tell what is in it.
    Silent,
    /// Its [`KvEvent`]s tell what is in it.
    Told,
}

/// Tells whoever drives an engine that a step would do something; from any thread, at any time.
pub type Ready = Arc<dyn Fn() + Send + Sync>;

/// What an engine does. Driven from one thread; no method waits for anything but computation.
pub trait Engine: Send {
    /// Size and capabilities; constant for the engine's life.
    fn describe(&self) -> Description;

    /// Queues a leg. Admitting a leg id that is already known changes nothing.
    ///
    /// # Errors
    /// The leg's own fault ([`Reach::Request`]) or pressure ([`Reach::Retry`]); the engine goes on.
    fn admit(&mut self, leg: Leg) -> Result<(), EngineError>;

    /// Queues a leg of [`Part::Decode`] whose prompt another engine of its kind has computed and left as this state, of
    /// [`Handed`]. If the state is of no use, all is computed here.
    ///
    /// # Errors
    /// As [`Engine::admit`].
    fn admit_handed(&mut self, leg: Leg, state: Arc<[u8]>) -> Result<(), EngineError> {
        drop(state);
        self.admit(leg)
    }

    /// What a leg of [`Engine::admit_handed`] waits for will not come: the engine that had it is gone. The rest is
    /// computed here. Unknown ids are ignored.
    fn not_given(&mut self, leg: LegId) {
        let _ = leg; // nothing ever waits
    }

    /// Whether [`StepOutput::accepted`] says which legs it has taken on; else it has when [`Engine::admit`] succeeds.
    fn accepts_later(&self) -> bool {
        false
    }

    /// Forgets a leg and frees its blocks. Unknown ids are ignored.
    fn abort(&mut self, leg: LegId);

    /// Whether a step would do anything.
    fn has_work(&self) -> bool;

    /// What to call when [`Engine::has_work`] turns true by itself. Engines that compute in their steps never need it;
    /// those whose computation is elsewhere call it when there is something to tell, also that they are lost.
    fn on_ready(&mut self, ready: Ready) {
        drop(ready);
    }

    /// Fault injection: does it by itself, as far as it can; `false` if it cannot.
    fn misbehave(&mut self, fault: ProcessFault) -> bool {
        let _ = fault;
        false
    }

    /// Of the blocks that a leg asked for in [`StepOutput::pulls`] the first `have` have come; it computes
    /// the others. Nothing writes to them any more. Unknown legs are ignored.
    fn pulled(&mut self, leg: LegId, have: u32);

    /// Runs one step and says what happened.
    ///
    /// # Errors
    /// The whole engine is lost ([`Reach::Engine`]): every leg must be placed again elsewhere.
    fn step(&mut self, out: &mut StepOutput) -> Result<(), EngineError>;

    /// Its KV pool, if blocks can be moved between it and others.
    fn kv_pool(&self) -> Option<KvPool>;

    /// The pressure this engine is under now.
    fn load(&self) -> Load;

    /// Appends the names of all blocks that can be found now, and where: what its events add up to.
    fn cached_blocks(&self, out: &mut Vec<(BlockHash, Tier)>);
}

impl Engine for Box<dyn Engine> {
    fn describe(&self) -> Description {
        (**self).describe()
    }

    fn admit(&mut self, leg: Leg) -> Result<(), EngineError> {
        (**self).admit(leg)
    }

    fn admit_handed(&mut self, leg: Leg, state: Arc<[u8]>) -> Result<(), EngineError> {
        (**self).admit_handed(leg, state)
    }

    fn not_given(&mut self, leg: LegId) {
        (**self).not_given(leg);
    }

    fn accepts_later(&self) -> bool {
        (**self).accepts_later()
    }

    fn abort(&mut self, leg: LegId) {
        (**self).abort(leg);
    }

    fn has_work(&self) -> bool {
        (**self).has_work()
    }

    fn on_ready(&mut self, ready: Ready) {
        (**self).on_ready(ready);
    }

    fn misbehave(&mut self, fault: ProcessFault) -> bool {
        (**self).misbehave(fault)
    }

    fn pulled(&mut self, leg: LegId, have: u32) {
        (**self).pulled(leg, have);
    }

    fn step(&mut self, out: &mut StepOutput) -> Result<(), EngineError> {
        (**self).step(out)
    }

    fn kv_pool(&self) -> Option<KvPool> {
        (**self).kv_pool()
    }

    fn load(&self) -> Load {
        (**self).load()
    }

    fn cached_blocks(&self, out: &mut Vec<(BlockHash, Tier)>) {
        (**self).cached_blocks(out);
    }
}

/// What one step did. Reused from step to step; [`StepOutput::clear`] keeps the allocations.
#[derive(Clone, Debug, Default, PartialEq, Encode, Decode)]
pub struct StepOutput {
    /// Legs that were taken on, if [`Engine::accepts_later`]; they are in none of the others before.
    pub accepted: Vec<LegId>,
    /// Legs that left the queue in this step, with their prompt tokens found in the prefix cache.
    pub started: Vec<Started>,
    /// New tokens, those of one leg in their order; more than one of a leg where the engine makes several in a step, or
    /// steps were merged. None follows one with `finish`.
    pub tokens: Vec<TokenOut>,
    /// Legs that ended here without a token of their own, and why.
    pub failed: Vec<(LegId, EngineError)>,
    /// Blocks that became or ceased to be findable by their hash.
    pub kv_events: Vec<KvEvent>,
    /// Prompt and output tokens computed in this step.
    pub computed_tokens: usize,
    /// What legs of [`Part::Prefill`] have computed, or found.
    pub prefilled: Vec<Prefilled>,
    /// Legs of [`Part::Decode`] that have blocks for what is to be fetched; [`Engine::pulled`] is awaited.
    pub pulls: Vec<PullOut>,
    /// Legs of [`Part::Prefill`] whose KV waits for the engine that decodes.
    pub handed: Vec<Handed>,
    /// Legs of [`Engine::admit_handed`] that need nothing from elsewhere any more, and why.
    pub fetched: Vec<(LegId, HandedEnd)>,
}

/// What became of a prompt that an engine of the same kind has computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum HandedEnd {
    /// It has come.
    Whole,
    /// It has not: the other engine did not give it, or gave nothing that this one can go on from.
    NotGiven,
    /// It was not asked for.
    NotTaken,
}

/// A prompt's KV, from now until its leg is aborted, for an engine of the same kind.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Handed {
    /// The leg.
    pub leg: LegId,
    /// Full blocks of it.
    pub blocks: u32,
    /// For [`Engine::admit_handed`]; opaque to everybody else.
    pub state: Arc<[u8]>,
}

/// More of a prompt whose KV can be fetched, from now until its leg is aborted.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Prefilled {
    /// The leg.
    pub leg: LegId,
    /// The blocks that follow those told before, in the order of its tokens.
    pub blocks: Vec<BlockId>,
    /// Blocks that are still to come.
    pub missing: u32,
}

/// Blocks that a leg wants to be fetched. They are not used before [`Engine::pulled`], also if the leg is
/// aborted.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct PullOut {
    /// The leg.
    pub leg: LegId,
    /// Blocks before them, which it found here.
    pub first: u32,
    /// Where those that follow go, in their order.
    pub blocks: Vec<BlockId>,
}

impl StepOutput {
    /// Empties it for the next step.
    pub fn clear(&mut self) {
        self.started.clear();
        self.tokens.clear();
        self.accepted.clear();
        self.failed.clear();
        self.kv_events.clear();
        self.computed_tokens = 0;
        self.prefilled.clear();
        self.pulls.clear();
        self.handed.clear();
        self.fetched.clear();
    }

    /// Adds what a later step did.
    pub fn append(&mut self, later: Self) {
        let Self { started, tokens, failed, kv_events, computed_tokens, .. } = later;
        self.accepted.extend(later.accepted);
        self.started.extend(started);
        self.tokens.extend(tokens);
        self.failed.extend(failed);
        self.kv_events.extend(kv_events);
        self.computed_tokens += computed_tokens;
        self.prefilled.extend(later.prefilled);
        self.pulls.extend(later.pulls);
        self.handed.extend(later.handed);
        self.fetched.extend(later.fetched);
    }

    /// Whether anything happened.
    pub fn is_empty(&self) -> bool {
        let Self { started, tokens, failed, kv_events, computed_tokens, .. } = self;
        let parts =
            self.prefilled.len() + self.pulls.len() + self.handed.len() + self.fetched.len();
        let rows = self.accepted.len() + started.len() + tokens.len() + failed.len();
        rows + parts + kv_events.len() + computed_tokens == 0
    }
}

/// A leg that left the waiting queue for the first time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Started {
    /// The leg.
    pub leg: LegId,
    /// Tokens of its prompt (and prior output) whose KV blocks were found in the prefix cache.
    pub cached_tokens: u32,
    /// Whether it waits for blocks from elsewhere.
    pub fetches: bool,
}

/// One new token of one leg.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct TokenOut {
    /// The leg.
    pub leg: LegId,
    /// Vocabulary id.
    pub token: u32,
    /// Present if the leg asked for logprobs.
    pub logprobs: Option<Box<TokenLogprobs>>,
    /// Present on the leg's last token; the engine has then forgotten the leg.
    pub finish: Option<FinishReason>,
}

/// A change of the prefix cache, for routers.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum KvEvent {
    /// A full block can now be found under `hash` in this tier, and in no faster one; `parent` is the
    /// block before it.
    Stored {
        /// The block.
        hash: BlockHash,
        /// The block before it in its sequence, if any.
        parent: Option<BlockHash>,
        /// Where it is.
        tier: Tier,
    },
    /// The block under `hash` is in no tier any more.
    Removed {
        /// The block that is gone.
        hash: BlockHash,
    },
}

impl KvEvent {
    /// The block, and the fastest tier that has it now.
    pub fn change(&self) -> (BlockHash, Option<Tier>) {
        match *self {
            Self::Stored { hash, tier, .. } => (hash, Some(tier)),
            Self::Removed { hash } => (hash, None),
        }
    }
}

/// How busy an engine is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Load {
    /// Legs in the batch.
    pub running: u32,
    /// Legs in the queue.
    pub waiting: u32,
    /// Blocks that live legs hold.
    pub blocks_used: u32,
    /// Blocks that nobody holds but that can still be found by their hash.
    pub blocks_cached: u32,
    /// Blocks in the pool.
    pub blocks_total: u32,
    /// Blocks in the host tier, beyond those in the pool.
    pub blocks_in_host: u32,
    /// Tokens of prompts in the batch that are still to be computed.
    pub prefill_tokens: u64,
    /// Tokens of legs in the queue.
    pub waiting_tokens: u64,
    /// Legs put back into the queue because blocks ran out, since the engine started.
    pub preemptions: u64,
}
