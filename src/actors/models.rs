//! `Models`: which model is served by which ranks, readiness and its reasons.
//!
//! The actor is the only writer of the [`View`]; everyone else reads the latest one without asking.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use ractor_cluster::RactorMessage;
use serde::Serialize;

use super::handle::Shared;
use super::link::Link;
use super::router::ModelRouter;
use super::tree::{Card, CardId, Label};
use crate::engine::{PrefixCache, Sampling};
use crate::ids::{Generation, WorkerId};
use crate::router::{Mode, Role};
use crate::text::TextModel;

/// A model as a front end knows it: how to talk to it, whoever computes it.
pub struct ServedModel {
    /// The name clients ask for.
    pub name: String,
    /// Unix seconds of this node's start.
    pub created: u64,
    /// Where its files are.
    pub dir: PathBuf,
    /// Tokenizer, chat template, detokenizer tables.
    pub text: Arc<TextModel>,
    /// Longest sequence (prompt + output) in tokens.
    pub context: usize,
    /// Hash of its tokenizer.
    pub tokenizer: u64,
    /// Chooses ranks for it.
    pub router: Arc<ModelRouter>,
    /// Chooses among its ranks that only prefill.
    pub prefill: Arc<ModelRouter>,
    /// The model's own defaults (`generation_config.json`), end-of-sequence ids included.
    pub sampling: Sampling,
}

impl ServedModel {
    /// What chooses among ranks of this role.
    pub fn router_of(&self, role: Role) -> Arc<ModelRouter> {
        match role {
            Role::Aggregated | Role::Decode => self.router.clone(),
            Role::Prefill => self.prefill.clone(),
        }
    }
}

/// Whether a model can serve, and why not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Readiness {
    /// The model's name.
    pub model: String,
    /// `None`: ready. Else the reason, for people.
    pub reason: Option<String>,
    /// Ranks that can take work, those that only prefill left out.
    pub ranks_ready: usize,
    /// Ranks that only prefill, and can take work.
    pub prefill_ranks_ready: usize,
    /// Workers of other nodes that cannot be used, and why.
    pub refused: Vec<Refused>,
    /// Workers that are used, but not as well as they could be, and why.
    pub warnings: Vec<Refused>,
}

/// A worker that cannot be used, or not as well as it could be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Refused {
    /// As `node/worker`.
    pub worker: String,
    /// Why, for people.
    pub reason: String,
}

/// One model in the view.
#[derive(Clone)]
pub struct ModelView {
    /// The model.
    pub served: Arc<ServedModel>,
    /// Links to the workers that serve it.
    pub links: Vec<Arc<Link>>,
    /// Why there is no link, for people.
    pub reason: String,
    /// Workers that cannot be used, and why.
    pub refused: BTreeMap<WorkerId, String>,
}

impl ModelView {
    /// Workers of whose prefix cache the router of mode `kv` hears nothing, or less than it should.
    fn warnings(&self) -> Vec<Refused> {
        let of = |link: &Arc<Link>| {
            let reason = warning(link.prefix_cache, &link.mute_ranks())?;
            Some(Refused { worker: link.worker.to_string(), reason })
        };
        match self.served.router.mode() {
            Mode::Kv => self.links.iter().filter_map(of).collect(),
            _ => Vec::new(),
        }
    }

    /// Whether it can serve, and why not.
    pub fn readiness(&self) -> Readiness {
        let up = |link: &Arc<Link>| link.ranks.iter().filter(|rank| rank.is_up()).count();
        let ready = |prefill: bool| {
            let ready = self.links.iter().filter(|link| link.takes_work());
            ready.filter(|link| (link.role == Role::Prefill) == prefill).map(up).sum()
        };
        let (ranks_ready, prefill_ranks_ready): (usize, usize) = (ready(false), ready(true));
        let reason = match prefill_ranks_ready {
            0 => self.reason.clone(),
            _ => format!(
                "no rank of it decodes, others only prefill ({}); start a worker with worker.role decode \
                 or aggregated",
                self.reason
            ),
        };
        let refused = self
            .refused
            .iter()
            .map(|(worker, reason)| Refused { worker: worker.to_string(), reason: reason.clone() });
        Readiness {
            model: self.served.name.clone(),
            reason: (ranks_ready == 0).then_some(reason),
            ranks_ready,
            prefill_ranks_ready,
            refused: refused.collect(),
            warnings: self.warnings(),
        }
    }
}

