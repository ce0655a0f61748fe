//! A choice's prefill on another rank than its decode: its leg there, and what of it can be fetched.
//!
//! ```text
//! placed ──Lent──▶ decode is placed, and fed as more comes ──Fetched──▶ the prefill's leg ends
//!    │                                │
//!    └─ lost: placed anew             └─ decode lost: the next one fetches from here again, once
//! ```

use std::sync::Arc;
use std::time::Instant;

use crate::actors::link::Link;
use crate::actors::router::{Promise, Seat};
use crate::ids::LegId;
use crate::kvxfer::{KvBlocks, KvOffer, KvSource};

/// See the module's description. Dropping it ends the leg, and with it the lease.
pub(super) struct Handover {
    link: Arc<Link>,
    rank: usize,
    leg: LegId,
    /// Once some of it can be fetched.
    offer: Option<KvOffer>,
    /// Leading blocks that the decode's leg has been told of.
    fed: usize,
    /// Keeps room on a decode rank for it.
    promise: Option<Promise>,
    /// Whether a decode rank that fetched from here was lost.
    has_lost: bool,
}

impl Drop for Handover {
    fn drop(&mut self) {
        self.link.cancel(self.leg); // one that has ended there is not known any more
    }
}

impl Handover {
    pub(super) fn new(link: Arc<Link>, rank: usize, leg: LegId, promise: Promise) -> Self {
        Self { link, rank, leg, offer: None, fed: 0, promise: Some(promise), has_lost: false }
    }

    pub(super) fn is_of(&self, leg: LegId) -> bool {
        self.leg == leg
    }

    /// Something went wrong there, between it and this decode rank or altogether.
    pub(super) fn shun(&self, decoder: Option<Seat>, now: Instant, until: Instant) {
        self.link.ranks[self.rank].shun(decoder, now, until);
    }

    /// A decode rank has been found for it.
    pub(super) fn is_taken_on(&mut self) {
        self.promise = None;
    }

    /// The decode rank was lost; whether the next one may fetch from here. A second loss may come from
    /// here: a peer that is frozen in mid-pull costs a decode rank its blocks.
    pub(super) fn outlives_decode(&mut self) -> bool {
        !std::mem::replace(&mut self.has_lost, true)
    }

    /// More of it can be fetched.
    pub(super) fn lent(&mut self, source: Option<KvSource>, blocks: KvBlocks) {
        match (&mut self.offer, source) {
            (Some(offer), None) => offer.blocks.append(blocks),
            (_, Some(source)) => self.offer = Some(KvOffer { source, blocks }),
            (None, None) => {} // what follows nothing can be used for nothing
        }
    }

    /// Whether a decode's leg may be placed.
    pub(super) fn is_ready(&self, overlap: bool) -> bool {
        self.offer.as_ref().is_some_and(|offer| overlap || offer.blocks.missing == 0)
    }

    /// Tokens of the prompt that can be fetched, now or later.
    pub(super) fn tokens(&self) -> usize {
        let blocks = |offer: &KvOffer| offer.blocks.blocks.len() + offer.blocks.missing as usize;
        self.offer.as_ref().map_or(0, blocks) * self.link.block_tokens
    }

    /// All that can be fetched now, for a new leg.
    pub(super) fn offer(&mut self) -> Option<KvOffer> {
        self.fed = self.offer.as_ref()?.blocks.blocks.len();
        self.offer.clone()
    }

    /// What the decode's leg has not been told of.
    pub(super) fn feed(&mut self) -> Option<KvBlocks> {
        let blocks = &self.offer.as_ref()?.blocks;
        let known = std::mem::replace(&mut self.fed, blocks.blocks.len());
        Some(blocks.after(known))
    }
}
