//! `Frontend`: the client's side of the node. Supervises `Models`, `Requests` and one `WorkerLink`
//! for each worker that is up. Each of them is restarted alone, within its budget.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ractor::{Actor, ActorCell, ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};
use ractor_cluster::RactorMessage;
use tracing::{error, info, warn};

use super::cluster::redial::backoff;
use super::handle::Shared;
use super::link::{self, Link, WorkerLink};
use super::models::{self, Models};
use super::requests::{self, Requests};
use super::restart::{RestartBudget, Verdict, ended};
use super::router::{self, Router};
use super::terms;
use super::tree::{Card, CardId, Label};
use super::worker::{Way, WorkerUp};
use crate::ids::{Generation, WorkerId};
use crate::router::Role;

/// A part of the front end that can be started again.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// `Models`.
    Models,
    /// `Requests`.
    Requests,
    /// The `Router` of this model.
    Router(String),
    /// The `WorkerLink` of this worker.
    Link(WorkerId),
}

impl Part {
    fn name(&self) -> &'static str {
        match self {
            Self::Models => "models",
            Self::Requests => "requests",
            Self::Router(_) => "router",
            Self::Link(_) => "worker_link",
        }
    }
}

/// What a `Frontend` answers to.
#[derive(RactorMessage)]
pub enum Msg {
    /// A worker is up, or up again with a later generation.
    WorkerUp(WorkerUp),
    /// A worker is gone.
    WorkerDown {
        /// The worker.
        worker: WorkerId,
        /// Its generation; a later one stays.
        generation: Generation,
        /// Why, for people.
        why: String,
    },
    /// From a `WorkerLink`: legs may be placed on it.
    Linked(Arc<Link>),
    /// The node stops: end the requests that still run.
    CutOff,
    /// Internal: the delay before a restart is over.
    Respawn(Part),
}

/// What a `Frontend` starts from.
pub struct Args {
    /// What it shares with the HTTP server.
    pub shared: Arc<Shared>,
    /// The card of the `NodeRoot`.
    pub parent: CardId,
    /// Which start of this actor this is.
    pub generation: u32,
    /// The workers that are up now.
    pub workers: Vec<WorkerUp>,
}

/// What is known of one worker.
struct LinkSlot {
    up: WorkerUp,
    actor: Option<ActorCell>,
    link: Option<Arc<Link>>,
    /// Since when it is linked.
    linked_at: Option<Instant>,
    /// Attempts to reach another node's worker that came to nothing, or to little.
    attempts: u32,
}

impl LinkSlot {
    fn new(up: WorkerUp) -> Self {
        Self { up, actor: None, link: None, linked_at: None, attempts: 0 }
    }
}

/// A `Frontend`'s memory.
pub struct State {
    shared: Arc<Shared>,
    models: Option<ActorRef<models::Msg>>,
    requests: Option<ActorRef<requests::Msg>>,
    routers: HashMap<ActorId, String>,
    links: HashMap<WorkerId, LinkSlot>,
    /// Workers that did not fit when they were judged last.
    refused: HashMap<WorkerId, WorkerUp>,
    starts: HashMap<Part, u32>,
    budgets: HashMap<Part, RestartBudget>,
    card: Card,
}

/// Why a `Frontend` ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{part:?} failed too often; the last time: {last}")]
pub struct FrontendError {
    part: Part,
    last: String,
}

impl State {
    /// How often this part was started, this time included; a link has its worker's generation.
    fn next_start(&mut self, part: &Part) -> u32 {
        if let Part::Link(_) = part {
            return 0;
        }
        let starts = self.starts.entry(part.clone()).or_default();
        *starts += 1;
        *starts
    }

    async fn spawn(
        &mut self,
        myself: &ActorRef<Msg>,
        part: Part,
    ) -> Result<(), ActorProcessingErr> {
        let (shared, parent) = (self.shared.clone(), self.card.id());
        let generation = self.next_start(&part);
        let cell = myself.get_cell();
        match part {
            Part::Models => {
                let links = self.links.values().filter_map(|slot| slot.link.clone()).collect();
                let args = models::Args { shared, parent, generation, links };
                self.models = Some(Actor::spawn_linked(None, Models, args, cell).await?.0);
            }
            Part::Requests => {
                let args = requests::Args { shared, parent, generation };
                self.requests = Some(Actor::spawn_linked(None, Requests, args, cell).await?.0);
            }
            Part::Router(name) => {
                let model = shared.view.borrow().model(&name).map(|model| model.served.clone());
                let Some(model) = model else { return Ok(()) };
                let args = router::Args { shared, parent, generation, model };
                let (router, _) = Actor::spawn_linked(None, Router, args, cell).await?;
                self.routers.insert(router.get_id(), name);
            }
            Part::Link(worker) => self.spawn_link(myself, &worker).await?,
        }
        Ok(())
    }

