//! `Sequence`: one leg of one request on this rank. It lives from admission to the leg's end, and
//! dropping it makes the engine forget the leg and free its KV blocks, however it ended.
//!
//! It hangs on the tree and can be killed like an actor, but has no mailbox: its `Rank`, which holds it,
//! tells it what there is to tell, and a mailbox would cost ten times what the leg does.

use std::sync::Arc;

use ractor::ActorRef;

use super::Msg;
use super::thread::{Command, Commands};
use crate::actors::link::LinkId;
use crate::actors::transfer;
use crate::actors::tree::{Bearer, Board, Card, CardId, Label};
use crate::engine::Leg;
use crate::ids::LegId;
use crate::kvxfer::{KvBlocks, KvOffer, KvSource};

/// The leg's hold on the engine.
pub(super) struct Sequence {
    leg: LegId,
    /// The front end's stream that it belongs to.
    pub(super) link: LinkId,
    /// Where KV for it can be fetched, until that begins.
    pub(super) offer: Option<Box<KvOffer>>,
    /// Fetches it.
    pub(super) transfer: Option<ActorRef<transfer::Msg>>,
    commands: Commands,
    _card: Card,
}

impl Sequence {
    /// Hands the leg to the engine.
    pub(super) fn admit(
        leg: Leg,
        offer: Option<Box<KvOffer>>,
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
        let state = match offer.as_deref() {
            Some(KvOffer { source: KvSource::Engine(state), .. }) => Some(state.clone()),
            Some(KvOffer { source: KvSource::Pool(_), .. }) | None => None,
        };
        commands.send(Command::Admit { leg, link, state });
        Self { leg: id, link, offer, transfer: None, commands, _card: card }
    }

    /// More of its KV can be fetched than was offered; `None`: nothing more will come.
    pub(super) fn more(&mut self, more: Option<KvBlocks>) {
        let Some(offer) = &mut self.offer else { return };
        match more {
            Some(more) => offer.blocks.append(more),
            None => offer.blocks = KvBlocks::default(), // what there was is gone, too
        }
    }
}

impl Drop for Sequence {
    fn drop(&mut self) {
        self.commands.send(Command::Abort(self.leg));
        if let Some(transfer) = &self.transfer {
            transfer.stop(None);
        }
    }
}
