//! The `Router` actor: shows what the router of one model knows, and clears up behind it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use ractor_cluster::RactorMessage;

use crate::actors::handle::Shared;
use crate::actors::models::ServedModel;
use crate::actors::tree::{Card, CardId, Label};

/// How often it clears up.
const TICK: Duration = Duration::from_millis(100);

/// What a `Router` answers to.
#[derive(RactorMessage)]
pub enum Msg {
    /// Internal: time to clear up.
    Tick,
}

/// What a `Router` starts from.
pub struct Args {
    /// The front end.
    pub shared: Arc<Shared>,
    /// The card of the `Frontend`.
    pub parent: CardId,
    /// Which start of this actor this is.
    pub generation: u32,
    /// The model that it routes for.
    pub model: Arc<ServedModel>,
}

/// A `Router`'s memory.
pub struct State {
    shared: Arc<Shared>,
    model: Arc<ServedModel>,
    card: Card,
}

impl State {
    fn call(&self) {
        let view = self.shared.view.borrow().clone();
        let links = view.model(&self.model.name).into_iter().flat_map(|model| &model.links);
        links.for_each(|link| link.call_waiting());
    }
}

/// See the module's description.
pub struct Router;

impl Actor for Router {
    type Msg = Msg;
    type State = State;
    type Arguments = Args;

    async fn pre_start(
        &self,
        myself: ActorRef<Msg>,
        args: Args,
    ) -> Result<State, ActorProcessingErr> {
        let label = Label {
            kind: "Router",
            name: args.model.name.clone(),
            generation: args.generation,
            counters: &["ranks", "blocks"],
        };
        let card = args.shared.node.board.hang(args.parent, label, myself.get_cell());
        card.state(args.model.router.mode().name());
        myself.send_interval(TICK, || Msg::Tick);
        Ok(State { shared: args.shared, model: args.model, card })
    }

    async fn handle(
        &self,
        _: ActorRef<Msg>,
        message: Msg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Msg::Tick => {
                let router = &state.model.router;
                router.tidy(Instant::now());
                state.model.prefill.tidy(Instant::now());
                // A turn may have come to nothing since a link last said what room it has.
                if router.line.has_waiting() {
                    state.call();
                }
                let (decode, prefill) = (router.size(), state.model.prefill.size());
                state.card.count(0, (decode.0 + prefill.0) as u64);
                state.card.count(1, (decode.1 + prefill.1) as u64);
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
