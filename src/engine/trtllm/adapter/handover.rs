//! Legs whose prompt is computed on one engine and decoded on another: TensorRT-LLM's context-only and
//! generation-only requests, with the rules of [`handoff`](super::super::handoff) around them.
//!
//! Nothing that goes wrong between the two engines ends a leg: what does not come is computed here. A leg
//! that wants log probabilities is computed where it is decoded, since TensorRT-LLM does not say whether
//! those of the first token come along; so is a guided one, whose grammar would miss that token.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;

use super::super::ffi::{Admission, Fault, Handoff, Output, Phase, RequestOptions, Row};
use super::super::handoff::{Identity, Ledger, Limits, Pulls, State};
use super::Adapter;
use super::rows::error_text;
use crate::engine::{EngineError, Handed, HandedEnd, Leg, Part, Sampling, StepOutput};
use crate::ids::LegId;

/// Between two requests that only make an idle executor look after what was pulled.
const POKE: Duration = Duration::from_millis(500);
/// KV blocks that such a request holds itself.
const POKE_BLOCKS: u64 = 1;

/// How an engine takes part in handing prompts over.
#[derive(Clone, Debug)]
pub struct HandoverConfig {
    /// What the other engines must have in common with it.
    pub identity: Identity,
    /// How long a prompt waits for somebody to want it.
    pub lease: Duration,
    /// How long a prompt may take to come; then it is computed here.
    pub timeout: Duration,
    /// How long the executor may take to let go of a prompt, or of a request that was cancelled while its
    /// prompt was on its way; then the engine is lost.
    pub grace: Duration,
    /// How long the executor keeps a prompt that nobody pulls; `None`: for ever.
    pub kept: Option<Duration>,
}

/// What an engine remembers of prompts that it hands over or takes on.
#[derive(Debug)]
pub(super) struct Handover {
    pub(super) config: HandoverConfig,
    ledger: Ledger,
    pulls: Pulls,
    /// Requests that were given up while their KV was on its way; they have the grace from then on, or from
    /// their turn, to end.
    given_up: FxHashMap<u64, Instant>,
    /// Legs whose prompt's engine is gone, until the next step.
    gone: Vec<LegId>,
    /// To be told with the next step: legs that compute all here.
    refused: Vec<(LegId, HandedEnd)>,
    /// The executor's step at the last poke: later ones tell what is held.
    poked_at: Option<u64>,
}

impl Handover {
    pub(super) fn new(config: HandoverConfig) -> Self {
        let (lease, grace, kept) = (config.lease, config.grace, config.kept);
        let limits = Limits { lease, grace, poke: POKE, kept };
        Self {
            ledger: Ledger::new(limits),
            pulls: Pulls::new(config.timeout),
            config,
            given_up: FxHashMap::default(),
            gone: Vec::new(),
            refused: Vec::new(),
            poked_at: None,
        }
    }

    /// Whether time alone may bring something to do.
    pub(super) fn has_timers(&self) -> bool {
        self.ledger.outstanding() > 0 || !self.pulls.is_empty() || !self.given_up.is_empty()
    }

    /// Whether something is to be told.
    pub(super) fn has_news(&self) -> bool {
        !self.refused.is_empty() || !self.gone.is_empty()
    }

    /// Whether the executor may hold KV that belongs to no live leg.
    pub(super) fn pins(&self) -> bool {
        self.ledger.outstanding() > 0
    }

    /// There is room for the request of the leg, whose prompt comes from another engine.
    pub(super) fn begin(&mut self, leg: LegId, request: u64, now: Instant) {
        self.pulls.begin(leg, now);
        if let Some(since) = self.given_up.get_mut(&request) {
            *since = now + self.config.timeout; // it may still begin to fetch
        }
    }

    /// The request is over.
    pub(super) fn forget(&mut self, request: u64) {
        self.given_up.remove(&request);
    }

