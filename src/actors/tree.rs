//! The live supervision tree, as `/cluster/tree` shows it.

use serde::Serialize;

/// One actor.
#[derive(Clone, Debug, Serialize)]
pub struct Snapshot {
    /// `NodeRoot`, `Frontend`, `Request`, …
    pub kind: &'static str,
    /// Which one: a model, a worker, a request id.
    pub name: String,
    /// What it is doing now.
    pub state: String,
    /// How often it was started, from 1.
    pub generation: u32,
    /// Its counters.
    pub counters: Vec<(&'static str, u64)>,
    /// What it supervises.
    pub children: Vec<Snapshot>,
}
