//! The adapter's pure parts, and all of it against the stand-in.

mod events;
mod handover;
mod lives;
mod misbehaviour;
mod request;
mod rows;
mod wishes;

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::ffi::{Capabilities, EngineOptions};
use super::{Adapter, AdapterConfig};
use crate::engine::blocks::HashKey;
use crate::engine::processors::Processors;
use crate::engine::{Engine, EngineError, Leg, Part, Sampling, StepOutput, TokenOut};
use crate::ids::{LegId, RequestId};

/// Longer than any of these tests should take.
const PATIENCE: Duration = Duration::from_secs(20);

fn config() -> AdapterConfig {
    AdapterConfig {
        engine: EngineOptions {
            engine_dir: std::env::temp_dir().to_string_lossy().into_owned(),
            ..Default::default()
        },
        context: 2048,
        max_input: 2047,
        model: 1,
        vocab: 512,
        block_tokens: 16,
        blocks: 1024,
        block_bytes: 65_536,
        max_running: 8,
        max_waiting: 100,
        hash_key: HashKey::default(),
        events: true,
        step_timeout: Duration::from_secs(60),
        handover: None,
        shutdown_timeout: Duration::from_secs(10),
        loras: Vec::new(),
    }
}

fn all_capabilities() -> Capabilities {
    Capabilities { prompt_ignore_length: true, cache_salt: true, ..Default::default() }
}

fn leg(request: u64, tokens: &[u32], max_tokens: u32) -> Leg {
    Leg {
        id: LegId { request: RequestId(request), choice: 0, attempt: 0 },
        tokens: tokens.to_vec(),
        prompt_len: tokens.len(),
        max_tokens,
        choice: 0,
        sampling: Arc::new(Sampling::default()),
        salt: 0,
        part: Part::Whole,
    }
}

fn with(leg: Leg, sampling: Sampling) -> Leg {
    Leg { sampling: Arc::new(sampling), ..leg }
}

fn open(config: AdapterConfig) -> Adapter {
    Adapter::open(config, Processors::default()).unwrap()
}

/// Steps until `enough` of all that was said; what the last step failed with.
fn until(
    engine: &mut Adapter,
    all: &mut StepOutput,
    enough: impl Fn(&StepOutput) -> bool,
) -> Result<(), EngineError> {
    let (end, mut out) = (Instant::now() + PATIENCE, StepOutput::default());
    while !enough(all) {
        assert!(Instant::now() < end, "too little was said: {all:?}");
        if !engine.has_work() {
            std::thread::yield_now();
            continue;
        }
        engine.step(&mut out)?;
        all.started.append(&mut out.started);
        all.tokens.append(&mut out.tokens);
        all.failed.append(&mut out.failed);
        all.kv_events.append(&mut out.kv_events);
        all.handed.append(&mut out.handed);
        all.fetched.append(&mut out.fetched);
        all.computed_tokens += out.computed_tokens;
    }
    Ok(())
}

/// Steps until so many legs have ended.
fn ended(engine: &mut Adapter, legs: usize) -> StepOutput {
    let mut all = StepOutput::default();
    let count = |all: &StepOutput| {
        all.failed.len() + all.tokens.iter().filter(|row| row.finish.is_some()).count()
    };
    until(engine, &mut all, |all| count(all) >= legs).unwrap();
    all
}

/// Steps until the engine is lost.
fn lost(engine: &mut Adapter) -> EngineError {
    until(engine, &mut StepOutput::default(), |_| false).unwrap_err()
}

fn tokens(all: &StepOutput, of: &Leg) -> Vec<u32> {
    rows(all, of).map(|row| row.token).collect()
}

fn rows<'a>(all: &'a StepOutput, of: &Leg) -> impl Iterator<Item = &'a TokenOut> {
    let id = of.id;
    all.tokens.iter().filter(move |row| row.leg == id)
}

/// All tokens of a leg, alone.
fn run(engine: &mut Adapter, leg: &Leg) -> Vec<TokenOut> {
    engine.admit(leg.clone()).unwrap();
    let all = ended(engine, 1);
    assert_eq!(all.failed, []);
    rows(&all, leg).cloned().collect()
}
