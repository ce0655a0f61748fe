//! What is counted for each served model.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use super::Adder;
use super::histogram::{Count, Histogram, Seconds};
use super::labels::{Cancellation, Counters, Migration, Outcome, PrefillPlace};

/// Bounds in microseconds: 1 ms to 80 s.
const TTFT: &[u64] = &[
    1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000, 10_000_000, 20_000_000, 40_000_000, 80_000_000,
];
/// Bounds in microseconds: 100 µs to 2.5 s, closest where people notice.
const INTER_TOKEN: &[u64] = &[
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 15_000, 20_000, 30_000, 40_000, 50_000, 75_000,
    100_000, 200_000, 500_000, 1_000_000, 2_500_000,
];
/// Bounds in microseconds: 100 µs to 60 s.
const QUEUE: &[u64] = &[
    100, 1_000, 5_000, 10_000, 50_000, 100_000, 500_000, 1_000_000, 5_000_000, 10_000_000,
    30_000_000, 60_000_000,
];
/// Bounds in microseconds: 10 ms to 10 min.
const DURATION: &[u64] = &[
    10_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    20_000_000,
    30_000_000,
    60_000_000,
    120_000_000,
    300_000_000,
    600_000_000,
];
/// Bounds in tokens.
const TOKENS: &[u64] = &[
    0, 1, 4, 16, 32, 64, 128, 256, 512, 1_024, 2_048, 4_096, 8_192, 16_384, 32_768, 65_536, 131_072,
];

/// Bounds in choices.
const CHOICES: &[u64] = &[1, 2, 4, 8, 16, 32, 64, 128, 256, 1_024, 65_535];

/// Handles of one model's series.
#[derive(Debug)]
pub struct ModelMetrics {
    /// From the request's arrival to its first token.
    pub ttft: Histogram<Seconds>,
    /// Between two tokens of one choice, as they reach the front end.
    pub inter_token_latency: Histogram<Seconds>,
    /// From the placement of a leg to its first step.
    pub queue: Histogram<Seconds>,
    /// From the request's arrival to its end.
    pub request_duration: Histogram<Seconds>,
    /// Prompt tokens of each request.
    pub request_prompt_tokens: Histogram<Count>,
    /// Output tokens of each request.
    pub request_output_tokens: Histogram<Count>,
    /// Prompt tokens of each request that were found in the prefix cache.
    pub request_cached_tokens: Histogram<Count>,
    /// Choices of each request.
    pub request_choices: Histogram<Count>,
    /// Requests that wait for a rank to come up or to have room, not in line.
    pub without_rank: Gauge,
    /// What its tokenizer and chat template take.
    pub text: TextMetrics,
    /// Requests that ended.
    pub requests: Counters<Outcome>,
    /// Requests that were cancelled.
    pub cancellations: Counters<Cancellation>,
    /// Choices that were placed again.
    pub migrations: Counters<Migration>,
    /// Where prompts were prefilled, on models that have ranks for it.
    pub prefill_places: Counters<PrefillPlace>,
    /// Prompt tokens of all requests.
    pub prompt_tokens: Counter,
    /// Output tokens, counted as they arrive.
    pub output_tokens: Counter,
    /// Prompt tokens found in the prefix cache.
    pub cached_tokens: Counter,
}

