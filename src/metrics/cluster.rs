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
}

impl ClusterMetrics {
    pub(super) fn register(add: &mut Adder<'_>) -> Self {
        let lost = Counter::default();
        add.add("cluster_lost", "Connections to other nodes that ended", lost.clone());
        let turned =
            add.family("cluster_turned_away", "Connections that were turned away, by reason");
        Self {
            nodes: add.gauge("cluster_nodes", "Other nodes that are connected"),
            frontends: add.gauge(
                "cluster_frontends",
                "Front ends on other nodes that use this node's worker",
            ),
            lost,
            turned_away: Counters::new(&turned, |reason| ReasonLabels { reason }),
        }
    }
}