/// What a router of mode `kv` lacks of a worker; `mute` names ranks that say that they tell what they
/// have cached, and do not.
fn warning(prefix_cache: PrefixCache, mute: &[String]) -> Option<String> {
    let reason = match (prefix_cache, mute) {
        (PrefixCache::Told, []) => return None,
        (PrefixCache::Told, mute) => {
            return Some(format!(
                "its worker.kv_events is set, but it has told of no block of the prompts that it \
                 computed on {}, so mode kv finds nothing there; restart it, or set its \
                 worker.kv_events to false to have it guessed",
                mute.join(", ")
            ));
        }
        (PrefixCache::Silent, _) => {
            "it does not tell what it has cached, which is guessed \
             (frontend.router.silent_ttl_s); set its worker.kv_events"
        }
        (PrefixCache::None, _) => {
            "it has no prefix cache, so mode kv can only weigh its load; set its \
             worker.prefix_cache or another frontend.router.mode"
        }
    };
    Some(reason.to_string())
}

/// All models, by name.
#[derive(Clone, Default)]
pub struct View {
    /// Sorted by name.
    pub models: Vec<ModelView>,
}

impl View {
    /// The model with this name.
    pub fn model(&self, name: &str) -> Option<&ModelView> {
        self.models.iter().find(|model| model.served.name == name)
    }

    fn model_mut(&mut self, name: &str) -> Option<&mut ModelView> {
        self.models.iter_mut().find(|model| model.served.name == name)
    }

    fn up(&mut self, link: Arc<Link>) {
        if let Some(model) = self.model_mut(&link.model) {
            model.links.retain(|known| known.worker != link.worker);
            model.links.push(link);
            model.links.sort_by(|a, b| a.worker.cmp(&b.worker));
        }
    }

    fn down(&mut self, worker: &WorkerId, model: &str, generation: Generation, why: String) {
        if let Some(model) = self.model_mut(model) {
            model.links.retain(|link| link.worker != *worker || link.generation > generation);
            model.reason = why;
        }
    }
}

/// What `Models` answers to.
#[derive(RactorMessage)]
pub enum Msg {
    /// A worker can be reached on this link from now on.
    Up(Arc<Link>),
    /// A worker of another node cannot be used.
    Refused {
        /// The worker.
        worker: WorkerId,
        /// The model that it serves.
        model: Arc<str>,
        /// Why, for people.
        why: String,
    },
    /// Whatever was refused of this worker does not count any more.
    Forget(WorkerId),
    /// The links to this worker, up to this generation, are gone.
    Down {
        /// The worker.
        worker: WorkerId,
        /// The model that it served.
        model: Arc<str>,
        /// Links of later generations stay.
        generation: Generation,
        /// Why, for people.
        why: String,
    },
}

/// What `Models` starts from.
pub struct Args {
    /// Where the view is published.
    pub shared: Arc<Shared>,
    /// The card of the `Frontend`.
    pub parent: CardId,
    /// Which start of this actor this is.
    pub generation: u32,
    /// The links that live now.
    pub links: Vec<Arc<Link>>,
}

/// The memory of `Models`.
pub struct State {
    shared: Arc<Shared>,
    card: Card,
}

impl State {
    fn change(&self, change: impl FnOnce(&mut View)) {
        self.shared.view.send_modify(|view| change(Arc::make_mut(view)));
        let view = self.shared.view.borrow();
        let ready = view.models.iter().filter(|model| !model.links.is_empty()).count();
        self.card.count(0, view.models.len() as u64);
        self.card.count(1, ready as u64);
        self.card.state(if ready == view.models.len() { "ready" } else { "not ready" });
    }
}

/// See the module's description.
pub struct Models;

impl Actor for Models {
    type Msg = Msg;
    type State = State;
    type Arguments = Args;

    async fn pre_start(
        &self,
        myself: ActorRef<Msg>,
        args: Args,
    ) -> Result<State, ActorProcessingErr> {
        let label = Label {
            kind: "Models",
            name: "models".to_string(),
            generation: args.generation,
            counters: &["models", "ready"],
        };
        let card = args.shared.node.board.hang(args.parent, label, myself.get_cell());
        let state = State { shared: args.shared, card };
        state.change(|view| {
            for model in &mut view.models {
                model.links.clear();
            }
            args.links.into_iter().for_each(|link| view.up(link));
        });
        Ok(state)
    }

    async fn handle(
        &self,
        _: ActorRef<Msg>,
        message: Msg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Msg::Up(link) => state.change(|view| view.up(link)),
            Msg::Refused { worker, model, why } => state.change(|view| {
                if let Some(model) = view.model_mut(&model) {
                    model.refused.insert(worker, why);
                }
            }),
            Msg::Forget(worker) => {
                let is_refused = |model: &ModelView| model.refused.contains_key(&worker);
                if state.shared.view.borrow().models.iter().any(is_refused) {
                    state.change(|view| {
                        view.models.iter_mut().for_each(|m| drop(m.refused.remove(&worker)));
                    });
                }
            }
            Msg::Down { worker, model, generation, why } => {
                state.change(|view| view.down(&worker, &model, generation, why));
            }
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<Msg>,
        _: SupervisionEvent,
        _: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        Ok(()) // it has no children
    }
}
