//! One choice of a request: its tokens, its text, its end. It knows no actor and no wire format.

use std::sync::Arc;
use std::time::Instant;

use super::handover::Handover;
use super::losses::Losses;
use crate::actors::inbox::Lost;
use crate::actors::link::Link;
use crate::actors::reply::{Delta, DeltaToken, Finish, NewRequest, Reply};
use crate::engine::{FinishReason, TokenLogprobs};
use crate::ids::LegId;
use crate::kvxfer::{KvBlocks, KvSource};
use crate::metrics::PrefillPlace;
use crate::text::{Detokenizer, OutputText, StopScanner, TextModel};

/// Where the prompt of a choice is prefilled.
pub(super) struct Prefill {
    pub(super) place: PrefillPlace,
    /// If elsewhere.
    pub(super) rank: Option<String>,
}

/// What a token did to its choice.
pub(super) enum Progress {
    /// There will be more.
    More,
    /// It was the last one.
    Finished(Finish),
}

pub(super) struct Choice {
    prompt: Arc<[u32]>,
    output: Vec<u32>,
    /// The leg it is on, and the way there.
    leg: Option<(Arc<Link>, usize, LegId)>,
    /// Its prompt is computed, or kept, on another rank.
    pub(super) handover: Option<Handover>,
    /// Where its prompt is prefilled, on a model that has ranks for it.
    pub(super) prefill: Option<Prefill>,
    /// Prefills on other ranks that came to nothing.
    failed_prefills: u16,
    /// Legs it was placed on and lost.
    losses: Losses,
    /// Legs it was placed on, refused ones included.
    attempts: u16,
    accepted: bool,
    /// What computes its tokens, once a rank has taken it.
    fingerprint: Option<u64>,
    ended: bool,
    cached_tokens: Option<u32>,
    /// The leg that said so, and the last one that has started.
    first_started: Option<LegId>,
    started: Option<LegId>,
    wants_logprobs: bool,
    output_text: OutputText,
    /// Text that became certain with the token at hand; kept for its memory.
    text: String,
    /// Tokens that no delta has told yet.
    untold: Vec<DeltaToken>,
}

impl Choice {
    /// Prompt by prompt, the choices of each.
    pub(super) fn all_of(request: &NewRequest) -> Vec<Self> {
        let mut choices = Vec::with_capacity(request.prompts.len() * request.n);
        for prompt in &request.prompts {
            choices.extend((0..request.n).map(|_| Self::new(prompt.clone(), request)));
        }
        choices
    }

    fn new(prompt: Arc<[u32]>, request: &NewRequest) -> Self {
        let text = &request.model.text;
        let detokenizer = Detokenizer::after_prompt(text, &prompt, request.skip_special_tokens);
        let stop = StopScanner::new(request.stop.clone(), request.include_stop);
        Self {
            prompt,
            output: Vec::new(),
            leg: None,
            handover: None,
            prefill: None,
            failed_prefills: 0,
            losses: Losses::default(),
            attempts: 0,
            accepted: false,
            fingerprint: None,
            ended: false,
            cached_tokens: None,
            first_started: None,
            started: None,
            wants_logprobs: request.sampling.logprobs.is_some(),
            output_text: OutputText::new(detokenizer, stop, request.sampling.min_tokens as usize),
            text: String::new(),
            untold: Vec::new(),
        }
    }

    pub(super) fn prompt_tokens(&self) -> usize {
        self.prompt.len()
    }

    pub(super) fn output_tokens(&self) -> usize {
        self.output.len()
    }

    pub(super) fn cached_tokens(&self) -> u32 {
        self.cached_tokens.unwrap_or(0)
    }

    /// Prompt and output so far: what a new leg starts from.
    pub(super) fn tokens(&self) -> Vec<u32> {
        [&*self.prompt, &self.output].concat()
    }

    /// Whether a leg is to be placed for it now; `overlap`: also while its prompt is being computed.
    pub(super) fn needs_leg(&self, overlap: bool) -> bool {
        let ready = |handover: &Handover| handover.is_ready(overlap);
        !self.ended && self.leg.is_none() && self.handover.as_ref().is_none_or(ready)
    }

    pub(super) fn has_leg(&self) -> bool {
        self.leg.is_some() || self.handover.is_some()
    }

    pub(super) fn is_on(&self, leg: LegId) -> bool {
        self.leg.as_ref().is_some_and(|(.., on)| *on == leg)
    }

