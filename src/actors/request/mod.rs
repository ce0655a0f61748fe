//! `Request`: one client request. Owns the client's answer and is the only one that decides where
//! its work runs.
//!
//! Each of its choices has at most one leg at a time, and one more while another rank computes its
//! prompt (`handover`). A leg that is lost is placed again from the
//! prompt and the tokens already delivered; that is all there is to migration. Cancelling is
//! stopping this actor: dropping its state cancels the legs.
//!
//! The links to the workers bring tokens straight into the state, through its `inbox`; what a
//! token or any other event changes about legs, or about the request's life, the actor decides.

mod choice;
mod handover;
mod inbox;
mod legs;
mod losses;
mod placing;

use std::sync::Arc;
use std::time::Instant;

use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use ractor_cluster::RactorMessage;
use tracing::{Span, debug, info_span};

use super::failure::Failure;
use super::handle::Shared;
use super::inbox::{LegEvent, Lost};
use super::link::FetchEnd;
use super::reply::{NewRequest, Reply, Usage};
use super::requests;
use super::router::{Called, Turn};
use super::tree::{Card, CardId, Label};
use crate::config::Frontend;
use crate::engine::{FinishReason, Reach, TokenLogprobs};
use crate::ids::{LegId, RequestId};
use crate::metrics::{Cancellation, ModelMetrics, Outcome};
use choice::{Choice, Progress};
use inbox::{Owner, RequestInbox};
use legs::{Again, Legs};
use placing::Wait;

/// What a `Request` answers to.
#[derive(RactorMessage)]
pub enum Msg {
    /// Something came that the actor has to decide about.
    Wake,
    /// Place the legs that have no rank: at the start, and when a rank may have become free.
    Place,
    /// There may be room, and this request is next in line for it.
    Turn(Turn, Called),
    /// There may be room, and this request, which has begun, goes before the line.
    Room,
    /// It stood in line for as long as it may.
    WaitedTooLong,
    /// The client has closed its connection, or has the whole answer.
    ClientGone,
    /// `frontend.request_timeout_s` has passed.
    TimedOut,
    /// The node stops before the request has ended.
    CutOff,
}

/// What a `Request` starts from.
pub struct Args {
    /// The front end.
    pub shared: Arc<Shared>,
    /// `Requests`; wakes the request when a rank may have become free.
    pub requests: ActorRef<requests::Msg>,
    /// The card of `Requests`.
    pub parent: CardId,
    /// The request's id.
    pub id: RequestId,
    /// What was asked.
    pub request: Box<NewRequest>,
}

/// What the links brought since the actor last looked.
#[derive(Default)]
struct Came {
    /// What the actor decides about; once there is something, tokens queue up behind it. Bounded by
    /// what the legs may produce (`max_tokens` each).
    events: Vec<(LegId, LegEvent)>,
    /// Tokens taken in and not counted yet.
    tokens: usize,
    /// Whether a flush is due.
    burst: bool,
    /// Whether the actor has been woken.
    woken: bool,
}

/// When things happened, for metrics.
struct Clock {
    admitted: Instant,
    first_token: Option<Instant>,
    last_token: Instant,
    queued: bool,
}

/// A `Request`'s memory; dropping it cancels its legs and closes the answer.
pub struct State {
    legs: Legs,
    choices: Vec<Choice>,
    accepted: bool,
    reply: Box<dyn Reply>,
    came: Came,
    requests: ActorRef<requests::Msg>,
    limits: Arc<Frontend>,
    metrics: Arc<ModelMetrics>,
    clock: Clock,
    /// How it waits for a rank.
    wait: Wait,
    outcome: Option<Outcome>,
    span: Span,
    card: Card,
}

impl Drop for State {
    fn drop(&mut self) {
        for choice in &mut self.choices {
            choice.cancel();
        }
        let usage = self.usage();
        let metrics = &self.metrics;
        metrics.requests.inc(self.outcome.unwrap_or(Outcome::Failed));
        metrics.request_duration.observe(self.clock.admitted.elapsed());
        metrics.request_prompt_tokens.observe(usage.prompt_tokens);
        metrics.request_output_tokens.observe(usage.completion_tokens);
        metrics.request_cached_tokens.observe(usage.cached_tokens);
        metrics.prompt_tokens.inc_by(usage.prompt_tokens);
        metrics.output_tokens.inc_by(usage.completion_tokens);
        metrics.cached_tokens.inc_by(usage.cached_tokens);
    }
}

/// Whether the request goes on.
enum Flow {
    On,
    Ended,
}

