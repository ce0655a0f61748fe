//! Where a request's legs run: choosing a rank, and what the loss of one means.

use std::sync::Arc;
use std::time::Instant;

use super::choice::{Choice, Prefill};
use super::handover::Handover;
use super::inbox::RequestInbox;
use crate::actors::failure::Failure;
use crate::actors::handle::Shared;
use crate::actors::inbox::Lost;
use crate::actors::link::Link;
use crate::actors::models::{ModelView, ServedModel};
use crate::actors::reply::{NewRequest, Wishes};
use crate::actors::router::{Ask, ExplainedPrefill, Explanation, Offer, Routed, Seat};
use crate::engine::{EngineError, Leg, Part, Reach, Sampling};
use crate::ids::{LegId, RequestId};
use crate::metrics::{LabelValue, Migration, PrefillPlace};
use crate::router::{Claim, Mode, Place, Role};

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

impl Prefill {
    fn explained(&self) -> ExplainedPrefill {
        ExplainedPrefill { place: self.place.text(), rank: self.rank.clone() }
    }
}

impl From<Place> for PrefillPlace {
    fn from(place: Place) -> Self {
        match place {
            Place::Elsewhere => Self::Elsewhere,
            Place::Short => Self::Short,
            Place::Cached => Self::Cached,
            Place::Empty => Self::Empty,
            Place::Full => Self::Full,
            Place::Failing => Self::Failing,
        }
    }
}

/// Whether the rank can fetch what others have prefilled.
fn fetches((link, _): &(&Arc<Link>, usize)) -> bool {
    link.role == Role::Decode
}

