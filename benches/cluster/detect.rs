//! How fast a request hears that the process of its worker was killed, or stands still.

use std::io;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::Outcome;
use crate::client::{Counts, Front};
use crate::nodes::{MODEL, Node, Scratch, eventually, free};
use crate::report::{Row, percentiles};

/// `cluster.failure_detection_ms`, the least and the default.
const DETECTION_MS: [u64; 2] = [200, 2000];

/// Longest time between two heartbeats: losses are spread over it.
const BEAT: Duration = Duration::from_millis(250);

/// Kills so many workers, each while it serves a leg.
///
/// # Errors
/// A worker does not come back, or a request does not hear of its loss.
pub(crate) async fn kills(kills: usize) -> Outcome<Vec<Row>> {
    let mut times = losses(&Scratch::new()?, kills, Node::kill).await?;
    let [p50, p99, most] = percentiles(&mut times);
    let what = format!("kill of a worker: its request on the other node knows, {kills} times");
    let value = format!("p50 {p50:.1}, p99 {p99:.1}, most {most:.1} ms");
    Ok(vec![Row::of(what, value).at_most(p99, 50.0, "ms p99")])
}

/// Stops so many workers (SIGSTOP) with each of the limits, each while it serves a leg.
///
/// # Errors
/// A worker does not come back, or a request does not hear of its loss.
pub(crate) async fn stops(stops: usize) -> Outcome<Vec<Row>> {
    let mut rows = Vec::new();
    for ms in DETECTION_MS {
        let mut times = losses(&Scratch::detecting(ms)?, stops, Node::stop).await?;
        let [p50, _, most] = percentiles(&mut times);
        let what = format!(
            "stop of a worker, failure_detection_ms {ms}: its request on the other node knows, \
             {stops} times"
        );
        let value = format!("least {:.0}, p50 {p50:.0}, most {most:.0} ms", times[0]);
        rows.push(Row::of(what, value).at_most(most, ms as f64, "ms"));
    }
    Ok(rows)
}

/// Milliseconds from just before `end` of a worker until its request has told its client.
async fn losses(
    scratch: &Scratch,
    rounds: usize,
    end: impl Fn(&mut Node) -> io::Result<()>,
) -> Outcome<Vec<f64>> {
    let [listen, peers, admin] = free()?;
    let worker = json!({ "model": MODEL, "engine": "sim", "sim": { "step_us": 5000 } });
    let mut front = None;
    let mut times = Vec::with_capacity(rounds);
    for round in 0..rounds {
        let mut node = scratch.worker(peers, admin, &worker)?;
        let front = match &front {
            Some(front) => front,
            None => front.insert(Front::start(&scratch.front(listen, peers, 0)?).await?),
        };
        front.ready().await?;
        let counts = Counts::new();
        let client = front.ask(round, 16, 1000, &counts).await?;
        counts.until_tokens(3).await?;
        tokio::time::sleep(BEAT * round as u32 / rounds as u32).await;
        counts.until_tokens(4).await?;
        let lost = Instant::now();
        end(&mut node)?;
        eventually("loss", || counts.failed() == 1).await?;
        times.push((counts.last_failed() - lost).as_secs_f64() * 1e3);
        drop(client);
        // Its successor needs the ports.
        drop(node);
        eventually("worker's end", || front.ranks_ready() == 0).await?;
    }
    Ok(times)
}