    /// A row of a leg without a fault: its prompt has come, if it was to.
    pub(super) fn has_come(&mut self, leg: LegId, out: &mut StepOutput) {
        if self.pulls.end(leg) {
            out.fetched.push((leg, HandedEnd::Whole));
        }
    }

    fn lend(&mut self, leg: LegId, prompt: usize, block_tokens: usize) {
        let held = prompt.div_ceil(block_tokens.max(1)) as u64;
        self.ledger.lend(leg, held, Instant::now());
    }

    /// What an engine leaves for the one that decodes; `None` if it left nothing.
    fn hand(
        &mut self,
        (leg, prompt, block_tokens): (LegId, usize, usize),
        row: &Row,
        of: &Output,
        out: &mut StepOutput,
    ) -> Option<()> {
        let handoff = usize::try_from(row.handoff).ok().and_then(|at| of.handoffs.get(at))?;
        let state = State::pack(&self.config.identity, handoff)?;
        self.lend(leg, prompt, block_tokens);
        // The last token is computed by the engine that decodes.
        let blocks = (prompt.saturating_sub(1) / block_tokens.max(1)) as u32;
        out.handed.push(Handed { leg, blocks, state: state.into() });
        Some(())
    }
}

/// Whether TensorRT-LLM can decode what another engine has prefilled.
fn goes_on(sampling: &Sampling) -> bool {
    sampling.logprobs.is_none() && sampling.guide.is_none()
}

/// Makes a request one part of two.
pub(super) fn set_part(options: &mut RequestOptions, leg: &Leg, handoff: Option<Handoff>) {
    match (leg.part, handoff) {
        (Part::Prefill, _) => options.phase = Phase::ContextOnly,
        (Part::Decode { .. }, Some(handoff)) => {
            (options.phase, options.handoff) = (Phase::GenerationOnly, handoff);
        }
        (Part::Whole | Part::Decode { .. }, _) => {}
    }
}

impl Adapter {
    /// Has the threads look after what only time brings, if there is any.
    pub(super) fn set_timers(&self) {
        self.shared.set_timers(self.handover.as_ref().is_some_and(Handover::has_timers));
    }

    /// A leg has ended, and its request, if it had one, will.
    pub(super) fn release(&mut self, leg: LegId, request: Option<u64>) {
        let Some(handover) = &mut self.handover else { return };
        let now = Instant::now();
        if handover.pulls.end(leg)
            && let Some(request) = request
        {
            handover.given_up.insert(request, now);
        }
        handover.ledger.release(leg, now);
        handover.refused.retain(|(refused, _)| *refused != leg);
        self.set_timers();
    }

    /// A prompt has been computed: its KV stays until another engine has it.
    pub(super) fn hand(
        &mut self,
        leg: LegId,
        prompt: usize,
        row: &Row,
        of: &Output,
        out: &mut StepOutput,
    ) {
        let block_tokens = self.config.block_tokens;
        let handed = self
            .handover
            .as_mut()
            .and_then(|handover| handover.hand((leg, prompt, block_tokens), row, of, out));
        if handed.is_none() {
            let what = "no state that another engine could go on from".into();
            out.failed.push((leg, EngineError::BadNumbers { what }));
        }
        self.set_timers();
    }

    /// A prompt has been computed whose leg has ended meanwhile: the executor keeps it like any other.
    pub(super) fn unwanted(&mut self, leg: LegId, prompt: usize) {
        let block_tokens = self.config.block_tokens;
        if let Some(handover) = &mut self.handover {
            handover.lend(leg, prompt, block_tokens);
        }
        self.release(leg, None);
    }

