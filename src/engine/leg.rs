//! What is asked of an engine: one leg, its sampling, and what comes back with a token.

use std::sync::Arc;

use bincode::{Decode, Encode};

use super::processors::Wanted;
use crate::ids::LegId;

/// One leg of a request: continue these tokens.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct Leg {
    /// Idempotency key.
    pub id: LegId,
    /// The prompt, followed by the output tokens that were already delivered (after a migration).
    pub tokens: Vec<u32>,
    /// How many of `tokens` are prompt. The next token's index `i` is `tokens.len() - prompt_len`.
    pub prompt_len: usize,
    /// Most output tokens of the request, those already in `tokens` included.
    pub max_tokens: u32,
    /// Which of the prompt's `n` choices this is, from 0: selects the stream of random numbers.
    pub choice: u32,
    /// How to choose tokens and when to stop.
    pub sampling: Arc<Sampling>,
    /// Separates prefix caches: blocks are only shared between legs of one salt. 0 for everyone.
    pub salt: u64,
    /// Which part of the work it is.
    pub part: Part,
}

/// Which part of a choice's work a leg is. Where a choice is prefilled on one rank and decoded on
/// another, it has a leg on each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub enum Part {
    /// All of it.
    #[default]
    Whole,
    /// The KV of the full blocks before the last token, which is then kept until the leg is aborted.
    Prefill,
    /// All of it, but the KV of so many leading blocks can be fetched from a [`Part::Prefill`]. What
    /// cannot be is computed here.
    Decode {
        /// Full blocks.
        blocks: u32,
    },
}

/// How tokens are chosen, and by which weights. Neutral values switch a rule off; [`Sampling::default`] is greedy.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct Sampling {
    /// 0 takes the likeliest token.
    pub temperature: f32,
    /// Smallest set of likeliest tokens whose probability reaches this; 1 for all.
    pub top_p: f32,
    /// The k likeliest tokens; 0 for all.
    pub top_k: u32,
    /// Tokens at least this share of the likeliest one's probability; 0 for all.
    pub min_p: f32,
    /// Random numbers depend on (seed, choice, index of the output token) alone.
    pub seed: u64,
    /// Subtracted once from tokens present in the output so far.
    pub presence_penalty: f32,
    /// Subtracted for each time a token is present in the output so far.
    pub frequency_penalty: f32,
    /// Divides positive and multiplies negative logits of tokens in prompt or output; 1 for none.
    pub repetition_penalty: f32,
    /// Added to the logits of these tokens; the ids are distinct.
    pub logit_bias: Vec<(u32, f32)>,
    /// End-of-sequence ids of the model; kept out until `min_tokens`, never a stop if `ignore_eos`.
    pub eos_ids: Vec<u32>,
    /// More ids that end the output, asked for by the client.
    pub stop_token_ids: Vec<u32>,
    /// No end before this many output tokens.
    pub min_tokens: u32,
    /// Go on to `max_tokens` whatever comes (client's stop ids still end it).
    pub ignore_eos: bool,
    /// `Some(k)`: report the chosen token's log probability and the k likeliest, `k <= 20`.
    pub logprobs: Option<u8>,
    /// What changes the logits before all of this, in this order.
    pub processors: Vec<Wanted>,
    /// Sequences of tokens that must not be in the output.
    pub bad_words: Vec<Vec<u32>>,
    /// The form that the output must have; engines that cannot see to it refuse the leg.
    pub guide: Option<Guide>,
    /// The adapter on the model's weights, by its name; engines that do not have it refuse the leg.
    pub lora: Option<String>,
    /// Lower goes first where an engine chooses among the legs that wait.
    pub priority: i32,
}

/// A form that an output must have, for engines that guide decoding.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Guide {
    /// A JSON object.
    Json,
    /// JSON of this schema.
    JsonSchema(String),
    /// A text that this regular expression matches.
    Regex(String),
    /// A text of this grammar, in extended Backus-Naur form.
    Grammar(String),
    /// A text that is free but for the parts between given marks; JSON says which.
    StructuralTag(String),
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            seed: 0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            logit_bias: Vec::new(),
            eos_ids: Vec::new(),
            stop_token_ids: Vec::new(),
            min_tokens: 0,
            ignore_eos: false,
            logprobs: None,
            processors: Vec::new(),
            bad_words: Vec::new(),
            guide: None,
            lora: None,
            priority: 0,
        }
    }
}

/// Why a leg ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum FinishReason {
    /// End-of-sequence or one of the client's stop ids; that id is the leg's last token.
    Stop,
    /// `max_tokens` or the end of the context.
    Length,
}

/// Log probabilities of one output position (natural logarithm, before temperature and truncation,
/// after penalties and bias).
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct TokenLogprobs {
    /// Of the chosen token.
    pub chosen: f32,
    /// The likeliest tokens, descending; ties by lower id.
    pub top: Vec<Candidate>,
}

/// One of the likeliest tokens.
#[derive(Clone, Copy, Debug, PartialEq, Encode, Decode)]
pub struct Candidate {
    /// Vocabulary id.
    pub token: u32,
    /// Natural logarithm of its probability.
    pub logprob: f32,
}
