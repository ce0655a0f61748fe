//! Ranks in simulated time: real schedulers, block managers and prefix caches, computed step times.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;

use cuelight::engine::blocks::{BlockHasher, HashKey};
use cuelight::engine::embedded::Embedded;
use cuelight::engine::model::Shape;
use cuelight::engine::schedule::Limits;
use cuelight::engine::sim::{SimConfig, SimModel};
use cuelight::engine::{Engine, Leg, Part, Sampling, StepOutput};
use cuelight::ids::{LegId, RequestId};

use crate::policy::{Known, Policy};
use crate::trace::{Trace, VOCAB};

/// Tokens in a KV block.
const BLOCK: usize = 16;
/// A step takes this long, and so much more for each prompt token and each leg that decodes, in
/// seconds: roughly an 8 B model on one large GPU.
const STEP_S: f64 = 0.006;
const PREFILL_S: f64 = 50e-6;
const DECODE_S: f64 = 60e-6;

/// What came of it.
pub(crate) struct Outcome {
    /// Seconds from each request's arrival to its first token, sorted.
    pub(crate) ttft: Vec<f64>,
    /// Seconds between two tokens, the mean of each request, sorted.
    pub(crate) itl: Vec<f64>,
    /// Prompt tokens found in a prefix cache, of all.
    pub(crate) hit_rate: f64,
    /// Seconds until the last token.
    pub(crate) end: f64,
    /// Microseconds of this machine for each choice.
    pub(crate) choice_us: f64,
}

struct Rank {
    engine: Embedded<SimModel>,
    /// What the step under way will have done when it ends.
    step: StepOutput,
    ends: Option<f64>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Arrives(usize),
    StepEnds(usize),
}

/// A leg under way.
struct Live {
    arrived: f64,
    rank: usize,
    pending: u64,
    /// Tokens that it was thought to have to compute.
    own: u64,
    /// Tokens of its prompt.
    prompt: usize,
    tokens: Vec<u32>,
    /// When its first token came.
    begun: Option<f64>,
}

struct World<'a> {
    trace: &'a Trace,
    ranks: Vec<Rank>,
    known: Vec<Known>,
    policy: Policy,
    hasher: BlockHasher,
    /// Time in nanoseconds, what, and a number that keeps the order.
    events: BinaryHeap<Reverse<(u64, u64, What)>>,
    number: u64,
    live: HashMap<u64, Live>,
    /// Who follows each request.
    next: HashMap<usize, usize>,
    /// The whole conversation before each later turn.
    history: HashMap<usize, Vec<u32>>,
    ttft: Vec<f64>,
    itl: Vec<f64>,
    prompt_tokens: u64,
    cached_tokens: u64,
    choice_s: f64,
}

/// Runs a trace on so many ranks.
pub(crate) fn run(trace: &Trace, ranks: usize, policy: &str) -> Outcome {
    let engine = || {
        let shape = Shape {
            context: trace.context,
            vocab: VOCAB as usize,
            block_tokens: BLOCK,
            blocks: trace.pool,
            block_bytes: 1,
            host_blocks: 0,
        };
        let model = SimModel::new(SimConfig { shape, ..SimConfig::default() });
        let limits = Limits {
            max_running: 64,
            max_waiting: 100_000,
            max_batch_tokens: 2048,
            prefix_cache: true,
        };
        Embedded::new(model, limits, &HashKey::default())
    };
    let new = || Rank { engine: engine(), step: StepOutput::default(), ends: None };
    let description = engine().describe();
    let mut world = World {
        trace,
        ranks: (0..ranks).map(|_| new()).collect(),
        known: vec![Known::default(); ranks],
        policy: Policy::new(policy, ranks, &description),
        hasher: BlockHasher::new(&HashKey::default(), BLOCK),
        events: BinaryHeap::new(),
        number: 0,
        live: HashMap::new(),
        next: HashMap::new(),
        history: HashMap::new(),
        ttft: Vec::new(),
        itl: Vec::new(),
        prompt_tokens: 0,
        cached_tokens: 0,
        choice_s: 0.0,
    };
    for (index, request) in trace.requests.iter().enumerate() {
        match request.after {
            Some(before) => drop(world.next.insert(before, index)),
            None => world.at(request.at, What::Arrives(index)),
        }
    }
    let mut end = 0.0;
    while let Some(Reverse((at, _, what))) = world.events.pop() {
        end = at as f64 / 1e9;
        match what {
            What::Arrives(index) => world.arrives(index, end),
            What::StepEnds(rank) => world.step_ends(rank, end),
        }
    }
    assert_eq!(world.ttft.len(), trace.requests.len(), "every request is answered");
    world.ttft.sort_by(f64::total_cmp);
    world.itl.sort_by(f64::total_cmp);
    Outcome {
        hit_rate: world.cached_tokens as f64 / world.prompt_tokens as f64,
        choice_us: world.choice_s * 1e6 / world.ttft.len() as f64,
        ttft: world.ttft,
        itl: world.itl,
        end,
    }
}

