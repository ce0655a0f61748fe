//! `Requests`: admission. Supervises one `Request` for each client request in flight, refuses more
//! than the limit, and watches over their deadlines and over those that wait for a rank.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};
use ractor_cluster::RactorMessage;
use tokio::sync::oneshot;
use tracing::warn;

use super::failure::Failure;
use super::handle::{ClientGuard, Shared};
use super::reply::NewRequest;
use super::request::{self, Request};
use super::tree::{Card, CardId, Label};
use crate::config::Frontend;
use crate::ids::RequestId;
use crate::metrics::Queued;
use crate::task::Task;

/// How often deadlines are looked at and waiting requests try again.
const TICK: Duration = Duration::from_millis(100);

/// What `Requests` answers to.
#[derive(RactorMessage)]
pub enum Msg {
    /// Starts a request, or says why not.
    Admit {
        /// The request.
        request: Box<NewRequest>,
        /// Hears the outcome; dropped if this actor is lost meanwhile.
        reply_to: oneshot::Sender<Result<ClientGuard, Failure>>,
        /// Counts it while it waits here.
        queued: Queued,
    },
    /// From a request: no rank can take one of its legs; wake it when that may have changed.
    AwaitRank {
        /// The request.
        request: ActorRef<request::Msg>,
    },
    /// The node stops: end the requests that still run.
    CutOff,
    /// Internal: the view of the models changed.
    ViewChanged,
    /// Internal: time to look at deadlines.
    Tick,
}

/// What `Requests` starts from.
pub struct Args {
    /// The front end.
    pub shared: Arc<Shared>,
    /// The card of the `Frontend`.
    pub parent: CardId,
    /// Which start of this actor this is.
    pub generation: u32,
}

struct Live {
    request: ActorRef<request::Msg>,
    deadline: Instant,
}

/// The memory of `Requests`.
pub struct State {
    shared: Arc<Shared>,
    limits: Arc<Frontend>,
    live: HashMap<ActorId, Live>,
    awaiting_rank: Vec<ActorRef<request::Msg>>,
    admitted: u64,
    refused: u64,
    card: Card,
    _watch: Task,
}

impl Drop for State {
    fn drop(&mut self) {
        self.shared.active.fetch_sub(self.live.len(), Ordering::Relaxed);
        self.shared.node.metrics.http.requests_active.dec_by(self.live.len() as i64);
    }
}

impl State {
    /// Whether a request may start now.
    fn check(&self, request: &NewRequest) -> Result<(), Failure> {
        let retry_after = self.limits.retry_after;
        if self.shared.draining() {
            return Err(Failure::Draining { retry_after });
        }
        let (current, limit) = (self.live.len(), self.limits.max_requests);
        if current >= limit {
            let what = "requests in flight (frontend.max_requests)";
            return Err(Failure::TooManyRequests { what, current, limit, retry_after });
        }
        let name = &request.model.name;
        let view = self.shared.view.borrow();
        let readiness = view.model(name).map(super::models::ModelView::readiness);
        match readiness.map(|readiness| readiness.reason) {
            Some(None) => match &request.model.router.line {
                // It goes behind them.
                line if line.is_open() || line.begun_waiting() == 0 => Ok(()),
                line => {
                    let what = "requests that have begun wait for a rank with room";
                    let (current, limit) = (line.begun_waiting(), 0);
                    Err(Failure::TooManyRequests { what, current, limit, retry_after })
                }
            },
            Some(Some(reason)) => {
                Err(Failure::NotReady { model: name.clone(), reason, retry_after })
            }
            None => {
                let reason = "it is not served here any more".to_string();
                Err(Failure::NotReady { model: name.clone(), reason, retry_after })
            }
        }
    }

