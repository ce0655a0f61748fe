//! Which tokens may be drawn: top_k, top_p and min_p over relative probabilities, without a sort.
//!
//! Tokens are ordered by probability, descending, ties by lower id. A histogram over the leading
//! bits of the probability (monotone in it) finds the bucket in which the last kept token lies;
//! only that bucket is sorted.

use super::logits::{WEIGHT_BITS, weight};
use crate::engine::Sampling;

/// Bits of a float's mantissa that tell buckets apart.
const BUCKET_SHIFT: u32 = 20;
/// Buckets for probabilities from 1 down to the unit of a weight.
const BUCKETS: usize = ((WEIGHT_BITS as usize) + 1) << (23 - BUCKET_SHIFT);

fn bucket(relative: f32) -> usize {
    let below_one = 1_f32.to_bits().saturating_sub(relative.to_bits());
    ((below_one >> BUCKET_SHIFT) as usize).min(BUCKETS - 1)
}

/// A token that may be drawn, with its probability relative to the likeliest one's.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Kept {
    relative: f32,
    token: u32,
}

/// Where to stop keeping.
#[derive(Clone, Copy, Debug)]
enum Until {
    /// So many tokens are kept.
    Count(u64),
    /// The kept weights reach this.
    Mass(u64),
}

/// Draws a token from a row of relative probabilities. Keeps its buffers from row to row.
#[derive(Clone, Debug)]
pub(super) struct Truncation {
    counts: Vec<u64>,
    masses: Vec<u64>,
    kept: Vec<Kept>,
    edge: Vec<Kept>,
}

impl Default for Truncation {
    fn default() -> Self {
        let empty = vec![0; BUCKETS];
        Self { counts: empty.clone(), masses: empty, kept: Vec::new(), edge: Vec::new() }
    }
}

impl Truncation {
    /// The token that the 64 random `bits` select among those `sampling` leaves.
    ///
    /// At least one of `relative` is 1 and none is greater.
    pub(super) fn draw(&mut self, relative: &[f32], sampling: &Sampling, bits: u64) -> u32 {
        let top_k = match sampling.top_k as usize {
            0 => None,
            k if k >= relative.len() => None,
            k => Some(Until::Count(k as u64)),
        };
        let (top_p, min_p) = (sampling.top_p, sampling.min_p);
        let all = (0..).zip(relative).map(|(token, &relative)| Kept { relative, token });
        if top_k.is_none() && top_p >= 1.0 && min_p <= 0.0 {
            return pick(all, bits);
        }
        self.kept.clear();
        if top_k.is_none() && top_p >= 1.0 {
            self.kept.extend(all.filter(|one| one.relative >= min_p.min(1.0)));
            return pick(self.kept.iter().copied(), bits);
        }
        // What is lighter than a unit cannot be drawn; a row of them is mostly such.
        self.measure(all.clone().filter(|one| weight(one.relative) > 0));
        let first = top_k.unwrap_or_else(|| self.until_mass(top_p));
        let (last, missing) = self.last_bucket(first);
        let lowest =
            f32::from_bits(1_f32.to_bits().saturating_sub(((last as u32 + 1) << BUCKET_SHIFT) - 1));
        self.kept.extend(all.filter(|one| one.relative >= lowest));
        self.cut(last, missing);
        if top_k.is_some() && top_p < 1.0 {
            let kept = std::mem::take(&mut self.kept);
            self.measure(kept.iter().copied());
            self.kept = kept;
            let (last, missing) = self.last_bucket(self.until_mass(top_p));
            self.cut(last, missing);
        }
        self.kept.retain(|one| one.relative >= min_p.min(1.0));
        pick(self.kept.iter().copied(), bits)
    }

    /// Fills the histogram.
    fn measure(&mut self, tokens: impl Iterator<Item = Kept>) {
        self.counts.fill(0);
        self.masses.fill(0);
        for one in tokens {
            let bucket = bucket(one.relative);
            self.counts[bucket] += 1;
            self.masses[bucket] += weight(one.relative);
        }
    }

    /// The share `top_p` of everything measured; at least one unit, so that one token is kept.
    fn until_mass(&self, top_p: f32) -> Until {
        let total: u64 = self.masses.iter().sum();
        Until::Mass(((f64::from(top_p) * total as f64).ceil() as u64).clamp(1, total))
    }

    /// The bucket of the last token to keep, and what that bucket has to contribute.
    fn last_bucket(&self, until: Until) -> (usize, Until) {
        let (sizes, mut missing) = match until {
            Until::Count(count) => (&self.counts, count),
            Until::Mass(mass) => (&self.masses, mass),
        };
        let again = |missing| match until {
            Until::Count(_) => Until::Count(missing),
            Until::Mass(_) => Until::Mass(missing),
        };
        let mut bucket = 0;
        while bucket < BUCKETS - 1 && sizes[bucket] < missing {
            missing -= sizes[bucket];
            bucket += 1;
        }
        (bucket, again(missing))
    }

    /// Drops from `kept` what comes after bucket `last` has contributed what was `missing`.
    fn cut(&mut self, last: usize, missing: Until) {
        self.edge.clear();
        self.edge.extend(self.kept.iter().filter(|one| bucket(one.relative) == last));
        let order = |a: &Kept, b: &Kept| {
            b.relative.total_cmp(&a.relative).then_with(|| a.token.cmp(&b.token))
        };
        self.edge.sort_unstable_by(order);
        let mut taken = 0;
        let end = self.edge.iter().find(|one| match missing {
            Until::Count(count) => {
                taken += 1;
                taken >= count
            }
            Until::Mass(mass) => {
                taken += weight(one.relative);
                taken >= mass
            }
        });
        if let Some(end) = end {
            self.kept.retain(|one| order(one, end).is_le());
        }
    }
}

/// Draws in proportion to the weights, in the order given.
fn pick(tokens: impl Iterator<Item = Kept> + Clone, bits: u64) -> u32 {
    let total: u64 = tokens.clone().map(|one| weight(one.relative)).sum();
    let mut left = ((u128::from(bits) * u128::from(total)) >> 64) as u64;
    for one in tokens {
        let weight = weight(one.relative);
        if left < weight {
            return one.token;
        }
        left -= weight;
    }
    unreachable!("the weights add up to their sum")
}
