//! `Sequence`: one leg of one request on this rank. It lives from admission to the leg's end, and
//! dropping its state makes the engine forget the leg and free its KV blocks, however it ended.

use std::sync::Arc;

use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use ractor_cluster::RactorMessage;

use super::thread::{Command, Commands};
use crate::actors::link::LinkId;
use crate::actors::tree::{Board, Card, CardId, Label};
use crate::engine::Leg;
use crate::ids::LegId;

/// A `Sequence` is told nothing: it is stopped.
#[derive(RactorMessage)]
pub enum Msg {}

/// What a `Sequence` starts from.
pub struct Args {
    /// Where its card hangs.
    pub board: Arc<Board>,
    /// The card of the `Rank`.
    pub parent: CardId,
    /// The leg.
    pub leg: Leg,
    /// Where the leg's frames go.
    pub link: LinkId,
    /// The way to the rank's thread.
    pub commands: Commands,
}

/// The leg's hold on the engine.
pub struct State {
    leg: LegId,
    commands: Commands,
    _card: Card,
}

impl Drop for State {
    fn drop(&mut self) {
        self.commands.send(Command::Abort(self.leg));
    }
}

/// See the module's description.
pub struct Sequence;

impl Actor for Sequence {
    type Msg = Msg;
    type State = State;
    type Arguments = Args;

    async fn pre_start(
        &self,
        myself: ActorRef<Msg>,
        args: Args,
    ) -> Result<State, ActorProcessingErr> {
        let label = Label {
            kind: "Sequence",
            name: args.leg.id.to_string(),
            generation: u32::from(args.leg.id.attempt) + 1,
            counters: &[],
        };
        let card = args.board.hang(args.parent, label, myself.get_cell());
        card.state("admitted");
        let leg = args.leg.id;
        args.commands.send(Command::Admit { leg: args.leg, link: args.link });
        Ok(State { leg, commands: args.commands, _card: card })
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
