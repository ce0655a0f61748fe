//! Random numbers as a pure function of a seed, a stream and a counter: the same seed gives the same load.

/// What the numbers of a stream decide; streams of one seed have nothing to do with each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub(super) enum Stream {
    /// Lengths, groups and pauses of a job.
    Job = 1,
    /// The gaps between arrivals.
    Arrival,
    /// Which points of a plot are kept.
    Sample,
    /// Tokens that no other prompt has.
    OwnText,
    /// Tokens of a node of a tree of prefixes.
    PrefixText,
    /// Tokens of a block of a trace.
    BlockText,
    /// Tokens in the place of an answer's.
    AnswerText,
}

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// SplitMix64's finalizer: every bit of the input changes half of the output.
fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// The key of the numbers of `id` in a stream.
pub(super) fn key(seed: u64, stream: Stream, id: u64) -> u64 {
    let stream = mix(seed.wrapping_add(STEP)) ^ (stream as u64).wrapping_mul(STEP);
    mix(mix(stream) ^ id.wrapping_mul(STEP))
}

/// Number `index` of a key, from `0..limit`; 0 if `limit` is 0.
pub(super) fn at(key: u64, index: u64, limit: u32) -> u32 {
    let bits = mix(key.wrapping_add((index + 1).wrapping_mul(STEP)));
    (((bits >> 32) * u64::from(limit)) >> 32) as u32
}

/// The numbers of one key, in order.
#[derive(Clone, Debug)]
pub(super) struct Draw {
    key: u64,
    count: u64,
}

impl Draw {
    pub(super) fn new(seed: u64, stream: Stream, id: u64) -> Self {
        Self { key: key(seed, stream, id), count: 0 }
    }

    /// 64 uniform bits.
    pub(super) fn bits(&mut self) -> u64 {
        self.count += 1;
        mix(self.key.wrapping_add(self.count.wrapping_mul(STEP)))
    }

    /// A number from `0..n`; 0 if `n` is 0.
    pub(super) fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(n)) >> 64) as u64
    }

    /// A number above 0 and at most 1.
    pub(super) fn unit(&mut self) -> f64 {
        ((self.bits() >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }

    /// From the exponential distribution with mean 1.
    pub(super) fn exponential(&mut self) -> f64 {
        -self.unit().ln()
    }

    /// From the normal distribution with mean 0 and deviation 1.
    pub(super) fn normal(&mut self) -> f64 {
        let radius = (2.0 * self.exponential()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_gives_the_same_numbers_again_and_others_give_others() {
        let numbers = |seed, stream, id| {
            let mut draw = Draw::new(seed, stream, id);
            (0..8).map(|_| draw.bits()).collect::<Vec<_>>()
        };
        let first = numbers(7, Stream::Job, 1);
        assert_eq!(first, numbers(7, Stream::Job, 1));
        for (seed, stream, id) in
            [(7, Stream::Job, 2), (8, Stream::Job, 1), (7, Stream::Arrival, 1)]
        {
            assert_ne!(first, numbers(seed, stream, id), "{seed} {stream:?} {id}");
        }
    }

    #[test]
    fn numbers_stay_in_their_range_and_reach_its_ends() {
        let mut seen = [0; 5];
        for index in 0..500 {
            seen[at(key(1, Stream::OwnText, 3), index, 5) as usize] += 1;
        }
        assert!(seen.iter().all(|&count| count > 60), "{seen:?}");
        assert_eq!((at(9, 9, 0), at(9, 9, 1)), (0, 0));
    }

    #[test]
    fn distributions_have_their_means_and_deviations() {
        let mut draw = Draw::new(5, Stream::Job, 0);
        let count = 100_000;
        let mean = (0..count).map(|_| draw.exponential()).sum::<f64>() / f64::from(count);
        assert!((mean - 1.0).abs() < 0.02, "{mean}");
        let values: Vec<_> = (0..count).map(|_| draw.normal()).collect();
        let mean = values.iter().sum::<f64>() / f64::from(count);
        let square = values.iter().map(|value| value * value).sum::<f64>() / f64::from(count);
        assert!(mean.abs() < 0.02 && (square - 1.0).abs() < 0.02, "{mean} {square}");
    }
}
