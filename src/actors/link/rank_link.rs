//! A rank of a linked worker, as its model's router and the requests of this front end see it.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::Report;
use super::mute::Mute;
use crate::actors::router::{Offer, Seat};
use crate::ids::RankIndex;
use crate::router::{KvNews, PrefillRank, Verdict};

/// A rank as a router sees it.
pub struct RankLink {
    /// Its index in the worker.
    pub index: RankIndex,
    /// Legs placed by this front end that have not ended.
    pub(super) placed: AtomicU32,
    /// Legs the rank last reported as running and waiting, over all front ends.
    reported: AtomicU32,
    /// Most legs that this front end may have there.
    credit: AtomicU32,
    /// Its place in the model's router.
    pub seat: Seat,
    /// What the rank last reported, over all front ends: tokens to compute of legs that run, tokens
    /// of those that wait and their number, KV blocks in use.
    prefill_tokens: AtomicU64,
    waiting_tokens: AtomicU64,
    waiting: AtomicU32,
    blocks_used: AtomicU32,
    /// Legs of this front end that have not started, and the tokens that they will have to compute:
    /// known better here than there, since equal prefixes are computed once.
    pub(super) pending: AtomicU32,
    pub(super) pending_tokens: AtomicU64,
    /// Whether it lives, as far as is known.
    pub(super) up: AtomicBool,
    /// Its last life that has ended; 0: none has.
    pub(super) ended_life: AtomicU32,
    /// The number of the last news of its prefix cache, if all have come; 0: not known, or they have not.
    followed: AtomicU64,
    /// Whether it tells what it says that it tells.
    pub(super) mute: Mute,
    /// Until when it is asked for no prefill, and for which decode rank: `None` for all.
    shunned: Mutex<Vec<(Option<Seat>, Instant)>>,
}

impl RankLink {
    pub(super) fn new(index: RankIndex, credit: u32, seat: Seat) -> Self {
        Self {
            index,
            placed: AtomicU32::new(0),
            reported: AtomicU32::new(0),
            credit: AtomicU32::new(credit),
            seat,
            prefill_tokens: AtomicU64::new(0),
            waiting_tokens: AtomicU64::new(0),
            waiting: AtomicU32::new(0),
            blocks_used: AtomicU32::new(0),
            pending: AtomicU32::new(0),
            pending_tokens: AtomicU64::new(0),
            up: AtomicBool::new(true),
            ended_life: AtomicU32::new(0),
            followed: AtomicU64::new(0),
            mute: Mute::default(),
            shunned: Mutex::default(),
        }
    }

    /// What the model's router has to know of it; `block_tokens` of its engine.
    pub fn offer(&self, block_tokens: usize) -> Offer {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let waiting = u64::from(self.waiting.load(Ordering::Relaxed));
        let others = waiting.saturating_sub(self.pending.load(Ordering::Relaxed).into());
        let of_others = of(&self.waiting_tokens) * others / waiting.max(1);
        let (own, running) = (of(&self.pending_tokens), of(&self.prefill_tokens));
        let to_come = (own + of_others).div_ceil(block_tokens.max(1) as u64);
        let in_use = self.blocks_used.load(Ordering::Relaxed);
        Offer {
            seat: self.seat,
            prefill_tokens: running + of_others + own,
            blocks_used: in_use.saturating_add(u32::try_from(to_come).unwrap_or(u32::MAX)),
            legs: self.legs(),
            has_room: self.room() > 0,
        }
    }

    /// Legs that this front end may still place there.
    pub fn room(&self) -> usize {
        self.credit().saturating_sub(self.placed()) as usize
    }

    /// The rank as one that prefills for the decode rank in this seat.
    pub fn as_prefill(&self, decoder: Seat, now: Instant) -> PrefillRank {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let shunned = self.shunned.lock().unwrap_or_else(PoisonError::into_inner);
        let is_shunned =
            shunned.iter().any(|(of, until)| of.is_none_or(|seat| seat == decoder) && *until > now);
        let queued_tokens =
            of(&self.prefill_tokens) + of(&self.waiting_tokens).max(of(&self.pending_tokens));
        PrefillRank { has_room: self.room() > 0, is_shunned, queued_tokens }
    }

    /// Something went wrong there: it is asked for no prefill for that decode rank, or for none at all,
    /// before then.
    pub fn shun(&self, decoder: Option<Seat>, now: Instant, until: Instant) {
        let mut shunned = self.shunned.lock().unwrap_or_else(PoisonError::into_inner);
        shunned.retain(|(of, end)| *end > now && *of != decoder);
        shunned.push((decoder, until));
    }

    /// Whether it lives: another rank of its worker may, when it does not.
    pub fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }

    /// Legs on this rank, as far as this front end knows: its own, or the last report if larger.
    pub fn legs(&self) -> u32 {
        self.placed().max(self.reported.load(Ordering::Relaxed))
    }

    /// Legs of this front end on this rank.
    pub fn placed(&self) -> u32 {
        self.placed.load(Ordering::Relaxed)
    }

    /// Most legs that this front end may have there.
    pub fn credit(&self) -> u32 {
        self.credit.load(Ordering::Relaxed)
    }

    pub(super) fn hear(&self, report: Report) {
        self.reported.store(report.load.running + report.load.waiting, Ordering::Relaxed);
        self.prefill_tokens.store(report.load.prefill_tokens, Ordering::Relaxed);
        self.waiting_tokens.store(report.load.waiting_tokens, Ordering::Relaxed);
        self.waiting.store(report.load.waiting, Ordering::Relaxed);
        self.blocks_used.store(report.load.blocks_used, Ordering::Relaxed);
        self.credit.store(report.credit, Ordering::Relaxed);
        self.up.store(true, Ordering::Relaxed);
    }

    /// What it said of its prefix cache was taken in, or not.
    pub(super) fn heard(&self, news: &KvNews, verdict: Verdict) {
        let is_followed = matches!(verdict, Verdict::Apply | Verdict::Replace);
        self.followed.store(if is_followed { news.number } else { 0 }, Ordering::Relaxed);
        self.mute.heard(news);
    }

    /// Whether news are missing when these are the last that it has sent.
    pub(super) fn misses(&self, number: u64) -> bool {
        number != 0 && number != self.followed.load(Ordering::Relaxed)
    }

    /// A life of it has ended.
    pub(super) fn end(&self, life: u32) {
        self.ended_life.fetch_max(life, Ordering::Relaxed);
        self.up.store(false, Ordering::Relaxed);
        self.followed.store(0, Ordering::Relaxed);
        self.mute.forget();
        self.exhaust();
    }

    /// Whether a life of it has ended.
    pub(super) fn has_ended(&self, life: u32) -> bool {
        life <= self.ended_life.load(Ordering::Relaxed)
    }

    /// No more until the rank reports again: it has just refused a leg.
    pub(super) fn exhaust(&self) {
        self.credit.store(0, Ordering::Relaxed);
    }
}