    async fn spawn_link(
        &mut self,
        myself: &ActorRef<Msg>,
        worker: &WorkerId,
    ) -> Result<(), ActorProcessingErr> {
        let (node, parent) = (self.shared.node.clone(), self.card.id());
        let Some(slot) = self.links.get_mut(worker) else { return Ok(()) };
        let view = self.shared.view.borrow().clone();
        let router = view.model(&slot.up.model).map(|model| model.served.router_of(slot.up.role));
        let (Some(router), None) = (router, &slot.actor) else { return Ok(()) };
        let (frontend, up) = (myself.clone(), slot.up.clone());
        let args = link::Args { node, parent, frontend, up, router };
        let (actor, _) = Actor::spawn_linked(None, WorkerLink, args, myself.get_cell()).await?;
        slot.actor = Some(actor.get_cell());
        Ok(())
    }

    /// A link is up: requests may use it.
    fn linked(&mut self, link: Arc<Link>) {
        let slot = self.links.get_mut(&link.worker);
        let slot =
            slot.filter(|slot| slot.up.generation == link.generation && slot.actor.is_some());
        let Some(slot) = slot else { return link.end() };
        slot.link = Some(link.clone());
        slot.linked_at = Some(Instant::now());
        info!(worker = %link.worker, generation = link.generation.0, "worker is linked");
        if let Some(models) = &self.models {
            // Being restarted, it will start from the links that live then.
            let _ = models.cast(models::Msg::Up(link));
        }
    }

    /// Ends the link to a worker's earlier generation, so that what runs there is placed again.
    fn unlink(&mut self, worker: &WorkerId, up_to: Generation, why: String) {
        if let Some(models) = &self.models {
            let _ = models.cast(models::Msg::Forget(worker.clone())); // restarted: it has forgotten
        }
        let Some(slot) = self.links.get(worker).filter(|slot| slot.up.generation <= up_to) else {
            return;
        };
        if let Some(link) = &slot.link {
            link.end();
        }
        if let Some(actor) = &slot.actor {
            actor.stop(Some(why.clone()));
        }
        let model = slot.up.model.clone();
        self.links.remove(worker);
        self.card.count(1, self.links.len() as u64);
        self.tell_models_down(worker, model, up_to, why);
    }

    fn tell_models_down(
        &self,
        worker: &WorkerId,
        model: Arc<str>,
        generation: Generation,
        why: String,
    ) {
        if let Some(models) = &self.models {
            let worker = worker.clone();
            // Being restarted, it will start from the links that live then.
            let _ = models.cast(models::Msg::Down { worker, model, generation, why });
        }
    }

    async fn worker_up(
        &mut self,
        myself: &ActorRef<Msg>,
        up: WorkerUp,
    ) -> Result<(), ActorProcessingErr> {
        let worker = up.id.clone();
        if self.links.get(&worker).is_some_and(|slot| slot.up.generation >= up.generation) {
            return Ok(()); // known already, or said by a generation that has been replaced
        }
        if !self.fits(&up) {
            self.refused.insert(worker, up);
            return Ok(());
        }
        self.refused.remove(&worker);
        self.unlink(&worker, up.generation, "a later generation is up".to_string());
        self.links.insert(worker.clone(), LinkSlot::new(up));
        self.card.count(1, self.links.len() as u64);
        self.spawn(myself, Part::Link(worker)).await
    }

    /// A worker is gone. Those that did not fit beside it may fit now.
    async fn worker_down(
        &mut self,
        myself: &ActorRef<Msg>,
        worker: &WorkerId,
        generation: Generation,
        why: String,
    ) -> Result<(), ActorProcessingErr> {
        self.refused.remove(worker);
        self.unlink(worker, generation, why);
        for (_, up) in std::mem::take(&mut self.refused) {
            self.worker_up(myself, up).await?;
        }
        Ok(())
    }

    /// Whether another node's worker can serve its model here; says so if it cannot.
    fn fits(&self, up: &WorkerUp) -> bool {
        let view = self.shared.view.borrow().clone();
        let Some(model) = view.model(&up.model) else {
            info!(worker = %up.id, model = %up.model, "serves a model that is not offered here");
            return false;
        };
        let is_other = |slot: &&LinkSlot| slot.up.model == up.model && slot.up.id != up.id;
        let mut others = self.links.values().filter(is_other).map(|slot| &slot.up);
        let prefills = |worker: &WorkerUp| worker.role == Role::Prefill;
        let mate = others.clone().find(|other| prefills(other) == prefills(up));
        let others = (mate.map(|mate| &mate.description), others.next().map(|o| &o.description));
        let max_frame = self.shared.node.config.cluster.as_ref().map(|cluster| cluster.max_frame);
        let checked = terms::check(&model.served, others, max_frame, up);
        let Err(mismatch) = checked else { return true };
        error!(worker = %up.id, model = %up.model, %mismatch, "refused a worker");
        if let Some(models) = &self.models {
            let (worker, model) = (up.id.clone(), up.model.clone());
            // Being restarted: it is told when the worker is judged again.
            let _ = models.cast(models::Msg::Refused { worker, model, why: mismatch.to_string() });
        }
        false
    }

