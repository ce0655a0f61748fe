//! Times of the engine's steps as a table that `worker.sim.table` takes.

use std::path::Path;

use serde_json::{Value, json};

use crate::measure::{Engine, PREFILL};

/// Of how many runs the median counts.
const RUNS: usize = 5;
/// Legs that decode, prompt tokens, tokens before them: all within the pool of the benchmark.
const LEGS: &[usize] = &[1, 2, 4, 8, 16];
const TOKENS: &[usize] = &[1, 16, 64, 256];
const CONTEXT: &[usize] = &[1, 64, PREFILL / 2 - 1];

/// Measures all points of the table; one that is not measured here is what follows from its
/// neighbours.
pub(crate) fn measure(engine: &mut Engine) -> Value {
    engine.pass(LEGS[LEGS.len() - 1], 0, PREFILL); // something to look back at
    let mut grid = |rows: &[usize], shape: fn(usize) -> (usize, usize)| {
        let mut us = Vec::new();
        for &row in rows {
            let (count, tokens) = shape(row);
            let mut time = |start: usize| {
                let mut times: Vec<_> =
                    (0..RUNS).map(|_| engine.pass(count, start, tokens)).collect();
                times.sort();
                (times[RUNS / 2].as_secs_f64() * 1e7).round() / 10.0
            };
            us.push(CONTEXT.iter().map(|start| time(*start)).collect::<Vec<_>>());
        }
        us
    };
    let prefill = grid(TOKENS, |tokens| (1, tokens));
    let decode = grid(LEGS, |legs| (legs, 1));
    json!({
        "prefill": { "tokens": TOKENS, "context": CONTEXT, "us": prefill },
        "decode": { "legs": LEGS, "context": CONTEXT, "us": decode },
    })
}

/// Measures and writes the table.
pub(crate) fn write(engine: &mut Engine, file: &Path) {
    let table = measure(engine);
    let (prefill, decode) = (&table["prefill"], &table["decode"]);
    let text = format!("{{\n  \"prefill\": {prefill},\n  \"decode\": {decode}\n}}\n");
    std::fs::write(file, &text).expect("cannot write the table");
    println!("{text}written to {}", file.display());
}
