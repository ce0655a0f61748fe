//! Thousands of legs linked to one remote rank: what they hold, and how fast its loss is told.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::Outcome;
use crate::client::{Counts, Front};
use crate::nodes::{Admin, MODEL, Scratch, eventually, free};
use crate::process::rss_kib;
use crate::report::Row;

/// How long memory is left to settle before it is read.
const SETTLE: Duration = Duration::from_secs(2);
/// Requests at once before the first reading, so that pools and caches are there.
const WARM_UP: usize = 256;
/// Prompt tokens.
const PROMPT: usize = 16;

/// Holds `legs` legs on a worker that runs one of them, then kills it.
///
/// # Errors
/// A request is refused, or does not hear of the loss.
pub(crate) async fn run(legs: usize) -> Outcome<Vec<Row>> {
    let scratch = Scratch::new()?;
    let [listen, peers, admin] = free()?;
    let worker = json!({
        "model": MODEL, "engine": "sim", "sim": { "step_us": 200_000 }, "kv_blocks": 1000,
        "max_running": 1, "max_waiting": 20_000,
    });
    let mut node = scratch.worker(peers, admin, &worker)?;
    let front = Front::start(&scratch.front(listen, peers, 0)?).await?;
    let (worker, own) = ([node.pid()], [std::process::id()]);
    let mut seen = Admin::connect(admin)?;

    hold(&front, &mut seen, WARM_UP).await?;
    tokio::time::sleep(SETTLE).await;
    let before = [rss_kib(&worker)?, rss_kib(&own)?];
    let counts = Counts::new();
    let mut clients = Vec::with_capacity(legs);
    for first in 0..legs {
        clients.push(front.ask(first, PROMPT, 1000, &counts).await?);
    }
    eventually("legs", || counts.accepted() == legs as u64).await?;
    tokio::time::sleep(SETTLE).await;
    let after = [rss_kib(&worker)?, rss_kib(&own)?];
    let each = [0, 1].map(|side| (after[side] as f64 - before[side] as f64) / legs as f64);

    let killed = Instant::now();
    node.kill()?;
    eventually("loss", || counts.failed() == legs as u64).await?;
    let told = (counts.last_failed() - killed).as_secs_f64() * 1e3;
    let memory = |side: &str, kib: f64| {
        let what = format!("memory of a linked remote leg, {side}, of {legs}");
        Row::of(what, format!("{kib:.1} KiB")).at_most(kib, 16.0, "KiB")
    };
    let what = format!("kill of a worker with {legs} legs: the last request knows");
    Ok(vec![
        memory("worker", each[0]),
        memory("front end, with its request", each[1]),
        Row::of(what, format!("{told:.0} ms")).at_most(told, 100.0, "ms"),
    ])
}

/// Opens so many requests and lets them go.
async fn hold(front: &Front, seen: &mut Admin, requests: usize) -> Outcome<()> {
    let counts = Counts::new();
    let mut clients = Vec::new();
    for first in 0..requests {
        clients.push(front.ask(first, PROMPT, 1000, &counts).await?);
    }
    eventually("legs", || counts.accepted() == requests as u64).await?;
    drop(clients);
    tokio::task::block_in_place(|| seen.until("cuelight_waiting", |legs| legs == 0.0))?;
    Ok(())
}
