//! Where a request's legs run: choosing a rank, and what the loss of one means.

use std::sync::Arc;

use super::choice::Choice;
use super::inbox::RequestInbox;
use crate::actors::failure::Failure;
use crate::actors::handle::Shared;
use crate::actors::inbox::Lost;
use crate::actors::link::Link;
use crate::actors::models::{ModelView, ServedModel};
use crate::actors::reply::{NewRequest, Wishes};
use crate::actors::router::{Ask, Explanation, Routed, Seat};
use crate::engine::{EngineError, Leg, Part, Reach, Sampling};
use crate::ids::{LegId, RequestId};
use crate::metrics::Migration;
use crate::router::{Claim, Mode};

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
    pub(super) wishes: Wishes,
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
    /// All ranks are full, and it may wait in line for one.
    Full,
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
            wishes: request.wishes.clone(),
            migrations: 0,
        }
    }

    /// Placements that followed a loss.
    pub(super) fn migrations(&self) -> u64 {
        self.migrations
    }

    /// Starts a leg for the choice on the rank that the model's router chooses, from all that was
    /// delivered. Says why there, if the client wants to know.
    pub(super) fn place(
        &self,
        choice: &mut Choice,
        index: usize,
        inbox: &Arc<RequestInbox>,
    ) -> Result<Option<Explanation>, NotPlaced> {
        let limit = self.shared.frontend_config().migration_limit;
        if let Some((losses, last)) = choice.losses().filter(|(losses, _)| *losses > limit) {
            let (times, last) = (usize::from(losses), last.to_string());
            return Err(NotPlaced::Failed(Failure::RanksLost { times, last }));
        }
        let view = self.shared.view.borrow().clone();
        let Some(model) = view.model(&self.model.name) else {
            return Err(NotPlaced::NoRank("it is not served here any more".to_string()));
        };
        let ranks = self.ranks(choice, model)?;
        let offers: Vec<_> =
            ranks.iter().map(|(link, rank)| link.ranks[*rank].offer(link.block_tokens)).collect();
        let tokens = choice.tokens();
        let ask = Ask { session: self.session_of(choice), ..self.ask(&tokens) };
        let name = |at: usize| ranks[at].0.rank_name(ranks[at].1);
        let Some(Routed { index: at, cached_blocks, explanation }) =
            self.model.router.route(&ask, &offers, name)
        else {
            return Err(self.nowhere(choice, model, ranks.len()));
        };
        let (link, rank) = (ranks[at].0.clone(), ranks[at].1);
        let attempt = choice.next_attempt();
        let id = LegId { request: self.id, choice: index as u16, attempt };
        let leg = Leg {
            id,
            tokens,
            prompt_len: choice.prompt_tokens(),
            max_tokens: self.max_tokens,
            choice: (index % self.n) as u32,
            sampling: self.sampling.clone(),
            salt: self.salt,
            part: Part::Whole,
        };
        choice.placed(link.clone(), rank, id);
        if let Err(lost) = link.place(rank, leg, cached_blocks, inbox.clone()) {
            choice.unplaced();
            return Err(NotPlaced::NoRank(lost.to_string()));
        }
        Ok(explanation)
    }

    fn ask<'a>(&self, tokens: &'a [u32]) -> Ask<'a> {
        let (explain, session) = (self.wishes.explain, self.wishes.session);
        Ask { tokens, salt: self.salt, explain, session }
    }

    /// An answer that has begun goes on anywhere.
    fn session_of(&self, choice: &Choice) -> Option<u64> {
        self.wishes.session.filter(|_| !choice.has_begun())
    }

    /// The rank that the request waits for while there is no room; `None`: any will do.
    pub(super) fn wants(&self) -> Option<Seat> {
        let Some(name) = &self.wishes.rank else {
            return self.wishes.session.and_then(|session| self.model.router.bound_to(session));
        };
        let view = self.shared.view.borrow();
        let links = view.model(&self.model.name).into_iter().flat_map(|model| &model.links);
        let links = links.filter(|link| link.takes_work());
        let mut ranks = links.flat_map(|link| (0..link.ranks.len()).map(move |at| (link, at)));
        let named = ranks.find(|(link, at)| link.rank_name(*at) == *name);
        named.map(|(link, at)| link.ranks[at].seat)
    }

    /// What decides about the request's turn when all ranks are full.
    pub(super) fn claim(&self, choices: &[Choice]) -> Claim {
        let of_choice = |choice: &Choice| self.model.router.uncached(&self.ask(&choice.tokens()));
        // The choices of a prompt share its blocks.
        let blocks = choices.iter().step_by(self.n).map(of_choice).sum();
        Claim { priority: self.wishes.priority, tenant: self.wishes.tenant, blocks }
    }

    /// The ranks that live and may take the choice, with room or without: until it has begun, only
    /// the one that the client named.
    fn ranks<'a>(
        &self,
        choice: &Choice,
        model: &'a ModelView,
    ) -> Result<Vec<(&'a Arc<Link>, usize)>, NotPlaced> {
        let mut ranks = Vec::new();
        let mut others = false;
        for link in model.links.iter().filter(|link| link.takes_work()) {
            match choice.fits(link) {
                true => ranks.extend((0..link.ranks.len()).map(|rank| (link, rank))),
                false => others = true,
            }
        }
        if ranks.is_empty() && others {
            let reason = "its ranks are gone, and the others would go on differently";
            return Err(NotPlaced::NoRank(reason.to_string()));
        }
        let lives = |(link, rank): &(&Arc<Link>, usize)| link.ranks[*rank].is_up();
        if choice.has_begun() || ranks.is_empty() {
            ranks.retain(lives);
            return Ok(ranks);
        }
        let known = |ranks: &[(&Arc<Link>, usize)]| {
            let names: Vec<_> = ranks.iter().map(|(link, rank)| link.rank_name(*rank)).collect();
            names.join(", ")
        };
        match &self.wishes.rank {
            Some(rank) => {
                let all = known(&ranks);
                ranks.retain(|(link, at)| link.rank_name(*at) == *rank);
                if ranks.is_empty() {
                    let failure = Failure::UnknownRank { rank: rank.clone(), known: all };
                    return Err(NotPlaced::Failed(failure));
                }
                if !ranks.iter().any(lives) {
                    return Err(NotPlaced::NoRank(format!("the rank {rank} is restarting")));
                }
            }
            None if self.model.router.mode() == Mode::Direct => {
                return Err(NotPlaced::Failed(Failure::RankNeeded { known: known(&ranks) }));
            }
            None => {}
        }
        ranks.retain(lives);
        Ok(ranks)
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
            let restarting = "its ranks are restarting".to_string();
            let lives = model.links.iter().any(|link| link.takes_work());
            return NotPlaced::NoRank(if lives { restarting } else { model.reason.clone() });
        }
        if choice.has_begun() {
            return NotPlaced::NoRank(format!("all {ranks} ranks are full"));
        }
        if self.model.router.line.is_open() {
            return NotPlaced::Full;
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
            Lost::Rank => Migration::RankLost,
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
                let offers = self.shared.frontend_config().offers;
                if !self.model.router.line.is_open() && choice.next_attempt() >= offers {
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
