//! `Router`: chooses a rank for each leg of one model, and keeps what it needs for that.
//!
//! Requests and links use the [`ModelRouter`] directly, under its lock: links bring what ranks say of
//! their prefix caches, requests ask for a rank. The actor clears up behind them. What is known
//! outlives it: a killed `Router` costs nothing.

mod actor;
mod ask;
mod line;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub use actor::{Args, Msg, Router, State};
pub use ask::{Ask, Explained, ExplainedPrefill, Explanation, Offer, Routed};
pub use line::{Begun, Called, Calls, Line, Place, Turn};

use crate::config;
use crate::engine::blocks::{BlockHasher, HashKey};
use crate::engine::{Description, PrefixCache, Tier};
use crate::ids::BlockHash;
use crate::metrics::RouterMetrics;
use crate::router::index::{Predicted, Scratch};
use crate::router::{
    Affinity, Cached, Candidate, Depths, Follower, KvNews, Mode, Picker, RankLoad, Score, Sessions,
    Slots, TieredIndex, Verdict, Weights,
};

/// See the module's description.
pub struct ModelRouter {
    mode: Mode,
    weights: Weights,
    key: HashKey,
    metrics: Arc<RouterMetrics>,
    affinity: Affinity,
    /// Who waits for room.
    pub line: Arc<Line>,
    /// Legs that will need room once their prompts are prefilled elsewhere.
    promised: Arc<AtomicUsize>,
    inside: Mutex<Inside>,
}

/// Keeps room for one leg until it is dropped.
pub struct Promise(Arc<AtomicUsize>);

impl Drop for Promise {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A rank's place in its model's router. Places are used again; one that was left stays left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seat {
    at: usize,
    term: u64,
}

/// What is known of the rank in a seat.
struct Rank {
    slots: Slots,
    cache: PrefixCache,
    slowest_tier: Tier,
    follower: Follower,
    /// Of the seat: tells it from others that had the place.
    term: u64,
    /// Tells it from what it was before it was lost and came back.
    life: u64,
}

struct Inside {
    index: TieredIndex,
    /// What ranks that tell what they have will have soon; `None`: not guessed.
    soon: Option<Predicted>,
    /// What ranks that tell nothing may have.
    silent: Predicted,
    /// By place; `None` once the rank is gone.
    ranks: Vec<Option<Rank>>,
    free: Vec<usize>,
    picker: Picker,
    lives: u64,
    sessions: Sessions<(Seat, u64)>,
    /// Names blocks of the size that the ranks have: those of a model agree.
    hasher: Option<BlockHasher>,
    /// Of the leg at hand, by the ranks' word and what silent ones are thought to have.
    known: Depths,
    /// On the device or soon, by slot.
    depths: Vec<u32>,
    scratch_silent: Scratch,
    scratch_soon: Scratch,
    candidates: Vec<Candidate>,
    scores: Vec<Score>,
}

impl ModelRouter {
    /// A router for one model, with no ranks.
    pub fn new(
        model: &str,
        config: &config::Router,
        key: HashKey,
        seed: u64,
        metrics: Arc<RouterMetrics>,
    ) -> Self {
        let soon = (!config.predicted_ttl.is_zero())
            .then(|| Predicted::new(config.predicted_ttl, config.predicted_blocks));
        // A guess that ends at once is none; ages need some length.
        let silent_ttl = config.silent_ttl.max(Duration::from_millis(1));
        let line = Line::new(config.queue, config.queue_wait, config.queue_policy, metrics.clone());
        Self {
            affinity: config.affinity,
            line,
            promised: Arc::default(),
            mode: config.mode_of(model),
            weights: config.weights,
            key,
            metrics,
            inside: Mutex::new(Inside {
                index: TieredIndex::default(),
                soon,
                silent: Predicted::new(silent_ttl, config.predicted_blocks),
                ranks: Vec::new(),
                free: Vec::new(),
                picker: Picker::new(seed),
                lives: 0,
                sessions: Sessions::new(config.affinity_ttl, config.affinity_sessions),
                hasher: None,
                known: Depths::default(),
                depths: Vec::new(),
                scratch_silent: Scratch::default(),
                scratch_soon: Scratch::default(),
                candidates: Vec::new(),
                scores: Vec::new(),
            }),
        }
    }