impl World<'_> {
    fn at(&mut self, seconds: f64, what: What) {
        self.number += 1;
        self.events.push(Reverse(((seconds * 1e9) as u64, self.number, what)));
    }

    fn arrives(&mut self, index: usize, now: f64) {
        let request = &self.trace.requests[index];
        let mut tokens = self.history.remove(&index).unwrap_or_default();
        tokens.extend(&request.tokens);
        let (ranks, size) = (&self.ranks, BLOCK as u64);
        let delay = |rank: usize, cached: u32| {
            let (rank, load) = (&ranks[rank], ranks[rank].engine.load());
            let left = rank.ends.map_or(0.0, |ends| ends - now);
            let own = (tokens.len() as u64).saturating_sub(u64::from(cached) * size);
            let before = load.prefill_tokens + load.waiting_tokens;
            left + STEP_S + (before + own) as f64 * PREFILL_S + f64::from(load.running) * DECODE_S
        };
        let began = std::time::Instant::now();
        let chosen = self.policy.choose(&tokens, &self.known, &mut self.hasher, delay);
        self.choice_s += began.elapsed().as_secs_f64();
        let own = (tokens.len() as u64).saturating_sub(u64::from(chosen.cached_blocks) * size);
        let rank = chosen.rank;
        let known = &mut self.known[rank];
        known.legs += 1;
        known.pending += own;
        known.prefill += own;
        let id = index as u64;
        let leg = Leg {
            id: LegId { request: RequestId(id), choice: 0, attempt: 0 },
            prompt_len: tokens.len(),
            tokens: tokens.clone(),
            max_tokens: request.output,
            choice: 0,
            sampling: Arc::new(Sampling { ignore_eos: true, ..Sampling::default() }),
            salt: 0,
            part: Part::Whole,
        };
        self.prompt_tokens += tokens.len() as u64;
        self.ranks[rank].engine.admit(leg).expect("the trace fits the model");
        let prompt = tokens.len();
        let live = Live { arrived: now, rank, pending: own, own, prompt, tokens, begun: None };
        self.live.insert(id, live);
        self.step(rank, now);
    }

    /// Begins a step on an idle rank that has work.
    fn step(&mut self, at: usize, now: f64) {
        let rank = &mut self.ranks[at];
        if rank.ends.is_some() || !rank.engine.has_work() {
            return;
        }
        rank.engine.step(&mut rank.step).expect("the simulated engine does not fail");
        let decoding = rank.step.tokens.len();
        let prefill = rank.step.computed_tokens.saturating_sub(decoding);
        let takes = STEP_S + prefill as f64 * PREFILL_S + decoding as f64 * DECODE_S;
        rank.ends = Some(now + takes);
        self.at(now + takes, What::StepEnds(at));
    }

    fn step_ends(&mut self, at: usize, now: f64) {
        let mut step = std::mem::take(&mut self.ranks[at].step);
        self.ranks[at].ends = None;
        self.known[at].load = self.ranks[at].engine.load();
        self.policy.hear(at, &step.kv_events);
        for started in &step.started {
            let live = self.live.get_mut(&started.leg.request.0).expect("a live leg");
            self.cached_tokens += u64::from(started.cached_tokens);
            self.known[live.rank].pending -= std::mem::take(&mut live.pending);
        }
        for token in &step.tokens {
            let id = token.leg.request.0;
            let live = self.live.get_mut(&id).expect("a live leg");
            live.tokens.push(token.token);
            let is_first = live.begun.is_none();
            let begun = *live.begun.get_or_insert(now);
            if is_first {
                self.ttft.push(now - live.arrived);
                self.known[live.rank].prefill -= live.own;
            }
            if token.finish.is_some() {
                let live = self.live.remove(&id).expect("a live leg");
                let output = self.trace.requests[id as usize].output;
                if output > 1 {
                    self.itl.push((now - begun) / f64::from(output - 1));
                }
                self.known[live.rank].legs -= 1;
                let prompt = &live.tokens[..live.prompt];
                self.policy.freed(live.rank, prompt, &mut self.hasher);
                if let Some(next) = self.next.remove(&(id as usize)) {
                    self.history.insert(next, live.tokens);
                    self.at(now + self.trace.requests[next].at, What::Arrives(next));
                }
            }
        }
        step.clear();
        self.ranks[at].step = step;
        self.step(at, now);
    }
}
