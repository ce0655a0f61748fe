//! What must be true when all is quiet: nothing is left of any request, nothing has grown.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::cluster::{Cluster, LOOK};
use super::site::{Probe, Samples, Usage};

/// Metrics that are zero when there is no request.
const ZERO: &[&str] = &[
    "cuelight_kv_blocks_used",
    "cuelight_running",
    "cuelight_waiting",
    "cuelight_requests_active",
    "cuelight_stream_backlog_bytes",
    "cuelight_kv_leases",
    "cuelight_kv_pulls_in_flight",
    "cuelight_kv_blocks_quarantined",
];
/// Metrics that are zero always.
const NEVER: &[&str] = &["cuelight_kv_checksum_mismatches_total"];
/// Actors that live no longer than a request.
const SHORT_LIVED: &[&str] = &["Request", "Sequence", "Transfer"];

/// How much more than before the faults a process may hold.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Slack {
    /// Resident memory in MiB, next to a quarter of what there was and two KV pools: an allocator
    /// keeps what an engine that was replaced has left.
    pub(super) rss_mib: u64,
    /// Descriptors, next to a tenth of what there was.
    pub(super) fds: usize,
}

/// A broken promise and its evidence.
pub(super) type Leak = (&'static str, String);

/// What is left of requests, by metrics, and what they say that must never have been.
pub(super) fn left_in_metrics(node: &str, samples: &Samples) -> Vec<Leak> {
    let of = |metrics: &'static [&'static str], invariant: &'static str| {
        let series = metrics.iter().flat_map(|metric| samples.of(metric));
        let left = series.filter(|(_, value)| *value != 0.0);
        left.map(move |(series, value)| (invariant, format!("{node}: {series} {value}")))
    };
    of(ZERO, "nothing_left").chain(of(NEVER, "blocks_are_whole")).collect()
}

/// What is left of requests, by the tree.
pub(super) fn left_in_tree(node: &str, actors: &[(String, String, u64)]) -> Vec<Leak> {
    let left = actors.iter().filter(|(kind, ..)| SHORT_LIVED.contains(&kind.as_str()));
    left.map(|(kind, name, _)| ("nothing_left", format!("{node}: actor {kind} {name}"))).collect()
}

/// What a process holds more than it may.
pub(super) fn grown(
    node: &str,
    pool_mib: u64,
    before: Usage,
    after: Usage,
    slack: Slack,
) -> Vec<Leak> {
    let mut leaks = Vec::new();
    let most_rss = before.rss_kib + before.rss_kib / 4 + (slack.rss_mib + 2 * pool_mib) * 1024;
    if after.rss_kib > most_rss {
        let (before, after) = (before.rss_kib / 1024, after.rss_kib / 1024);
        let text =
            format!("{node}: {after} MiB resident, {before} before, at most {}", most_rss / 1024);
        leaks.push(("memory_bounded", text));
    }
    let most_fds = before.fds + before.fds / 10 + slack.fds;
    if after.fds > most_fds {
        let text = format!(
            "{node}: {} descriptors ({} sockets), {} ({}) before, at most {most_fds}",
            after.fds, after.sockets, before.fds, before.sockets
        );
        leaks.push(("descriptors_bounded", text));
    }
    leaks
}

/// All that is wrong with one node that has nothing to do.
async fn left(name: &str, probe: &Probe) -> Vec<Leak> {
    let mut leaks = match probe.metrics().await {
        Ok(samples) => left_in_metrics(name, &samples),
        Err(error) => vec![("nothing_left", format!("{name}: {error}"))],
    };
    match probe.actors().await {
        Ok(actors) => leaks.extend(left_in_tree(name, &actors)),
        Err(error) => leaks.push(("nothing_left", format!("{name}: {error}"))),
    }
    leaks
}

/// Waits until nothing is left of any request, then that what processes hold is as before, given
/// what it was. Returns what is still wrong after `limit`.
pub(super) async fn settle(
    cluster: &Cluster,
    before: Option<(&[Option<Usage>], Slack)>,
    limit: Duration,
) -> Vec<Leak> {
    let began = Instant::now();
    loop {
        let mut leaks = Vec::new();
        for node in &cluster.nodes {
            leaks.extend(left(&node.name, &node.probe).await);
        }
        if let Some((before, slack)) = before {
            for ((node, after), before) in cluster.nodes.iter().zip(usages(cluster)).zip(before) {
                if let (Some(before), Some(after)) = (before, after) {
                    leaks.extend(grown(&node.name, node.pool_mib, *before, after, slack));
                }
            }
        }
        if leaks.is_empty() || began.elapsed() >= limit {
            return leaks;
        }
        tokio::time::sleep(LOOK * 4).await;
    }
}