    /// Whether this is the leg that computes its prompt on another rank.
    pub(super) fn is_prefilled_on(&self, leg: LegId) -> bool {
        self.handover.as_ref().is_some_and(|handover| handover.is_of(leg))
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Whether a rank has taken it before.
    pub(super) fn has_begun(&self) -> bool {
        self.accepted
    }

    /// The number of the next leg, from 0.
    pub(super) fn next_attempt(&self) -> u16 {
        self.attempts
    }

    /// How often and how its legs were lost, if that is more than they may be.
    pub(super) fn lost_too_often(&self, limit: u16) -> Option<(usize, Lost)> {
        self.losses.too_many(limit)
    }

    /// The rank that it is on, as people read it.
    pub(super) fn rank_name(&self) -> Option<String> {
        self.leg.as_ref().map(|(link, rank, _)| link.rank_name(*rank))
    }

    pub(super) fn placed(&mut self, link: Arc<Link>, rank: usize, leg: LegId) {
        self.leg = Some((link, rank, leg));
        self.attempts = self.attempts.saturating_add(1);
        self.losses.placed();
        if let Some(handover) = &mut self.handover {
            handover.is_taken_on();
        }
    }

    /// Its prompt is computed on another rank.
    pub(super) fn prefilled_on(&mut self, handover: Handover) {
        self.handover = Some(handover);
        self.attempts = self.attempts.saturating_add(1);
    }

    /// What follows can be fetched, too.
    pub(super) fn lent(&mut self, source: Option<KvSource>, blocks: KvBlocks) {
        let Some(handover) = &mut self.handover else { return };
        handover.lent(source, blocks);
        if let Some((link, rank, leg)) = &self.leg {
            link.more(*rank, *leg, handover.feed());
        }
    }

    /// Its prompt will not come from the other rank, or no more of it: what it does not have by now it
    /// computes. Until `shun` that rank is not asked again; if it was its leg that failed, by nobody.
    pub(super) fn prefill_failed(&mut self, now: Instant, shun: Option<Instant>) {
        let Some(handover) = self.handover.take() else { return };
        if let Some(until) = shun {
            let decoder = self.leg.as_ref().map(|(link, rank, _)| link.ranks[*rank].seat);
            handover.shun(decoder, now, until);
        }
        self.failed_prefills = self.failed_prefills.saturating_add(1);
        if let Some((link, rank, leg)) = &self.leg {
            link.more(*rank, *leg, None);
        }
    }

    /// Prefills on other ranks that came to nothing.
    pub(super) fn failed_prefills(&self) -> u16 {
        self.failed_prefills
    }

    /// The leg came to nothing, through nobody's fault.
    pub(super) fn unplaced(&mut self) {
        self.leg = None;
    }

    pub(super) fn lost(&mut self, lost: Lost) {
        self.leg = None;
        self.losses.lost(lost);
    }

    pub(super) fn accepted(&mut self) {
        self.accepted = true;
        self.losses.taken();
        let engine = self.leg.as_ref().map(|(link, ..)| link.fingerprint);
        self.fingerprint = self.fingerprint.or(engine);
    }

    /// Whether a rank of this link goes on with it as the ones before would have.
    pub(super) fn fits(&self, link: &Link) -> bool {
        self.fingerprint.is_none_or(|fingerprint| fingerprint == link.fingerprint)
    }

    /// Only the first leg's start counts: one after a loss finds more in the cache than the client paid. Engines that
    /// know late what they found say it again. Whether the leg had not started before.
    pub(super) fn started(&mut self, cached_tokens: u32) -> bool {
        let leg = self.leg.as_ref().map(|(_, _, leg)| *leg);
        let again = leg.is_some() && leg == self.started;
        match &mut self.cached_tokens {
            Some(known) if again && self.first_started == leg => {
                *known = (*known).max(cached_tokens)
            }
            Some(_) => {}
            None => (self.cached_tokens, self.first_started) = (Some(cached_tokens), leg),
        }
        self.started = leg;
        !again
    }

    /// Ends the leg, if there is one, on its rank too.
    pub(super) fn cancel(&mut self) {
        self.handover = None;
        if let Some((link, _, leg)) = self.leg.take() {
            link.cancel(leg);
        }
    }

    /// Takes in a token and tells the reply what became certain.
    pub(super) fn token(
        &mut self,
        model: &TextModel,
        token: u32,
        logprobs: Option<Box<TokenLogprobs>>,
        finish: Option<FinishReason>,
        index: usize,
        reply: &mut dyn Reply,
    ) -> Progress {
        self.output.push(token);
        self.text.clear();
        let mut stopped = None;
        if finish != Some(FinishReason::Stop) {
            stopped = self.output_text.push(model, token, &mut self.text);
            self.untold.push(DeltaToken { token, logprobs });
        }
        if finish.is_some() && stopped.is_none() {
            stopped = self.output_text.finish(model, &mut self.text);
        }
        let ends = match (stopped, finish) {
            (Some(string), _) => Some(Finish::StopString(string)),
            (None, Some(FinishReason::Stop)) => Some(Finish::Stop),
            (None, Some(FinishReason::Length)) => Some(Finish::Length),
            (None, None) => None,
        };
        let tell = !self.text.is_empty() || self.wants_logprobs || ends.is_some();
        if tell && !(self.text.is_empty() && self.untold.is_empty()) {
            reply.delta(Delta { choice: index, text: &self.text, tokens: &self.untold });
            self.untold.clear();
        }
        match ends {
            None => Progress::More,
            Some(reason) => {
                self.end(finish.is_some());
                Progress::Finished(reason)
            }
        }
    }

    fn end(&mut self, by_engine: bool) {
        self.ended = true;
        self.handover = None;
        if by_engine {
            self.leg = None;
        } else {
            self.cancel();
        }
    }
}
