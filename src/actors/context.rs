//! What every actor of a node shares: the checked config, the board, metrics, fault switches.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::tree::Board;
use crate::config::Config;
use crate::engine::faulty::FaultHandle;
use crate::metrics::Metrics;

/// See the module's description.
pub struct NodeContext {
    /// The checked configuration.
    pub config: Config,
    /// The live supervision tree.
    pub board: Arc<Board>,
    /// The process's metrics.
    pub metrics: Arc<Metrics>,
    /// Switches of engines that can be made to fail, by rank name; empty unless `faults.enabled`.
    switches: Mutex<HashMap<String, FaultHandle>>,
}

impl NodeContext {
    /// A node that has no actors yet.
    pub fn new(config: Config, metrics: Arc<Metrics>) -> Self {
        Self { config, board: Arc::default(), metrics, switches: Mutex::default() }
    }

    /// Frames that one token stream may hold before the rank merges the next ones.
    pub fn stream_frames(&self) -> usize {
        self.config.worker.as_ref().map_or(1, |worker| worker.stream_frames)
    }

    /// The switch of a rank's engine; the same one for every generation of the rank.
    pub fn fault_switch(&self, rank: &str) -> FaultHandle {
        let mut switches = self.switches.lock().unwrap_or_else(PoisonError::into_inner);
        switches.entry(rank.to_string()).or_default().clone()
    }

    /// Switches of all ranks, by name.
    pub fn fault_switches(&self) -> Vec<(String, FaultHandle)> {
        let switches = self.switches.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = switches.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }
}
