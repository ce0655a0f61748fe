//! How fast a request hears that the process of its worker was killed.

use std::time::Instant;

use serde_json::json;

use crate::Outcome;
use crate::client::{Counts, Front};
use crate::nodes::{MODEL, Scratch, eventually, free};
use crate::report::{Row, percentiles};

/// Kills so many workers, each while it serves a leg.
///
/// # Errors
/// A worker does not come back, or a request does not hear of its loss.
pub(crate) async fn run(kills: usize) -> Outcome<Vec<Row>> {
    let scratch = Scratch::new()?;
    let [listen, peers, admin] = free()?;
    let worker = json!({ "model": MODEL, "engine": "sim", "sim": { "step_us": 5000 } });
    let mut front = None;
    let mut times = Vec::with_capacity(kills);
    for round in 0..kills {
        let mut node = scratch.worker(peers, admin, &worker)?;
        let front = match &front {
            Some(front) => front,
            None => front.insert(Front::start(&scratch.front(listen, peers, 0)?).await?),
        };
        front.ready().await?;
        let counts = Counts::new();
        let client = front.ask(round, 16, 1000, &counts).await?;
        eventually("tokens", || counts.tokens() >= 3).await?;
        let killed = Instant::now();
        node.kill()?;
        eventually("loss", || counts.failed() == 1).await?;
        times.push((counts.last_failed() - killed).as_secs_f64() * 1e3);
        drop(client);
        // Its successor needs the ports.
        drop(node);
    }
    let [p50, p99, most] = percentiles(&mut times);
    let what = format!("kill of a worker: its request on the other node knows, {kills} times");
    let value = format!("p50 {p50:.1}, p99 {p99:.1}, most {most:.1} ms");
    Ok(vec![Row::of(what, value).at_most(p99, 50.0, "ms p99")])
}
