//! Very many requests on very many ranks: what one front end takes for them, and how long it takes to
//! choose a rank.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::Outcome;
use crate::client::{Counts, Front};
use crate::measure::Meter;
use crate::nodes::{MODEL, Scratch, eventually, free};
use crate::process::{Cpu, rss_kib};
use crate::report::Row;

/// Time of a step of each rank: with all requests, some 50,000 tokens a second.
const STEP: Duration = Duration::from_secs(2);
/// Tokens of each prompt.
const PROMPT: usize = 64;
/// Tokens of each answer: none ends while it is looked at.
const OUTPUT: u32 = 1000;
/// How long tokens are counted.
const WINDOW: Duration = Duration::from_secs(10);
/// How long memory is left to settle before it is read.
const SETTLE: Duration = Duration::from_secs(5);

/// Holds `requests` on `ranks` of one worker process.
///
/// # Errors
/// A request is refused, or the ranks do not come up.
pub(crate) async fn run(ranks: usize, requests: usize) -> Outcome<Vec<Row>> {
    let scratch = Scratch::new()?;
    let [listen, peers, admin] = free()?;
    let legs = 2 * requests.div_ceil(ranks);
    let blocks = legs * (PROMPT / 16 + 2 + WINDOW.as_secs() as usize / 16);
    let worker = json!({
        "model": MODEL, "engine": "sim", "sim": { "step_us": STEP.as_micros() as u64 },
        "dp_size": ranks, "kv_blocks": blocks, "max_running": legs, "max_waiting": legs,
        "max_batch_tokens": (legs * PROMPT).max(8192),
    });
    let mut node = scratch.worker(peers, admin, &worker)?;
    let front = Front::start(&scratch.front(listen, peers, 0)?).await?;
    eventually("ranks", || front.ranks_ready() == ranks).await?;
    tokio::time::sleep(SETTLE).await;
    let own = [std::process::id()];
    let (rss, cpu, began) = (rss_kib(&own)?, Cpu::of(&own)?, Instant::now());
    let counts = Counts::new();
    let mut clients = Vec::with_capacity(requests);
    for first in 0..requests {
        clients.push(front.ask(first, PROMPT, OUTPUT, &counts).await?);
    }
    eventually("acceptance", || counts.accepted() == requests as u64).await?;
    let (admitted, placing) = (began.elapsed(), Cpu::of(&own)?.since(cpu));
    eventually("tokens", || counts.tokens() >= requests as u64).await?;
    tokio::time::sleep(SETTLE).await;
    let each = (rss_kib(&own)? - rss) as f64 / requests as f64;
    let meter = Meter::start([Some(node.pid()), Some(own[0])], counts.tokens())?;
    tokio::time::sleep(WINDOW).await;
    let sides = meter.stop(counts.tokens())?;
    if counts.failed() + counts.ended() > 0 {
        return Err("a request ended before the measurement did".into());
    }
    let [mean, p99] = front.decision_us()?;
    let what = |figure: &str| format!("{requests} requests on {ranks} ranks: {figure}");
    let us = placing.total_s() * 1e6 / requests as f64;
    let rate = requests as f64 / admitted.as_secs_f64();
    let row = |figure: &str, value: String| Row::of(what(figure), value);
    Ok(vec![
        row("choice of a rank", format!("mean {mean:.1} µs, p99 below {p99:.0} µs")),
        row("CPU of the front end to place one", format!("{us:.0} µs ({rate:.0} a second)")),
        row("memory of one in the front end", format!("{each:.1} KiB")),
        row(
            "CPU a token",
            format!(
                "front end {:.2} µs, worker {:.2} µs, at {:.0} tokens/s",
                sides.front, sides.worker, sides.rate
            ),
        ),
    ])
}