/// What a tokenizer and a chat template take; brought up to date before it is read.
#[derive(Debug)]
pub struct TextMetrics {
    /// Words whose tokens are kept.
    pub cached_words: Gauge,
    /// Bytes of parts of prompts that are kept with their tokens.
    pub cached_bytes: Gauge,
    /// Most instructions that a rendering of the chat template took.
    pub most_fuel: Gauge,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    model: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    model: String,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    model: String,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PlaceLabels {
    model: String,
    place: &'static str,
}

/// The families behind all models' handles.
pub(super) struct Families {
    ttft: Family<Labels, Histogram<Seconds>>,
    inter_token_latency: Family<Labels, Histogram<Seconds>>,
    queue: Family<Labels, Histogram<Seconds>>,
    request_duration: Family<Labels, Histogram<Seconds>>,
    request_prompt_tokens: Family<Labels, Histogram<Count>>,
    request_output_tokens: Family<Labels, Histogram<Count>>,
    request_cached_tokens: Family<Labels, Histogram<Count>>,
    request_choices: Family<Labels, Histogram<Count>>,
    without_rank: Family<Labels, Gauge>,
    cached_words: Family<Labels, Gauge>,
    cached_bytes: Family<Labels, Gauge>,
    most_fuel: Family<Labels, Gauge>,
    requests: Family<OutcomeLabels, Counter>,
    cancellations: Family<ReasonLabels, Counter>,
    migrations: Family<ReasonLabels, Counter>,
    prefill_places: Family<PlaceLabels, Counter>,
    prompt_tokens: Family<Labels, Counter>,
    output_tokens: Family<Labels, Counter>,
    cached_tokens: Family<Labels, Counter>,
}

impl Families {
    pub(super) fn register(add: &mut Adder<'_>) -> Self {
        let tokens = || Histogram::new(TOKENS);
        Self {
            ttft: add.histogram(
                "ttft_seconds",
                "Time from a request's arrival to its first token",
                || Histogram::new(TTFT),
            ),
            inter_token_latency: add.histogram(
                "inter_token_latency_seconds",
                "Time between two tokens of one choice",
                || Histogram::new(INTER_TOKEN),
            ),
            queue: add.histogram(
                "queue_seconds",
                "Time that a leg waited for its first step",
                || Histogram::new(QUEUE),
            ),
            request_duration: add.histogram(
                "request_duration_seconds",
                "Time from a request's arrival to its end",
                || Histogram::new(DURATION),
            ),
            request_prompt_tokens: add.histogram(
                "request_prompt_tokens",
                "Prompt tokens of a request",
                tokens,
            ),
            request_output_tokens: add.histogram(
                "request_output_tokens",
                "Output tokens of a request",
                tokens,
            ),
            request_cached_tokens: add.histogram(
                "request_cached_tokens",
                "Prompt tokens of a request that were found in the prefix cache",
                tokens,
            ),
            request_choices: add
                .histogram("request_choices", "Choices of a request", || Histogram::new(CHOICES)),
            without_rank: add.family(
                "requests_without_rank",
                "Requests that wait for a rank to come up or to have room, not in line",
            ),
            cached_words: add
                .family("tokenizer_cached_words", "Words whose tokens the tokenizer keeps"),
            cached_bytes: add.family(
                "tokenizer_cached_bytes",
                "Bytes of parts of prompts that are kept with their tokens",
            ),
            most_fuel: add.family(
                "chat_template_most_fuel",
                "Most instructions that a rendering of the chat template took",
            ),
            requests: add.family("requests", "Requests that ended, by outcome"),
            cancellations: add.family("cancellations", "Requests that were cancelled, by reason"),
            migrations: add.family("migrations", "Choices that were placed again, by reason"),
            prefill_places: add.family(
                "prefill_places",
                "Where prompts were prefilled, on models that have ranks for it",
            ),
            prompt_tokens: add.family("prompt_tokens", "Prompt tokens of all requests"),
            output_tokens: add.family("output_tokens", "Output tokens of all requests"),
            cached_tokens: add.family("cached_tokens", "Prompt tokens found in the prefix cache"),
        }
    }

    pub(super) fn handles(&self, model: &str) -> ModelMetrics {
        let labels = Labels { model: model.to_owned() };
        let outcome = |outcome| OutcomeLabels { model: model.to_owned(), outcome };
        let reason = |reason| ReasonLabels { model: model.to_owned(), reason };
        let place = |place| PlaceLabels { model: model.to_owned(), place };
        ModelMetrics {
            ttft: self.ttft.get_or_create_owned(&labels),
            inter_token_latency: self.inter_token_latency.get_or_create_owned(&labels),
            queue: self.queue.get_or_create_owned(&labels),
            request_duration: self.request_duration.get_or_create_owned(&labels),
            request_prompt_tokens: self.request_prompt_tokens.get_or_create_owned(&labels),
            request_output_tokens: self.request_output_tokens.get_or_create_owned(&labels),
            request_cached_tokens: self.request_cached_tokens.get_or_create_owned(&labels),
            request_choices: self.request_choices.get_or_create_owned(&labels),
            without_rank: self.without_rank.get_or_create_owned(&labels),
            text: TextMetrics {
                cached_words: self.cached_words.get_or_create_owned(&labels),
                cached_bytes: self.cached_bytes.get_or_create_owned(&labels),
                most_fuel: self.most_fuel.get_or_create_owned(&labels),
            },
            requests: Counters::new(&self.requests, outcome),
            cancellations: Counters::new(&self.cancellations, reason),
            migrations: Counters::new(&self.migrations, reason),
            prefill_places: Counters::new(&self.prefill_places, place),
            prompt_tokens: self.prompt_tokens.get_or_create_owned(&labels),
            output_tokens: self.output_tokens.get_or_create_owned(&labels),
            cached_tokens: self.cached_tokens.get_or_create_owned(&labels),
        }
    }
}