impl State {
    fn new(myself: &ActorRef<Msg>, args: Args) -> Self {
        let Args { shared, requests, parent, id, request } = args;
        let label = Label {
            kind: "Request",
            name: id.to_string(),
            generation: 1,
            counters: &["tokens", "migrations"],
        };
        let card = shared.node.board.hang(parent, label, myself.get_cell());
        let span =
            info_span!("request", %id, public_id = %request.public_id, model = %request.model.name);
        let request = *request;
        let (choices, metrics) =
            (Choice::all_of(&request), shared.node.metrics.model(&request.model.name));
        metrics.request_choices.observe(choices.len() as u64);
        let now = Instant::now();
        Self {
            choices,
            accepted: false,
            limits: shared.frontend_config(),
            metrics,
            legs: Legs::new(shared, id, &request),
            reply: request.reply,
            came: Came::default(),
            requests,
            clock: Clock { admitted: now, first_token: None, last_token: now, queued: true },
            wait: Wait::default(),
            outcome: None,
            span,
            card,
        }
    }

    fn usage(&self) -> Usage {
        let n = self.legs.n;
        let firsts = self.choices.iter().step_by(n);
        Usage {
            prompt_tokens: firsts.clone().map(|c| c.prompt_tokens() as u64).sum(),
            completion_tokens: self.choices.iter().map(|c| c.output_tokens() as u64).sum(),
            cached_tokens: firsts.map(|c| u64::from(c.cached_tokens())).sum(),
        }
    }

    /// Takes in what the legs' ranks said, and decides what follows from it.
    fn wake(&mut self, inbox: &Arc<RequestInbox>) -> Flow {
        self.came.woken = false;
        let mut events = std::mem::take(&mut self.came.events);
        let now = Instant::now();
        let mut again = None;
        let mut flow = Flow::On;
        for (leg, event) in events.drain(..) {
            let choice = usize::from(leg.choice);
            let on = &self.choices[choice];
            let outcome = if on.is_on(leg) {
                self.event(choice, event, now)
            } else if on.is_prefilled_on(leg) {
                Ok(self.prefill_event(choice, event, now))
            } else {
                continue; // what an earlier leg of this choice still said
            };
            match outcome {
                Ok(None) => {}
                Ok(Some(Again::Now)) => again = again.or(Some(Again::Now)),
                Ok(later) => again = later,
                Err(failure) => {
                    flow = self.fail(&failure);
                    break;
                }
            }
        }
        self.came.events = events;
        if let Flow::Ended = flow {
            return flow;
        }
        self.count(now);
        self.accept();
        let flow = match again {
            None => Flow::On,
            Some(Again::Now) => self.place(inbox),
            Some(Again::Later(reason)) => self.await_rank(&inbox.actor, reason),
        };
        if let Flow::Ended = flow {
            return flow;
        }
        self.deliver()
    }

    /// Takes in one event; says what to do if the choice has no leg any more but needs one.
    fn event(
        &mut self,
        index: usize,
        event: LegEvent,
        now: Instant,
    ) -> Result<Option<Again>, Failure> {
        let choice = &mut self.choices[index];
        match event {
            LegEvent::Accepted => {
                choice.accepted();
                self.taken();
            }
            LegEvent::Started { cached_tokens, fetches } => {
                let is_first = choice.started(cached_tokens);
                if is_first
                    && self.legs.wishes.tell_ranks
                    && let Some(rank) = choice.rank_name()
                {
                    self.reply.started(index, rank);
                }
                if !fetches {
                    choice.handover = None; // all that was computed elsewhere is cached there
                }
                self.left_queue(now);
            }
            LegEvent::Fetched(FetchEnd::Whole) => choice.handover = None,
            LegEvent::Fetched(end) => {
                let shun = now + self.limits.disaggregation.shun;
                choice.prefill_failed(now, (end == FetchEnd::NotGiven).then_some(shun));
            }
            LegEvent::Lent { .. } => {} // it is no prefill
            LegEvent::Token { token, logprobs, finish } => {
                self.token(index, token, logprobs, finish);
            }
            LegEvent::Failed(error) => return self.legs.failed(choice, error).map(Some),
            LegEvent::Lost(lost) => {
                self.legs.lost(choice, lost);
                self.card.count(1, self.legs.migrations());
                return Ok(Some(Again::Now));
            }
        }
        Ok(None)
    }

    /// A rank has taken a leg.
    fn taken(&mut self) {
        let has_all = !self.choices.iter().any(|choice| self.needs_leg(choice));
        self.wait.took_one(has_all, &self.legs.model.router.line);
    }

    fn left_queue(&mut self, now: Instant) {
        if std::mem::take(&mut self.clock.queued) {
            self.metrics.queue.observe(now - self.clock.admitted);
        }
    }

    fn needs_leg(&self, choice: &Choice) -> bool {
        choice.needs_leg(self.limits.disaggregation.overlap)
    }

    /// Takes in an event of the leg that computes a choice's prompt on another rank. Nothing that goes
    /// wrong there ends the request: the rank that decodes can compute the prompt, too.
    fn prefill_event(&mut self, index: usize, event: LegEvent, now: Instant) -> Option<Again> {
        let choice = &mut self.choices[index];
        match event {
            LegEvent::Accepted => self.taken(),
            LegEvent::Started { cached_tokens, .. } => {
                choice.started(cached_tokens);
                self.left_queue(now);
            }
            LegEvent::Lent { source, blocks } => choice.lent(source, blocks),
            LegEvent::Failed(error) => {
                let lost = error.reach() == Reach::Engine;
                choice.prefill_failed(now, lost.then_some(now + self.limits.disaggregation.shun));
            }
            LegEvent::Lost(lost) => {
                let lost = lost != Lost::Sequence;
                choice.prefill_failed(now, lost.then_some(now + self.limits.disaggregation.shun));
            }
            LegEvent::Fetched(_) | LegEvent::Token { .. } => {} // it is no decode
        }
        let choice = &self.choices[index];
        self.needs_leg(choice).then_some(Again::Now)
    }

