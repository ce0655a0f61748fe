//! Log probabilities of one position, from one row of logits.

use crate::engine::{Candidate, EngineError, TokenLogprobs};

/// The chosen token's, and those of the `k` likeliest, descending, ties by lower id.
///
/// # Errors
/// `BadNumbers`: a NaN or plus infinity, no finite logit at all, or no logit of the token.
pub(super) fn of_row(logits: &[f32], token: u32, k: u8) -> Result<TokenLogprobs, EngineError> {
    usable(logits).map_err(|what| EngineError::BadNumbers { what: what.into() })?;
    let Some(&chosen) = logits.get(token as usize) else {
        return Err(EngineError::BadNumbers { what: "a token without a logit".into() });
    };
    let greatest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let shares = logits.iter().map(|&logit| (f64::from(logit) - f64::from(greatest)).exp());
    let log_sum = libm::log(shares.sum());
    let of = |logit: f32| (f64::from(logit) - f64::from(greatest) - log_sum) as f32;
    let top = likeliest(logits, k.into());
    let top = top.into_iter().map(|(token, logit)| Candidate { token, logprob: of(logit) });
    Ok(TokenLogprobs { chosen: of(chosen), top: top.collect() })
}

/// Whether a token can be chosen from these.
///
/// # Errors
/// What is wrong with them.
pub(super) fn usable(logits: &[f32]) -> Result<(), &'static str> {
    if logits.iter().any(|logit| logit.is_nan() || *logit == f32::INFINITY) {
        return Err("a logit that is not a finite number");
    }
    match logits.iter().any(|logit| logit.is_finite()) {
        true => Ok(()),
        false => Err("no logit above minus infinity"),
    }
}

fn likeliest(logits: &[f32], k: usize) -> Vec<(u32, f32)> {
    let mut top: Vec<(u32, f32)> = Vec::with_capacity(k + 1);
    for (token, &logit) in (0_u32..).zip(logits) {
        let beaten = top.len() == k && top.last().is_none_or(|last| last.1 >= logit);
        if logit == f32::NEG_INFINITY || beaten {
            continue;
        }
        let place = top.partition_point(|one| one.1 >= logit);
        top.insert(place, (token, logit));
        top.truncate(k);
    }
    top
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_add_up_and_ties_go_to_the_lower_id() {
        let row = of_row(&[1.0, 3.0, 3.0, f32::NEG_INFINITY, 0.0], 0, 3).unwrap();
        assert_eq!(row.top.iter().map(|one| one.token).collect::<Vec<_>>(), [1, 2, 0]);
        assert_eq!(row.chosen, row.top[2].logprob);
        let all = of_row(&[1.0, 3.0, 3.0, f32::NEG_INFINITY, 0.0], 0, 20).unwrap().top;
        let sum: f32 = all.iter().map(|one| one.logprob.exp()).sum();
        assert!(all.len() == 4 && (sum - 1.0).abs() < 1e-6, "{all:?}");
        assert!(of_row(&[0.0, 0.0], 1, 0).unwrap().top.is_empty());
    }

    #[test]
    fn rows_without_numbers_are_errors() {
        for row in [vec![f32::NAN, 0.0], vec![f32::INFINITY], vec![f32::NEG_INFINITY], vec![]] {
            assert!(of_row(&row, 0, 1).is_err(), "{row:?}");
        }
        assert!(of_row(&[0.0], 5, 1).is_err());
    }
}
