//! What it costs to place a leg on a rank, in KV blocks, and which rank that makes the best one.
//!
//! ```text
//! prefill = what the rank has to compute anyway, but for promised blocks, + the leg's blocks
//!           − overlap × cached blocks, promised ones included
//!           − host weight × blocks in the host's memory − disk weight × blocks on disk
//! decode  = blocks in use on the rank + those of the leg that it has not cached
//! cost    = prefill weight × max(0, prefill) + decode weight × decode + leg weight × legs
//! ```
//! *Promised* blocks are cached ones that the rank has still to compute, for a leg that was sent there
//! before: to wait for them is no longer than to compute them elsewhere.
//!
//! All parts are in blocks, so that a weight says how many blocks of one kind are worth one of
//! another. The lowest cost wins, of equals the one with more cached; with a temperature, a rank is
//! drawn with the probability
//! `exp(−(cost − lowest) / (highest − lowest) / temperature)`, normalised.

/// How much each part of the cost counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Weights {
    /// Of a block found in the rank's prefix cache: 1 takes one computed block off.
    pub overlap: f64,
    /// Of a block that must be loaded from the host's memory: so much of a computed one it takes off.
    pub host: f64,
    /// Of one that must be loaded from disk.
    pub disk: f64,
    /// Of a block to compute.
    pub prefill: f64,
    /// Of a block that live legs hold.
    pub decode: f64,
    /// Of a live leg, in blocks.
    pub legs: f64,
    /// 0 takes the lowest cost.
    pub temperature: f64,
}

impl Default for Weights {
    fn default() -> Self {
        Self {
            overlap: 1.0,
            host: 0.75,
            disk: 0.25,
            prefill: 1.0,
            decode: 0.25,
            legs: 0.0,
            temperature: 0.0,
        }
    }
}

/// What is known of a rank.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RankLoad {
    /// Blocks of prompts that it has not computed yet.
    pub prefill_blocks: f64,
    /// Blocks that live legs hold there.
    pub decode_blocks: f64,
    /// Live legs, running and waiting.
    pub legs: u32,
}

/// Leading blocks of a leg that a rank need not compute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cached {
    /// In its KV pool, or soon.
    pub blocks: u32,
    /// The last of those: it has still to compute them, for another leg.
    pub promised: u32,
    /// Beyond those, in the host's memory.
    pub host: u32,
    /// Beyond those, on disk.
    pub disk: u32,
}

impl Cached {
    /// In any tier.
    pub fn all(self) -> u32 {
        self.blocks + self.host + self.disk
    }
}

/// The parts of a rank's cost, as a client may ask to see them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Score {
    /// What decides, in blocks.
    pub cost: f64,
    /// Leading blocks of the leg that the rank has cached.
    pub cached_blocks: u32,
    /// The rank's load before this leg.
    pub load: RankLoad,
}

impl Weights {
    /// The cost of a leg of `blocks` blocks on a rank.
    pub fn score(&self, blocks: f64, cached: Cached, load: RankLoad) -> Score {
        let cached_blocks = cached.blocks;
        let saved = self.overlap * f64::from(cached_blocks)
            + self.host * f64::from(cached.host)
            + self.disk * f64::from(cached.disk);
        let before = (load.prefill_blocks - f64::from(cached.promised)).max(0.0);
        let prefill = (before + blocks - saved).max(0.0);
        let cost = self.prefill * prefill
            + self.decode * (load.decode_blocks + (blocks - f64::from(cached_blocks)).max(0.0))
            + self.legs * f64::from(load.legs);
        Score { cost, cached_blocks, load }
    }

