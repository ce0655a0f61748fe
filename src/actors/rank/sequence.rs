//! `Sequence`: one leg of one request on this rank. It lives from admission to the leg's end, and
//! dropping it makes the engine forget the leg and free its KV blocks, however it ended.
//!
//! It hangs on the tree and can be killed like an actor, but has no mailbox: nobody tells it
//! anything, and a mailbox would cost ten times what the leg does. Its `Rank` holds it.

use std::sync::Arc;

use ractor::ActorRef;

use super::Msg;
use super::thread::{Command, Commands};
use crate::actors::link::LinkId;
use crate::actors::tree::{Bearer, Board, Card, CardId, Label};
use crate::engine::Leg;
use crate::ids::LegId;

/// The leg's hold on the engine.
pub(super) struct Sequence {
    leg: LegId,
    /// The front end's stream that it belongs to.
    pub(super) link: LinkId,
    commands: Commands,
    _card: Card,
}

impl Sequence {
    /// Hands the leg to the engine.
    pub(super) fn admit(
        leg: Leg,
        link: LinkId,
        commands: Commands,
        rank: &ActorRef<Msg>,
        (board, parent): (&Arc<Board>, CardId),
    ) -> Self {
        let id = leg.id;
        let label = Label {
            kind: "Sequence",
            name: id.to_string(),
            generation: u32::from(id.attempt) + 1,
            counters: &["prompt_tokens", "max_tokens"],
        };
        let rank = rank.clone();
        let kill = move || drop(rank.cast(Msg::Kill { leg: id })); // with its rank it is gone too
        let card = board.hang(parent, label, Bearer::Part(Arc::new(kill)));
        card.state("admitted");
        card.count(0, leg.prompt_len as u64);
        card.count(1, leg.max_tokens.into());
        commands.send(Command::Admit { leg, link });
        Self { leg: id, link, commands, _card: card }
    }
}

impl Drop for Sequence {
    fn drop(&mut self) {
        self.commands.send(Command::Abort(self.leg));
    }
}