    /// Which part this actor was, if it still is one. Forgets it.
    fn take_part(&mut self, actor: ActorId) -> Option<Part> {
        if self.models.as_ref().is_some_and(|models| models.get_id() == actor) {
            self.models = None;
            return Some(Part::Models);
        }
        if self.requests.as_ref().is_some_and(|requests| requests.get_id() == actor) {
            self.requests = None;
            return Some(Part::Requests);
        }
        if let Some(model) = self.routers.remove(&actor) {
            return Some(Part::Router(model));
        }
        let is_it = |slot: &LinkSlot| slot.actor.as_ref().is_some_and(|a| a.get_id() == actor);
        let (worker, slot) = self.links.iter_mut().find(|(_, slot)| is_it(slot))?;
        slot.actor = None;
        let was_up = slot.link.take().is_some();
        let (worker, model, generation) =
            (worker.clone(), slot.up.model.clone(), slot.up.generation);
        if was_up {
            let why = format!("the link to {worker} was lost");
            self.tell_models_down(&worker, model, generation, why);
        }
        Some(Part::Link(worker))
    }

    /// When to try to reach a worker again. It is tried for as long as it is said to be up: what
    /// happens to a worker costs this front end none of its restarts.
    fn reconnect_delay(&mut self, part: &Part) -> Option<Duration> {
        let Part::Link(worker) = part else { return None };
        let config = &self.shared.node.config;
        let slot = self.links.get_mut(worker)?;
        let cluster = config.cluster.as_ref().filter(|_| matches!(slot.up.way, Way::Remote(_)));
        let Some(cluster) = cluster else { return Some(config.supervision.delay) };
        // A link that breaks as soon as it is up is no success.
        if slot.linked_at.take().is_some_and(|at| at.elapsed() > cluster.redial.max) {
            slot.attempts = 0;
        }
        let delay = backoff(slot.attempts, &cluster.redial);
        slot.attempts += 1;
        Some(delay)
    }

    fn restarts(&self, part: &Part) {
        self.shared.node.metrics.restarted(part.name());
        self.card.add(0, 1);
    }

    /// Schedules a restart, or fails so that the root decides.
    fn failed(
        &mut self,
        myself: &ActorRef<Msg>,
        actor: ActorId,
        last: String,
    ) -> Result<(), FrontendError> {
        let Some(part) = self.take_part(actor) else { return Ok(()) };
        if let Some(delay) = self.reconnect_delay(&part) {
            info!(part = part.name(), why = last, ?delay, "not linked; trying again");
            self.restarts(&part);
            myself.send_after(delay, || Msg::Respawn(part));
            return Ok(());
        }
        let limits = &self.shared.node.config.supervision;
        let budget = self.budgets.entry(part.clone()).or_insert_with(|| RestartBudget::new(limits));
        match budget.record(Instant::now()) {
            Verdict::After(delay) => {
                warn!(part = part.name(), why = last, ?delay, "restarting");
                self.restarts(&part);
                myself.send_after(delay, || Msg::Respawn(part));
                Ok(())
            }
            Verdict::Escalate => {
                error!(part = part.name(), why = last, "failed too often");
                Err(FrontendError { part, last })
            }
        }
    }
}

/// See the module's description.
pub struct FrontendActor;

impl Actor for FrontendActor {
    type Msg = Msg;
    type State = State;
    type Arguments = Args;

    async fn pre_start(
        &self,
        myself: ActorRef<Msg>,
        args: Args,
    ) -> Result<State, ActorProcessingErr> {
        let label = Label {
            kind: "Frontend",
            name: args.shared.frontend_config().http.to_string(),
            generation: args.generation,
            counters: &["restarts", "workers"],
        };
        let card = args.shared.node.board.hang(args.parent, label, myself.get_cell());
        card.state("serving");
        let mut state = State {
            shared: args.shared,
            models: None,
            requests: None,
            routers: HashMap::new(),
            links: HashMap::new(),
            refused: HashMap::new(),
            starts: HashMap::new(),
            budgets: HashMap::new(),
            card,
        };
        state.spawn(&myself, Part::Models).await?;
        state.spawn(&myself, Part::Requests).await?;
        let view = state.shared.view.borrow().clone();
        for model in &view.models {
            state.spawn(&myself, Part::Router(model.served.name.clone())).await?;
        }
        for up in args.workers {
            state.worker_up(&myself, up).await?;
        }
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<Msg>,
        message: Msg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Msg::WorkerUp(up) => state.worker_up(&myself, up).await?,
            Msg::WorkerDown { worker, generation, why } => {
                state.worker_down(&myself, &worker, generation, why).await?;
            }
            Msg::Linked(link) => state.linked(link),
            Msg::Respawn(part) => state.spawn(&myself, part).await?,
            Msg::CutOff => {
                if let Some(requests) = &state.requests {
                    let _ = requests.cast(requests::Msg::CutOff); // lost: its requests have ended
                }
            }
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Msg>,
        event: SupervisionEvent,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        if let Some((child, why)) = ended(event) {
            state.failed(&myself, child.get_id(), why)?;
        }
        Ok(())
    }
}
