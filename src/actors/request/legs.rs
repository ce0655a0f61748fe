//! Where a request's legs run: choosing a rank, and what the loss of one means.

use std::sync::Arc;

use super::choice::Choice;
use crate::actors::failure::Failure;
use crate::actors::handle::Shared;
use crate::actors::inbox::{Inbox, Lost};
use crate::actors::models::ServedModel;
use crate::actors::reply::NewRequest;
use crate::actors::route::least_loaded;
use crate::engine::{EngineError, Leg, Reach, Sampling};
use crate::ids::{LegId, RequestId};
use crate::metrics::Migration;

/// What all legs of a request share.
pub(super) struct Legs {
    shared: Arc<Shared>,
    id: RequestId,
    pub(super) model: Arc<ServedModel>,
    /// Choices for each prompt.
    pub(super) n: usize,
    max_tokens: u32,
    sampling: Arc<Sampling>,
    salt: u64,
    migrations: u64,
}

/// Why a leg could not be placed.
pub(super) enum NotPlaced {
    /// No rank can take it now, for this reason; later one may.
    NoRank(String),
    /// The request is over.
    Failed(Failure),
}

impl Legs {
    pub(super) fn new(shared: Arc<Shared>, id: RequestId, request: &NewRequest) -> Self {
        Self {
            shared,
            id,
            model: request.model.clone(),
            n: request.n,
            max_tokens: request.max_tokens,
            sampling: Arc::new(request.sampling.clone()),
            salt: request.salt,
            migrations: 0,
        }
    }

    /// Placements that followed a loss.
    pub(super) fn migrations(&self) -> u64 {
        self.migrations
    }

    /// Starts a leg for the choice on the least loaded rank, from all that was delivered.
    pub(super) fn place(
        &self,
        choice: &mut Choice,
        index: usize,
        inbox: &Arc<Inbox>,
    ) -> Result<(), NotPlaced> {
        let limit = self.shared.frontend_config().migration_limit;
        if let Some((losses, last)) = choice.losses().filter(|(losses, _)| *losses > limit) {
            let (times, last) = (usize::from(losses), last.to_string());
            return Err(NotPlaced::Failed(Failure::RanksLost { times, last }));
        }
        let view = self.shared.view.borrow().clone();
        let Some(model) = view.model(&self.model.name) else {
            return Err(NotPlaced::NoRank("it is not served here any more".to_string()));
        };
        let ranks = || model.links.iter().flat_map(|l| (0..l.ranks.len()).map(move |r| (l, r)));
        let best = least_loaded(ranks().map(|(link, rank)| link.ranks[rank].legs()));
        let Some((link, rank)) = best.and_then(|best| ranks().nth(best)) else {
            return Err(NotPlaced::NoRank(model.reason.clone()));
        };
        let attempt = choice.next_attempt();
        let id = LegId { request: self.id, choice: index as u16, attempt };
        let leg = Leg {
            id,
            tokens: choice.tokens(),
            prompt_len: choice.prompt_tokens(),
            max_tokens: self.max_tokens,
            choice: (index % self.n) as u32,
            sampling: self.sampling.clone(),
            salt: self.salt,
        };
        choice.placed(link.clone(), id);
        if let Err(lost) = link.place(rank, leg, inbox.clone()) {
            choice.unplaced();
            return Err(NotPlaced::NoRank(lost.to_string()));
        }
        Ok(())
    }

    /// The leg was lost with its rank: not the request's fault, so it will be placed again.
    pub(super) fn lost(&mut self, choice: &mut Choice, lost: Lost) {
        self.migrated(match lost {
            Lost::Worker => Migration::WorkerLost,
            Lost::Sequence => Migration::SequenceLost,
        });
        choice.lost(lost);
    }

    fn migrated(&mut self, why: Migration) {
        self.migrations += 1;
        self.shared.node.metrics.model(&self.model.name).migrations.inc(why);
    }

    /// The engine ended the leg. Pressure on a choice that had already begun is waited out.
    ///
    /// # Errors
    /// The failure that ends the request.
    pub(super) fn failed(
        &mut self,
        choice: &mut Choice,
        error: EngineError,
    ) -> Result<(), Failure> {
        let retry_after = self.shared.frontend_config().retry_after;
        match (error.reach(), error) {
            (Reach::Request, error) => Err(Failure::Rejected(error)),
            (Reach::Engine, _) => {
                self.lost(choice, Lost::Worker);
                Ok(())
            }
            (Reach::Retry, EngineError::QueueFull { waiting, limit }) if !choice.has_begun() => {
                let what = "legs wait on the rank (worker.max_waiting)";
                Err(Failure::TooManyRequests { what, current: waiting, limit, retry_after })
            }
            (Reach::Retry, _) => {
                self.migrated(Migration::Pressure);
                choice.unplaced();
                Ok(())
            }
        }
    }
}
