//! What a rank's thread does about legs that are parts: prefills are lent to other ranks, and what decodes
//! want to fetch is told to the `Rank`.

use std::time::Instant;

use tracing::warn;

use super::Msg;
use super::steps::Steps;
use crate::actors::link::{FetchEnd, Lent};
use crate::engine::{Handed, HandedEnd};
use crate::ids::{BlockId, LegId};
use crate::kvxfer::{KvBlocks, KvSource};
use crate::metrics::Fetched;

impl Steps {
    /// Ends a leg in the engine. What others might read of it is taken back before that.
    pub(super) fn abort(&mut self, leg: LegId) {
        if let Some(leases) = &mut self.leases {
            leases.end(leg);
        }
        self.engine.abort(leg);
    }

    /// Ends leases that nobody has made use of in time, with their legs.
    pub(super) fn end_leases(&mut self) {
        let now = Instant::now();
        while let Some(leg) = self.leases.as_mut().and_then(|leases| leases.expired(now)) {
            warn!(%leg, "nobody has fetched what was prefilled (worker.transfer.lease_s)");
            self.lose(leg);
        }
    }

    /// Ends a leg that nobody asked to end.
    fn lose(&mut self, leg: LegId) {
        self.say_of(leg, |frame| frame.lost.push(leg));
        if self.forget(leg) {
            self.ended.push(leg);
        }
        self.abort(leg);
    }

    /// Passes on what the step says of parts.
    pub(super) fn deal_parts(&mut self) {
        if !self.step.pulls.is_empty() {
            // A rank that is gone has ended its legs.
            let _ = self.rank.cast(Msg::Pulls(std::mem::take(&mut self.step.pulls)));
        }
        for Handed { leg, blocks, state } in std::mem::take(&mut self.step.handed) {
            let blocks =
                KvBlocks { blocks: (0..blocks).map(BlockId).collect(), ..KvBlocks::default() };
            let source = Some(KvSource::Engine(state));
            self.say_of(leg, |frame| frame.lent.push(Lent { leg, source, blocks }));
        }
        for (leg, end) in std::mem::take(&mut self.step.fetched) {
            let (end, outcome) = match end {
                HandedEnd::Whole => (FetchEnd::Whole, Fetched::Whole),
                HandedEnd::NotGiven => (FetchEnd::NotGiven, Fetched::Nothing),
                HandedEnd::NotTaken => (FetchEnd::NotTaken, Fetched::Nothing),
            };
            self.shows.transfers.fetches.inc(outcome);
            self.say_of(leg, |frame| frame.fetched.push((leg, end)));
        }
        for row in std::mem::take(&mut self.step.prefilled) {
            let leg = row.leg;
            let Some(leases) = &mut self.leases else {
                warn!(%leg, "this rank prefills for nobody: it has no role for that (worker.role)");
                self.lose(leg);
                continue;
            };
            match leases.lend(row, Instant::now()) {
                Ok((origin, blocks)) => {
                    let source = origin.map(KvSource::Pool);
                    self.say_of(leg, |frame| frame.lent.push(Lent { leg, source, blocks }));
                }
                Err(why) => {
                    warn!(%leg, %why, "what was prefilled cannot be lent");
                    self.lose(leg);
                }
            }
        }
    }
}
