//! What a token costs a front end and a worker, whole: engine, scheduler and detokenizer included.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::Outcome;
use crate::client::{Counts, Front};
use crate::measure::{Meter, STEP, STREAMS, Sides};
use crate::nodes::{MODEL, Scratch, eventually, free};

/// Tokens of each stream: the model's context, less the prompt.
const OUTPUT: u32 = 2000;

fn worker() -> Value {
    json!({
        "model": MODEL, "engine": "sim", "sim": { "step_us": STEP.as_micros() as u64, "seed": 1 },
        "kv_blocks": 40_000, "max_running": STREAMS, "max_batch_tokens": 8192,
    })
}

/// Front end and worker as two nodes.
///
/// # Errors
/// The cluster does not form, or a request fails.
pub(crate) async fn two_nodes(window: Duration) -> Outcome<Sides> {
    let scratch = Scratch::new()?;
    let [front, listen, admin] = free()?;
    let mut node = scratch.worker(listen, admin, &worker())?;
    let pids = [Some(node.pid()), Some(std::process::id())];
    load(&scratch.front(front, listen, 0)?, pids, window).await
}

/// Both in one process, without a cluster.
///
/// # Errors
/// A request fails.
pub(crate) async fn one_process(window: Duration) -> Outcome<Sides> {
    let scratch = Scratch::new()?;
    let config = json!({
        "node": { "name": "both", "runtime_threads": 2 },
        "frontend": { "max_requests": 20_000, "migration_limit": 0 },
        "worker": worker(),
    });
    load(&scratch.write("both", &config)?, [None, Some(std::process::id())], window).await
}

async fn load(config: &Path, pids: [Option<u32>; 2], window: Duration) -> Outcome<Sides> {
    let front = Front::start(config).await?;
    let counts = Counts::new();
    let mut clients = Vec::new();
    for first in 0..STREAMS {
        clients.push(front.ask(first, 16, OUTPUT, &counts).await?);
    }
    let begun = Arc::clone(&counts);
    eventually("tokens", || begun.tokens() > 50 * STREAMS as u64).await?;
    let meter = Meter::start(pids, counts.tokens())?;
    tokio::time::sleep(window).await;
    let sides = meter.stop(counts.tokens())?;
    if counts.failed() + counts.ended() > 0 {
        return Err("a stream ended before the measurement did".into());
    }
    drop(clients);
    Ok(sides)
}
