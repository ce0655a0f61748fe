//! A driver that checks an engine after every step, and the models and legs it runs.

mod lives;
mod parts;
mod random;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::*;
use crate::engine::PullOut;
use crate::engine::sample::random_bits;
use crate::engine::sim::{SimConfig, SimModel};
use crate::engine::{KvEvent, Part, Sampling, Tier};
use crate::ids::{BlockId, RequestId};

/// Steps after which a test gives up: far more than its legs need.
const ENOUGH_STEPS: usize = 20_000;

fn sim(blocks: u32) -> SimConfig {
    sim_with_host(blocks, 0)
}

fn sim_with_host(blocks: u32, host_blocks: u32) -> SimConfig {
    let shape =
        Shape { context: 96, vocab: 64, block_tokens: 4, blocks, block_bytes: 1, host_blocks };
    SimConfig { shape, answers: 8..64, eos: Some((2, 40)), attend: true, ..SimConfig::default() }
}

/// A model of logits: 64 of them, a function of the text so far.
#[derive(Debug)]
struct LogitModel {
    sim: SimModel,
    logits: Vec<f32>,
    /// Token that makes a row NaN when it is what the simulated model would say.
    poison: Option<u32>,
    fail: bool,
    /// All tokens are equally likely.
    flat: bool,
}

impl LogitModel {
    fn new(blocks: u32) -> Self {
        let sim = SimModel::new(SimConfig { answers: 0..1 << 30, eos: None, ..sim(blocks) });
        Self { sim, logits: Vec::new(), poison: None, fail: false, flat: false }
    }
}

impl Model for LogitModel {
    fn kind(&self) -> &'static str {
        "logits"
    }

    fn fingerprint(&self) -> u64 {
        0
    }

    fn shape(&self) -> Shape {
        self.sim.shape()
    }

    fn forward(&mut self, batch: &Batch) -> Result<Produced<'_>, EngineError> {
        if self.fail {
            return Err(EngineError::EmptyPrompt); // nothing a model should say here
        }
        self.logits.clear();
        let Produced::Tokens(names) = self.sim.forward(batch)? else { panic!("sim gives tokens") };
        for &name in names {
            let bits = |i| random_bits(name.into(), 0, i) >> 40;
            self.logits.extend((0..64).map(|i| bits(i) as f32 / (1 << 21) as f32));
            if self.flat {
                self.logits.fill(0.0);
            }
            if self.poison.is_some_and(|poison| name % 64 == poison) {
                *self.logits.last_mut().unwrap() = f32::NAN;
            }
        }
        Ok(Produced::Logits(&mut self.logits))
    }
}

/// An engine and everything it ever said about each leg.
struct Driver<M: Model> {
    engine: Embedded<M>,
    out: StepOutput,
    live: HashSet<LegId>,
    outputs: HashMap<LegId, Vec<u32>>,
    ends: HashMap<LegId, FinishReason>,
    failed: Vec<(LegId, EngineError)>,
    findable: HashMap<crate::ids::BlockHash, Tier>,
    cached: HashMap<LegId, u32>,
    computed: usize,
    /// Blocks that are being fetched.
    pulls: Vec<PullOut>,
    /// What prefills have told.
    held: HashMap<LegId, Vec<BlockId>>,
}

impl<M: Model> Driver<M> {
    fn new(model: M, limits: Limits) -> Self {
        Self {
            engine: Embedded::new(model, limits, &HashKey::default()),
            out: StepOutput::default(),
            live: HashSet::new(),
            outputs: HashMap::new(),
            ends: HashMap::new(),
            failed: Vec::new(),
            findable: HashMap::new(),
            cached: HashMap::new(),
            computed: 0,
            pulls: Vec::new(),
            held: HashMap::new(),
        }
    }

    fn admit(&mut self, leg: Leg) -> Result<(), EngineError> {
        let id = leg.id;
        self.engine.admit(leg)?;
        self.live.insert(id);
        Ok(())
    }

    fn abort(&mut self, id: LegId) {
        self.engine.abort(id);
        self.live.remove(&id);
        self.held.remove(&id);
        self.engine.scheduler.check().unwrap();
    }

