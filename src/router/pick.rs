//! Which of the ranks that can take a leg gets it: one function for all router modes.

use super::cost::{Cached, RankLoad, Score, Weights};

/// How a router chooses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// By cached prefix and load ([`Weights`]).
    #[default]
    Kv,
    /// In turn.
    RoundRobin,
    /// Any.
    Random,
    /// The less loaded of two drawn at random.
    PowerOfTwo,
    /// The one with the fewest legs.
    LeastLoaded,
    /// The one that the request names; a request that names none is refused.
    Direct,
}

impl Mode {
    /// All of them, as they are written in the configuration.
    pub const NAMES: &[&str] =
        &["kv", "round-robin", "random", "power-of-two", "least-loaded", "direct"];
    const ALL: [Self; 6] = [
        Self::Kv,
        Self::RoundRobin,
        Self::Random,
        Self::PowerOfTwo,
        Self::LeastLoaded,
        Self::Direct,
    ];

    /// The mode of this name.
    pub fn named(name: &str) -> Option<Self> {
        let index = Self::NAMES.iter().position(|known| *known == name)?;
        Some(Self::ALL[index])
    }

    /// As it is written in the configuration.
    pub fn name(self) -> &'static str {
        Self::NAMES[Self::ALL.iter().position(|mode| *mode == self).unwrap_or_default()]
    }
}

/// A rank that could take the leg.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// What is known of it.
    pub load: RankLoad,
    /// What it need not compute, as far as is known.
    pub cached: Cached,
    /// Whether it may be given one more leg.
    pub has_room: bool,
}

/// What a router remembers from one choice to the next.
#[derive(Clone, Copy, Debug)]
pub struct Picker {
    turn: u64,
    random: u64,
}

/// What is added to a counter for the next random number (2^64 divided by the golden ratio).
const STEP: u64 = 0x9E37_79B9_7F4A_7C15;

impl Picker {
    /// One that draws the same numbers for the same seed.
    pub fn new(seed: u64) -> Self {
        Self { turn: seed, random: seed }
    }

    /// One turn was taken without a choice.
    pub fn skip(&mut self) {
        self.turn += 1;
    }

    /// The index of the candidate that gets a leg of `blocks` blocks, and in mode `kv` the scores of
    /// all in `scores`. `None` if none has room.
    pub fn pick(
        &mut self,
        mode: Mode,
        weights: &Weights,
        blocks: f64,
        candidates: &[Candidate],
        scores: &mut Vec<Score>,
    ) -> Option<usize> {
        scores.clear();
        let open = || candidates.iter().enumerate().filter(|(_, rank)| rank.has_room);
        let room = open().count();
        if room == 0 {
            return None;
        }
        let nth = |n: usize| open().nth(n).map(|(index, _)| index);
        match mode {
            Mode::RoundRobin => {
                self.turn += 1;
                nth((self.turn % room as u64) as usize)
            }
            Mode::Random | Mode::Direct => nth(self.below(room)),
            Mode::PowerOfTwo => {
                let first = self.below(room);
                let second = (first + 1 + self.below(room.max(2) - 1)) % room;
                let pair = [nth(first)?, nth(second)?];
                pair.into_iter().min_by_key(|&index| candidates[index].load.legs)
            }
            Mode::LeastLoaded => {
                let fewest = open().map(|(_, rank)| rank.load.legs).min()?;
                let equals = || open().filter(|(_, rank)| rank.load.legs == fewest);
                let chosen = self.below(equals().count());
                equals().nth(chosen).map(|(index, _)| index)
            }
            Mode::Kv => {
                let score = |rank: &Candidate| match rank.has_room {
                    true => weights.score(blocks, rank.cached, rank.load),
                    false => Score {
                        cost: f64::INFINITY,
                        cached_blocks: rank.cached.blocks,
                        load: rank.load,
                    },
                };
                scores.extend(candidates.iter().map(score));
                let random = self.uniform();
                weights.choose(scores, random)
            }
        }
    }

    /// A number below `count`, which is not 0.
    fn below(&mut self, count: usize) -> usize {
        ((u128::from(self.draw()) * count as u128) >> 64) as usize
    }

    /// Uniform in 0..1.
    fn uniform(&mut self) -> f64 {
        (self.draw() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// The next random number (splitmix64).
    fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(STEP);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranks(legs: &[u32]) -> Vec<Candidate> {
        let load = |legs| RankLoad { legs, decode_blocks: f64::from(legs), prefill_blocks: 0.0 };
        let rank =
            |&legs: &u32| Candidate { load: load(legs), cached: Cached::default(), has_room: true };
        legs.iter().map(rank).collect()
    }

    /// How often each candidate is taken in 6,000 choices.
    fn shares(mode: Mode, candidates: &[Candidate]) -> Vec<usize> {
        let (mut picker, mut scores) = (Picker::new(7), Vec::new());
        let mut taken = vec![0; candidates.len()];
        for _ in 0..6000 {
            let weights = Weights::default();
            taken[picker.pick(mode, &weights, 4.0, candidates, &mut scores).unwrap()] += 1;
        }
        taken
    }

    #[test]
    fn every_mode_has_a_name_and_is_found_by_it() {
        for (name, mode) in Mode::NAMES.iter().zip(Mode::ALL) {
            assert_eq!((Mode::named(name), mode.name()), (Some(mode), *name));
        }
        assert_eq!(Mode::named("KV"), None);
    }

    #[test]
    fn modes_spread_work_as_their_names_say() {
        let near = |taken: &[usize], want: &[usize]| {
            taken.iter().zip(want).all(|(taken, want)| taken.abs_diff(*want) < 200)
        };
        let three = ranks(&[5, 1, 9]);
        assert_eq!(shares(Mode::RoundRobin, &three), [2000, 2000, 2000]);
        assert!(near(&shares(Mode::Random, &three), &[2000, 2000, 2000]));
        // Of the three pairs the first has rank 0 or 1, and so on: the worst never wins.
        assert!(near(&shares(Mode::PowerOfTwo, &three), &[2000, 4000, 0]));
        assert_eq!(shares(Mode::LeastLoaded, &three), [0, 6000, 0]);
        assert!(near(&shares(Mode::LeastLoaded, &ranks(&[1, 4, 1])), &[3000, 0, 3000]));
        assert!(near(&shares(Mode::Kv, &ranks(&[2, 2, 2])), &[2000, 2000, 2000]));
    }

    #[test]
    fn a_rank_without_room_is_never_taken_and_without_any_there_is_no_choice() {
        let mut two = ranks(&[0, 50]);
        two[0] = Candidate {
            has_room: false,
            cached: Cached { blocks: 4, ..Cached::default() },
            ..two[0]
        };
        for mode in Mode::ALL {
            assert_eq!(shares(mode, &two), [0, 6000], "{mode:?}");
            let mut picker = Picker::new(1);
            let full: Vec<_> = two.iter().map(|r| Candidate { has_room: false, ..*r }).collect();
            let weights = Weights::default();
            assert_eq!(picker.pick(mode, &weights, 1.0, &full, &mut Vec::new()), None);
            assert_eq!(picker.pick(mode, &weights, 1.0, &[], &mut Vec::new()), None);
            assert_eq!(shares(mode, &two[1..]), [6000], "alone, in mode {mode:?}");
        }
    }
}
