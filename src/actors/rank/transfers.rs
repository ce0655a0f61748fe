//! What a `Rank` does about KV that comes from elsewhere: a `Transfer` for each sequence that waits for it,
//! and the rule that no block is used again before nothing writes to it any more.

use std::sync::Weak;

use ractor::{Actor, ActorId, ActorRef};
use tracing::warn;

use super::fetches::Fetches;
use super::thread::Command;
use super::{Msg, State};
use crate::actors::link::FetchEnd;
use crate::actors::transfer::{self, Moved, Mover, Transfer};
use crate::engine::{Description, PullOut};
use crate::ids::LegId;
use crate::kvxfer::ledger::Level;
use crate::kvxfer::{Event, KvBlocks, KvSource};
use crate::metrics::Fetched;

/// Why a rank ends though its engine is well.
#[derive(Debug, thiserror::Error)]
#[error(
    "too many KV blocks are in quarantine (worker.transfer.quarantine_max, or a quarter of the pool): \
     pulls have failed and not been proven to write no more; look after the ranks that prefill"
)]
pub(super) struct QuarantineFull;

impl State {
    /// The record of a rank that can fetch.
    pub(super) fn fetches_of(
        &self,
        description: &Description,
        mover: Weak<Mover>,
    ) -> Option<Fetches> {
        let transfer = &self.args.node.config.worker.as_ref()?.transfer;
        // What is left must do for the longest leg there can be.
        let cap = transfer.quarantine_max.min(description.blocks / 4).max(1);
        let alarm = transfer.quarantine_alarm.min(cap);
        Some(Fetches::new(mover, description.blocks, alarm, cap))
    }

    /// More of a leg's KV can be fetched.
    pub(super) fn more(&mut self, leg: LegId, more: Option<KvBlocks>) {
        match self.fetches.as_ref().and_then(|fetches| fetches.actor(leg)) {
            // It has ended meanwhile: what it has is counted.
            Some(actor) => drop(actor.cast(transfer::Msg::More(more))),
            None => {
                let Some(sequence) = self.live.get_mut(&leg) else { return };
                if more.is_none() && self.fetches.is_none() {
                    self.thread.send(Command::NotGiven(leg)); // its engine fetches by itself
                }
                sequence.more(more);
            }
        }
    }

    /// A leg has its blocks: what can be fetched goes there.
    pub(super) async fn fetch(&mut self, myself: &ActorRef<Msg>, pull: PullOut) {
        let leg = pull.leg;
        let Some(offer) = self.live.get_mut(&leg).and_then(|sequence| sequence.offer.take()) else {
            return self.give_up(leg, Fetched::Cancelled);
        };
        let KvSource::Pool(origin) = offer.source else {
            return self.give_up(leg, Fetched::Nothing); // of an engine of another kind
        };
        if offer.blocks.blocks.is_empty() && offer.blocks.missing == 0 {
            return self.give_up(leg, Fetched::Nothing);
        }
        let Some(fetches) = &mut self.fetches else {
            warn!(%leg, "this rank fetches nothing: it has no role for that (worker.role)");
            return self.give_up(leg, Fetched::Nothing);
        };
        if !fetches.reserve(leg, &pull.blocks) {
            return self.give_up(leg, Fetched::Quarantine);
        }
        let args = transfer::Args {
            node: self.args.node.clone(),
            parent: self.card.id(),
            rank: myself.clone(),
            mover: fetches.mover(),
            metrics: self.metrics.clone(),
            pull,
            origin,
            blocks: offer.blocks,
        };
        match Actor::spawn_linked(None, Transfer, args, myself.get_cell()).await {
            Ok((actor, _)) => {
                if let Some(sequence) = self.live.get_mut(&leg) {
                    sequence.transfer = Some(actor.clone());
                }
                fetches.started(leg, actor);
                self.show_transfers();
            }
            Err(why) => {
                warn!(%leg, %why, "a transfer did not start");
                fetches.dismiss(leg);
                self.give_up(leg, Fetched::Nothing);
            }
        }
    }

