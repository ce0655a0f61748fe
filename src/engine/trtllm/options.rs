//! Options as they cross the bridge, and `Option`s made of them.

use super::ffi::{
    HostTensor, OptBool, OptF32, OptI32, OptStr, OptU64, Phase, RequestOptions, Words,
};

macro_rules! optional {
    ($($name:ident: $value:ty),*) => {$(
        impl From<$value> for $name {
            fn from(value: $value) -> Self {
                Self { some: true, value }
            }
        }

        impl From<Option<$value>> for $name {
            fn from(value: Option<$value>) -> Self {
                value.map_or_else(Self::default, Self::from)
            }
        }

        impl From<$name> for Option<$value> {
            fn from(value: $name) -> Self {
                value.some.then_some(value.value)
            }
        }
    )*};
}

optional!(OptBool: bool, OptI32: i32, OptU64: u64, OptF32: f32, OptStr: String);

impl From<&str> for OptStr {
    fn from(value: &str) -> Self {
        value.to_owned().into()
    }
}

impl<W: AsRef<[i32]>> FromIterator<W> for Words {
    fn from_iter<I: IntoIterator<Item = W>>(words: I) -> Self {
        let mut all = Self::default();
        for word in words {
            let word = word.as_ref();
            all.tokens.extend_from_slice(word);
            all.lengths.push(word.len().try_into().unwrap_or(u32::MAX));
        }
        all
    }
}

impl From<Option<HostTensor>> for HostTensor {
    fn from(tensor: Option<HostTensor>) -> Self {
        tensor.map_or_else(Self::default, |tensor| Self { some: true, ..tensor })
    }
}

/// A streaming request without a prompt, whose output does not repeat it; greedy, without any end.
impl Default for RequestOptions {
    fn default() -> Self {
        Self {
            tokens: Vec::new(),
            max_tokens: 0,
            streaming: true,
            sampling: Default::default(),
            end_id: Default::default(),
            pad_id: Default::default(),
            stop_words: Default::default(),
            bad_words: Default::default(),
            bias_ids: Vec::new(),
            bias_values: Vec::new(),
            return_log_probs: false,
            return_generation_logits: false,
            return_perf_metrics: false,
            return_all_generated_tokens: false,
            exclude_input: true,
            priority: Default::default(),
            client_id: Default::default(),
            cache_salt: Default::default(),
            disagg_request_id: Default::default(),
            allotted_ms: Default::default(),
            lora_id: Default::default(),
            lora_weights: Default::default(),
            lora_config: Default::default(),
            guide_kind: Default::default(),
            guide: Default::default(),
            draft_tokens: Vec::new(),
            draft_acceptance_threshold: Default::default(),
            lookahead_window: Default::default(),
            lookahead_ngram: Default::default(),
            lookahead_verification: Default::default(),
            processor: Default::default(),
            own_processor: false,
            phase: Phase::Whole,
            handoff: Default::default(),
        }
    }
}