/// These ranks as their router sees them.
fn offers(ranks: &[(&Arc<Link>, usize)]) -> Vec<Offer> {
    ranks.iter().map(|(link, rank)| link.ranks[*rank].offer(link.block_tokens)).collect()
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
        if let Some((times, last)) = choice.lost_too_often(limit) {
            let last = last.to_string();
            return Err(NotPlaced::Failed(Failure::RanksLost { times, last }));
        }
        let view = self.shared.view.borrow().clone();
        let Some(model) = view.model(&self.model.name) else {
            return Err(NotPlaced::NoRank("it is not served here any more".to_string()));
        };
        let mut ranks = self.ranks(choice, model)?;
        let has_room = |(link, at): &(&Arc<Link>, usize)| link.ranks[*at].room() > 0;
        if choice.handover.is_some() && ranks.iter().any(|rank| fetches(rank) && has_room(rank)) {
            ranks.retain(fetches);
        }
        let tokens = choice.tokens();
        let ask = Ask { session: self.session_of(choice), ..self.ask(&tokens) };
        if choice.handover.is_none()
            && let Some(prefill) = self.prefill(choice, index, &ask, (model, &ranks), inbox)?
        {
            let elsewhere = prefill.place == PrefillPlace::Elsewhere;
            choice.prefill = Some(prefill);
            if elsewhere {
                return Ok(None);
            }
        }
        let name = |at: usize| ranks[at].0.rank_name(ranks[at].1);
        let routed = self.model.router.route(&ask, &offers(&ranks), name);
        let Some(Routed { index: at, cached_blocks, mut explanation }) = routed else {
            return Err(self.nowhere(choice, model, ranks.len()));
        };
        if let Some(explanation) = &mut explanation {
            explanation.prefill = choice.prefill.as_ref().map(Prefill::explained);
        }
        let (link, rank) = (ranks[at].0.clone(), ranks[at].1);
        let mut leg = self.leg(choice, index, tokens);
        let mut cached = cached_blocks as usize * link.block_tokens;
        let mut offer = None;
        if !fetches(&ranks[at]) {
            choice.handover = None; // it can only compute all of it
        }
        if let Some(handover) = &mut choice.handover {
            cached = cached.max(handover.tokens());
            leg.part = Part::Decode { blocks: (handover.tokens() / link.block_tokens) as u32 };
            offer = handover.offer();
        }
        choice.placed(link.clone(), rank, leg.id);
        if let Err(lost) = link.place(rank, (leg, offer), cached, inbox.clone()) {
            choice.unplaced();
            return Err(NotPlaced::NoRank(lost.to_string()));
        }
        Ok(explanation)
    }

    /// A leg for all of the choice.
    fn leg(&self, choice: &Choice, index: usize, tokens: Vec<u32>) -> Leg {
        let attempt = choice.next_attempt();
        Leg {
            id: LegId { request: self.id, choice: index as u16, attempt },
            tokens,
            prompt_len: choice.prompt_tokens(),
            max_tokens: self.max_tokens,
            choice: (index % self.n) as u32,
            sampling: self.sampling.clone(),
            salt: self.salt,
            part: Part::Whole,
        }
    }

    /// Decides where the choice's prompt is prefilled, and if that is on a rank that only prefills, starts
    /// a leg there. `None` if the model never had such ranks.
    fn prefill(
        &self,
        choice: &mut Choice,
        index: usize,
        ask: &Ask<'_>,
        (model, decoders): (&ModelView, &[(&Arc<Link>, usize)]),
        inbox: &Arc<RequestInbox>,
    ) -> Result<Option<Prefill>, NotPlaced> {
        if !decoders.iter().any(fetches) {
            return Ok(None);
        }
        let Some((at, cached)) = self.model.router.peek(ask, &offers(decoders)) else {
            return Err(self.nowhere(choice, model, decoders.len()));
        };
        // Engines that move KV by themselves do not tell the first token's log probability along with it, and a
        // grammar would miss that token.
        let needs_first = self.sampling.logprobs.is_some() || self.sampling.guide.is_some();
        let told = decoders[at].0.hands_over && needs_first;
        if told || !fetches(&decoders[at]) {
            return Ok(None); // it does both
        }
        let metrics = self.shared.node.metrics.model(&self.model.name);
        let here = |place| {
            metrics.prefill_places.inc(place);
            Ok(Some(Prefill { place, rank: None }))
        };
        let limits = self.shared.frontend_config();
        let (now, thresholds) = (Instant::now(), limits.disaggregation.thresholds);
        let decoder = decoders[at].0.ranks[decoders[at].1].seat;
        let seen = |(link, at): &(&Arc<Link>, usize)| link.ranks[*at].as_prefill(decoder, now);
        let mut ranks = self.prefill_ranks(choice, model);
        let all: Vec<_> = ranks.iter().map(seen).collect();
        // The last token is computed by the rank that decodes.
        ranks.retain(|(link, _)| link.block_tokens < ask.tokens.len());
        let place = match thresholds.place(ask.tokens.len() as u64, cached as u64, &all) {
            Place::Elsewhere if choice.failed_prefills() > limits.migration_limit => {
                PrefillPlace::Fallback
            }
            Place::Elsewhere if ranks.is_empty() => PrefillPlace::Short,
            place => place.into(),
        };
        if place != PrefillPlace::Elsewhere {
            return here(place);
        }
        let room = decoders.iter().map(|(link, at)| link.ranks[*at].room()).sum();
        let Some(promise) = self.model.router.promise(room) else {
            return Err(self.nowhere(choice, model, decoders.len()));
        };
        ranks.retain(|rank| thresholds.takes(seen(rank)));
        let ask = Ask { session: None, explain: false, ..*ask };
        let routed = self.model.prefill.route(&ask, &offers(&ranks), |_| String::new());
        let Some(Routed { index: at, cached_blocks, .. }) = routed else {
            return here(PrefillPlace::Full);
        };
        let (link, rank) = (ranks[at].0.clone(), ranks[at].1);
        let leg = Leg { part: Part::Prefill, ..self.leg(choice, index, ask.tokens.to_vec()) };
        choice.prefilled_on(Handover::new(link.clone(), rank, leg.id, promise));
        let cached = cached_blocks as usize * link.block_tokens;
        let prefill = Prefill { place, rank: Some(link.rank_name(rank)) };
        if link.place(rank, (leg, None), cached, inbox.clone()).is_err() {
            choice.prefill_failed(now, Some(now + limits.disaggregation.shun));
            return here(PrefillPlace::Fallback);
        }
        metrics.prefill_places.inc(place);
        Ok(Some(prefill))
    }

    /// The ranks that live and only prefill, with room or without.
    fn prefill_ranks<'a>(
        &self,
        choice: &Choice,
        model: &'a ModelView,
    ) -> Vec<(&'a Arc<Link>, usize)> {
        let links = model.links.iter().filter(|link| link.role == Role::Prefill);
        let links = links.filter(|link| link.takes_work() && choice.fits(link));
        let ranks = links.flat_map(|link| (0..link.ranks.len()).map(move |rank| (link, rank)));
        ranks.filter(|(link, rank)| link.ranks[*rank].is_up()).collect()
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
        let links = links.filter(|link| link.decodes());
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
        for link in model.links.iter().filter(|link| link.decodes()) {
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
        links.any(|link| link.decodes() && choice.fits(link))
    }

    /// No rank has room. A client whose answer has begun waits for one; another may come again.
    fn nowhere(&self, choice: &Choice, model: &ModelView, ranks: usize) -> NotPlaced {
        if ranks == 0 {
            let restarting = "its ranks are restarting".to_string();
            let lives = model.links.iter().any(|link| link.decodes());
            let reason = || model.readiness().reason.unwrap_or_else(|| model.reason.clone());
            return NotPlaced::NoRank(if lives { restarting } else { reason() });
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
        // Of a sequence alone: what it fetched may have been what went wrong.
        let leaves =
            |handover: &mut Handover| lost == Lost::Sequence || !handover.outlives_decode();
        if let Some(handover) = choice.handover.take_if(leaves)
            && lost != Lost::Sequence
        {
            let now = Instant::now();
            handover.shun(None, now, now + self.shared.frontend_config().disaggregation.shun);
        }
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