    /// The leg computes all by itself; nothing was started for it.
    fn give_up(&mut self, leg: LegId, outcome: Fetched) {
        self.metrics.fetches.inc(outcome);
        self.thread.send(Command::Pulled { leg, have: 0, end: FetchEnd::NotTaken });
    }

    /// A `Transfer` is over, and nothing of it is on its way any more.
    pub(super) fn fetched(&mut self, leg: LegId, have: u32, end: FetchEnd) {
        let Some(fetches) = &mut self.fetches else { return };
        if let Some(actor) = fetches.actor(leg) {
            actor.stop(None);
        }
        if !fetches.over(leg) {
            return; // it was given up before
        }
        self.metrics.fetches.inc(match (end, have) {
            (FetchEnd::Whole, _) => Fetched::Whole,
            (_, 0) => Fetched::Nothing,
            (_, _) => Fetched::Part,
        });
        self.thread.send(Command::Pulled { leg, have, end });
        self.show_transfers();
    }

    /// Something happened to a pull.
    pub(super) fn moved(&mut self, myself: &ActorRef<Msg>, (leg, event): Moved) {
        if let Event::Failed { .. } = event {
            self.ask_for_quiet(myself, leg);
        }
        let Some(fetches) = &mut self.fetches else { return };
        if let Some(actor) = fetches.actor(leg) {
            let _ = actor.cast(transfer::Msg::Moved(event)); // ended: its supervisor hears of it
        }
        self.settle(leg);
    }

    /// A `Transfer` has ended without a word: cancelled with its sequence, killed, or it panicked.
    pub(super) fn orphaned(&mut self, myself: &ActorRef<Msg>, actor: ActorId, why: &str) {
        let Some(leg) = self.fetches.as_mut().and_then(|fetches| fetches.orphaned(actor)) else {
            return;
        };
        if self.live.contains_key(&leg) {
            warn!(%leg, why, "a transfer was lost; its leg computes what is missing");
        }
        self.ask_for_quiet(myself, leg);
        self.settle(leg);
    }

    /// If nobody drives a fetch any more and nothing writes to its blocks, the engine may have them.
    fn settle(&mut self, leg: LegId) {
        if self.fetches.as_mut().is_some_and(|fetches| fetches.settled(leg)) {
            self.metrics.fetches.inc(match self.live.contains_key(&leg) {
                true => Fetched::Nothing,
                false => Fetched::Cancelled,
            });
            self.thread.send(Command::Pulled { leg, have: 0, end: FetchEnd::NotTaken });
        }
        self.show_transfers();
    }

    /// Looks again when the proof of quiet is due.
    fn ask_for_quiet(&self, myself: &ActorRef<Msg>, leg: LegId) {
        if let Some(worker) = &self.args.node.config.worker {
            myself.send_after(worker.transfer.quiet, move || Msg::Unquiet(leg));
        }
    }

    /// There is no proof in time that a failed pull writes no more: its blocks stay where they are, and its
    /// leg goes elsewhere.
    ///
    /// # Errors
    /// Too many blocks are lost in this way: the rank's next life has a pool of its own.
    pub(super) fn unquiet(&mut self, leg: LegId) -> Result<(), QuarantineFull> {
        let Some(level) = self.fetches.as_mut().and_then(|fetches| fetches.quarantine(leg)) else {
            return Ok(()); // it came in time
        };
        warn!(%leg, ?level, "a pull has failed and may still write: its KV blocks are in quarantine");
        self.kill(leg);
        self.show_transfers();
        match level {
            Level::Full => Err(QuarantineFull),
            Level::Alarm | Level::Normal => Ok(()),
        }
    }

    pub(super) fn show_transfers(&mut self) {
        let Some(fetches) = &mut self.fetches else { return };
        let (census, level) = fetches.census();
        self.metrics.quarantined.set(census.quarantined.into());
        self.metrics.quarantine_level.set(level as i64);
        if let Some(mover) = fetches.mover().upgrade() {
            let counters = mover.counters();
            self.metrics.pulls.set(counters.in_flight as i64);
            self.metrics.peers_lost.inc_by(fetches.newly_lost(counters.peers_lost));
        }
    }
}