    /// Takes in a token of a choice.
    fn token(
        &mut self,
        index: usize,
        token: u32,
        logprobs: Option<Box<TokenLogprobs>>,
        finish: Option<FinishReason>,
    ) {
        self.came.tokens += 1;
        let (text, reply) = (&self.legs.model.text, &mut *self.reply);
        let progress = self.choices[index].token(text, token, logprobs, finish, index, reply);
        if let Progress::Finished(reason) = progress {
            self.reply.finished(index, reason);
        }
    }

    fn count(&mut self, now: Instant) {
        let tokens = std::mem::take(&mut self.came.tokens);
        if tokens == 0 {
            return;
        }
        if self.clock.first_token.is_none() {
            self.clock.first_token = Some(now);
            self.metrics.ttft.observe(now - self.clock.admitted);
        } else {
            // Tokens of several choices, or of several steps, came at once: share the gap.
            let going_on = self.choices.iter().filter(|choice| !choice.has_ended()).count().max(1);
            let gap = (now - self.clock.last_token) * going_on as u32 / tokens as u32;
            for _ in 0..tokens {
                self.metrics.inter_token_latency.observe(gap);
            }
        }
        self.clock.last_token = now;
        self.card.count(0, self.choices.iter().map(|c| c.output_tokens() as u64).sum());
    }

    fn accept(&mut self) {
        if !self.accepted && self.choices.iter().all(Choice::has_begun) {
            self.accepted = true;
            self.reply.accepted();
        }
    }

    /// Sends what was said; ends the request when all is said or the client does not read.
    fn deliver(&mut self) -> Flow {
        if self.choices.iter().all(Choice::has_ended) {
            self.outcome = Some(Outcome::Ok);
            self.reply.done(&self.usage());
            self.reply.flush();
            return Flow::Ended;
        }
        let (unread, limit) = (self.reply.flush(), self.limits.stream_buffer_bytes);
        if unread > limit {
            self.cancelled(Cancellation::SlowClient);
            return self.fail(&Failure::SlowClient { unread, limit });
        }
        Flow::On
    }

    fn cancelled(&mut self, why: Cancellation) {
        self.outcome = Some(Outcome::Cancelled);
        self.metrics.cancellations.inc(why);
    }

    fn fail(&mut self, failure: &Failure) -> Flow {
        self.span.in_scope(|| debug!(%failure, "the request failed"));
        self.outcome.get_or_insert(failure.outcome());
        self.reply.failed(failure);
        self.reply.flush();
        Flow::Ended
    }

    fn timed_out(&mut self) -> Flow {
        self.cancelled(Cancellation::Timeout);
        self.fail(&Failure::TimedOut { after: self.limits.request_timeout })
    }

    fn cut_off(&mut self) -> Flow {
        self.cancelled(Cancellation::Drain);
        self.fail(&Failure::Draining { retry_after: self.limits.retry_after })
    }

    fn client_gone(&mut self) -> Flow {
        self.span.in_scope(|| debug!("the client is gone"));
        self.cancelled(Cancellation::Disconnect);
        Flow::Ended
    }
}

/// See the module's description.
pub struct Request;

impl Actor for Request {
    type Msg = Msg;
    type State = Owner;
    type Arguments = Args;

    async fn pre_start(
        &self,
        myself: ActorRef<Msg>,
        args: Args,
    ) -> Result<Owner, ActorProcessingErr> {
        myself.cast(Msg::Place)?;
        let state = State::new(&myself, args);
        Ok(Owner(RequestInbox::new(myself, state)))
    }

    async fn handle(
        &self,
        myself: ActorRef<Msg>,
        message: Msg,
        Owner(inbox): &mut Owner,
    ) -> Result<(), ActorProcessingErr> {
        let flow = inbox.decide(|state| match message {
            Msg::Wake => state.wake(inbox),
            Msg::Place => state.try_again(inbox),
            Msg::Room => state.place(inbox),
            Msg::Turn(turn, _called) => state.turn(inbox, turn),
            Msg::WaitedTooLong => state.waited_too_long(),
            Msg::ClientGone => state.client_gone(),
            Msg::TimedOut => state.timed_out(),
            Msg::CutOff => state.cut_off(),
        })?;
        if let Flow::Ended = flow {
            myself.stop(None);
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<Msg>,
        _: SupervisionEvent,
        _: &mut Owner,
    ) -> Result<(), ActorProcessingErr> {
        Ok(()) // it has no children
    }
}