/// What each process holds.
pub(super) fn usages(cluster: &Cluster) -> Vec<Option<Usage>> {
    cluster.nodes.iter().map(|node| node.process.as_ref().and_then(|p| p.usage())).collect()
}

/// Waits, under load, until every rank of every worker has made a step; names those that have not.
pub(super) async fn every_rank_serves(cluster: &Cluster, limit: Duration) -> Vec<Leak> {
    let workers: Vec<_> = cluster.nodes.iter().filter(|node| node.role.worker.is_some()).collect();
    let mut waiting = Vec::new();
    for node in workers {
        match node.probe.metrics().await {
            Ok(before) => waiting.push((node, before)),
            Err(error) => return vec![("full_capacity", format!("{}: {error}", node.name))],
        }
    }
    let began = Instant::now();
    loop {
        let mut idle = Vec::new();
        for (node, before) in &waiting {
            let now = node.probe.metrics().await.unwrap_or_default();
            idle.extend(idle_ranks(&node.name, before, &now));
        }
        if idle.is_empty() || began.elapsed() >= limit {
            return idle;
        }
        tokio::time::sleep(LOOK * 4).await;
    }
}

fn idle_ranks(node: &str, before: &Samples, now: &Samples) -> Vec<Leak> {
    let steps = |samples: &Samples, series: &str| {
        samples.of("cuelight_steps_total").find(|(s, _)| *s == series).map_or(0.0, |(_, n)| n)
    };
    let ranks = before.of("cuelight_steps_total");
    let idle = ranks.filter(|(series, before)| steps(now, series) <= *before);
    idle.map(|(series, _)| ("full_capacity", format!("{node}: no step under load, {series}")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_of_requests_is_named() {
        let text = "cuelight_kv_blocks_used{rank=\"0\"} 0\ncuelight_kv_blocks_used{rank=\"1\"} 3\n\
                    cuelight_kv_blocks_cached 9\ncuelight_requests_active 1\n\
                    cuelight_kv_checksum_mismatches_total 2\ncuelight_kv_leases 4\n";
        let found = left_in_metrics("w", &Samples::parse(text));
        let evidence: Vec<_> = found.iter().map(|(_, evidence)| evidence.as_str()).collect();
        assert_eq!(
            evidence,
            [
                "w: cuelight_kv_blocks_used{rank=\"1\"} 3",
                "w: cuelight_requests_active 1",
                "w: cuelight_kv_leases 4",
                "w: cuelight_kv_checksum_mismatches_total 2",
            ]
        );
        assert_eq!(found[3].0, "blocks_are_whole");
        let actor = |kind: &str| (kind.to_owned(), "x".to_owned(), 1);
        let found = left_in_tree("w", &[actor("Rank"), actor("Sequence"), actor("Requests")]);
        assert_eq!(found, [("nothing_left", "w: actor Sequence x".to_owned())]);
    }

    #[test]
    fn a_process_may_grow_a_little_and_no_more() {
        let before = Usage { rss_kib: 100 << 10, fds: 20, sockets: 10 };
        let slack = Slack { rss_mib: 10, fds: 8 };
        let after = |rss_mib: u64, fds| Usage { rss_kib: rss_mib << 10, fds, sockets: 10 };
        assert!(grown("w", 0, before, after(135, 30), slack).is_empty());
        assert!(grown("w", 5, before, after(145, 30), slack).is_empty());
        let found = grown("w", 0, before, after(136, 31), slack);
        let invariants: Vec<_> = found.iter().map(|(invariant, _)| *invariant).collect();
        assert_eq!(invariants, ["memory_bounded", "descriptors_bounded"]);
        assert!(found[0].1.contains("136 MiB resident, 100 before, at most 135"), "{found:?}");
    }

    #[test]
    fn a_rank_without_a_step_is_idle() {
        let samples = |a, b| {
            Samples::parse(&format!(
                "cuelight_steps_total{{rank=\"0\"}} {a}\ncuelight_steps_total{{rank=\"1\"}} {b}\n"
            ))
        };
        assert!(idle_ranks("w", &samples(1, 1), &samples(2, 2)).is_empty());
        let found = idle_ranks("w", &samples(1, 1), &samples(2, 1));
        assert_eq!(found[0].1, "w: no step under load, cuelight_steps_total{rank=\"1\"}");
    }
}
