//! Whole lives of legs on the simulated model and on one that computes logits.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::engine::sample::random_bits;
use crate::engine::sim::{SimConfig, SimModel};
use crate::engine::{KvEvent, Sampling};
use crate::ids::RequestId;

/// Steps after which a test gives up: far more than its legs need.
const ENOUGH_STEPS: usize = 20_000;

fn sim(blocks: u32) -> SimConfig {
    let shape = Shape { context: 96, vocab: 64, block_tokens: 4, blocks, block_bytes: 1 };
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
}

impl LogitModel {
    fn new(blocks: u32) -> Self {
        let sim = SimModel::new(SimConfig { answers: 0..1 << 30, eos: None, ..sim(blocks) });
        Self { sim, logits: Vec::new(), poison: None, fail: false }
    }
}

impl Model for LogitModel {
    fn kind(&self) -> &'static str {
        "logits"
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
    findable: HashSet<crate::ids::BlockHash>,
    cached: HashMap<LegId, u32>,
    computed: usize,
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
            findable: HashSet::new(),
            cached: HashMap::new(),
            computed: 0,
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
        self.engine.scheduler.check().unwrap();
    }

    /// One step, and everything that must hold after it.
    fn step(&mut self) {
        self.engine.step(&mut self.out).unwrap();
        self.engine.scheduler.check().unwrap();
        assert_eq!(self.engine.has_work(), self.live.len() > self.out_ends());
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
                KvEvent::Stored { hash, parent } =>
                    parent.is_none_or(|parent| self.findable.contains(&parent))
                        && self.findable.insert(*hash),
                KvEvent::Removed { hash } => self.findable.remove(hash),
            });
        }
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

