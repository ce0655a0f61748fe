//! What a request asks of its router, and what it hears.

use std::time::Instant;

use serde::Serialize;

use super::{ModelRouter, Seat};
use crate::ids::BlockHash;
use crate::router::{Affinity, Mode, Score};

/// A leg that needs a rank.
pub struct Ask<'a> {
    /// Its tokens: the prompt and what was delivered.
    pub tokens: &'a [u32],
    /// Separates prefix caches.
    pub salt: u64,
    /// Whether the client wants to see why.
    pub explain: bool,
    /// The session that it belongs to.
    pub session: Option<u64>,
}

/// A rank that could take it.
#[derive(Clone, Copy, Debug)]
pub struct Offer {
    /// Its seat here.
    pub seat: Seat,
    /// Tokens to compute there, blocks in use and legs.
    pub prefill_tokens: u64,
    /// KV blocks that live legs hold there.
    pub blocks_used: u32,
    /// Live legs there.
    pub legs: u32,
    /// Whether it may be given one more leg.
    pub has_room: bool,
}

/// The rank that was chosen.
#[derive(Debug)]
pub struct Routed {
    /// Its place among the offers.
    pub index: usize,
    /// Leading blocks of the leg that it should have cached, in any tier.
    pub cached_blocks: u32,
    /// Why, if that was asked.
    pub explanation: Option<Explanation>,
}

/// Why a leg went where it went.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Explanation {
    /// The router's mode.
    pub mode: &'static str,
    /// KV blocks of the leg, full ones and the last.
    pub blocks: f64,
    /// The rank that was chosen, as node/worker/rank.
    pub chosen: String,
    /// All that could have been, that one included.
    pub ranks: Vec<Explained>,
    /// Where the prompt is prefilled, on models that have ranks for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefill: Option<ExplainedPrefill>,
}

/// Where a prompt is prefilled.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ExplainedPrefill {
    /// `elsewhere`, or why it is not: `short`, `cached`, `empty`, `full`, `failing` or `fallback`.
    pub place: &'static str,
    /// The rank, as node/worker/rank.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rank: Option<String>,
}

/// One rank of an explanation; loads and costs are in KV blocks, before this leg.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Explained {
    /// As node/worker/rank.
    pub rank: String,
    /// Only in mode `kv`; the lowest wins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<f64>,
    /// Leading blocks of the leg that it has cached, promised ones included.
    pub cached_blocks: u32,
    /// The last of those: it has still to compute them, for another leg.
    pub promised_blocks: u32,
    /// Those beyond, in its host's memory.
    pub host_blocks: u32,
    /// Those beyond, on disk.
    pub disk_blocks: u32,
    /// Blocks that it has still to compute.
    pub prefill_blocks: f64,
    /// Blocks that live legs hold.
    pub decode_blocks: f64,
    /// Live legs.
    pub legs: u32,
    /// Whether it could be given one more.
    pub has_room: bool,
}

impl ModelRouter {
    /// Chooses one of `offers`, and counts on it that the leg goes there. `name` names an offer for
    /// people. `None` if none has room.
    pub fn route(
        &self,
        ask: &Ask<'_>,
        offers: &[Offer],
        name: impl Fn(usize) -> String,
    ) -> Option<Routed> {
        let began = Instant::now();
        let is_plain = self.mode != Mode::Kv && !ask.explain && ask.session.is_none();
        if let ([only], true) = (offers, is_plain) {
            if self.mode == Mode::RoundRobin {
                self.inside().picker.skip(); // there may be others to choose from at other times
            }
            return only.has_room.then_some(Routed {
                index: 0,
                cached_blocks: 0,
                explanation: None,
            });
        }
        let mut hasher = self.inside().hasher.clone()?; // no rank has ever joined
        let mut chain = Vec::new();
        if self.mode == Mode::Kv {
            hasher.extend(ask.tokens, ask.salt, &mut chain);
        }
        let routed = self.decide(ask, &chain, hasher.block_tokens(), offers, name);
        if offers.len() > 1 {
            self.metrics.decision.observe(began.elapsed());
        }
        routed
    }