    /// One step, and everything that must hold after it.
    fn step(&mut self) {
        self.engine.step(&mut self.out).unwrap();
        self.engine.scheduler.check().unwrap();
        let ends = self.out_ends();
        if self.pulls.is_empty() && self.held.is_empty() {
            assert_eq!(self.engine.has_work() || self.out.has_parts(), self.live.len() > ends);
        }
        for token in self.out.tokens.drain(..) {
            assert!(self.live.contains(&token.leg), "{} has ended or never was", token.leg);
            self.outputs.entry(token.leg).or_default().push(token.token);
            if let Some(finish) = token.finish {
                self.live.remove(&token.leg);
                assert_eq!(self.ends.insert(token.leg, finish), None);
            }
        }
        for (leg, error) in self.out.failed.drain(..) {
            assert!(self.live.remove(&leg), "{leg} has ended or never was");
            self.failed.push((leg, error));
        }
        for started in &self.out.started {
            assert_eq!(self.cached.insert(started.leg, started.cached_tokens), None);
        }
        for event in &self.out.kv_events {
            assert!(match event {
                KvEvent::Stored { hash, parent, tier } =>
                    parent.is_none_or(|parent| self.findable.contains_key(&parent))
                        && self.findable.insert(*hash, *tier) != Some(*tier),
                KvEvent::Removed { hash } => self.findable.remove(hash).is_some(),
            });
        }
        self.pulls.append(&mut self.out.pulls);
        for done in self.out.prefilled.drain(..) {
            assert!(self.live.contains(&done.leg), "{} has ended or never was", done.leg);
            let held = self.held.entry(done.leg).or_default();
            held.extend(done.blocks);
            let all = self.engine.scheduler.table(done.leg).unwrap().len();
            assert_eq!(held.len() + done.missing as usize, all, "{}", done.leg);
        }
        for (leg, told) in &self.held {
            let table = self.engine.scheduler.table(*leg).unwrap();
            assert_eq!(told, &table[..told.len()], "{leg}: others may read these blocks");
        }
        let mut cached = Vec::new();
        self.engine.cached_blocks(&mut cached);
        assert_eq!(cached.into_iter().collect::<HashMap<_, _>>(), self.findable);
        self.computed += self.out.computed_tokens;
    }

    fn out_ends(&self) -> usize {
        let finished = self.out.tokens.iter().filter(|token| token.finish.is_some()).count();
        finished + self.out.failed.len()
    }

    fn run(&mut self) {
        for _ in 0..ENOUGH_STEPS {
            if !self.engine.has_work() {
                let load = self.engine.load();
                assert_eq!((load.running, load.waiting, load.blocks_used), (0, 0, 0));
                assert!(self.live.is_empty(), "lost: {:?}", self.live);
                return;
            }
            self.step();
        }
        panic!("no end after {ENOUGH_STEPS} steps: {:?}", self.live);
    }
}

fn limits(max_running: usize, max_batch_tokens: usize) -> Limits {
    Limits { max_running, max_waiting: 1000, max_batch_tokens, prefix_cache: true }
}

fn id(request: u64) -> LegId {
    LegId { request: RequestId(request), choice: 0, attempt: 0 }
}

fn leg(request: u64, tokens: Vec<u32>, max_tokens: u32, sampling: &Arc<Sampling>) -> Leg {
    Leg {
        id: id(request),
        prompt_len: tokens.len(),
        tokens,
        max_tokens,
        choice: 0,
        sampling: Arc::clone(sampling),
        salt: 0,
        part: Part::Whole,
    }
}

fn greedy() -> Arc<Sampling> {
    Arc::new(Sampling { eos_ids: vec![2], ..Sampling::default() })
}

/// What the simulated model says, by definition.
fn expected(config: &SimConfig, leg: &Leg) -> (Vec<u32>, FinishReason) {
    let mut tokens = leg.tokens.clone();
    loop {
        let token = config.next_token(&tokens);
        tokens.push(token);
        let output = tokens.len() - leg.prompt_len;
        let finish = if token == 2 && output > leg.sampling.min_tokens as usize {
            FinishReason::Stop
        } else if output >= leg.max_tokens as usize || tokens.len() >= config.shape.context {
            FinishReason::Length
        } else {
            continue;
        };
        return (tokens.split_off(leg.tokens.len()), finish);
    }
}

/// One of a few prompts that share prefixes.
fn prompt(which: usize, len: usize) -> Vec<u32> {
    (0..len).map(|i| ((i * 7 + if i < 11 { 0 } else { which % 3 }) % 64) as u32).collect()
}

impl StepOutput {
    fn has_parts(&self) -> bool {
        !self.pulls.is_empty() || !self.prefilled.is_empty()
    }
}
