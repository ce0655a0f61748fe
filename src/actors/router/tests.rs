//! What a router knows of ranks' prefix caches becomes true again, whatever happens to their news.

use std::collections::VecDeque;

use super::*;
use crate::actors::rank::kv::KvOut;
use crate::engine::blocks::HashKey;
use crate::engine::embedded::Embedded;
use crate::engine::model::Shape;
use crate::engine::schedule::Limits;
use crate::engine::sim::{SimConfig, SimModel};
use crate::engine::{Engine, Leg, Part, StepOutput};
use crate::ids::{LegId, RankIndex, RequestId};
use crate::metrics::{Metrics, Pool};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

const BLOCK: usize = 4;

fn router(config: &config::Router) -> ModelRouter {
    ModelRouter::new("m", config, HashKey::default(), 1, Metrics::new().router("m", Pool::Decode))
}

/// A simulated engine whose pool is small, so that blocks come and go, and its way to the router.
struct Rank {
    engine: Embedded<SimModel>,
    seat: Seat,
    out: KvOut,
    /// News under way.
    sent: VecDeque<KvNews>,
    legs: u64,
}

impl Rank {
    fn new(router: &ModelRouter) -> Self {
        let engine = Self::engine();
        Self::at(router.join(&engine.describe()), engine)
    }

    /// The next life of the rank in this seat.
    fn again(&self) -> Self {
        Self::at(self.seat, Self::engine())
    }

    fn at(seat: Seat, engine: Embedded<SimModel>) -> Self {
        Self { engine, seat, out: KvOut::new(40), sent: VecDeque::new(), legs: 0 }
    }

    fn engine() -> Embedded<SimModel> {
        let shape = Shape {
            context: 64,
            vocab: 128,
            block_tokens: BLOCK,
            blocks: 24,
            block_bytes: 1,
            host_blocks: 16,
        };
        let model = SimModel::new(SimConfig { shape, ..SimConfig::default() });
        let limits =
            Limits { max_running: 2, max_waiting: 8, max_batch_tokens: 32, prefix_cache: true };
        Embedded::new(model, limits, &HashKey::default())
    }

    /// A few tokens of one of some conversations, to the end.
    fn serve(&mut self, conversation: u32, length: usize) {
        self.legs += 1;
        let id = LegId { request: RequestId(self.legs), choice: 0, attempt: 0 };
        let tokens: Vec<u32> = (0..length as u32).map(|i| (conversation * 7 + i) % 100).collect();
        let leg = Leg {
            id,
            prompt_len: tokens.len(),
            tokens,
            max_tokens: 3,
            choice: 0,
            sampling: Arc::default(),
            salt: 0,
            part: Part::Whole,
        };
        self.engine.admit(leg).unwrap();
        let mut step = StepOutput::default();
        while self.engine.has_work() {
            self.engine.step(&mut step).unwrap();
            self.out.add(&step.kv_events);
            self.tell();
        }
    }

    fn tell(&mut self) {
        let cached = |blocks: &mut Vec<_>| self.engine.cached_blocks(blocks);
        self.sent.extend(self.out.take(RankIndex(0), cached));
    }

    fn deliver(&mut self, router: &ModelRouter) {
        while let Some(news) = self.sent.pop_front() {
            if router.hear(self.seat, &news) == Verdict::Ask {
                self.out.restart();
            }
        }
    }

    /// A report of its load comes, in which nothing but the number is news.
    fn report(&mut self, router: &ModelRouter) {
        if router.hear_number(self.seat, self.out.number()) == Verdict::Ask {
            self.out.restart();
        }
        self.tell();
    }

    /// What is wrong with what the router knows of it.
    fn errors(&self, router: &ModelRouter) -> Option<String> {
        let mut truth = Vec::new();
        self.engine.cached_blocks(&mut truth);
        let inside = router.inside();
        let slots = inside.rank(self.seat).unwrap().slots;
        let held = inside.index.holdings(slots) as usize;
        if held != truth.len() {
            return Some(format!("{held} blocks known, {} cached", truth.len()));
        }
        let mut depths = Depths::default();
        let mut knows = |(hash, tier): &(BlockHash, Tier)| {
            inside.index.look_up(&[*hash], &mut depths);
            let device = depths.device[slots.device.index()];
            let [host, disk] = depths.beyond(slots, device);
            match tier {
                Tier::Device => (device, host, disk) == (1, 0, 0),
                Tier::Host => (device, host, disk) == (0, 1, 0),
                Tier::Disk => false,
            }
        };
        let known = truth.iter().filter(|block| knows(block)).count();
        (known != truth.len()).then(|| format!("{known} of {} blocks known", truth.len()))
    }
}

/// What happens to the oldest news under way.
#[derive(Clone, Copy, Debug)]
enum Mishap {
    None,
    Lost,
    Twice,
    Late,
}

fn mishap() -> impl Strategy<Value = Mishap> {
    prop_oneof![
        4 => Just(Mishap::None),
        1 => Just(Mishap::Lost),
        1 => Just(Mishap::Twice),
        1 => Just(Mishap::Late),
    ]
}

/// What becomes of a rank after its news.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Lives,
    /// Its worker is gone, and another one has its seat or a new one.
    Leaves,
    /// It begins a new life in the same seat.
    ComesBack,
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![18 => Just(Fate::Lives), 1 => Just(Fate::Leaves), 1 => Just(Fate::ComesBack)]
}

/// (rank, conversation, length, what happens to its news, whether a report follows, its fate)
type Event = (usize, u32, usize, Mishap, bool, Fate);

fn life() -> impl Strategy<Value = Vec<Event>> {
    let one = (0..3_usize, 0..9_u32, 5..60_usize, mishap(), any::<bool>(), fate());
    prop::collection::vec(one, 1..120)
}

