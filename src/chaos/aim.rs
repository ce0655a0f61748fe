//! Looks at the cluster just before a fault: what it is about to hit, and whether that is what it was
//! aimed at.

use std::time::{Duration, Instant};

use super::cluster::Cluster;
use super::inject::Injector;
use super::plan::Planned;
use super::sight::{Phases, Sight, phases};

/// How long a fault waits for a request in the phase that it is aimed at.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it looks.
const EACH: Duration = Duration::from_millis(5);

impl Injector<'_> {
    /// Waits for the phase that the fault is aimed at, but not for ever. Returns the phases of the
    /// victim's requests then; `None` if it hits no node or a node says nothing.
    pub(super) async fn aim(&self, planned: &Planned) -> Option<Phases> {
        let victim = planned.target?;
        let roles: Vec<_> = self.cluster.nodes.iter().map(|node| node.role).collect();
        let began = Instant::now();
        loop {
            let found = phases(&roles, &self.cluster.sights().await?, victim);
            let is_it = planned.aim.is_none_or(|aim| found.contains_key(&aim));
            if is_it || began.elapsed() >= PATIENCE || self.interrupt.is_set() {
                return Some(found);
            }
            tokio::time::sleep(EACH).await;
        }
    }
}

impl Cluster {
    /// What all nodes show, as nearly at the same time as can be; `None` if one says nothing.
    async fn sights(&self) -> Option<Vec<Sight>> {
        let looks = self.nodes.iter().map(|node| {
            let probe = node.probe.clone();
            tokio::spawn(async move {
                let (cards, samples) = tokio::join!(probe.cards(), probe.metrics());
                let waiting = samples.ok()?.sum("cuelight_waiting") as usize;
                Some(Sight { cards: cards.ok()?, waiting })
            })
        });
        let mut sights = Vec::with_capacity(self.nodes.len());
        for look in looks.collect::<Vec<_>>() {
            sights.push(look.await.ok()??);
        }
        Some(sights)
    }
}
