//! Random numbers as a pure function of a seed, a stream and a counter, so that a seed replays a run.

/// The numbers of one stream under one seed, in order.
#[derive(Clone, Debug)]
pub(super) struct Draw {
    key: u64,
    count: u64,
}

/// SplitMix64's finalizer: every bit of the input changes half of the output.
fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

impl Draw {
    /// The stream of this number; streams of one seed have nothing to do with each other.
    pub(super) fn new(seed: u64, stream: u64) -> Self {
        let key = mix(mix(seed.wrapping_add(STEP)) ^ stream.wrapping_mul(STEP));
        Self { key, count: 0 }
    }

    /// 64 uniform bits.
    pub(super) fn bits(&mut self) -> u64 {
        self.count += 1;
        mix(self.key.wrapping_add(self.count.wrapping_mul(STEP)))
    }

    /// A number from `0..n`; 0 if `n` is 0.
    pub(super) fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.bits()) * n as u128) >> 64) as usize
    }

    /// A number from `low..=high`.
    pub(super) fn between(&mut self, low: u64, high: u64) -> u64 {
        let span = u128::from(high.saturating_sub(low)) + 1;
        low + ((u128::from(self.bits()) * span) >> 64) as u64
    }

    /// One of them; `None` if there is none.
    pub(super) fn pick<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        items.get(self.below(items.len()))
    }

    /// Puts them into a random order.
    pub(super) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_and_a_stream_give_the_same_numbers_again_and_others_give_others() {
        let numbers = |seed, stream| {
            let mut draw = Draw::new(seed, stream);
            (0..8).map(|_| draw.bits()).collect::<Vec<_>>()
        };
        assert_eq!(numbers(7, 1), numbers(7, 1));
        for (seed, stream) in [(7, 2), (8, 1), (1, 7), (0, 0)] {
            assert_ne!(numbers(7, 1), numbers(seed, stream), "{seed} {stream}");
        }
    }

    #[test]
    fn numbers_stay_in_their_range_and_reach_its_ends() {
        let mut draw = Draw::new(1, 1);
        let mut seen = [0; 5];
        for _ in 0..500 {
            let number = draw.between(10, 14);
            seen[(number - 10) as usize] += 1;
        }
        assert!(seen.iter().all(|&count| count > 60), "{seen:?}");
        assert_eq!((draw.below(0), draw.below(1)), (0, 0));
        assert_eq!(draw.pick::<u8>(&[]), None);
        assert!((0..u64::MAX).contains(&draw.between(0, u64::MAX)));
    }

    #[test]
    fn a_shuffle_keeps_everything() {
        let mut items: Vec<_> = (0..20).collect();
        Draw::new(3, 3).shuffle(&mut items);
        assert_ne!(items, (0..20).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..20).collect::<Vec<_>>());
    }
}
