//! `Models`: which model is served by which ranks, readiness and its reasons.
//!
//! The actor is the only writer of the [`View`]; everyone else reads the latest one without asking.

use std::path::PathBuf;
use std::sync::Arc;

use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use serde::Serialize;

use super::handle::Shared;
use super::link::Link;
use super::tree::{Card, CardId, Label};
use crate::engine::Sampling;
use crate::ids::Generation;
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
    /// The model's own defaults (`generation_config.json`), end-of-sequence ids included.
    pub sampling: Sampling,
}

/// Whether a model can serve, and why not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Readiness {
    /// The model's name.
    pub model: String,
    /// `None`: ready. Else the reason, for people.
    pub reason: Option<String>,
    /// Ranks that can take work.
    pub ranks_ready: usize,
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
}

impl ModelView {
    /// Whether it can serve, and why not.
    pub fn readiness(&self) -> Readiness {
        let ranks_ready = self.links.iter().map(|link| link.ranks.len()).sum();
        Readiness {
            model: self.served.name.clone(),
            reason: (ranks_ready == 0).then(|| self.reason.clone()),
            ranks_ready,
        }
    }
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
        if let Some(model) = self.model_mut(&link.worker.clone()) {
            model.links.retain(|known| known.worker != link.worker);
            model.links.push(link);
        }
    }

    fn down(&mut self, worker: &str, generation: Generation, why: String) {
        if let Some(model) = self.model_mut(worker) {
            model.links.retain(|link| link.worker != worker || link.generation > generation);
            model.reason = why;
        }
    }
}

/// What `Models` answers to.
pub enum Msg {
    /// A worker can be reached on this link from now on.
    Up(Arc<Link>),
    /// The links to this worker, up to this generation, are gone.
    Down {
        /// The worker.
        worker: String,
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
            Msg::Down { worker, generation, why } => {
                state.change(|view| view.down(&worker, generation, why));
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
