//! Passes over one row of logits: the greatest, the k likeliest, and probabilities.
//!
//! Results are the same on every CPU: comparisons and single IEEE operations only, and sums of
//! integers, which have no order. Loops run over lanes so that the compiler can vectorize them.

use crate::engine::Candidate;

const LANES: usize = 16;
/// Logits looked at before the running maximum is compared: a second look costs little then.
const CHUNK: usize = 16 * LANES;

/// A row that nothing can be chosen from.
pub(super) const NOT_A_NUMBER: &str = "a logit that is not a finite number";
/// A row that nothing can be chosen from.
pub(super) const NO_CANDIDATE: &str = "no logit above minus infinity";

/// The greatest logit and the lowest id that has it, in one pass.
///
/// # Errors
/// What is wrong with the row: a NaN, an infinity, or no finite logit at all.
pub(super) fn greatest(logits: &[f32]) -> Result<(u32, f32), &'static str> {
    let mut best = f32::NEG_INFINITY;
    let mut best_chunk = 0;
    let mut bad = false;
    for (chunk, values) in logits.chunks(CHUNK).enumerate() {
        let mut lanes = [f32::NEG_INFINITY; LANES];
        let mut nan = [false; LANES];
        let mut groups = values.chunks_exact(LANES);
        for group in &mut groups {
            for i in 0..LANES {
                lanes[i] = if group[i] > lanes[i] { group[i] } else { lanes[i] };
                nan[i] |= group[i].is_nan();
            }
        }
        for (i, &value) in groups.remainder().iter().enumerate() {
            lanes[i] = if value > lanes[i] { value } else { lanes[i] };
            nan[i] |= value.is_nan();
        }
        bad |= nan.contains(&true);
        let top = lanes.into_iter().fold(f32::NEG_INFINITY, f32::max);
        if top > best {
            (best, best_chunk) = (top, chunk);
        }
    }
    if bad || best == f32::INFINITY {
        return Err(NOT_A_NUMBER);
    }
    let first = best_chunk * CHUNK;
    let values = &logits[first.min(logits.len())..];
    match values.iter().position(|&value| value == best) {
        Some(place) if best > f32::NEG_INFINITY => Ok(((first + place) as u32, best)),
        _ => Err(NO_CANDIDATE),
    }
}

/// The `k` greatest logits, descending, ties by lower id, as (id, logit); none of minus infinity.
pub(super) fn likeliest(logits: &[f32], k: usize, out: &mut Vec<Candidate>) {
    out.clear();
    if k == 0 {
        return;
    }
    let mut bar = f32::NEG_INFINITY;
    for (group, values) in logits.chunks(LANES).enumerate() {
        if !values.iter().fold(false, |any, &value| any | (value > bar)) {
            continue;
        }
        for (i, &value) in values.iter().enumerate() {
            if value <= bar {
                continue;
            }
            let place = out.partition_point(|candidate| candidate.logprob >= value);
            out.truncate(k - 1);
            let token = (group * LANES + i) as u32;
            out.insert(place, Candidate { token, logprob: value });
            if out.len() == k {
                bar = out[k - 1].logprob;
            }
        }
    }
}

/// `exp(d)` for `d <= 0` as single operations, relative error below 3e-7; below −28 it is `exp(−28)`.
#[inline(always)]
fn exp_of_negative(d: f32) -> f32 {
    /// Adding it leaves a number's nearest integer in the low bits of the sum.
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let d = if d > FLOOR { d } else { FLOOR };
    let rounded = d * std::f32::consts::LOG2_E + ROUND;
    let whole = rounded - ROUND;
    let r = (d - whole * LN_2_HIGH) - whole * LN_2_LOW;
    let p = 1.0 / 5040.0;
    let p = p * r + 1.0 / 720.0;
    let p = p * r + 1.0 / 120.0;
    let p = p * r + 1.0 / 24.0;
    let p = p * r + 1.0 / 6.0;
    let p = p * r + 0.5;
    let p = p * r + 1.0;
    let p = p * r + 1.0;
    let exponent = rounded.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127);
    p * f32::from_bits(exponent << 23)
}

/// Where probabilities relative to the greatest end: `exp(-28) < 2^-40`.
const FLOOR: f32 = -28.0;

/// Bits of the unit of [`weight`].
pub(super) const WEIGHT_BITS: u32 = 40;

/// `exp((logit - greatest) * scale)` for each logit: probabilities relative to the greatest one.
pub(super) fn relative(logits: &[f32], greatest: f32, scale: f32, out: &mut Vec<f32>) {
    out.clear();
    out.extend(logits.iter().map(|&logit| exp_of_negative((logit - greatest) * scale)));
}

/// A relative probability (at most 1) in whole units of `2^-40`: integers add up in any order.
#[inline(always)]
pub(super) fn weight(relative: f32) -> u64 {
    let bits = relative.to_bits();
    let mantissa = u64::from(bits & 0x007f_ffff | 0x0080_0000);
    (mantissa << (WEIGHT_BITS - 23)) >> (127_u32.saturating_sub(bits >> 23)).min(63)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn exp_and_weights_are_close_to_the_truth() {
        let mut logits: Vec<f32> = (0..28_000).map(|i| i as f32 * -0.001).collect();
        logits.extend([-1e-30, -29.0, -1e30, f32::NEG_INFINITY]);
        let mut out = Vec::new();
        relative(&logits, 0.0, 1.0, &mut out);
        assert_eq!((out[0], weight(out[0])), (1.0, 1 << WEIGHT_BITS));
        for (&x, &y) in logits.iter().zip(&out) {
            let truth = f64::from(x).max(-28.0).exp();
            assert!((f64::from(y) / truth - 1.0).abs() < 3e-7, "exp({x}) = {y}, not {truth}");
            let units = (f64::from(y) * 2_f64.powi(WEIGHT_BITS as i32)) as u64;
            assert_eq!(weight(y), units, "{x}");
            if x < FLOOR {
                assert_eq!(weight(y), 0, "{x}");
            }
        }
    }

    #[test]
    fn rows_without_a_greatest_number_are_refused() {
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        for len in [1, 5, 17, 300] {
            for at in [0, len / 2, len - 1] {
                for (bad, rest) in [(nan, 0.0), (-nan, -inf), (inf, 0.0)] {
                    let mut row = vec![rest; len];
                    row[at] = bad;
                    assert_eq!(greatest(&row), Err(NOT_A_NUMBER), "{bad} at {at} of {len}");
                }
            }
            assert_eq!(greatest(&vec![-inf; len]), Err(NO_CANDIDATE));
        }
        assert_eq!(greatest(&[]), Err(NO_CANDIDATE));
    }

    proptest! {
        #[test]
        fn greatest_and_likeliest_agree_with_a_sort(
            row in prop::collection::vec(prop_oneof![-3_i32..4, Just(i32::MIN)], 1..700),
            k in 0_usize..21,
        ) {
            let number = |v: &i32| if *v == i32::MIN { f32::NEG_INFINITY } else { *v as f32 };
            let logits: Vec<f32> = row.iter().map(number).collect();
            let mut sorted: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
            sorted.retain(|entry| entry.1 > f32::NEG_INFINITY);
            sorted.sort_by(|a, b| b.1.total_cmp(&a.1));
            prop_assert_eq!(greatest(&logits).ok(), sorted.first().copied());
            let mut top = Vec::new();
            likeliest(&logits, k, &mut top);
            let top: Vec<_> = top.iter().map(|c| (c.token, c.logprob)).collect();
            sorted.truncate(k);
            prop_assert_eq!(top, sorted);
        }
    }
}
