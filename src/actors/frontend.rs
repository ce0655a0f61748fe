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
use super::terms;
use super::tree::{Card, CardId, Label};
use super::worker::{Way, WorkerUp};
use crate::ids::{Generation, WorkerId};

/// A part of the front end that can be started again.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// `Models`.
    Models,
    /// `Requests`.
    Requests,
    /// The `WorkerLink` of this worker.
    Link(WorkerId),
}

impl Part {
    fn name(&self) -> &'static str {
        match self {
            Self::Models => "models",
            Self::Requests => "requests",
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
    /// Attempts to reach another node's worker since it was last linked.
    attempts: u32,
}

/// A `Frontend`'s memory.
pub struct State {
    shared: Arc<Shared>,
    models: Option<ActorRef<models::Msg>>,
    requests: Option<ActorRef<requests::Msg>>,
    links: HashMap<WorkerId, LinkSlot>,
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
    fn next_start(&mut self, part: &Part) -> u32 {
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
        if slot.actor.is_some() {
            return Ok(());
        }
        let args = link::Args { node, parent, frontend: myself.clone(), up: slot.up.clone() };
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
        slot.attempts = 0;
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
        if let Way::Remote(_) = up.way
            && !self.fits(&up)
        {
            return Ok(());
        }
        self.unlink(&worker, up.generation, "a later generation is up".to_string());
        self.links.insert(worker.clone(), LinkSlot { up, actor: None, link: None, attempts: 0 });
        self.spawn(myself, Part::Link(worker)).await
    }

    /// Whether another node's worker can serve its model here; says so if it cannot.
    fn fits(&self, up: &WorkerUp) -> bool {
        let view = self.shared.view.borrow().clone();
        let Some(model) = view.model(&up.model) else {
            info!(worker = %up.id, model = %up.model, "serves a model that is not offered here");
            return false;
        };
        let mut others = self.links.values().filter(|slot| slot.up.model == up.model);
        let block_tokens = others.next().map(|slot| slot.up.description.block_tokens);
        let Err(mismatch) = terms::check(&model.served, block_tokens, up) else { return true };
        error!(worker = %up.id, model = %up.model, %mismatch, "refused a worker");
        if let Some(models) = &self.models {
            let (worker, model) = (up.id.clone(), up.model.clone());
            // Being restarted, it hears it again when the node next speaks of its worker.
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

    /// When to try to reach another node's worker again. It is tried for as long as its node says
    /// that it is up: what happens elsewhere costs this front end none of its restarts.
    fn reconnect_delay(&mut self, part: &Part) -> Option<Duration> {
        let Part::Link(worker) = part else { return None };
        let slot = self.links.get_mut(worker)?;
        if let Way::Local(_) = slot.up.way {
            return None;
        }
        let cluster = self.shared.node.config.cluster.as_ref()?;
        let delay = backoff(slot.attempts, &cluster.redial);
        slot.attempts += 1;
        Some(delay)
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
            info!(?part, why = last, ?delay, "not linked; trying again");
            myself.send_after(delay, || Msg::Respawn(part));
            return Ok(());
        }
        let limits = &self.shared.node.config.supervision;
        let budget = self.budgets.entry(part.clone()).or_insert_with(|| RestartBudget::new(limits));
        match budget.record(Instant::now()) {
            Verdict::After(delay) => {
                warn!(part = part.name(), why = last, ?delay, "restarting");
                self.shared.node.metrics.restarted(part.name());
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
            counters: &[],
        };
        let card = args.shared.node.board.hang(args.parent, label, myself.get_cell());
        card.state("serving");
        let mut state = State {
            shared: args.shared,
            models: None,
            requests: None,
            links: HashMap::new(),
            starts: HashMap::new(),
            budgets: HashMap::new(),
            card,
        };
        state.spawn(&myself, Part::Models).await?;
        state.spawn(&myself, Part::Requests).await?;
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
            Msg::WorkerDown { worker, generation, why } => state.unlink(&worker, generation, why),
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