    /// Whether the row says that the prompt of a live leg does not come; the leg then goes on here.
    pub(super) fn came_to_nothing(&mut self, row: &Row, of: &Output, out: &mut StepOutput) -> bool {
        if matches!(row.fault, Fault::None | Fault::Forward | Fault::Stale) {
            return false;
        }
        let tracked = self.requests.get(&row.request).filter(|tracked| !tracked.ended);
        let Some(leg) = tracked.map(|tracked| tracked.leg) else { return false };
        if !self.handover.as_ref().is_some_and(|handover| handover.pulls.has(leg)) {
            return false;
        }
        self.leave(leg);
        self.requests.remove(&row.request);
        // What is wrong with the request, or with this engine, is not the fault of the one that prefilled.
        let end = match row.fault {
            Fault::Other => HandedEnd::NotGiven,
            _ => HandedEnd::NotTaken,
        };
        self.compute_here(leg, error_text(row, of), end, out)
    }

    /// Takes a leg on whose prompt another engine has computed.
    pub(super) fn take_over(&mut self, leg: Leg, state: &Arc<[u8]>) -> Result<(), EngineError> {
        let is_known = self.legs.contains_key(&leg.id);
        let handover = self.handover.as_mut().filter(|_| !is_known);
        let Some(handover) = handover else { return self.begin(leg, None) };
        let id = leg.id;
        let handoff = match State::unpack(&handover.config.identity, state) {
            Ok(handoff) if goes_on(&leg.sampling) => Ok(handoff),
            Ok(_) => Err(HandedEnd::NotTaken),
            Err(error) => {
                tracing::warn!(leg = %id, %error, "a prompt is computed again");
                Err(HandedEnd::NotGiven)
            }
        };
        match &handoff {
            Ok(_) => handover.pulls.wait(leg.clone()),
            Err(why) => handover.refused.push((id, *why)),
        }
        let mut begun = self.begin(leg, handoff.ok());
        if let Err(EngineError::Unsupported { why, .. }) = &begun
            && let Some(handover) = &mut self.handover
            && let Some(leg) = handover.pulls.fail(id)
        {
            // It is the state that TensorRT-LLM refuses, or the request is refused again.
            tracing::warn!(leg = %id, why, "a prompt is computed again");
            handover.refused.push((id, HandedEnd::NotGiven));
            begun = self.begin(Arc::unwrap_or_clone(leg), None);
        }
        if begun.is_err()
            && let Some(handover) = &mut self.handover
        {
            handover.pulls.end(id);
            handover.refused.retain(|(refused, _)| *refused != id);
        }
        begun
    }

    /// A leg will not take the prompt that another engine has for it, if any has.
    pub(super) fn not_taken(&mut self, leg: LegId, out: &mut StepOutput) {
        let handover = self.handover.as_mut();
        if handover.is_some_and(|handover| handover.pulls.end(leg)) {
            out.fetched.push((leg, HandedEnd::NotTaken));
        }
    }

    /// The engine that has computed a leg's prompt is gone.
    pub(super) fn is_gone(&mut self, leg: LegId) {
        if let Some(handover) = self.handover.as_mut().filter(|handover| handover.pulls.has(leg)) {
            handover.gone.push(leg);
        }
    }

    /// A leg does not wait for its prompt any longer. TensorRT-LLM may notice at `since` at the latest.
    fn give_up(
        &mut self,
        leg: LegId,
        since: Instant,
        why: &str,
        out: &mut StepOutput,
    ) -> Result<(), EngineError> {
        if !self.handover.as_ref().is_some_and(|handover| handover.pulls.has(leg)) {
            return Ok(()); // for another reason already
        }
        if let Some(request) = self.leave(leg) {
            self.cancel(request)?;
            if let Some(handover) = &mut self.handover {
                handover.given_up.insert(request, since);
            }
        }
        self.compute_here(leg, why, HandedEnd::NotGiven, out);
        Ok(())
    }

