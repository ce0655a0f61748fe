//! What a rank says about the legs of one link, and how much a link may ask of it.

use std::sync::atomic::{AtomicU64, Ordering};

use bincode::{Decode, Encode};

use crate::engine::{EngineError, Load, Started, StepOutput, TokenOut};
use crate::ids::{LegId, RankIndex};
use crate::kvxfer::{KvBlocks, KvSource};
use crate::router::KvNews;

/// Names one stream between a front end and a worker, unique within the life of the worker's node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LinkId(u64);

impl LinkId {
    /// One that was never used before.
    pub fn next() -> Self {
        static LAST_LINK: AtomicU64 = AtomicU64::new(0);
        Self(LAST_LINK.fetch_add(1, Ordering::Relaxed))
    }
}

/// A rank's news for one link: at most one a step.
#[derive(Debug, Default, PartialEq, Encode, Decode)]
pub struct Frame {
    /// Legs that were queued.
    pub accepted: Vec<LegId>,
    /// Legs that left the queue.
    pub started: Vec<Started>,
    /// New tokens.
    pub tokens: Vec<TokenOut>,
    /// Legs that the engine ended.
    pub failed: Vec<(LegId, EngineError)>,
    /// Legs whose actor on the rank was lost.
    pub lost: Vec<LegId>,
    /// What prefills have computed, for others to fetch.
    pub lent: Vec<Lent>,
    /// Legs that fetch nothing any more.
    pub fetched: Vec<(LegId, FetchEnd)>,
    /// This life of this rank is gone, and all legs on it; another one may follow.
    pub rank_lost: Option<(RankIndex, u32)>,
    /// How the rank is.
    pub report: Option<Report>,
    /// What changed in its prefix cache.
    pub kv: Option<Box<KvNews>>,
}

/// More of a prefill's KV can be fetched.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct Lent {
    /// The leg.
    pub leg: LegId,
    /// Where, the first time.
    pub source: Option<KvSource>,
    /// What follows that told before.
    pub blocks: KvBlocks,
}

/// How fetching a leg's KV ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum FetchEnd {
    /// All has come that was wanted.
    Whole,
    /// Not all has: the rank that has it did not give it.
    NotGiven,
    /// Not all has, through no fault of that rank.
    NotTaken,
}

/// How busy a rank is, and what this link may ask of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Report {
    /// The rank.
    pub rank: RankIndex,
    /// Which of its lives says so, from 1: one that has ended may still have had something to say.
    pub life: u32,
    /// Its pressure.
    pub load: Load,
    /// Most legs that the link may have on the rank at once.
    pub credit: u32,
    /// The number of the last news of its prefix cache on this stream; 0: there were none.
    pub kv_number: u64,
}

impl Frame {
    /// Whether there is nothing to tell.
    pub fn is_empty(&self) -> bool {
        self.accepted.is_empty()
            && self.started.is_empty()
            && self.tokens.is_empty()
            && self.failed.is_empty()
            && self.lost.is_empty()
            && self.lent.is_empty()
            && self.fetched.is_empty()
            && self.rank_lost.is_none()
            && self.report.is_none()
            && self.kv.is_none()
    }

    /// Takes off what is lent beyond so many blocks: frames must not grow without a bound.
    pub fn split_lent(&mut self, blocks: usize) -> Vec<Lent> {
        let mut sum = 0;
        let over = self.lent.iter().skip(1).position(|lent| {
            sum += lent.blocks.blocks.len();
            sum > blocks
        });
        over.map_or_else(Vec::new, |at| self.lent.split_off(at + 1))
    }

    /// Moves a step's rows in; the step keeps its allocations where it can.
    pub fn append_step(&mut self, step: &mut StepOutput) {
        self.started.append(&mut step.started);
        self.tokens.append(&mut step.tokens);
        self.failed.append(&mut step.failed);
    }
}
