//! `Frontend`: the client's side of the node. Supervises `Models`, `Requests` and one `WorkerLink`
//! for each worker that is up. Each of them is restarted alone, within its budget.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use ractor::{Actor, ActorCell, ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};
use tracing::{error, info, warn};

use super::handle::Shared;
use super::link::{self, Link, WorkerLink};
use super::models::{self, Models};
use super::requests::{self, Requests};
use super::restart::{RestartBudget, Verdict, ended};
use super::tree::{Card, CardId, Label};
use super::worker::WorkerUp;
use crate::ids::Generation;

/// A part of the front end that can be started again.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// `Models`.
    Models,
    /// `Requests`.
    Requests,
    /// The `WorkerLink` of this worker.
    Link(String),
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
pub enum Msg {
    /// A worker is up, or up again with a later generation.
    WorkerUp(WorkerUp),
    /// A worker is gone.
    WorkerDown {
        /// The worker.
        name: String,
        /// Its generation.
        generation: Generation,
        /// Why, for people.
        why: String,
    },
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

struct LinkSlot {
    up: WorkerUp,
    actor: Option<ActorCell>,
    link: Option<Arc<Link>>,
}

/// A `Frontend`'s memory.
pub struct State {
    shared: Arc<Shared>,
    models: Option<ActorRef<models::Msg>>,
    requests: Option<ActorRef<requests::Msg>>,
    links: HashMap<String, LinkSlot>,
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
            Part::Link(worker) => self.spawn_link(&worker, cell).await?,
        }
        Ok(())
    }

    async fn spawn_link(
        &mut self,
        worker: &str,
        myself: ActorCell,
    ) -> Result<(), ActorProcessingErr> {
        let (node, parent) = (self.shared.node.clone(), self.card.id());
        let Some(slot) = self.links.get_mut(worker) else { return Ok(()) };
        if slot.actor.is_some() {
            return Ok(());
        }
        let link = Arc::new(Link::new(&slot.up));
        let args = link::Args { node, parent, link: link.clone() };
        let (actor, _) = Actor::spawn_linked(None, WorkerLink, args, myself).await?;
        slot.actor = Some(actor.get_cell());
        slot.link = Some(link.clone());
        if let Some(models) = &self.models {
            models.cast(models::Msg::Up(link))?;
        }
        Ok(())
    }

    /// Ends the link to a worker's earlier generation, so that what runs there is placed again.
    fn unlink(&mut self, name: &str, up_to: Generation, why: String) {
        let Some(slot) = self.links.get(name).filter(|slot| slot.up.generation <= up_to) else {
            return;
        };
        if let Some(link) = &slot.link {
            link.end();
        }
        if let Some(actor) = &slot.actor {
            actor.stop(Some(why.clone()));
        }
        self.links.remove(name);
        self.tell_models_down(name, up_to, why);
    }

    fn tell_models_down(&self, worker: &str, generation: Generation, why: String) {
        if let Some(models) = &self.models {
            let worker = worker.to_string();
            // Being restarted, it will start from the links that live then.
            let _ = models.cast(models::Msg::Down { worker, generation, why });
        }
    }

    async fn worker_up(
        &mut self,
        myself: &ActorRef<Msg>,
        up: WorkerUp,
    ) -> Result<(), ActorProcessingErr> {
        let name = up.name.clone();
        self.unlink(&name, up.generation, "a later generation is up".to_string());
        info!(worker = name, generation = up.generation.0, "worker is up");
        self.links.insert(name.clone(), LinkSlot { up, actor: None, link: None });
        self.spawn(myself, Part::Link(name)).await
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
        let (name, slot) = self.links.iter_mut().find(|(_, slot)| is_it(slot))?;
        slot.actor = None;
        slot.link = None;
        let (name, generation) = (name.clone(), slot.up.generation);
        self.tell_models_down(&name, generation, "the link to its worker was lost".to_string());
        Some(Part::Link(name))
    }

    /// Schedules a restart, or fails so that the root decides.
    fn failed(
        &mut self,
        myself: &ActorRef<Msg>,
        actor: ActorId,
        last: String,
    ) -> Result<(), FrontendError> {
        let Some(part) = self.take_part(actor) else { return Ok(()) };
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
            Msg::WorkerDown { name, generation, why } => state.unlink(&name, generation, why),
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
