//! Who chooses the rank: Cuelight's router in its modes, Dynamo's cost function, and an oracle.

use std::collections::HashMap;
use std::sync::Arc;

use cuelight::actors::router::{Ask, ModelRouter, Offer, Seat};
use cuelight::config;
use cuelight::engine::blocks::{BlockHasher, HashKey};
use cuelight::engine::{Description, KvEvent, Load};
use cuelight::ids::{BlockHash, RankIndex};
use cuelight::metrics::{Metrics, Pool};
use cuelight::router::index::{PrefixIndex, Scratch, Slot};
use cuelight::router::{KvNews, Mode, Verdict};

use crate::trace::Draw;

/// All that are compared.
pub(crate) const NAMES: [&str; 6] =
    ["kv", "round-robin", "least-loaded", "power-of-two", "dynamo's cost", "oracle"];

/// What a front end knows of a rank's load: its last report, and what was sent there since.
#[derive(Clone, Copy, Default)]
pub(crate) struct Known {
    pub(crate) load: Load,
    /// Legs placed and not ended.
    pub(crate) legs: u32,
    /// Tokens of legs that have not started, less what was thought to be cached.
    pub(crate) pending: u64,
    /// The same until the first token, for Dynamo's bookkeeping.
    pub(crate) prefill: u64,
}

/// The full blocks of a prompt.
fn chain_of(tokens: &[u32], hasher: &mut BlockHasher) -> Vec<BlockHash> {
    let mut chain = Vec::new();
    hasher.extend(tokens, 0, &mut chain);
    chain
}

/// See the module's description.
pub(crate) enum Policy {
    Cuelight {
        router: Box<ModelRouter>,
        seats: Vec<Seat>,
        numbers: Vec<u64>,
    },
    Other {
        index: Box<PrefixIndex>,
        slots: Vec<Slot>,
        scratch: Scratch,
        oracle: bool,
        draw: Draw,
        /// By rank: how many live legs hold each block, as Dynamo keeps it. A shared one counts once.
        held: Vec<HashMap<BlockHash, u32>>,
    },
}

/// The rank, and blocks that it was thought to have.
pub(crate) struct Chosen {
    pub(crate) rank: usize,
    pub(crate) cached_blocks: u32,
}

impl Policy {
    pub(crate) fn new(name: &str, ranks: usize, description: &Description) -> Self {
        let (mode, decode) = match name.strip_prefix("kv, decode ") {
            Some(weight) => (Some(Mode::Kv), weight.parse().ok()),
            None => (Mode::named(name), None),
        };
        let Some(mode) = mode else {
            let mut index = Box::new(PrefixIndex::new());
            let slots = (0..ranks).map(|_| index.add_rank()).collect();
            let (scratch, oracle) = (Scratch::default(), name == "oracle");
            let (draw, held) = (Draw::new(9), vec![HashMap::new(); ranks]);
            return Self::Other { index, slots, scratch, oracle, draw, held };
        };
        let mut config = config::Router::default();
        config.mode = mode;
        config.weights.decode = decode.unwrap_or(config.weights.decode);
        // The clock of the simulation is not the router's: guesses must not end early.
        config.predicted_ttl = std::time::Duration::from_secs(5);
        config.silent_ttl = std::time::Duration::from_secs(120);
        config.predicted_blocks = 1 << 22;
        let metrics = Arc::new(Metrics::new()).router("m", Pool::Decode);
        let router = Box::new(ModelRouter::new("m", &config, HashKey::default(), 7, metrics));
        let seats = (0..ranks).map(|_| router.join(description)).collect::<Vec<_>>();
        for seat in &seats {
            router.hear(*seat, &KvNews { number: 0, reset: true, ..KvNews::default() });
        }
        Self::Cuelight { router, seats, numbers: vec![0; ranks] }
    }

    /// A rank's cache has changed.
    pub(crate) fn hear(&mut self, rank: usize, events: &[KvEvent]) {
        match self {
            _ if events.is_empty() => {}
            Self::Cuelight { router, seats, numbers } => {
                numbers[rank] += 1;
                let (number, changes) =
                    (numbers[rank], events.iter().map(KvEvent::change).collect());
                let news = KvNews { rank: RankIndex(0), number, reset: false, changes };
                let verdict = router.hear(seats[rank], &news);
                assert_ne!(verdict, Verdict::Ask, "news in order are believed");
            }
            Self::Other { index, slots, .. } => {
                for (hash, tier) in events.iter().map(KvEvent::change) {
                    match tier {
                        Some(_) => index.store(slots[rank], &[hash]),
                        None => index.remove(slots[rank], &[hash]),
                    }
                }
            }
        }
    }

    /// A leg with this prompt has ended on the rank.
    pub(crate) fn freed(&mut self, rank: usize, prompt: &[u32], hasher: &mut BlockHasher) {
        if let Self::Other { held, .. } = self {
            for hash in &chain_of(prompt, hasher) {
                let count = held[rank].get_mut(hash).expect("a live leg's block");
                *count -= 1;
                if *count == 0 {
                    held[rank].remove(hash);
                }
            }
        }
    }

    /// Chooses a rank for a prompt. `delay` is what the oracle knows: seconds until a rank would
    /// compute a new prompt's first token.
    pub(crate) fn choose(
        &mut self,
        tokens: &[u32],
        known: &[Known],
        hasher: &mut BlockHasher,
        delay: impl Fn(usize, u32) -> f64,
    ) -> Chosen {
        let size = hasher.block_tokens() as u64;
        match self {
            Self::Cuelight { router, seats, .. } => {
                let offer = |(seat, known): (&Seat, &Known)| Offer {
                    seat: *seat,
                    prefill_tokens: known.load.prefill_tokens + known.pending,
                    blocks_used: known.load.blocks_used + known.pending.div_ceil(size) as u32,
                    legs: known.legs,
                    has_room: true,
                };
                let offers: Vec<_> = seats.iter().zip(known).map(offer).collect();
                let ask = Ask { tokens, salt: 0, explain: false, session: None };
                let routed = router.route(&ask, &offers, |_| String::new());
                let routed = routed.expect("there is room");
                Chosen { rank: routed.index, cached_blocks: routed.cached_blocks }
            }
            Self::Other { index, slots, scratch, oracle, draw, held } => {
                let chain = chain_of(tokens, hasher);
                let mut depths = vec![0; index.slots()];
                index.matches(&chain, scratch).raise(&mut depths);
                let blocks = tokens.len() as f64 / size as f64;
                let cost = |rank: usize| {
                    let cached = depths[slots[rank].index()];
                    if *oracle {
                        return delay(rank, cached);
                    }
                    let active = known[rank].prefill as f64 / size as f64;
                    let known_there = |hash: &&BlockHash| held[rank].contains_key(hash);
                    let own = chain.len() - chain.iter().take_while(known_there).count();
                    (active + blocks - f64::from(cached)).max(0.0) + (held[rank].len() + own) as f64
                };
                let costs: Vec<_> = (0..known.len()).map(cost).collect();
                let least = costs.iter().copied().fold(f64::INFINITY, f64::min);
                let equals: Vec<_> =
                    (0..costs.len()).filter(|&rank| costs[rank] <= least).collect();
                let rank = equals[draw.next() as usize % equals.len()];
                for hash in &chain {
                    *held[rank].entry(*hash).or_insert(0) += 1;
                }
                Chosen { rank, cached_blocks: depths[slots[rank].index()] }
            }
        }
    }
}
