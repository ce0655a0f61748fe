//! What is counted about the other nodes.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;

use super::labels::{Counters, Turned};
use super::{Adder, ReasonLabels};

/// Handles of the cluster's series.
#[derive(Debug)]
pub struct ClusterMetrics {
    /// Nodes that this one is connected to.
    pub nodes: Gauge,
    /// Front ends on other nodes that use this node's worker.
    pub frontends: Gauge,
    /// Connections to nodes that ended.
    pub lost: Counter,
    /// Connections that were turned away, by reason.
    pub turned_away: Counters<Turned>,
    /// Nodes that cannot join, as far as they are remembered.
    pub refused: Gauge,
    /// Bytes of the largest frame that a node has sent here.
    pub largest_frame: Gauge,
    /// Trees of other nodes that did not come, or not in time.
    pub trees_missed: Counter,
    /// Workers that a restarted `Cluster` has not found again in time.
    pub unconfirmed: Counter,
}

impl ClusterMetrics {
    pub(super) fn register(add: &mut Adder<'_>) -> Self {
        let lost = Counter::default();
        add.add("cluster_lost", "Connections to other nodes that ended", lost.clone());
        let (trees_missed, unconfirmed) = (Counter::default(), Counter::default());
        add.add(
            "cluster_trees_missed",
            "Trees of other nodes that did not come, or not in time",
            trees_missed.clone(),
        );
        add.add(
            "cluster_unconfirmed",
            "Workers that a restarted Cluster actor has not found again in time",
            unconfirmed.clone(),
        );
        let turned =
            add.family("cluster_turned_away", "Connections that were turned away, by reason");
        Self {
            nodes: add.gauge("cluster_nodes", "Other nodes that are connected"),
            frontends: add.gauge(
                "cluster_frontends",
                "Front ends on other nodes that use this node's worker",
            ),
            lost,
            refused: add.gauge("cluster_refused", "Nodes that cannot join, and are remembered"),
            largest_frame: add.gauge(
                "cluster_largest_frame_bytes",
                "Size of the largest frame that another node has sent here",
            ),
            trees_missed,
            unconfirmed,
            turned_away: Counters::new(&turned, |reason| ReasonLabels { reason }),
        }
    }
}
