//! The measurements and their table.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cuelight::engine::model::{Batch, Model, Span};
use cuelight::engine::native::{KvSize, NativeModel, Options, Precision};
use cuelight::ids::BlockId;

use crate::checkpoint::Llama;
use crate::machine;

/// Tokens in the prefill that is measured.
pub(crate) const PREFILL: usize = 512;
/// Tokens in the context of the decode steps that are measured.
const CONTEXT: usize = 128;
/// Sequences in the larger decode batch.
const MANY: usize = 16;
/// Tokens in a KV block.
const BLOCK: usize = 16;

/// What to measure.
pub(crate) struct Setup {
    pub(crate) llama: Llama,
    pub(crate) quick: bool,
    pub(crate) threads: usize,
    pub(crate) model: Option<PathBuf>,
}

/// A directory that is removed in the end.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Measures everything and prints the table.
pub(crate) fn run(setup: &Setup) {
    let Setup { llama, threads, quick, .. } = setup;
    let (_scratch, dir) = match &setup.model {
        Some(dir) => (None, dir.clone()),
        None => {
            let dir = std::env::temp_dir().join(format!("cuelight-bench-{}", std::process::id()));
            llama.write(&dir).expect("cannot write the checkpoint");
            (Some(Scratch(dir.clone())), dir)
        }
    };
    println!("{} parameters, BF16, {threads} threads", llama.parameters());
    let bytes = if *quick { 1 << 26 } else { 1 << 30 };
    let bandwidth = machine::read_bandwidth(*threads, bytes);
    line("memory read, all threads", format!("{:.1} GB/s", bandwidth / 1e9), "");
    let peer = machine::peer_rate(*threads, PREFILL, &llama.products());
    line("peer: gemm crate, F32, 512 rows", gflops(peer), "the layer's four shapes");
    if let Some(peak) = machine::fma_peak(*threads) {
        line("FMA loop, F32", gflops(peak), "");
    }
    if let Some(peak) = machine::dot_peak(*threads) {
        line("product loop, BF16", gflops(peak), "");
    }
    for precision in [Precision::Weights, Precision::F32] {
        println!("inputs of products: {precision:?}");
        model(setup, &mut Engine::load(&dir, *threads, precision), (bandwidth, peer));
    }
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/cuelight-tiny");
    println!("cuelight-tiny");
    let mut tiny = Engine::load(&shipped, *threads, Precision::Weights);
    for batch in [1, MANY] {
        line(&format!("decode, batch {batch}"), rate(batch, tiny.decode(batch, 20)), "");
    }
    line(&format!("prefill, {PREFILL} tokens"), rate(PREFILL, tiny.prefill(3)), "");
}

/// Measures decode and prefill of the large model.
fn model(setup: &Setup, engine: &mut Engine, (bandwidth, peer): (f64, f64)) {
    let Setup { llama, quick, .. } = setup;
    let rounds = if *quick { 3 } else { 15 };
    let one = engine.decode(1, rounds);
    let weights = 2 * (llama.layer_weights() + llama.vocab_weights());
    let kv = CONTEXT * llama.layers * 2 * llama.kv_heads * llama.head_dim * 4;
    let read = (weights + kv) as f64 / one.as_secs_f64();
    let share =
        format!("{:.0} % of the memory's {:.1} GB/s", 100.0 * read / bandwidth, bandwidth / 1e9);
    line("decode, batch 1", rate(1, one), &format!("{:.1} GB/s, {share}", read / 1e9));
    for batch in [2, 4, 8, MANY] {
        let step = engine.decode(batch, rounds);
        let flops = 2.0 * (batch * (llama.layer_weights() + llama.vocab_weights())) as f64;
        let gain = batch as f64 * one.as_secs_f64() / step.as_secs_f64();
        let detail = format!("{gain:.2} × batch 1, {}", gflops(flops / step.as_secs_f64()));
        line(&format!("decode, batch {batch}"), rate(batch, step), &detail);
    }
    let prefill = engine.prefill(if *quick { 1 } else { 4 });
    let flops = 2.0 * (PREFILL * llama.layer_weights()) as f64 / prefill.as_secs_f64();
    let detail = format!("{} in layers, {:.0} % of the peer", gflops(flops), 100.0 * flops / peer);
    line(&format!("prefill, {PREFILL} tokens"), rate(PREFILL, prefill), &detail);
}

fn line(what: &str, value: String, detail: &str) {
    println!("  {what:34} {value:>30}   {detail}");
}

fn gflops(rate: f64) -> String {
    format!("{:.1} GFLOP/s", rate / 1e9)
}

fn rate(tokens: usize, time: Duration) -> String {
    let ms = 1e3 * time.as_secs_f64();
    format!("{ms:.2} ms, {:.1} token/s", tokens as f64 / time.as_secs_f64())
}

/// The native engine, and how long its steps take.
pub(crate) struct Engine {
    model: NativeModel,
}

impl Engine {
    pub(crate) fn load(dir: &Path, threads: usize, precision: Precision) -> Self {
        let kv = KvSize::Blocks((MANY * PREFILL / BLOCK) as u32);
        let start = Instant::now();
        let options = Options { threads, kv, precision, ..Options::default() };
        let model = NativeModel::load(dir, options).unwrap_or_else(|e| panic!("{e}"));
        line(
            "load",
            format!("{:.1} ms", 1e3 * start.elapsed().as_secs_f64()),
            "files in the page cache",
        );
        Self { model }
    }

    /// Runs `rows` tokens from `start` of each of `count` sequences; gives the time it took.
    pub(crate) fn pass(&mut self, count: usize, start: usize, rows: usize) -> Duration {
        let mut batch = Batch::default();
        let vocab = self.model.shape().vocab as u32;
        for sequence in 0..count {
            let blocks = (start + rows).div_ceil(BLOCK);
            batch.spans.push(Span {
                first_row: batch.tokens.len(),
                rows,
                start,
                first_block: batch.blocks.len(),
                blocks,
                wants_logits: true,
            });
            let first = sequence * PREFILL / BLOCK;
            batch.blocks.extend((first..first + blocks).map(|block| BlockId(block as u32)));
            let token = |i: usize| (7 * i + 13 * sequence) as u32 % vocab;
            batch.tokens.extend((start..start + rows).map(token));
        }
        let clock = Instant::now();
        self.model.forward(&batch).unwrap_or_else(|e| panic!("{e}"));
        clock.elapsed()
    }

    /// The median time of a decode step.
    fn decode(&mut self, count: usize, rounds: usize) -> Duration {
        for _ in 0..2 {
            self.pass(count, 0, CONTEXT);
        }
        let mut times: Vec<_> = (0..rounds).map(|i| self.pass(count, CONTEXT + i, 1)).collect();
        times.sort();
        times[times.len() / 2]
    }

    /// The best time of a prefill.
    fn prefill(&mut self, rounds: usize) -> Duration {
        (0..rounds + 1).map(|_| self.pass(1, 0, PREFILL)).min().unwrap_or_default()
    }
}
