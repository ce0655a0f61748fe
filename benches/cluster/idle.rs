//! What a cluster costs in which nothing happens.

use std::time::Duration;

use serde_json::json;
use tokio::task::block_in_place;

use crate::Outcome;
use crate::nodes::{Admin, MODEL, Node, Scratch, free};
use crate::process::{rss_kib, threads_ns};
use crate::report::Row;

/// Nodes: a front end, the rest workers.
const NODES: usize = 16;
/// How long the full mesh is left alone before it is measured.
const SETTLE: Duration = Duration::from_secs(5);

/// Starts the nodes, waits until each is connected to all others, and measures for a while.
///
/// # Errors
/// The cluster does not form.
pub(crate) async fn run(window: Duration) -> Outcome<Vec<Row>> {
    let scratch = Scratch::new()?;
    let ports: [_; NODES] = free()?;
    let admins: [_; NODES] = free()?;
    let mut nodes = Vec::new();
    for (at, (listen, admin)) in ports.into_iter().zip(admins).enumerate() {
        let name = format!("node{at}");
        let mut config = json!({
            "node": { "name": name, "admin": admin },
            "cluster": scratch.cluster(listen, &ports[..1]),
        });
        if at == 0 {
            let [http] = free()?;
            config["frontend"] = json!({ "http": http, "models": [MODEL] });
        } else {
            config["worker"] = json!({ "model": MODEL, "engine": "sim" });
        }
        nodes.push(Node::start(&scratch, &name, &config)?);
    }
    for admin in admins {
        let others = (NODES - 1) as f64;
        block_in_place(|| {
            Admin::connect(admin)?.until("cuelight_cluster_nodes", |nodes| nodes == others)
        })?;
    }
    tokio::time::sleep(SETTLE).await;
    let pids: Vec<u32> = nodes.iter_mut().map(Node::pid).collect();
    let used = |pid: u32| threads_ns(&[pid]).values().sum::<u64>() as f64 / 1e9;
    let before: Vec<f64> = pids.iter().map(|pid| used(*pid)).collect();
    tokio::time::sleep(window).await;
    let share = |(pid, before): (&u32, f64)| 100.0 * (used(*pid) - before) / window.as_secs_f64();
    let shares: Vec<f64> = pids.iter().zip(before).map(share).collect();
    let most = shares.iter().copied().fold(0.0, f64::max);
    let mean = shares.iter().sum::<f64>() / NODES as f64;
    let value = format!("most {most:.2} %, mean {mean:.2} %, the front end {:.2} %", shares[0]);
    let what = format!("idle cluster of {NODES} nodes: share of a core of each node");
    let resident = rss_kib(&pids)? as f64 / 1024.0 / NODES as f64;
    Ok(vec![
        Row::of(what, value).at_most(most, 1.0, "%"),
        Row::of("the same: resident memory of a node", format!("{resident:.0} MiB")),
    ])
}
