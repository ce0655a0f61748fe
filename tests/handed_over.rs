//! A prompt is prefilled by one engine and decoded by another, and its KV blocks go over a transport:
//! the tokens are those of one engine that does both, to the last one.
#![allow(clippy::unwrap_used)] // a test

mod native_support;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use cuelight::engine::blocks::HashKey;
use cuelight::engine::embedded::Embedded;
use cuelight::engine::native::{KvSize, NativeModel, Options};
use cuelight::engine::schedule::Limits;
use cuelight::engine::sim::{SimConfig, SimModel};
use cuelight::engine::{Engine, Leg, Part, Prefilled, PullOut, Sampling, StepOutput};
use cuelight::ids::{BlockId, LegId, RequestId};
use cuelight::kvxfer::local::Local;
use cuelight::kvxfer::tcp::{Listen, Tcp};
use cuelight::kvxfer::{self, Event, Pull, RegionId, Side, Sink, TransferId, Transport, plan};
use native_support::{options, repo};
use serde_json::Value;

const WAIT: Duration = Duration::from_secs(20);

fn limits() -> Limits {
    Limits { max_running: 4, max_waiting: 8, max_batch_tokens: 48, prefix_cache: true }
}

fn native(blocks: u32) -> Box<dyn Engine> {
    let options = Options { kv: KvSize::Blocks(blocks), ..options() };
    let model = NativeModel::load(&repo("models/cuelight-tiny"), options).unwrap();
    Box::new(Embedded::new(model, limits(), &HashKey::default()))
}

fn sim(blocks: u32) -> Box<dyn Engine> {
    let mut config = SimConfig { attend: true, ..SimConfig::default() };
    config.shape.blocks = blocks;
    Box::new(Embedded::new(SimModel::new(config), limits(), &HashKey::default()))
}

fn prompts() -> Vec<Vec<u32>> {
    let text = std::fs::read_to_string(repo("tests/fixtures/golden.json")).unwrap();
    let cases: Vec<Value> = serde_json::from_str(&text).unwrap();
    let ids = |case: &Value| -> Vec<u32> {
        case["prompt_ids"]
            .as_array()
            .unwrap()
            .iter()
            .map(|id| id.as_u64().unwrap() as u32)
            .collect()
    };
    cases.iter().map(ids).filter(|prompt| prompt.len() > 40).collect()
}

fn leg(request: u64, tokens: &[u32], part: Part) -> Leg {
    Leg {
        id: LegId { request: RequestId(request), choice: 0, attempt: 0 },
        prompt_len: tokens.len(),
        tokens: tokens.to_vec(),
        max_tokens: 24,
        choice: 0,
        sampling: Arc::new(Sampling { ignore_eos: true, ..Sampling::default() }),
        salt: 0,
        part,
    }
}

/// One side of a transport, with the pool of its engine.
struct Rank {
    engine: Box<dyn Engine>,
    transport: Box<dyn Transport>,
    events: Receiver<Event>,
    region: RegionId,
    tokens: Vec<u32>,
    prefilled: Vec<Prefilled>,
    pulls: Vec<PullOut>,
    computed: usize,
}

impl Rank {
    fn new(engine: Box<dyn Engine>, start: fn(Sink) -> Box<dyn Transport>) -> Self {
        let (to, events) = channel();
        let transport = start(Box::new(move |event| drop(to.send(event))));
        let pool = engine.kv_pool().unwrap();
        let region = transport.register(pool.memory, pool.layout).unwrap();
        let (prefilled, pulls) = (Vec::new(), Vec::new());
        Self {
            engine,
            transport,
            events,
            region,
            tokens: Vec::new(),
            prefilled,
            pulls,
            computed: 0,
        }
    }

    /// Steps until there is nothing more to do.
    fn run(&mut self) {
        let mut step = StepOutput::default();
        while self.engine.has_work() {
            self.engine.step(&mut step).unwrap();
            self.tokens.extend(step.tokens.iter().map(|row| row.token));
            for more in step.prefilled.drain(..) {
                match self.prefilled.last_mut().filter(|known| known.leg == more.leg) {
                    Some(known) => known.blocks.extend(more.blocks),
                    None => self.prefilled.push(more),
                }
            }
            self.pulls.append(&mut step.pulls);
            self.computed += step.computed_tokens;
        }
    }
}