    /// The prompt of a leg has not come, for this reason: it is computed here, by another request.
    /// `false` if it was not to come, or has.
    fn compute_here(
        &mut self,
        leg: LegId,
        why: &str,
        end: HandedEnd,
        out: &mut StepOutput,
    ) -> bool {
        let Some(handover) = &mut self.handover else { return false };
        let Some(leg) = handover.pulls.fail(leg) else { return false };
        tracing::warn!(leg = %leg.id, why, "a prompt did not come and is computed here");
        out.fetched.push((leg.id, end));
        let id = leg.id;
        let leg = Arc::unwrap_or_clone(leg);
        if let Err(error) = self.begin(leg, None) {
            out.failed.push((id, error));
        }
        true
    }

    /// Looks after all that time decides.
    pub(super) fn tend(&mut self, out: &mut StepOutput) -> Result<(), EngineError> {
        let now = Instant::now();
        self.take_turns(now);
        let Some(handover) = &mut self.handover else { return Ok(()) };
        out.fetched.append(&mut handover.refused);
        let seconds = handover.config.lease.as_secs();
        for leg in handover.ledger.expired(now) {
            out.failed.push((leg, EngineError::Unfetched { seconds }));
        }
        let grace = handover.config.grace;
        let turn = |request: &u64| self.requests.get(request).and_then(|tracked| tracked.turn);
        let due = |(request, since): (&u64, &Instant)| {
            turn(request).is_some_and(|turn| now >= turn.max(*since) + grace)
        };
        if handover.given_up.iter().any(due) {
            let detail = format!(
                "a request that was cancelled while its prompt was on its way has not ended within {:.1} s",
                grace.as_secs_f64()
            );
            return Err(self.lose(EngineError::Lost { during: "a transfer".into(), detail }));
        }
        let late = handover.pulls.late(now);
        let gone = std::mem::take(&mut handover.gone);
        let until = |leg: &LegId| handover.pulls.until(*leg).map_or(now, |until| until.max(now));
        let gone: Vec<_> = gone.iter().map(|leg| (*leg, until(leg))).collect();
        for (leg, until) in gone {
            self.give_up(leg, until, "the engine that had it is gone", out)?;
        }
        for leg in late {
            self.give_up(leg, now, "worker.transfer.timeout_s has passed", out)?;
        }
        self.tend_pinned(now)?;
        self.set_timers();
        Ok(())
    }

    /// Makes an idle executor notice what was pulled, and loses one that never does.
    fn tend_pinned(&mut self, now: Instant) -> Result<(), EngineError> {
        let idle = self.legs.is_empty() && self.requests.is_empty();
        let Some(handover) = &mut self.handover else { return Ok(()) };
        if !idle {
            handover.ledger.defer(now);
            handover.poked_at = None;
            return Ok(());
        }
        if handover.poked_at.is_some_and(|at| self.latest.iter > at) {
            let used = if self.latest.has_kv { self.latest.kv_used.max(0) as u64 } else { 0 };
            handover.ledger.idle_with(used.saturating_sub(POKE_BLOCKS));
        }
        if let Some(prompts) = handover.ledger.stuck(now) {
            let detail = format!(
                "the KV of {prompts} prefilled prompts stays pinned though nobody wants it any more; \
                 set cache_transceiver_config.kv_transfer_timeout_ms if this comes often"
            );
            return Err(self.lose(EngineError::Lost { during: "a transfer".into(), detail }));
        }
        if !handover.ledger.wants_poke(now) {
            return Ok(());
        }
        handover.poked_at.get_or_insert(self.latest.iter);
        let poke = RequestOptions { tokens: vec![0], max_tokens: 1, ..Default::default() };
        let Some(engine) = self.engine.clone() else { return Ok(()) };
        match engine.enqueue(&poke) {
            // A full queue has something to compute.
            Ok(admitted) if admitted.status != Admission::Stopped => Ok(()),
            Ok(admitted) => {
                let (during, detail) = ("a look at transfers".into(), admitted.text);
                Err(self.lose(EngineError::Lost { during, detail }))
            }
            Err(error) => Err(self.thrown(&error)),
        }
    }
}