    /// Which of `offers` would get the leg now, and how many of its leading tokens that should have
    /// cached; `None` if none has room. Nothing is counted on.
    pub fn peek(&self, ask: &Ask<'_>, offers: &[Offer]) -> Option<(usize, usize)> {
        let mut hasher = self.inside().hasher.clone()?;
        let mut chain = Vec::new();
        if self.mode == Mode::Kv {
            hasher.extend(ask.tokens, ask.salt, &mut chain);
        }
        let mut guard = self.inside();
        let inside = &mut *guard;
        inside.weigh(&chain, hasher.block_tokens(), offers);
        let blocks = ask.tokens.len() as f64 / hasher.block_tokens() as f64;
        // As good as the choice itself, but for modes that go by turns or at random.
        let mut picker = inside.picker;
        let (candidates, scores) = (&inside.candidates, &mut inside.scores);
        let picked = picker.pick(self.mode, &self.weights, blocks, candidates, scores);
        let session = ask.session.filter(|_| self.affinity != Affinity::Off);
        let bound = session.and_then(|session| inside.of_session(session, offers, Instant::now()));
        let chosen = match bound {
            Some(at) if inside.candidates[at].has_room => at,
            Some(_) if self.affinity == Affinity::Hard => return None,
            _ => picked?,
        };
        let cached = inside.candidates[chosen].cached.all() as usize * hasher.block_tokens();
        Some((chosen, cached.min(ask.tokens.len())))
    }

    /// The rank that the session's requests must go to, if there is one.
    pub fn bound_to(&self, session: u64) -> Option<Seat> {
        if self.affinity != Affinity::Hard {
            return None;
        }
        let inside = self.inside();
        let (seat, life) = inside.sessions.rank(session, Instant::now())?;
        inside.rank(seat).is_some_and(|rank| rank.life == life).then_some(seat)
    }

    /// KV blocks of the leg that no rank has cached, as far as is known.
    pub fn uncached(&self, ask: &Ask<'_>) -> u32 {
        let Some(mut hasher) = self.inside().hasher.clone() else { return 0 };
        let mut chain = Vec::new();
        hasher.extend(ask.tokens, ask.salt, &mut chain);
        let mut inside = self.inside();
        inside.look_up(&chain);
        let cached = inside.most_cached();
        u32::try_from(ask.tokens.len().div_ceil(hasher.block_tokens())).unwrap_or(u32::MAX) - cached
    }

    fn decide(
        &self,
        ask: &Ask<'_>,
        chain: &[BlockHash],
        block_tokens: usize,
        offers: &[Offer],
        name: impl Fn(usize) -> String,
    ) -> Option<Routed> {
        let blocks = ask.tokens.len() as f64 / block_tokens.max(1) as f64;
        let mut guard = self.inside();
        let inside = &mut *guard;
        inside.weigh(chain, block_tokens, offers);
        let candidates = std::mem::take(&mut inside.candidates);
        let now = Instant::now();
        let session = ask.session.filter(|_| self.affinity != Affinity::Off);
        let bound = session.and_then(|session| inside.of_session(session, offers, now));
        let bound = bound.filter(|&at| candidates[at].has_room || self.affinity == Affinity::Hard);
        let scores = &mut inside.scores;
        let picked = inside.picker.pick(self.mode, &self.weights, blocks, &candidates, scores);
        let chosen = match bound {
            Some(at) => candidates[at].has_room.then_some(at),
            None => picked,
        };
        if let (Some(session), Some(index)) = (session, chosen) {
            inside.went_to(session, offers[index].seat, now);
        }
        if let Some(index) = chosen {
            inside.expect(offers[index].seat, chain, now);
            self.metrics.blocks_asked.inc_by(chain.len() as u64);
            self.metrics.blocks_expected.inc_by(candidates[index].cached.all().into());
        }
        let explanation = chosen.filter(|_| ask.explain).map(|index| {
            let cost = |at: usize| inside.scores.get(at).map(|score: &Score| score.cost);
            let explained = candidates.iter().enumerate().map(|(at, rank)| Explained {
                rank: name(at),
                cost: cost(at).filter(|cost| cost.is_finite()),
                cached_blocks: rank.cached.blocks,
                promised_blocks: rank.cached.promised,
                host_blocks: rank.cached.host,
                disk_blocks: rank.cached.disk,
                prefill_blocks: rank.load.prefill_blocks,
                decode_blocks: rank.load.decode_blocks,
                legs: rank.load.legs,
                has_room: rank.has_room,
            });
            let ranks = explained.collect();
            let mode = if bound.is_some() { "affinity" } else { self.mode.name() };
            Explanation { mode, blocks, chosen: name(index), ranks, prefill: None }
        });
        let cached_blocks = chosen.map_or(0, |index| candidates[index].cached.all());
        inside.candidates = candidates;
        chosen.map(|index| Routed { index, cached_blocks, explanation })
    }
}
