//! Where a request's legs run: choosing a rank, and what the loss of one means.

use std::sync::Arc;

use super::choice::Choice;
use super::inbox::RequestInbox;
use crate::actors::failure::Failure;
use crate::actors::handle::Shared;
use crate::actors::inbox::Lost;
use crate::actors::models::{ModelView, ServedModel};
use crate::actors::reply::NewRequest;
use crate::actors::route::{Seen, least_loaded};
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
    /// Whether the client wants to know which ranks served it.
    pub(super) tell_ranks: bool,
    migrations: u64,
}

/// What to do about a leg that ended without ending its choice.
pub(super) enum Again {
    /// Place it again at once.
    Now,
    /// Wait for a rank to have room.
    Later(String),
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
            tell_ranks: request.tell_ranks,
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
        inbox: &Arc<RequestInbox>,
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
        let live = || model.links.iter().filter(|link| link.takes_work());
        if live().count() > 0 && !self.has_ranks(choice) {
            let reason = "its ranks are gone, and the others would go on differently";
            return Err(NotPlaced::NoRank(reason.to_string()));
        }
        let live = || live().filter(|link| choice.fits(link));
        let ranks =
            || live().flat_map(|link| link.ranks.iter().enumerate().map(move |r| (link, r)));
        let seen = ranks().map(|(_, (_, rank))| Seen {
            legs: rank.legs(),
            placed: rank.placed(),
            credit: rank.credit(),
        });
        let Some((link, (rank, _))) = least_loaded(seen).and_then(|best| ranks().nth(best)) else {
            return Err(self.nowhere(choice, model, ranks().count()));
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
        choice.placed(link.clone(), rank, id);
        if let Err(lost) = link.place(rank, leg, inbox.clone()) {
            choice.unplaced();
            return Err(NotPlaced::NoRank(lost.to_string()));
        }
        Ok(())
    }

    /// Whether there are ranks, full or not, that could go on with the choice.
    pub(super) fn has_ranks(&self, choice: &Choice) -> bool {
        let view = self.shared.view.borrow();
        let mut links = view.model(&self.model.name).into_iter().flat_map(|model| &model.links);
        links.any(|link| link.takes_work() && choice.fits(link))
    }

    /// No rank has room. A client whose answer has begun waits for one; another may come again.
    fn nowhere(&self, choice: &Choice, model: &ModelView, ranks: usize) -> NotPlaced {
        if ranks == 0 {
            return NotPlaced::NoRank(model.reason.clone());
        }
        if choice.has_begun() {
            return NotPlaced::NoRank(format!("all {ranks} ranks are full"));
        }
        let links = model.links.iter().flat_map(|link| &link.ranks);
        let current = links.map(|rank| rank.placed() as usize).sum();
        NotPlaced::Failed(self.too_many(current, current))
    }

    fn too_many(&self, current: usize, limit: usize) -> Failure {
        let what = "legs wait on the ranks (worker.max_waiting)";
        let retry_after = self.shared.frontend_config().retry_after;
        Failure::TooManyRequests { what, current, limit, retry_after }
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
    ) -> Result<Again, Failure> {
        match (error.reach(), error) {
            (Reach::Request, error) => Err(Failure::Rejected(error)),
            (Reach::Engine, _) => {
                self.lost(choice, Lost::Worker);
                Ok(Again::Now)
            }
            (Reach::Retry, EngineError::QueueFull { waiting, limit }) if !choice.has_begun() => {
                choice.unplaced();
                if choice.next_attempt() >= self.shared.frontend_config().offers {
                    return Err(self.too_many(waiting, limit));
                }
                Ok(Again::Now)
            }
            (Reach::Retry, error) => {
                self.migrated(Migration::Pressure);
                choice.unplaced();
                Ok(Again::Later(error.to_string()))
            }
        }
    }
}
