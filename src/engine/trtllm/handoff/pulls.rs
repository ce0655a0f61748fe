//! Legs whose prompt comes from another engine, until they have their first token.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;

use crate::engine::Leg;
use crate::ids::LegId;

/// Keeps what is needed to compute a prompt here after all.
#[derive(Debug)]
pub struct Pulls {
    timeout: Duration,
    /// Until when each may take, once it has begun.
    legs: FxHashMap<LegId, (Option<Instant>, Arc<Leg>)>,
}

impl Pulls {
    /// A pull that takes longer fails (`worker.transfer.timeout_s`).
    pub fn new(timeout: Duration) -> Self {
        Self { timeout, legs: FxHashMap::default() }
    }

    /// The leg's KV is to come.
    pub fn wait(&mut self, leg: Leg) {
        self.legs.insert(leg.id, (None, Arc::new(leg)));
    }

    /// There is room for it: from now on its time counts.
    pub fn begin(&mut self, leg: LegId, now: Instant) {
        if let Some((until, _)) = self.legs.get_mut(&leg) {
            until.get_or_insert(now + self.timeout);
        }
    }

    /// The leg has a token, or has ended: true if its KV has come with that.
    pub fn end(&mut self, leg: LegId) -> bool {
        self.legs.remove(&leg).is_some()
    }

    /// Its KV has not come: the leg, to be computed here.
    pub fn fail(&mut self, leg: LegId) -> Option<Arc<Leg>> {
        self.legs.remove(&leg).map(|(_, leg)| leg)
    }

    /// Whether this leg's is to come, or on its way.
    pub fn has(&self, leg: LegId) -> bool {
        self.legs.contains_key(&leg)
    }

    /// Until when this leg's may take, if it has begun.
    pub fn until(&self, leg: LegId) -> Option<Instant> {
        self.legs.get(&leg)?.0
    }

    /// Whether none is on its way.
    pub fn is_empty(&self) -> bool {
        self.legs.is_empty()
    }

    /// Legs that have waited too long.
    pub fn late(&self, now: Instant) -> Vec<LegId> {
        let late = self.legs.iter().filter(|(_, (until, _))| until.is_some_and(|at| at <= now));
        late.map(|(leg, _)| *leg).collect()
    }
}