    /// How it chooses.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// A seat for a rank with this engine.
    pub fn join(&self, description: &Description) -> Seat {
        let mut inside = self.inside();
        let slowest_tier = description.slowest_tier;
        let slots = inside.index.add_rank(slowest_tier);
        let cache = description.prefix_cache;
        let size = description.block_tokens;
        if inside.hasher.as_ref().is_none_or(|hasher| hasher.block_tokens() != size) {
            inside.hasher = Some(BlockHasher::new(&self.key, size));
        }
        inside.lives += 1;
        let life = inside.lives;
        let follower = Follower::default();
        let rank = Some(Rank { slots, cache, slowest_tier, follower, term: life, life });
        let at = match inside.free.pop() {
            Some(at) => {
                inside.ranks[at] = rank;
                at
            }
            None => {
                inside.ranks.push(rank);
                inside.ranks.len() - 1
            }
        };
        Seat { at, term: life }
    }

    /// Of so much room for legs, keeps some for one that will need it; `None` if all is promised.
    pub fn promise(&self, room: usize) -> Option<Promise> {
        let taken = |promised: usize| (promised < room).then_some(promised + 1);
        let order = Ordering::Relaxed;
        self.promised.fetch_update(order, order, taken).ok()?;
        Some(Promise(self.promised.clone()))
    }

    /// The rank is gone, and what it had cached with it.
    pub fn leave(&self, seat: Seat) {
        let mut inside = self.inside();
        if let Some(slots) = inside.rank(seat).map(|rank| rank.slots) {
            inside.ranks[seat.at] = None;
            inside.retire(slots);
            inside.free.push(seat.at);
        }
    }

    /// The rank's life has ended, and another one may follow: nothing of what it had is left.
    pub fn forget(&self, seat: Seat) {
        let mut inside = self.inside();
        inside.lives += 1;
        let life = inside.lives;
        let Some(rank) = inside.rank_mut(seat) else { return };
        (rank.follower, rank.life) = (Follower::default(), life);
        inside.renew(seat);
    }

    /// Takes in what a rank says of its prefix cache.
    pub fn hear(&self, seat: Seat, news: &KvNews) -> Verdict {
        self.judged(|inside| inside.hear(seat, news))
    }

    /// Takes in the number of the last news that a rank has sent.
    pub fn hear_number(&self, seat: Seat, number: u64) -> Verdict {
        self.judged(|inside| inside.hear_number(seat, number))
    }

    fn judged(&self, judge: impl FnOnce(&mut Inside) -> Verdict) -> Verdict {
        if self.mode != Mode::Kv {
            return Verdict::Wait;
        }
        let verdict = judge(&mut self.inside());
        if verdict == Verdict::Ask {
            self.metrics.gaps.inc();
        }
        verdict
    }

    /// Clears up after ranks that are gone and guesses that are old.
    fn tidy(&self, now: Instant) {
        self.line.tidy(now, |seat| self.inside().rank(seat).is_none());
        let mut inside = self.inside();
        inside.index.sweep(SWEPT);
        inside.silent.expire(now);
        let mut predicted = inside.silent.blocks();
        if let Some(soon) = &mut inside.soon {
            soon.expire(now);
            predicted += soon.blocks();
        }
        self.metrics.blocks.set(inside.index.blocks() as i64);
        self.metrics.predicted_blocks.set(predicted as i64);
        self.metrics.sessions.set(inside.sessions.len() as i64);
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        // Whoever panicked left at worst a wrong guess behind.
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ranks that have a seat, and blocks in the index.
    fn size(&self) -> (usize, usize) {
        let inside = self.inside();
        (inside.ranks.iter().flatten().count(), inside.index.blocks())
    }
}

/// Places of the index that are looked at in one go: some milliseconds at most.
const SWEPT: usize = 1 << 18;

impl Inside {
    fn retire(&mut self, slots: Slots) {
        self.index.retire(slots);
        self.silent.retire(slots.device);
        if let Some(soon) = &mut self.soon {
            soon.retire(slots.device);
        }
    }

    /// Forgets what the rank in this seat had.
    fn renew(&mut self, seat: Seat) {
        let Some(tier) = self.rank(seat).map(|rank| rank.slowest_tier) else { return };
        let slots = self.index.add_rank(tier);
        if let Some(rank) = self.rank_mut(seat) {
            let old = std::mem::replace(&mut rank.slots, slots);
            self.retire(old);
        }
    }

    fn rank(&self, seat: Seat) -> Option<&Rank> {
        self.ranks[seat.at].as_ref().filter(|rank| rank.term == seat.term)
    }

    fn rank_mut(&mut self, seat: Seat) -> Option<&mut Rank> {
        self.ranks[seat.at].as_mut().filter(|rank| rank.term == seat.term)
    }

