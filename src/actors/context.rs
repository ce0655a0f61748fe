//! What every actor of a node shares: the checked config, the board, metrics, fault switches.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use ractor::ActorRef;

use super::rank::Progress;
use super::root;
use super::tree::{Board, Snapshot};
use crate::config::Config;
use crate::engine::faulty::FaultHandle;
use crate::ids::{NodeId, WorkerId};
use crate::metrics::Metrics;

/// See the module's description.
pub struct NodeContext {
    /// The first life of this node in this process; what runs here is named by it.
    pub id: NodeId,
    /// The checked configuration.
    pub config: Config,
    /// The live supervision tree.
    pub board: Arc<Board>,
    /// The process's metrics.
    pub metrics: Arc<Metrics>,
    draining: AtomicBool,
    worker_up: AtomicBool,
    root: OnceLock<ActorRef<root::Msg>>,
    /// Nodes that cannot join, by address, and why.
    refused_nodes: Mutex<BTreeMap<String, (String, Instant)>>,
    /// Engines that stood still when they were given up; gone once their threads have ended.
    hung: Mutex<Vec<Weak<Progress>>>,
    spoilt: AtomicBool,
    /// Switches of engines that can be made to fail, by rank name; empty unless `faults.enabled`.
    switches: Mutex<HashMap<String, FaultHandle>>,
}

impl NodeContext {
    /// A node that has no actors yet.
    pub fn new(config: Config, metrics: Arc<Metrics>) -> Self {
        let id = NodeId { name: config.node.name.as_str().into(), boot: boot() };
        metrics.incarnation.set(i64::try_from(id.boot).unwrap_or(i64::MAX));
        Self {
            id,
            config,
            board: Arc::default(),
            metrics,
            draining: AtomicBool::new(false),
            worker_up: AtomicBool::new(false),
            root: OnceLock::new(),
            refused_nodes: Mutex::default(),
            hung: Mutex::default(),
            spoilt: AtomicBool::new(false),
            switches: Mutex::default(),
        }
    }

    /// The name under which this node meets others from now on: later than all before it.
    pub(super) fn next_life(&self, last: &NodeId) -> NodeId {
        let id = NodeId { name: last.name.clone(), boot: boot().max(last.boot + 1) };
        self.metrics.incarnation.set(i64::try_from(id.boot).unwrap_or(i64::MAX));
        id
    }

    /// Whether SIGTERM has come.
    pub fn draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Takes no new work from now on.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Notes that the node at this address cannot join, and why; for `/health`.
    pub(super) fn refuse_node(&self, address: &str, why: String) {
        let most = self.config.cluster.as_ref().map_or(0, |cluster| cluster.max_refused);
        let mut refused = self.refused_nodes.lock().unwrap_or_else(PoisonError::into_inner);
        if refused.len() >= most
            && !refused.contains_key(address)
            && let Some(oldest) = refused.iter().min_by_key(|(_, (_, at))| *at)
        {
            let oldest = oldest.0.clone();
            refused.remove(&oldest);
        }
        refused.insert(address.to_string(), (why, Instant::now()));
        self.metrics.cluster().refused.set(refused.len() as i64);
    }

    /// The node at this address has joined after all. Of several at one host each one that is refused
    /// tries again, and is noted again.
    pub(super) fn admit_node(&self, address: &str) {
        let mut refused = self.refused_nodes.lock().unwrap_or_else(PoisonError::into_inner);
        refused.remove(address);
        self.metrics.cluster().refused.set(refused.len() as i64);
    }

    /// Nodes that cannot join, by address, and why.
    pub fn refused_nodes(&self) -> Vec<(String, String)> {
        let refused = self.refused_nodes.lock().unwrap_or_else(PoisonError::into_inner);
        refused.iter().map(|(address, (why, _))| (address.clone(), why.clone())).collect()
    }

    /// Notes an engine that is given up although its thread cannot be ended.
    pub(super) fn leave_behind(&self, engine: &Arc<Progress>) {
        let mut hung = self.hung.lock().unwrap_or_else(PoisonError::into_inner);
        hung.push(Arc::downgrade(engine));
    }

    /// Engines that were left behind and still stand still.
    pub fn hung_engines(&self) -> usize {
        let mut hung = self.hung.lock().unwrap_or_else(PoisonError::into_inner);
        hung.retain(|engine| engine.upgrade().is_some_and(|engine| engine.now().is_some()));
        hung.len()
    }

    /// Whether this process must end, since nothing else ends the engines that stand still in it;
    /// remembered from then on.
    pub(super) fn spoil(&self) -> bool {
        let limit = match (&self.config.worker, &self.config.frontend) {
            (Some(worker), Some(_)) => worker.max_hung_engines,
            _ => 0,
        };
        let spoilt = self.hung_engines() > limit;
        self.spoilt.fetch_or(spoilt, Ordering::Relaxed) || spoilt
    }

    /// Whether the tree gave up because of engines that stand still.
    pub fn is_spoilt(&self) -> bool {
        self.spoilt.load(Ordering::Relaxed)
    }

    /// Whether this node's worker is loaded.
    pub fn worker_up(&self) -> bool {
        self.worker_up.load(Ordering::Relaxed)
    }

    pub(super) fn set_worker_up(&self, up: bool) {
        self.worker_up.store(up, Ordering::Relaxed);
    }

    pub(super) fn set_root(&self, root: ActorRef<root::Msg>) {
        let _ = self.root.set(root); // a node has one root in its life
    }

    /// The live supervision tree of the whole cluster, as far as its nodes answer in time; of this
    /// node alone where there is no other. `None` while the root is starting.
    pub async fn cluster_tree(&self) -> Option<Snapshot> {
        let own = self.board.snapshot()?;
        let (Some(root), Some(cluster)) = (self.root.get(), &self.config.cluster) else {
            return Some(own);
        };
        let wait = 2 * cluster.tree_timeout; // each node has half of it
        let asked = root.call(root::Msg::Trees, Some(wait)).await;
        let others = asked.ok().and_then(|answer| answer.success_or(()).ok()).unwrap_or_default();
        let mut nodes = vec![own];
        nodes.extend(others);
        Some(Snapshot {
            kind: "Nodes".into(),
            name: "cluster".to_string(),
            state: "connected".into(),
            generation: 1,
            counters: vec![("nodes".into(), nodes.len() as u64)],
            children: nodes,
        })
    }

    /// A worker of this node.
    pub fn worker_id(&self, worker: &str) -> WorkerId {
        WorkerId { node: self.id.clone(), worker: worker.into() }
    }

    /// Frames that the token stream of so many ranks may hold before they merge the next ones.
    pub fn stream_frames(&self, ranks: usize) -> usize {
        ranks.max(1) * self.config.worker.as_ref().map_or(1, |worker| worker.stream_frames)
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

/// Larger for a later start, whatever the process: microseconds since 1970.
fn boot() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64
}
