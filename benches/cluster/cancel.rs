//! How fast a remote rank frees what a leg held once the client has left.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::task::block_in_place;

use crate::Outcome;
use crate::client::{Counts, Front};
use crate::nodes::{Admin, MODEL, Node, Scratch, eventually, free};
use crate::report::{Row, percentiles};

/// Legs that the rank runs at once.
const RUNNING: usize = 2;
/// The gauges that tell of a leg.
const USED: &str = "cuelight_kv_blocks_used";
const WAITING: &str = "cuelight_waiting";

/// What is measured in all phases but one.
const RANK: &str = "the remote rank is free of it";

/// A leg that was on its way has arrived by then, and is seen if it is not ended.
const ARRIVES: Duration = Duration::from_millis(40);

/// Where the leg is when its client leaves.
#[derive(Clone, Copy, PartialEq)]
enum Phase {
    /// On its way to the rank.
    InFlight,
    Queued,
    Prefilling,
    Decoding,
}

/// Lets `clients` clients leave in each phase.
///
/// # Errors
/// A request is refused, or what it held is not freed.
pub(crate) async fn run(clients: usize) -> Outcome<Vec<Row>> {
    let scratch = Scratch::new()?;
    let [listen, peers, admin] = free()?;
    // A prompt takes 23 steps of 5 ms: time enough to leave in between.
    let worker = json!({
        "model": MODEL, "engine": "sim", "sim": { "step_us": 5000 }, "kv_blocks": 2000,
        "max_running": RUNNING, "max_waiting": 1, "max_batch_tokens": 64, "prefix_cache": false,
    });
    let _node = scratch.worker(peers, admin, &worker)?;
    let front = Front::start(&scratch.front(listen, peers, 3)?).await?;
    let mut seen = Admin::connect(admin)?;
    let mut rows = vec![in_line(&front, &mut seen, clients).await?];
    for (phase, name) in [
        (Phase::InFlight, "on its way to the rank"),
        (Phase::Queued, "queued"),
        (Phase::Prefilling, "prefilling"),
        (Phase::Decoding, "decoding"),
    ] {
        let (mut times, mut polls, mut busy) = (Vec::with_capacity(clients), 0, 0.0);
        while times.len() < clients {
            if let Some((ms, polled)) = leave(&front, &mut seen, phase).await? {
                times.push(ms);
                polls += polled;
                busy += if phase == Phase::InFlight { ARRIVES.as_secs_f64() * 1e3 } else { ms };
            }
        }
        rows.push(row(name, RANK, &mut times, busy / f64::from(polls)));
    }
    rows.push(
        migrating(&scratch, (listen, &worker), &front, &mut seen, clients.div_ceil(4)).await?,
    );
    Ok(rows)
}

fn row(name: &str, free: &str, times: &mut [f64], resolution: f64) -> Row {
    let clients = times.len();
    let [p50, p99, most] = percentiles(times);
    let what = format!("client leaves, {name}: {free}, {clients} times");
    let value =
        format!("p50 {p50:.1}, p99 {p99:.1}, most {most:.1} ms (seen every {resolution:.1} ms)");
    Row::of(what, value).at_most(p99, 20.0, "ms p99")
}

/// Clients that stand in the front end's own line, for all that the rank takes is taken.
async fn in_line(front: &Front, seen: &mut Admin, clients: usize) -> Outcome<Row> {
    let others = Counts::new();
    let (mut times, mut polls, mut held) = (Vec::with_capacity(clients), 0, Vec::new());
    while times.len() < clients {
        // The others end after 1,900 steps, and are replaced before.
        if times.len() % 50 == 0 {
            held.clear();
            eventually("others' end", || front.active_and_in_line() == [0.0; 2]).await?;
            block_in_place(|| seen.until(USED, |blocks| blocks == 0.0))?;
            for first in 0..=RUNNING {
                held.push(front.ask(first, 16, 1900, &others).await?);
            }
            block_in_place(|| seen.until(WAITING, |legs| legs == 1.0))?;
        }
        let active = held.len() as f64;
        let counts = Counts::new();
        let client = front.ask(7, 16, 400, &counts).await?;
        eventually("place in line", || front.active_and_in_line() == [active + 1.0, 1.0]).await?;
        let left = Instant::now();
        drop(client);
        polls += block_in_place(|| front.until([active, 0.0]))?;
        times.push(left.elapsed().as_secs_f64() * 1e3);
    }
    let resolution = times.iter().sum::<f64>() / f64::from(polls);
    Ok(row("in line at the front end", "the front end is free of it", &mut times, resolution))
}