    fn hear(&mut self, seat: Seat, news: &KvNews) -> Verdict {
        let Some(rank) = self.rank_mut(seat) else { return Verdict::Wait };
        let (verdict, old) = (rank.follower.judge(news), rank.slots);
        // Where nothing was known there is nothing to forget, least of all what was just sent there.
        if let (Verdict::Replace | Verdict::Ask, 1..) = (verdict, self.index.holdings(old)) {
            self.renew(seat);
        }
        if let (Verdict::Replace | Verdict::Apply, Some(rank)) = (verdict, self.rank(seat)) {
            let slots = rank.slots;
            self.index.tell(slots, &news.changes);
        }
        verdict
    }

    fn hear_number(&mut self, seat: Seat, number: u64) -> Verdict {
        let Some(rank) = self.rank_mut(seat) else { return Verdict::Wait };
        let (verdict, slots) = (rank.follower.check(number), rank.slots);
        if let (Verdict::Ask, 1..) = (verdict, self.index.holdings(slots)) {
            self.renew(seat);
        }
        verdict
    }

    /// Fills `depths` and `known` for a chain of blocks.
    fn look_up(&mut self, chain: &[BlockHash]) {
        self.index.look_up(chain, &mut self.known);
        self.silent.raise(chain, &mut self.scratch_silent, &mut self.known.device);
        self.depths.clone_from(&self.known.device);
        if let Some(soon) = &self.soon {
            soon.raise(chain, &mut self.scratch_soon, &mut self.depths);
        }
    }

    fn candidate(&self, seat: Seat, load: RankLoad, has_room: bool) -> Candidate {
        let Some(slots) = self.rank(seat).map(|rank| rank.slots) else {
            return Candidate { load, cached: Cached::default(), has_room };
        };
        let of = |depths: &[u32]| depths.get(slots.device.index()).copied().unwrap_or(0);
        let (soon, known) = (of(&self.depths), of(&self.known.device));
        let [host, disk] = self.known.beyond(slots, known);
        // What is in some tier is not promised: it is there.
        let promised = soon.saturating_sub(known + host + disk);
        let blocks = known + promised;
        Candidate { load, cached: Cached { blocks, promised, host, disk }, has_room }
    }

    /// Fills `candidates` for a leg with this chain.
    fn weigh(&mut self, chain: &[BlockHash], block_tokens: usize, offers: &[Offer]) {
        self.look_up(chain);
        let mut candidates = std::mem::take(&mut self.candidates);
        candidates.clear();
        candidates.extend(offers.iter().map(|offer| {
            let load = RankLoad {
                prefill_blocks: offer.prefill_tokens as f64 / block_tokens.max(1) as f64,
                decode_blocks: f64::from(offer.blocks_used),
                legs: offer.legs,
            };
            self.candidate(offer.seat, load, offer.has_room)
        }));
        self.candidates = candidates;
    }

    /// Most blocks of the chain that was looked up last that some rank has or will have.
    fn most_cached(&self) -> u32 {
        let seats = self.ranks.iter().enumerate();
        let seats = seats.filter_map(|(at, rank)| Some(Seat { at, term: rank.as_ref()?.term }));
        let cached = |seat| self.candidate(seat, RankLoad::default(), true).cached.all();
        seats.map(cached).max().unwrap_or(0)
    }

    /// The offer of the rank that the session went to last, if that lives.
    fn of_session(&self, session: u64, offers: &[Offer], now: Instant) -> Option<usize> {
        let (seat, life) = self.sessions.rank(session, now)?;
        let rank = self.rank(seat).filter(|rank| rank.life == life);
        rank.and_then(|_| offers.iter().position(|offer| offer.seat == seat))
    }

    /// The session's request goes to the rank in this seat.
    fn went_to(&mut self, session: u64, seat: Seat, now: Instant) {
        if let Some(life) = self.rank(seat).map(|rank| rank.life) {
            self.sessions.went_to(session, (seat, life), now);
        }
    }

    /// A leg with these blocks goes to the rank in this seat.
    fn expect(&mut self, seat: Seat, chain: &[BlockHash], now: Instant) {
        let Some((cache, slots)) = self.rank(seat).map(|rank| (rank.cache, rank.slots)) else {
            return;
        };
        let slot = slots.device;
        match (cache, &mut self.soon) {
            (PrefixCache::Told, Some(soon)) => soon.route(slot, chain, now),
            (PrefixCache::Silent, _) => self.silent.route(slot, chain, now),
            (PrefixCache::Told, None) | (PrefixCache::None, _) => {}
        }
    }
}