fn live(ranks: &mut [Rank], router: &ModelRouter, (rank, topic, length, mishap, ..): Event) {
    let rank = &mut ranks[rank];
    rank.serve(topic, length);
    match (mishap, rank.sent.len()) {
        (_, 0) | (Mishap::None, _) => {}
        (Mishap::Lost, _) => drop(rank.sent.pop_front()),
        (Mishap::Twice, _) => rank.sent.push_front(rank.sent[0].clone()),
        (Mishap::Late, _) => rank.sent.rotate_left(1),
    }
    rank.deliver(router);
}

#[test]
fn what_is_known_of_caches_is_true_again_after_lost_repeated_and_late_news_and_lost_ranks() {
    let mut runner = TestRunner::new(Config { cases: 200, ..Config::default() });
    // Of each rank at last: whether its last news are lost, and the first answer to the question for all.
    let ends = prop::collection::vec((any::<bool>(), any::<bool>()), 3);
    let outcome = runner.run(&(life(), ends), |(life, ends)| {
        let router = router(&config::Router::default());
        let mut ranks: Vec<_> = (0..3).map(|_| Rank::new(&router)).collect();
        for event in life {
            live(&mut ranks, &router, event);
            let (at, _, _, _, reports, fate) = event;
            let rank = &mut ranks[at];
            if reports {
                rank.report(&router);
            }
            match fate {
                Fate::Lives => {}
                Fate::Leaves => {
                    router.leave(rank.seat);
                    *rank = Rank::new(&router);
                }
                Fate::ComesBack => {
                    router.forget(rank.seat);
                    *rank = rank.again();
                }
            }
            router.tidy(Instant::now());
        }
        for (rank, (last_is_lost, answer_is_lost)) in ranks.iter_mut().zip(ends) {
            rank.serve(20, 20);
            if last_is_lost {
                rank.sent.clear();
            }
            rank.deliver(&router);
            // Nothing happens any more: what was lost shows in reports alone, and is told again.
            rank.report(&router);
            if answer_is_lost {
                rank.sent.clear();
            }
            for _ in 0..32 {
                rank.deliver(&router);
                rank.report(&router);
            }
            prop_assert_eq!(rank.errors(&router), None);
        }
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}\n{runner}"));
}

#[test]
fn what_one_rank_should_have_cached_is_counted_also_where_there_is_nothing_to_choose() {
    let router = router(&config::Router::default());
    let mut rank = Rank::new(&router);
    rank.serve(1, 40);
    rank.deliver(&router);
    let known: Vec<u32> = (0..40).map(|i| (7 + i) % 100).chain([100; 10]).collect();
    let offer =
        Offer { seat: rank.seat, prefill_tokens: 0, blocks_used: 0, legs: 0, has_room: true };
    for tokens in [&known[..], &[99; 9], &[1; 3]] {
        let ask = Ask { tokens, salt: 0, explain: false, session: None };
        let cached = router.route(&ask, &[offer], |at| at.to_string()).unwrap().cached_blocks;
        assert_eq!(cached, if tokens.len() > 10 { 10 } else { 0 });
    }
    let counted = (router.metrics.blocks_asked.get(), router.metrics.blocks_expected.get());
    assert_eq!(counted, (12 + 2, 10));
}

#[test]
fn a_rank_that_is_gone_is_forgotten_at_once() {
    let router = router(&config::Router::default());
    let (mut first, other) = (Rank::new(&router), Rank::new(&router));
    first.serve(1, 40);
    first.deliver(&router);
    let tokens: Vec<u32> = (0..40).map(|i| (7 + i) % 100).collect();
    let ask = Ask { tokens: &tokens, salt: 0, explain: true, session: None };
    let offer = |seat| Offer { seat, prefill_tokens: 0, blocks_used: 0, legs: 0, has_room: true };
    let cached = |seats: [Seat; 2]| {
        let routed = router.route(&ask, &seats.map(offer), |at| at.to_string()).unwrap();
        let why = routed.explanation.unwrap();
        (routed.index, why.ranks.iter().map(|rank| rank.cached_blocks).collect::<Vec<_>>())
    };
    assert_eq!(cached([other.seat, first.seat]), (1, vec![0, 10]));
    router.forget(first.seat);
    assert_eq!(cached([other.seat, first.seat]).1, [0, 0]);
    router.leave(first.seat);
    let next = Rank::new(&router);
    assert_eq!(cached([other.seat, next.seat]).1, [0, 0], "its place is another rank's now");
    router.forget(first.seat);
    router.leave(first.seat);
    assert_eq!(router.size().0, 2, "who has left cannot take the next one's seat away");
}

#[test]
fn a_rank_s_first_word_does_not_undo_what_was_just_sent_there() {
    let predicted_ttl = Duration::from_secs(60);
    let router = router(&config::Router {
        predicted_ttl,
        predicted_blocks: 1000,
        ..config::Router::default()
    });
    let (first, other) = (Rank::new(&router), Rank::new(&router));
    let tokens: Vec<u32> = (0..40).collect();
    let ask = Ask { tokens: &tokens, salt: 0, explain: false, session: None };
    let offer = |seat| Offer { seat, prefill_tokens: 0, blocks_used: 0, legs: 0, has_room: true };
    let offers = [first.seat, other.seat].map(offer);
    let chosen = router.route(&ask, &offers, |at| at.to_string()).unwrap().index;
    let nothing = KvNews { number: 1, reset: true, ..KvNews::default() };
    assert_eq!(router.hear(offers[chosen].seat, &nothing), Verdict::Replace);
    for _ in 0..20 {
        assert_eq!(router.route(&ask, &offers, |at| at.to_string()).unwrap().index, chosen);
    }
}
