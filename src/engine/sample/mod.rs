//! From one row of logits, as the [`processors`](super::processors) leave it, to one token. In this order:
//!
//! 1. repetition penalty: tokens of prompt and output, positive logits divided, others multiplied;
//! 2. presence and frequency penalty: tokens of the output, subtracted;
//! 3. `logit_bias`, added;
//! 4. while fewer than `min_tokens` tokens are out: end-of-sequence and stop ids are excluded; so are tokens
//!    that would end a bad word ([`ban`]);
//! 5. log probabilities are taken here, if asked for;
//! 6. temperature; below [`GREEDY_BELOW`] the greatest logit wins, ties by lower id, and that is it;
//! 7. `top_k`: the k likeliest, ties by lower id;
//! 8. `top_p`: of those, the fewest likeliest that together reach the share;
//! 9. `min_p`: of those, the ones with at least this share of the likeliest one's probability;
//! 10. one draw with the random number that (seed, choice, index of the output token) names.
//!
//! Probabilities are counted in units of 2^-40 of the likeliest one's; less than one unit is never
//! drawn. Integers have no summation order, so the token is the same on every CPU.

mod logits;
mod penalties;
mod philox;
#[cfg(test)]
mod tests;
mod truncate;

pub use penalties::History;
pub use philox::random_bits;

use super::{Candidate, EngineError, Sampling, TokenLogprobs};
use truncate::Truncation;

/// Temperatures below this are 0.
pub const GREEDY_BELOW: f32 = 1e-5;

/// Most alternatives that log probabilities are reported for.
pub const MAX_TOP_LOGPROBS: u8 = 20;

/// Which of a leg's tokens is to be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Which of the prompt's choices, from 0.
    pub choice: u32,
    /// Which of its output tokens, from 0.
    pub index: usize,
}

/// Excludes what would complete one of the bad words after this output.
pub fn ban(logits: &mut [f32], bad_words: &[Vec<u32>], output: &[u32]) {
    for word in bad_words {
        if let Some((&last, head)) = word.split_last()
            && output.ends_with(head)
            && let Some(logit) = logits.get_mut(last as usize)
        {
            *logit = f32::NEG_INFINITY;
        }
    }
}

/// Chooses tokens; keeps its buffers from row to row.
#[derive(Clone, Debug, Default)]
pub struct Sampler {
    relative: Vec<f32>,
    truncation: Truncation,
    top: Vec<Candidate>,
}

impl Sampler {
    /// Chooses one token from `logits` (`[vocab]`, changed in place). `history` is the leg's, if
    /// [`History::is_needed`]. Ids in `sampling` at or above the vocabulary's size do nothing.
    ///
    /// # Errors
    /// `BadNumbers`: a logit is NaN or plus infinity, or all are minus infinity.
    pub fn sample(
        &mut self,
        logits: &mut [f32],
        sampling: &Sampling,
        history: Option<&History>,
        position: Position,
    ) -> Result<(u32, Option<Box<TokenLogprobs>>), EngineError> {
        if let Some(history) = history {
            history.apply(sampling, logits);
        }
        for &(token, bias) in &sampling.logit_bias {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit += bias;
            }
        }
        if position.index < sampling.min_tokens as usize {
            for &token in sampling.eos_ids.iter().chain(&sampling.stop_token_ids) {
                if let Some(logit) = logits.get_mut(token as usize) {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
        let (likeliest, greatest) = logits::greatest(logits)
            .map_err(|what| EngineError::BadNumbers { what: what.into() })?;
        let mut token = likeliest;
        if sampling.temperature >= GREEDY_BELOW {
            let scale = 1.0 / sampling.temperature;
            logits::relative(logits, greatest, scale, &mut self.relative);
            let bits = random_bits(sampling.seed, position.choice, position.index as u64);
            token = self.truncation.draw(&self.relative, sampling, bits);
        }
        let logprobs = sampling.logprobs.map(|k| self.logprobs(logits, greatest, token, k));
        Ok((token, logprobs))
    }

    fn logprobs(&mut self, logits: &[f32], greatest: f32, token: u32, k: u8) -> Box<TokenLogprobs> {
        logits::relative(logits, greatest, 1.0, &mut self.relative);
        let total: u64 = self.relative.iter().map(|&relative| logits::weight(relative)).sum();
        let units = f64::from(logits::WEIGHT_BITS) * std::f64::consts::LN_2;
        let log_sum = libm::log(total as f64) - units;
        let logprob = |logit: f32| (f64::from(logit) - f64::from(greatest) - log_sum) as f32;
        logits::likeliest(logits, k.min(MAX_TOP_LOGPROBS).into(), &mut self.top);
        let of = |one: &Candidate| Candidate { logprob: logprob(one.logprob), ..*one };
        let top = self.top.iter().map(of).collect();
        Box::new(TokenLogprobs { chosen: logprob(logits[token as usize]), top })
    }
}