/// Clients of a second worker, which is killed: they leave in the next 8 ms, while their legs go to
/// the first one.
async fn migrating(
    scratch: &Scratch,
    (front_end, worker): (SocketAddr, &Value),
    front: &Front,
    seen: &mut Admin,
    clients: usize,
) -> Outcome<Row> {
    let (mut times, mut polls) = (Vec::new(), 0);
    for client in 0..clients {
        let [listen] = free()?;
        let config = json!({
            "node": { "name": "second" },
            "worker": worker,
            "cluster": scratch.cluster(listen, &[front_end]),
        });
        let mut second = Node::start(scratch, "second", &config)?;
        eventually("second worker", || front.ranks_ready() == 2).await?;
        let counts = Counts::new();
        let rank = Some("second/cuelight-tiny/0");
        let asked = front.ask_of(rank, 7, 16, 400, &counts).await?;
        eventually("tokens", || counts.tokens() >= 3).await?;
        second.kill()?;
        tokio::time::sleep(Duration::from_millis(client as u64 % 9)).await;
        let left = Instant::now();
        drop(asked);
        let (last, polled) = block_in_place(|| seen.last_seen(&[USED, WAITING], ARRIVES))?;
        times.push(last.map_or(0.0, |last| (last - left).as_secs_f64() * 1e3));
        polls += polled;
        eventually("loss", || front.ranks_ready() == 1).await?;
    }
    let resolution = ARRIVES.as_secs_f64() * 1e3 * clients as f64 / f64::from(polls);
    Ok(row("migrating", RANK, &mut times, resolution))
}

/// One client: milliseconds from its leaving until the rank shows nothing of it, and how often the
/// rank was looked at; `None` if the leg was in another phase already.
async fn leave(front: &Front, seen: &mut Admin, phase: Phase) -> Outcome<Option<(f64, u32)>> {
    let mut others = Vec::new();
    let running = Counts::new();
    if phase == Phase::Queued {
        for first in 0..RUNNING {
            others.push(front.ask(first, 16, 1900, &running).await?);
        }
        eventually("tokens", || running.tokens() >= 2 * RUNNING as u64).await?;
    }
    let counts = Counts::new();
    let prompt = if phase == Phase::Prefilling { 1500 } else { 16 };
    let client = front.ask(7, prompt, 400, &counts).await?;
    match phase {
        Phase::InFlight => {
            let left = Instant::now();
            drop(client);
            let (last, polls) = block_in_place(|| seen.last_seen(&[USED, WAITING], ARRIVES))?;
            let ms = last.map_or(0.0, |last| (last - left).as_secs_f64() * 1e3);
            // Each poll took its part of the window, whatever was seen.
            return Ok(Some((ms, polls)));
        }
        Phase::Queued => block_in_place(|| seen.until(WAITING, |legs| legs == 1.0)).map(drop)?,
        Phase::Prefilling => block_in_place(|| seen.until(USED, |b| b > 0.0)).map(drop)?,
        Phase::Decoding => eventually("tokens", || counts.tokens() >= 3).await?,
    }
    let early = phase != Phase::Decoding && counts.tokens() > 0;
    let gauge = if phase == Phase::Queued { WAITING } else { USED };
    let left = Instant::now();
    drop(client);
    let polls = block_in_place(|| seen.until(gauge, |value| value == 0.0))?;
    let ms = left.elapsed().as_secs_f64() * 1e3;
    drop(others);
    block_in_place(|| seen.until(USED, |blocks| blocks == 0.0))?;
    Ok((!early).then_some((ms, polls)))
}