    async fn admit(
        &mut self,
        myself: &ActorRef<Msg>,
        request: Box<NewRequest>,
    ) -> Result<ClientGuard, Failure> {
        self.check(&request)?;
        let args = request::Args {
            shared: self.shared.clone(),
            requests: myself.clone(),
            parent: self.card.id(),
            id: self.shared.next_request_id(),
            request,
        };
        let spawned = Actor::spawn_linked(None, Request, args, myself.get_cell()).await;
        let (request, _) = spawned.map_err(|error| {
            warn!(%error, "a request did not start");
            Failure::Internal("the request's actor did not start")
        })?;
        let deadline = Instant::now() + self.limits.request_timeout;
        self.live.insert(request.get_id(), Live { request: request.clone(), deadline });
        self.shared.active.fetch_add(1, Ordering::Relaxed);
        self.shared.node.metrics.http.requests_active.inc();
        Ok(ClientGuard::new(request))
    }

    fn count(&mut self, outcome: &Result<ClientGuard, Failure>) {
        match outcome {
            Ok(_) => self.admitted += 1,
            Err(failure) => {
                self.refused += 1;
                if let Some(refusal) = failure.refusal() {
                    self.shared.node.metrics.http.refused.inc(refusal);
                }
            }
        }
        self.card.count(0, self.live.len() as u64);
        self.card.count(1, self.admitted);
        self.card.count(2, self.refused);
    }

    fn ended(&mut self, actor: ActorId) {
        if self.live.remove(&actor).is_some() {
            self.shared.active.fetch_sub(1, Ordering::Relaxed);
            self.shared.node.metrics.http.requests_active.dec();
            self.card.count(0, self.live.len() as u64);
        }
    }

    fn tick(&mut self, now: Instant) {
        self.retry();
        for live in self.live.values().filter(|live| live.deadline <= now) {
            let _ = live.request.cast(request::Msg::TimedOut); // it has just ended: as good
        }
    }

    fn cut_off(&self) {
        for live in self.live.values() {
            let _ = live.request.cast(request::Msg::CutOff); // it has just ended: as good
        }
    }

    fn retry(&mut self) {
        for request in self.awaiting_rank.drain(..) {
            let _ = request.cast(request::Msg::Place); // it has just ended: nothing to place
        }
    }
}

/// See the module's description.
pub struct Requests;

impl Actor for Requests {
    type Msg = Msg;
    type State = State;
    type Arguments = Args;

    async fn pre_start(
        &self,
        myself: ActorRef<Msg>,
        args: Args,
    ) -> Result<State, ActorProcessingErr> {
        let label = Label {
            kind: "Requests",
            name: "requests".to_string(),
            generation: args.generation,
            counters: &["active", "admitted", "refused"],
        };
        let card = args.shared.node.board.hang(args.parent, label, myself.get_cell());
        let limits = args.shared.frontend_config();
        let mut view = args.shared.view.subscribe();
        let to = myself.clone();
        let _watch = Task::spawn(async move {
            while view.changed().await.is_ok() && to.cast(Msg::ViewChanged).is_ok() {}
        });
        myself.send_interval(TICK, || Msg::Tick);
        args.shared.requests.store(Some(Arc::new(myself)));
        card.state("admitting");
        Ok(State {
            shared: args.shared,
            limits,
            live: HashMap::new(),
            awaiting_rank: Vec::new(),
            admitted: 0,
            refused: 0,
            card,
            _watch,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<Msg>,
        message: Msg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Msg::Admit { request, reply_to, queued } => {
                drop(queued);
                let outcome = state.admit(&myself, request).await;
                state.count(&outcome);
                let _ = reply_to.send(outcome); // the client left: the guard in it ends the request
            }
            Msg::AwaitRank { request } => state.awaiting_rank.push(request),
            Msg::CutOff => state.cut_off(),
            Msg::ViewChanged => state.retry(),
            Msg::Tick => state.tick(Instant::now()),
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<Msg>,
        event: SupervisionEvent,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorTerminated(cell, ..) => state.ended(cell.get_id()),
            SupervisionEvent::ActorFailed(cell, error) => {
                warn!(%error, "a request's actor failed"); // its client has been told by its reply
                state.ended(cell.get_id());
            }
            _ => {}
        }
        Ok(())
    }
}

/// Makes request ids that no other front end makes: a nonce of the process, then a counter.
pub fn request_id(nonce: u32, count: u64) -> RequestId {
    RequestId((u64::from(nonce) << 32) ^ count)
}
