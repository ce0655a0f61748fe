//! What a leg's own tokens do to its logits: repetition, presence and frequency penalties.

use rustc_hash::FxHashMap;

use crate::engine::Sampling;

/// The distinct tokens of one leg that its penalties apply to, with their counts in the output.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// (token, how often it is in the output), in order of first appearance.
    counts: Vec<(u32, u32)>,
    place: FxHashMap<u32, u32>,
}

impl History {
    /// Whether these rules look at a leg's tokens at all.
    pub fn is_needed(sampling: &Sampling) -> bool {
        sampling.repetition_penalty != 1.0
            || sampling.presence_penalty != 0.0
            || sampling.frequency_penalty != 0.0
    }

    /// The history of a leg that has these tokens already.
    pub fn new(sampling: &Sampling, prompt: &[u32], output: &[u32]) -> Self {
        let mut history = Self::default();
        if sampling.repetition_penalty != 1.0 {
            prompt.iter().for_each(|&token| history.count(token, 0));
        }
        output.iter().for_each(|&token| history.push(token));
        history
    }

    /// Counts a new output token.
    pub fn push(&mut self, token: u32) {
        self.count(token, 1);
    }

    fn count(&mut self, token: u32, times: u32) {
        let place = *self.place.entry(token).or_insert_with(|| {
            self.counts.push((token, 0));
            (self.counts.len() - 1) as u32
        });
        self.counts[place as usize].1 += times;
    }

    /// Applies the penalties of `sampling` to one row.
    pub(super) fn apply(&self, sampling: &Sampling, logits: &mut [f32]) {
        for &(token, times) in &self.counts {
            let Some(logit) = logits.get_mut(token as usize) else { continue };
            if *logit > 0.0 {
                *logit /= sampling.repetition_penalty;
            } else {
                *logit *= sampling.repetition_penalty;
            }
            if times > 0 {
                *logit -= sampling.presence_penalty;
                *logit -= sampling.frequency_penalty * times as f32;
            }
        }
    }
}
