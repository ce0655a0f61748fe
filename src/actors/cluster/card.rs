//! What a node says about itself to the others, and what changed since it last did.

use std::sync::Arc;

use bincode::{Decode, Encode};

use crate::actors::worker::WorkerUp;
use crate::engine::Description;
use crate::ids::{Generation, NodeId, RankIndex, WorkerId};
use crate::router::Role;

/// A node, as it describes itself.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct NodeCard {
    /// The node.
    pub node: NodeId,
    /// Where it can be dialled.
    pub address: String,
    /// Its workers that are up.
    pub workers: Vec<WorkerCard>,
    /// The nodes it is connected to, and where they can be dialled: how a full mesh forms from any
    /// connected set of seeds.
    pub peers: Vec<(NodeId, String)>,
}

/// A worker that is up.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct WorkerCard {
    /// Its name on its node.
    pub worker: Arc<str>,
    /// The model it serves.
    pub model: Arc<str>,
    /// Which start of it this is.
    pub generation: Generation,
    /// Its ranks.
    pub ranks: Vec<RankIndex>,
    /// Its engine.
    pub description: Description,
    /// Hash of its tokenizer.
    pub tokenizer: u64,
    /// What its ranks do.
    pub role: Role,
}

impl WorkerCard {
    /// The card of a worker of this process.
    pub fn of(up: &WorkerUp) -> Self {
        Self {
            worker: up.id.worker.clone(),
            model: up.model.clone(),
            generation: up.generation,
            ranks: up.ranks.clone(),
            description: up.description.clone(),
            tokenizer: up.tokenizer,
            role: up.role,
        }
    }
}

/// What a new card changes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Workers that are up, or up with a later generation.
    pub up: Vec<WorkerCard>,
    /// Workers that are gone.
    pub down: Vec<(WorkerId, Generation)>,
}

/// Compares a node's new card with the last one.
pub fn changes(old: Option<&NodeCard>, new: &NodeCard) -> Changes {
    let known = old.map_or(&[][..], |old| &old.workers);
    let is_same =
        |a: &WorkerCard, b: &WorkerCard| a.worker == b.worker && a.generation == b.generation;
    let gone = known.iter().filter(|a| !new.workers.iter().any(|b| is_same(a, b)));
    let id = |card: &WorkerCard| WorkerId { node: new.node.clone(), worker: card.worker.clone() };
    Changes {
        up: new.workers.iter().filter(|b| !known.iter().any(|a| is_same(a, b))).cloned().collect(),
        down: gone.map(|card| (id(card), card.generation)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{PrefixCache, Tier};

    fn worker(name: &str, generation: u32) -> WorkerCard {
        WorkerCard {
            worker: name.into(),
            model: "m".into(),
            generation: Generation(generation),
            ranks: vec![RankIndex(0)],
            description: Description {
                kind: "sim".into(),
                fingerprint: 1,
                context: 64,
                vocab: 10,
                block_tokens: 16,
                blocks: 8,
                block_bytes: 1,
                max_running: 2,
                max_waiting: 3,
                prefix_cache: PrefixCache::Told,
                slowest_tier: Tier::Device,
                hands_over: false,
            },
            tokenizer: 1,
            role: Role::Aggregated,
        }
    }

    fn node(workers: Vec<WorkerCard>) -> NodeCard {
        let node = NodeId { name: "n".into(), boot: 1 };
        NodeCard { node, address: "h:1".into(), workers, peers: Vec::new() }
    }

    #[test]
    fn only_what_changed_is_told() {
        let first = node(vec![worker("a", 1), worker("b", 1)]);
        assert_eq!(changes(None, &first).up, first.workers);
        assert_eq!(changes(Some(&first), &first), Changes::default());
        let next = node(vec![worker("a", 2)]);
        let changed = changes(Some(&first), &next);
        assert_eq!(changed.up, next.workers);
        let down: Vec<_> = changed.down.iter().map(|(id, g)| (&*id.worker, g.0)).collect();
        assert_eq!(down, [("a", 1), ("b", 1)]);
    }
}