/// What a random life does: admit, step or abort.
#[derive(Clone, Debug)]
enum Op {
    Admit { which: usize, len: usize, output: usize, max_tokens: u32, min_tokens: u32, salt: u64 },
    Steps(usize),
    Abort(usize),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let admit = (0_usize..6, 1_usize..60, 0_usize..9, 1_u32..50, 0_u32..5, 0_u64..2).prop_map(
        |(which, len, output, max_tokens, min_tokens, salt)| Op::Admit {
            which,
            len,
            output,
            max_tokens,
            min_tokens,
            salt,
        },
    );
    let op = prop_oneof![
        4 => admit,
        3 => (1_usize..8).prop_map(Op::Steps),
        1 => any::<prop::sample::Index>().prop_map(|index| Op::Abort(index.index(1000))),
    ];
    prop::collection::vec(op, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn every_leg_ends_once_with_the_right_tokens_whatever_happens_around_it(
        ops in ops(),
        blocks in 8_u32..60,
        max_running in 1_usize..9,
        max_batch_tokens in 1_usize..40,
        prefix_cache in any::<bool>(),
    ) {
        let config = sim(blocks);
        let limits = Limits { prefix_cache, ..limits(max_running, max_batch_tokens) };
        let mut driver = Driver::new(SimModel::new(config.clone()), limits);
        let mut legs = HashMap::new();
        for (i, op) in ops.into_iter().enumerate() {
            match op {
                Op::Admit { which, len, output, max_tokens, min_tokens, salt } => {
                    let sampling = Sampling { min_tokens, eos_ids: vec![2], ..Sampling::default() };
                    let mut leg =
                        leg(i as u64, prompt(which, len), max_tokens, &Arc::new(sampling));
                    leg.prompt_len = len.saturating_sub(output).max(1);
                    leg.salt = salt;
                    if driver.admit(leg.clone()).is_ok() {
                        legs.insert(leg.id, leg);
                    }
                }
                Op::Steps(count) => (0..count).for_each(|_| driver.step()),
                Op::Abort(index) => {
                    let mut live: Vec<_> = driver.live.iter().copied().collect();
                    live.sort();
                    if let Some(&id) = live.get(index % live.len().max(1)) {
                        driver.abort(id);
                        legs.remove(&id);
                    }
                }
            }
        }
        driver.run();
        for (id, leg) in legs {
            let (tokens, finish) = expected(&config, &leg);
            prop_assert_eq!(&driver.outputs[&id], &tokens, "{:?}", leg);
            prop_assert_eq!(driver.ends[&id], finish, "{:?}", leg);
        }
    }
}

/// Legs with sampling of all kinds.
fn sampled_legs() -> Vec<Leg> {
    let base = Sampling { temperature: 0.9, seed: 5, eos_ids: vec![2], ..Sampling::default() };
    let kinds = [
        Sampling::default(),
        base.clone(),
        Sampling { top_k: 5, top_p: 0.9, min_p: 0.02, ..base.clone() },
        Sampling { presence_penalty: 1.0, frequency_penalty: 0.5, ..base.clone() },
        Sampling { repetition_penalty: 1.4, temperature: 0.0, ..base.clone() },
        Sampling { logprobs: Some(3), min_tokens: 10, stop_token_ids: vec![5, 6], ..base },
    ];
    let legs = kinds.into_iter().map(Arc::new).zip(1..);
    legs.map(|(sampling, i)| leg(i, prompt(i as usize, 20 + i as usize), 40, &sampling)).collect()
}

fn outputs_of(blocks: u32, limits: Limits, legs: Vec<Leg>) -> (HashMap<LegId, Vec<u32>>, u64) {
    let mut driver = Driver::new(LogitModel::new(blocks), limits);
    legs.into_iter().for_each(|leg| driver.admit(leg).unwrap());
    driver.run();
    assert_eq!(driver.failed, []);
    (driver.outputs, driver.engine.load().preemptions)
}

#[test]
fn sampled_tokens_do_not_depend_on_batch_chunks_or_preemption() {
    let (alone, none) = outputs_of(400, limits(1, 400), sampled_legs());
    let (crowded, some) = outputs_of(24, limits(6, 7), sampled_legs());
    assert_eq!(alone, crowded);
    assert!(none == 0 && some > 0, "{none} and {some} preemptions");
}

#[test]
fn a_leg_resumed_at_any_token_goes_on_as_if_nothing_had_happened() {
    let (whole, _) = outputs_of(400, limits(8, 400), sampled_legs());
    for leg in sampled_legs() {
        let output = &whole[&leg.id];
        for cut in 1..output.len() {
            let mut resumed = leg.clone();
            resumed.tokens.extend_from_slice(&output[..cut]);
            let (rest, _) = outputs_of(400, limits(8, 400), vec![resumed]);
            assert_eq!(rest[&leg.id], output[cut..], "{:?} cut at {cut}", leg.sampling);
        }
    }
}

#[test]
fn choices_of_one_prompt_differ_and_share_its_blocks() {
    let sampling = Arc::new(Sampling { temperature: 1.0, ..Sampling::default() });
    let mut driver = Driver::new(LogitModel::new(64), limits(8, 64));
    for choice in 0..4 {
        let mut leg = leg(choice, prompt(0, 22), 8, &sampling);
        leg.choice = choice as u32;
        driver.admit(leg).unwrap();
    }
    driver.run();
    let distinct: HashSet<_> = driver.outputs.values().collect();
    assert_eq!(distinct.len(), 4);
    assert_eq!(driver.cached.values().sum::<u32>(), 3 * 20);
    assert_eq!(driver.computed, 22 + 3 * 2 + 4 * 7, "the prompt is computed once");
}

#[test]
fn legs_cancelled_at_random_moments_leave_nothing_behind() {
    for seed in 0..200 {
        let mut driver = Driver::new(LogitModel::new(40), limits(4, 16));
        let legs = sampled_legs();
        for leg in legs.clone() {
            driver.admit(leg).unwrap();
        }
        for (i, leg) in legs.iter().enumerate() {
            for _ in 0..random_bits(seed, 0, i as u64) % 12 {
                driver.step();
            }
            driver.abort(leg.id);
        }
        driver.run();
        assert_eq!(driver.engine.load().blocks_used, 0, "seed {seed}");
        assert!(driver.engine.histories.iter().all(Option::is_none), "seed {seed}");
    }
}

#[test]
fn the_oldest_running_leg_advances_in_every_step() {
    let mut driver = Driver::new(SimModel::new(SimConfig { eos: None, ..sim(24) }), limits(8, 9));
    for request in 0..40 {
        driver.admit(leg(request, prompt(request as usize, 30), 60, &greedy())).unwrap();
    }
    let mut oldest_done = 0;
    while driver.engine.has_work() {
        let before = driver.engine.scheduler.oldest_running();
        driver.step();
        if let Some((slot, id)) = before {
            let planned = driver.engine.scheduler.planned();
            assert!(planned.iter().any(|one| one.slot == slot), "{id} stood still");
            oldest_done += 1;
        }
    }
    assert!(oldest_done > 100 && driver.engine.load().preemptions > 0);
    assert_eq!(driver.ends.len(), 40);
}

#[test]
fn legs_end_at_eos_stop_ids_max_tokens_and_the_end_of_the_context() {
    let config = SimConfig { answers: 9..10, eos: None, ..sim(64) };
    let always = |sampling: Sampling, len, max_tokens| {
        let mut driver = Driver::new(SimModel::new(config.clone()), limits(4, 64));
        driver.admit(leg(1, prompt(0, len), max_tokens, &Arc::new(sampling))).unwrap();
        driver.run();
        (driver.outputs[&id(1)].len(), driver.ends[&id(1)])
    };
    let eos = Sampling { eos_ids: vec![9], ..Sampling::default() };
    let stop = Sampling { stop_token_ids: vec![9], ..Sampling::default() };
    let cases = [
        (Sampling::default(), 5, 7, 7, FinishReason::Length),
        (Sampling::default(), 90, 50, 6, FinishReason::Length),
        (eos.clone(), 5, 7, 1, FinishReason::Stop),
        (Sampling { min_tokens: 3, ..eos.clone() }, 5, 7, 4, FinishReason::Stop),
        (Sampling { ignore_eos: true, ..eos }, 5, 7, 7, FinishReason::Length),
        (Sampling { ignore_eos: true, ..stop.clone() }, 5, 7, 1, FinishReason::Stop),
        (Sampling { min_tokens: 6, ..stop }, 5, 7, 7, FinishReason::Stop),
    ];
    for (sampling, len, max_tokens, want, finish) in cases {
        let got = always(sampling.clone(), len, max_tokens);
        assert_eq!(got, (want, finish), "{sampling:?} {len} {max_tokens}");
    }
}

#[test]
fn bad_numbers_end_their_leg_and_no_other() {
    let mut model = LogitModel::new(64);
    model.poison = Some(3);
    let mut driver = Driver::new(model, limits(8, 64));
    for request in 0..30 {
        driver.admit(leg(request, vec![request as u32; 5], 20, &greedy())).unwrap();
    }
    driver.run();
    assert!(!driver.failed.is_empty() && !driver.ends.is_empty());
    assert_eq!(driver.failed.len() + driver.ends.len(), 30);
}

#[test]
fn a_failed_forward_pass_loses_the_engine() {
    let mut engine = Embedded::new(LogitModel::new(64), limits(8, 64), &HashKey::default());
    engine.admit(leg(1, prompt(0, 5), 9, &greedy())).unwrap();
    engine.model.fail = true;
    let mut out = StepOutput::default();
    let error = engine.step(&mut out).unwrap_err();
    assert_eq!(error.reach(), crate::engine::Reach::Engine);
    engine.model.fail = false;
    assert_eq!(engine.step(&mut out), Err(error.clone()), "it stays lost");
    assert_eq!(engine.admit(leg(2, prompt(0, 5), 9, &greedy())), Err(error));
}

#[test]
fn corrupted_kv_gives_other_tokens() {
    let config = SimConfig { eos: None, ..sim(64) };
    let mut driver = Driver::new(SimModel::new(config.clone()), limits(8, 64));
    let leg = leg(1, prompt(0, 20), 30, &greedy());
    driver.admit(leg.clone()).unwrap();
    driver.step();
    (0..64).for_each(|block| driver.engine.model.corrupt(crate::ids::BlockId(block)));
    driver.run();
    assert_ne!(driver.outputs[&leg.id], expected(&config, &leg).0);
}