fn local(sink: Sink) -> Box<dyn Transport> {
    Box::new(Local::start(kvxfer::Limits::default(), sink).unwrap())
}

fn tcp(sink: Sink) -> Box<dyn Transport> {
    let listen = Listen { bind: "127.0.0.1:0".parse().unwrap(), advertise: None };
    Box::new(Tcp::start(listen, kvxfer::Limits::default(), sink).unwrap())
}

/// Moves what `to` waits for; returns the bytes.
fn hand_over(from: &Rank, to: &mut Rank, id: u128) -> u64 {
    let (source, pull) = (&from.prefilled[0], to.pulls.pop().unwrap());
    let remote = from.engine.kv_pool().unwrap().layout;
    let here = to.engine.kv_pool().unwrap().layout;
    let granted = remote.ranges(&source.blocks).unwrap();
    let grant = from.transport.grant(from.region, &granted).unwrap();
    let peer = to.transport.connect(&from.transport.descriptor().unwrap()).unwrap();
    // Tables start at token 0; what the leg found here is not asked for.
    let first = pull.first as usize;
    let mut blocks = vec![BlockId(0); first];
    blocks.extend(&pull.blocks);
    let size = u64::from(here.block_tokens);
    let tokens = first as u64 * size..blocks.len() as u64 * size;
    let sides = [(&remote, &source.blocks), (&here, &blocks)];
    let [remote, here] = sides.map(|(layout, blocks)| Side { layout, blocks });
    let runs = plan(remote, here, tokens).unwrap();
    let (transfer, bytes) = (TransferId(id), runs.iter().map(|run| run.bytes).sum());
    let (remote, local) = (from.region, to.region);
    let timeout = WAIT;
    let pull_of = Pull { transfer, grant, peer, remote, local, runs, timeout, checksum: true };
    to.transport.pull(pull_of).unwrap();
    assert_eq!(to.events.recv_timeout(WAIT).unwrap(), Event::Done { transfer, bytes });
    to.engine.pulled(pull.leg, pull.blocks.len() as u32);
    from.transport.withdraw(grant);
    bytes
}

fn check(engine: fn(u32) -> Box<dyn Engine>, transport: fn(Sink) -> Box<dyn Transport>) {
    let mut whole = Rank::new(engine(64), local);
    let (mut prefill, mut decode) =
        (Rank::new(engine(80), transport), Rank::new(engine(64), transport));
    // Other legs first, so that no block has the same number on both sides.
    for (nth, prompt) in prompts().iter().enumerate() {
        let id = nth as u64;
        whole.engine.admit(leg(id, prompt, Part::Whole)).unwrap();
        whole.run();
        prefill.engine.admit(leg(id, prompt, Part::Prefill)).unwrap();
        prefill.run();
        let blocks = prefill.prefilled[0].blocks.len() as u32;
        assert_eq!(blocks, (prompt.len() as u32 - 1) / 16);
        decode.engine.admit(leg(id, prompt, Part::Decode { blocks })).unwrap();
        let computed = decode.computed;
        decode.run();
        if let Some(pull) = decode.pulls.last() {
            assert_eq!(decode.computed, computed, "it waits for its blocks");
            let (count, layout) = (pull.blocks.len(), decode.engine.kv_pool().unwrap().layout);
            let bytes = hand_over(&prefill, &mut decode, 1 + u128::from(id));
            assert_eq!(bytes, count as u64 * layout.block_bytes());
        }
        decode.run();
        assert_eq!(decode.tokens, whole.tokens, "prompt {nth}");
        let held = prefill.prefilled.pop().unwrap();
        prefill.engine.abort(held.leg);
    }
    assert!(decode.computed < whole.computed / 2, "{} and {}", decode.computed, whole.computed);
    for rank in [&prefill, &decode] {
        assert_eq!(rank.engine.load().blocks_used, 0);
    }
}

#[test]
fn the_simulated_engine_goes_on_from_blocks_of_another_one() {
    check(sim, local);
    check(sim, tcp);
}

#[test]
fn the_transformer_goes_on_from_blocks_of_another_one_to_the_same_token() {
    check(native, local);
    check(native, tcp);
}