    /// The index of the rank to take; `random` is uniform in 0..1 and decides between equals. A rank
    /// whose cost is infinite is not taken. `None` if there is no other.
    pub fn choose(&self, scores: &[Score], random: f64) -> Option<usize> {
        let costs = || scores.iter().map(|score| score.cost);
        let finite = || costs().filter(|cost| cost.is_finite());
        let (low, high) = (finite().fold(f64::INFINITY, f64::min), finite().fold(0.0, f64::max));
        let spread = high - low;
        let weight = |cost: f64| match self.temperature > 0.0 && spread > 0.0 {
            _ if cost.is_infinite() => 0.0,
            true => (-(cost - low) / spread / self.temperature).exp(),
            false => f64::from(u8::from(cost <= low)),
        };
        // Work for the same prefix stays together where it costs nothing.
        let cached = |score: &Score| if score.cost <= low { score.cached_blocks } else { 0 };
        let most = scores.iter().map(cached).max().unwrap_or(0);
        let weight = |score: &Score| match score.cost <= low && score.cached_blocks < most {
            true => 0.0,
            false => weight(score.cost),
        };
        let mut left = random * scores.iter().map(weight).sum::<f64>();
        let mut last = None;
        for (index, score) in scores.iter().enumerate() {
            let weight = weight(score);
            if weight > 0.0 {
                last = Some(index);
                left -= weight;
                if left < 0.0 {
                    break;
                }
            }
        }
        last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(prefill_blocks: f64, decode_blocks: f64, legs: u32) -> RankLoad {
        RankLoad { prefill_blocks, decode_blocks, legs }
    }

    /// A block in use counts as much as one to compute.
    const EVEN: Weights = Weights {
        overlap: 1.0,
        host: 0.75,
        disk: 0.25,
        prefill: 1.0,
        decode: 1.0,
        legs: 0.0,
        temperature: 0.0,
    };

    #[test]
    fn a_cached_prefix_is_worth_as_many_blocks_of_load() {
        let cached = EVEN.score(10.0, has(8, 0), load(0.0, 6.0, 3));
        let idle = EVEN.score(10.0, has(0, 0), load(0.0, 0.0, 0));
        assert_eq!((cached.cost, idle.cost), (10.0, 20.0));
        assert_eq!(EVEN.choose(&[idle, cached], 0.99), Some(1));
        let busy = EVEN.score(10.0, has(8, 0), load(0.0, 17.0, 3));
        assert_eq!(EVEN.choose(&[idle, busy], 0.0), Some(0));
    }

    fn has(blocks: u32, promised: u32) -> Cached {
        Cached { blocks, promised, ..Cached::default() }
    }

    #[test]
    fn blocks_of_slower_tiers_take_less_off_and_must_still_get_room_in_the_pool() {
        let cost = |blocks, host, disk| {
            EVEN.score(10.0, Cached { blocks, host, disk, promised: 0 }, load(0.0, 0.0, 0)).cost
        };
        assert_eq!(cost(8, 0, 0), 2.0 + 2.0);
        assert_eq!(cost(4, 4, 0), (6.0 - 3.0) + 6.0);
        assert_eq!(cost(4, 0, 4), (6.0 - 1.0) + 6.0);
    }

    #[test]
    fn more_cached_than_needed_saves_no_more_than_there_is_to_compute() {
        let weights = Weights { overlap: 2.0, ..EVEN };
        assert_eq!(weights.score(4.0, has(4, 0), load(1.0, 2.0, 0)).cost, 2.0);
    }

    #[test]
    fn to_wait_for_a_promised_prefix_costs_no_more_than_to_compute_it() {
        let weights = Weights { decode: 0.0, ..Weights::default() };
        let cost = |promised| weights.score(10.5, has(10, promised), load(12.0, 0.0, 0)).cost;
        assert_eq!((cost(0), cost(10)), (12.5, 2.5));
    }

    #[test]
    fn each_weight_counts_alone() {
        let load = load(2.0, 3.0, 5);
        let nothing = Weights {
            overlap: 0.0,
            host: 0.0,
            disk: 0.0,
            prefill: 0.0,
            decode: 0.0,
            legs: 0.0,
            temperature: 0.0,
        };
        let cost = |weights: Weights| weights.score(7.0, has(1, 0), load).cost;
        assert_eq!(cost(nothing), 0.0);
        assert_eq!(cost(Weights { prefill: 1.0, ..nothing }), 9.0);
        assert_eq!(cost(Weights { prefill: 1.0, overlap: 1.0, ..nothing }), 8.0);
        assert_eq!(cost(Weights { decode: 1.0, ..nothing }), 9.0);
        assert_eq!(cost(Weights { legs: 2.0, ..nothing }), 10.0);
    }

    #[test]
    fn equals_share_the_work_and_a_temperature_spreads_it() {
        let score = |cost| Score { cost, ..Score::default() };
        let scores = [score(1.0), score(3.0), score(1.0)];
        let cold = Weights::default();
        let share = |weights: &Weights, of: usize| {
            let drawn = (0..1000).filter_map(|i| weights.choose(&scores, f64::from(i) / 1000.0));
            drawn.filter(|&index| index == of).count()
        };
        assert_eq!([share(&cold, 0), share(&cold, 1), share(&cold, 2)], [500, 0, 500]);
        let warm = Weights { temperature: 1.0, ..cold };
        let expected = 1000.0 * (-1.0_f64).exp() / (2.0 + (-1.0_f64).exp());
        assert!((share(&warm, 1) as f64 - expected).abs() < 2.0, "{} {expected}", share(&warm, 1));
        let cached = [score(1.0), Score { cached_blocks: 3, ..score(1.0) }, score(1.0)];
        assert_eq!((cold.choose(&cached, 0.0), cold.choose(&cached, 0.9)), (Some(1), Some(1)));
        assert_eq!(cold.choose(&[], 0.5), None);
        let closed = [score(f64::INFINITY), score(4.0), score(5.0), score(f64::INFINITY)];
        let drawn: Vec<_> = [0.0, 0.999].map(|random| warm.choose(&closed, random)).into();
        assert_eq!(drawn, [Some(1), Some(2)]);
        let same = [score(2.0), score(2.0)];
        assert_eq!((warm.choose(&same, 0.4), warm.choose(&same, 0.6)), (Some(0), Some(1)));
    }
}
