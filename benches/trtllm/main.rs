//! CPU time of the adapter and the shim for each token, over a stand-in whose own time is taken off.
//!
//! `cargo bench --bench trtllm --features trtllm-standin`. The stand-in sleeps between steps, so that its own work
//! and ours do not share a step; what all threads take is measured, once with the adapter and once with
//! requests that ask for nothing to be told before the end, which costs the stand-in the same.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cuelight::engine::blocks::HashKey;
use cuelight::engine::processors::Processors;
use cuelight::engine::trtllm::adapter::{Adapter, AdapterConfig};
use cuelight::engine::trtllm::ffi::{EngineOptions, LogitsOf, Output, RequestOptions, open};
use cuelight::engine::trtllm::hook::{LogitsHook, OnLogits};
use cuelight::engine::trtllm::standin::{self, SourceRow, TokenSource};
use cuelight::engine::{Engine, Leg, Part, Sampling, StepOutput};
use cuelight::ids::{LegId, RequestId};
use rustix::time::{ClockId, clock_gettime};

const TOKENS: u32 = 400;
const PROMPT: u32 = 32;
const ROUNDS: usize = 5;

fn main() {
    if std::env::args().any(|argument| argument == "--list") {
        return;
    }
    standin::tokens_from(Box::new(Same));
    for (key, value) in [
        ("step_us", "500"),
        ("max_batch_size", "512"),
        ("blocks", "65536"),
        ("max_num_tokens", "65536"),
    ] {
        standin::set(key, value).expect("an option of the stand-in");
    }
    println!(
        "CPU time of the whole process for each token, in microseconds, median of {ROUNDS}:\n"
    );
    println!("| legs | silent requests | adapter | difference |\n|---|---|---|---|");
    for legs in [1, 16, 64, 256] {
        let silent = median((0..ROUNDS).map(|_| silent(legs)));
        let adapter = median((0..ROUNDS).map(|_| adapter(legs)));
        println!("| {legs} | {silent:.2} | {adapter:.2} | {:.2} |", adapter - silent);
    }
}

/// The cheapest source that there is.
struct Same;

impl TokenSource for Same {
    fn forward(&self, _: &str, rows: &mut [SourceRow<'_>]) -> bool {
        rows.iter_mut().for_each(|row| row.token = 7);
        true
    }

    fn forget(&self, _: &str, _: u64) {}
}

struct Nothing;

impl OnLogits for Nothing {
    fn on_logits(&self, _: &str, _: LogitsOf, _: &[i32], _: &mut [f32]) {}
    fn on_panic(&self, _: LogitsOf, _: String) {}
}

fn options() -> EngineOptions {
    EngineOptions {
        engine_dir: std::env::temp_dir().to_string_lossy().into_owned(),
        vocab_size: 512,
        max_batch_size: 512.into(),
        max_num_tokens: 65_536.into(),
        ..Default::default()
    }
}

/// Microseconds a token of requests that answer once, at their end.
fn silent(legs: u32) -> f64 {
    let engine = open(&options(), Box::new(LogitsHook(Some(Box::new(Nothing)))), true);
    let engine = engine.expect("the stand-in opens");
    let tokens: Vec<i32> = (0..PROMPT as i32).collect();
    let request = RequestOptions {
        tokens,
        max_tokens: TOKENS as i32,
        streaming: false,
        ..Default::default()
    };
    let began = cpu();
    for _ in 0..legs {
        engine.enqueue(&request).expect("it is taken");
    }
    let (mut out, mut ended) = (Output::default(), 0);
    while ended < legs {
        engine.poll(20, &mut out).expect("it goes on");
        ended += out.rows.iter().filter(|row| row.is_final).count() as u32;
    }
    let used = cpu() - began;
    engine.shutdown().expect("it ends");
    each(used, legs)
}

/// Microseconds a token of legs in the adapter, driven as a rank does.
fn adapter(legs: u32) -> f64 {
    let config = AdapterConfig {
        engine: options(),
        context: 2048,
        max_input: 2047,
        model: 0,
        vocab: 512,
        block_tokens: 16,
        blocks: 65_536,
        block_bytes: 0,
        max_running: 512,
        max_waiting: 1024,
        hash_key: HashKey::default(),
        events: true,
        step_timeout: Duration::from_secs(30),
        handover: None,
        shutdown_timeout: Duration::from_secs(10),
        loras: Vec::new(),
    };
    let mut engine = Adapter::open(config, Processors::default()).expect("the stand-in opens");
    let (ready, news) = std::sync::mpsc::channel();
    engine.on_ready(Arc::new(move || ready.send(()).unwrap_or_default()));
    let sampling = Arc::new(Sampling::default());
    let began = cpu();
    for request in 0..legs {
        let leg = Leg {
            id: LegId { request: RequestId(request.into()), choice: 0, attempt: 0 },
            tokens: (0..PROMPT).collect(),
            prompt_len: PROMPT as usize,
            max_tokens: TOKENS,
            choice: 0,
            sampling: sampling.clone(),
            salt: 0,
            part: Part::Whole,
        };
        engine.admit(leg).expect("it is taken");
    }
    let (mut out, mut ended, start) = (StepOutput::default(), 0, Instant::now());
    while ended < legs {
        news.recv_timeout(Duration::from_secs(5)).expect("news");
        engine.step(&mut out).expect("it goes on");
        ended += out.tokens.iter().filter(|row| row.finish.is_some()).count() as u32;
        assert!(start.elapsed() < Duration::from_secs(60), "it takes too long");
    }
    each(cpu() - began, legs)
}

fn each(used: f64, legs: u32) -> f64 {
    used * 1e6 / f64::from(legs * TOKENS)
}

/// Seconds of CPU time that the process has taken.
fn cpu() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn median(of: impl Iterator<Item = f64>) -> f64 {
    let mut all: Vec<f64> = of.collect();
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}
