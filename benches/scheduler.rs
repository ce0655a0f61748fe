//! What the engine costs around its model, in ns: `cargo bench --bench scheduler [-- --quick]`.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use cuelight::engine::blocks::{BlockHasher, HashKey};
use cuelight::engine::embedded::Embedded;
use cuelight::engine::model::Shape;
use cuelight::engine::sample::{Position, Sampler, random_bits};
use cuelight::engine::schedule::Limits;
use cuelight::engine::sim::{SimConfig, SimModel};
use cuelight::engine::{Engine, Leg, Part, Sampling, StepOutput};
use cuelight::ids::{LegId, RequestId};

/// Median seconds of one call, over `rounds` rounds.
fn median(rounds: usize, mut call: impl FnMut()) -> f64 {
    let mut times: Vec<f64> = (0..rounds)
        .map(|_| {
            let start = Instant::now();
            call();
            start.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn leg(request: u64, prompt: usize, max_tokens: u32, sampling: &Arc<Sampling>) -> Leg {
    let tokens =
        (0..prompt as u32).map(|i| if i == 0 { request as u32 % 4096 } else { i }).collect();
    Leg {
        id: LegId { request: RequestId(request), choice: 0, attempt: 0 },
        tokens,
        prompt_len: prompt,
        max_tokens,
        choice: 0,
        sampling: Arc::clone(sampling),
        salt: 0,
        part: Part::Whole,
    }
}

fn steps(legs: usize, prompt: usize, rounds: usize) {
    let shape = Shape {
        context: 8192,
        vocab: 4096,
        block_tokens: 16,
        blocks: 1 << 18,
        block_bytes: 128,
        host_blocks: 0,
    };
    let config = SimConfig { shape, ..SimConfig::default() };
    let limits = Limits { max_running: legs, max_batch_tokens: 1 << 20, ..Limits::default() };
    let mut engine = Embedded::new(SimModel::new(config), limits, &HashKey::default());
    let sampling = Arc::new(Sampling { eos_ids: vec![2], ..Sampling::default() });
    for request in 0..legs as u64 {
        engine.admit(leg(request, prompt, 1 << 20, &sampling)).expect("room for all");
    }
    let mut out = StepOutput::default();
    engine.step(&mut out).expect("a step");
    let seconds = median(rounds, || {
        engine.step(&mut out).expect("a step");
        black_box(&out);
    });
    assert_eq!(out.tokens.len(), legs);
    let each = seconds * 1e9 / legs as f64;
    println!("step          {legs:5} legs of {prompt:5} tokens  {each:9.1} ns a leg");
}

fn lives(rounds: usize) {
    let mut engine =
        Embedded::new(SimModel::new(SimConfig::default()), Limits::default(), &HashKey::default());
    let sampling = Arc::new(Sampling { eos_ids: vec![2], ..Sampling::default() });
    let mut out = StepOutput::default();
    let mut next = 0;
    let seconds = median(rounds, || {
        for _ in 0..256 {
            engine.admit(leg(next, 32, 128, &sampling)).expect("room");
            next += 1;
        }
        while engine.has_work() {
            engine.step(&mut out).expect("a step");
        }
    });
    let each = seconds * 1e9 / (256.0 * 128.0);
    println!("whole lives     256 legs, 32 in, 128 out  {each:9.1} ns a token");
}

fn hashes(rounds: usize) {
    let tokens: Vec<u32> = (0..8192).collect();
    let mut hasher = BlockHasher::new(&HashKey::default(), 16);
    let mut out = Vec::new();
    let seconds = median(rounds, || {
        out.clear();
        hasher.extend(black_box(&tokens), 0, &mut out);
        black_box(&out);
    });
    println!("hash          8192 tokens in blocks of 16  {:9.2} us", seconds * 1e6);
}

fn samples(vocab: usize, name: &str, spread: f32, sampling: &Sampling, rounds: usize) {
    let uniform = |i: usize, j| random_bits(1, j, i as u64) as f32 / u64::MAX as f32;
    // About normal: the sum of four uniform numbers.
    let normal = |i| (0..4).map(|j| uniform(i, j)).sum::<f32>() - 2.0;
    let logits: Vec<f32> = (0..vocab).map(|i| spread * 1.73 * normal(i)).collect();
    let mut row = logits.clone();
    let mut sampler = Sampler::default();
    let mut index = 0;
    let seconds = median(rounds, || {
        let position = Position { choice: 0, index };
        black_box(sampler.sample(&mut row, sampling, None, position).expect("good numbers"));
        index += 1;
    });
    println!("sample        vocab {vocab:6} {name:22} {:9.2} us", seconds * 1e6);
}

fn main() {
    let rounds = if std::env::args().any(|arg| arg == "--quick") { 50 } else { 500 };
    for legs in [1, 64, 256, 1024] {
        steps(legs, 128, 4 * rounds);
    }
    steps(256, 2048, rounds);
    lives(rounds / 10);
    hashes(rounds * 10);
    let warm = Sampling { temperature: 0.8, ..Sampling::default() };
    for vocab in [4_096, 128_256] {
        let with =
            |name, spread, sampling: Sampling| samples(vocab, name, spread, &sampling, rounds);
        with("greedy", 3.0, Sampling::default());
        with("temperature", 3.0, warm.clone());
        with("top_p 0.95", 3.0, Sampling { top_p: 0.95, ..warm.clone() });
        with("top_p 0.95, flat", 0.5, Sampling { top_p: 0.95, ..warm.clone() });
        with("top_k 50", 3.0, Sampling { top_k: 50, ..warm.clone() });
        with("top_k 50, top_p 0.95", 3.0, Sampling { top_k: 50, top_p: 0.95, ..warm.clone() });
        with("min_p 0.05", 3.0, Sampling { min_p: 0.05, ..warm.clone() });
        with("greedy, 20 logprobs", 3.0, Sampling { logprobs: Some(20), ..Sampling::default() });
    }
}
