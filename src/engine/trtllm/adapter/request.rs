//! A leg as a request of TensorRT-LLM's: what was asked, in its words, or why it cannot be.
//!
//! Which ids end the output: TensorRT-LLM has one end id, which it bans before `min_tokens` and which is
//! mostly no token of the output; all other ids are stop words of one token, which are in the output and
//! which it does not ban. So the first id is the end id; but where log probabilities are wanted, none is,
//! since that of a token that is not in the output would not be told. Ids that TensorRT-LLM does not ban
//! itself are banned by the hook ([`Asked::banned`]).
//!
//! What differs from the engines of our own: random numbers are TensorRT-LLM's (a leg that goes on
//! elsewhere does not repeat any, but draws others than it would have drawn); log probabilities are of the
//! logits that it reports; releases without `prompt_ignore_length` (before 1.2) apply presence and
//! frequency penalties to the prompt as well.

use super::super::ffi::{Capabilities, RequestOptions, SamplingOptions};
use super::config::AdapterConfig;
use super::lora::Lora;
use crate::engine::sample::{GREEDY_BELOW, random_bits};
use crate::engine::{EngineError, Guide, Leg, Part, Sampling};

/// What becomes of a leg.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Asked {
    /// The request; its client id is still to be given.
    pub(super) options: RequestOptions,
    /// Output tokens at which the leg is complete, those delivered before included.
    pub(super) limit: usize,
    /// Ids that must be kept out by the hook before `min_tokens`.
    pub(super) banned: Vec<u32>,
}

/// Puts a leg into TensorRT-LLM's words. `processors`: whether some change its logits.
///
/// # Errors
/// The leg's own fault, as of the engines of our own, and `Unsupported`.
pub(super) fn ask(
    leg: &Leg,
    config: &AdapterConfig,
    can: &Capabilities,
    processors: bool,
) -> Result<Asked, EngineError> {
    let limit = check(leg, config)?;
    let sampling = &*leg.sampling;
    let delivered = leg.tokens.len() - leg.prompt_len;
    // Those of a prefill nobody hears.
    let logprobs = sampling.logprobs.filter(|_| leg.part != Part::Prefill);
    let wants_logits = logprobs.is_some_and(|k| k > 0);
    able(leg, config, can, wants_logits)?;
    let (guide_kind, guide) = form(sampling, config)?;
    if guide_kind.is_some() && delivered > 0 {
        let what = "half an answer before its worker was lost, which guided decoding cannot go on with (ask again),";
        return Err(EngineError::BadNumbers { what: what.into() });
    }
    let lora = adapter(sampling, config)?;
    let stops = stop_ids(sampling);
    let end = stops.first().copied().filter(|_| logprobs.is_none());
    let words = &stops[usize::from(end.is_some())..];
    let min_left = (sampling.min_tokens as usize).saturating_sub(delivered);
    // An id that does not end the output is banned before `min_tokens` all the same.
    let mut banned: Vec<u32> = Vec::new();
    // Of ids that end the output, processors may leave nothing else: the hook sees that, TensorRT-LLM does not.
    let bans_end = end.is_some() && !processors;
    if min_left > 0 {
        let all = sampling.eos_ids.iter().chain(&sampling.stop_token_ids);
        banned.extend(
            all.filter(|&&id| !(bans_end && Some(id) == end) && (id as usize) < config.vocab),
        );
    }
    let vocab = config.vocab;
    let bias = || sampling.logit_bias.iter().filter(move |(id, _)| (*id as usize) < vocab);
    let options = RequestOptions {
        tokens: ids(&leg.tokens),
        max_tokens: (limit - delivered) as i32,
        sampling: SamplingOptions {
            min_tokens: (min_left > 0 && bans_end).then_some(min_left as i32).into(),
            ..how(leg, can, delivered)
        },
        end_id: end.map(|id| id as i32).into(),
        stop_words: words.iter().map(|&id| [id as i32]).collect(),
        bad_words: sampling.bad_words.iter().map(|word| ids(word)).collect(),
        guide_kind: guide_kind.map(str::to_owned).into(),
        guide: guide.map(str::to_owned).into(),
        lora_id: lora.map(|lora| lora.id).into(),
        bias_ids: bias().map(|&(id, _)| id as i32).collect(),
        bias_values: bias().map(|&(_, value)| value).collect(),
        // Never both: cancelling a request with both crashes releases up to 1.2.1.
        return_log_probs: logprobs.is_some() && !wants_logits,
        return_generation_logits: wants_logits,
        return_perf_metrics: true,
        priority: priority(sampling.priority).into(),
        cache_salt: (leg.salt != 0).then_some(leg.salt).into(),
        own_processor: processors || !banned.is_empty(),
        ..Default::default()
    };
    if options.own_processor && config.engine.parallel.mode.value == "ORCHESTRATOR" {
        let what =
            if processors { "logits_processors" } else { "min_tokens with several stop ids" };
        let why = "this engine computes in other processes, where no logits can be changed; leave it out, or use \
                   worker.trtllm.mode leader";
        return Err(unsupported(what, why));
    }
    Ok(Asked { options, limit, banned })
}

/// From 1, first, to 0; 0.5 for those who do not care. It is the same for any two that are far out.
fn priority(lower_first: i32) -> f32 {
    let far = f64::from(lower_first) / (1.0 + f64::from(lower_first).abs());
    (0.5 - far / 2.0) as f32
}

/// The form that the output must have.
fn form<'a>(
    sampling: &'a Sampling,
    config: &AdapterConfig,
) -> Result<(Option<&'static str>, Option<&'a str>), EngineError> {
    let Some(guide) = &sampling.guide else { return Ok((None, None)) };
    if !config.engine.guided.backend.some {
        let why = "this worker guides no decoding; leave it out or ask for \"text\", or set guided_decoding_backend \
                   in worker.trtllm.options";
        return Err(unsupported("response_format", why));
    }
    let (kind, text) = match guide {
        Guide::Json => ("JSON", None),
        Guide::JsonSchema(text) => ("JSON_SCHEMA", Some(text)),
        Guide::Regex(text) => ("REGEX", Some(text)),
        Guide::Grammar(text) => ("EBNF_GRAMMAR", Some(text)),
        Guide::StructuralTag(text) => ("STRUCTURAL_TAG", Some(text)),
    };
    Ok((Some(kind), text.map(String::as_str)))
}

/// The adapter of this name.
fn adapter<'a>(
    sampling: &Sampling,
    config: &'a AdapterConfig,
) -> Result<Option<&'a Lora>, EngineError> {
    let Some(name) = &sampling.lora else { return Ok(None) };
    let found = config.loras.iter().find(|lora| lora.name == *name);
    found.map(Some).ok_or_else(|| {
        let known: Vec<&str> = config.loras.iter().map(|lora| lora.name.as_str()).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        let why = format!(
            "{name:?} is no adapter of this worker, which has: {known} (worker.trtllm.loras)"
        );
        unsupported("lora", &why)
    })
}

/// Whether this engine and this release can do what others can.
fn able(
    leg: &Leg,
    config: &AdapterConfig,
    can: &Capabilities,
    wants_logits: bool,
) -> Result<(), EngineError> {
    if wants_logits && !config.engine.gather_generation_logits.value {
        let why = "this engine reports only the chosen token's; ask for 0, or have \
                   gather_generation_logits set for the worker";
        return Err(unsupported("log probabilities of other tokens", why));
    }
    if leg.salt != 0 && !can.cache_salt {
        let why = format!(
            "TensorRT-LLM {} cannot keep prefix caches apart; use a release with cacheSaltID",
            can.library
        );
        return Err(unsupported("a cache salt", &why));
    }
    Ok(())
}

/// Refuses what could never run; the output tokens at which the leg is complete.
fn check(leg: &Leg, config: &AdapterConfig) -> Result<usize, EngineError> {
    let (tokens, context, vocab) = (leg.tokens.len(), config.context, config.vocab);
    if tokens == 0 {
        return Err(EngineError::EmptyPrompt);
    }
    if tokens >= context {
        return Err(EngineError::PromptTooLong { tokens, context });
    }
    if tokens > config.max_input {
        return Err(EngineError::PromptTooLong { tokens, context: config.max_input });
    }
    let (output, max_tokens) = (tokens - leg.prompt_len, leg.max_tokens);
    if output >= max_tokens as usize {
        return Err(EngineError::NoTokensLeft { output, max_tokens });
    }
    if let Some(&token) = leg.tokens.iter().find(|&&token| token as usize >= vocab) {
        return Err(EngineError::UnknownToken { token, vocab });
    }
    if leg.part == Part::Prefill && config.handover.is_none() {
        let why = "this engine hands nothing over; set worker.role and cache_transceiver_config";
        return Err(unsupported("a prefill for another rank", why));
    }
    let total = leg.prompt_len.saturating_add(max_tokens as usize).min(context);
    let need = (total - 1).div_ceil(config.block_tokens.max(1)) as u32;
    if config.blocks > 0 && need > config.blocks {
        return Err(EngineError::PoolTooSmall { tokens: total, need, total: config.blocks });
    }
    Ok(total - leg.prompt_len)
}

/// How tokens are chosen.
fn how(leg: &Leg, can: &Capabilities, delivered: usize) -> SamplingOptions {
    let sampling = &*leg.sampling;
    let penalizes = sampling.presence_penalty != 0.0 || sampling.frequency_penalty != 0.0;
    let ignored = penalizes && can.prompt_ignore_length;
    let mut how = SamplingOptions {
        repetition_penalty: unless(sampling.repetition_penalty, 1.0).into(),
        presence_penalty: unless(sampling.presence_penalty, 0.0).into(),
        frequency_penalty: unless(sampling.frequency_penalty, 0.0).into(),
        prompt_ignore_length: ignored.then_some(leg.prompt_len as i32).into(),
        ..Default::default()
    };
    if sampling.temperature < GREEDY_BELOW || sampling.top_p <= 0.0 {
        how.top_k = 1.into();
        return how;
    }
    how.temperature = sampling.temperature.into();
    how.top_k = (sampling.top_k > 0).then_some(sampling.top_k.min(i32::MAX as u32) as i32).into();
    // With neither of them TensorRT-LLM takes the likeliest.
    how.top_p = sampling.top_p.min(1.0).into();
    how.min_p = unless(sampling.min_p, 0.0).into();
    how.seed = random_bits(sampling.seed, leg.choice, delivered as u64).into();
    how
}

fn ids(tokens: &[u32]) -> Vec<i32> {
    tokens.iter().map(|&token| token as i32).collect()
}

fn unless(value: f32, neutral: f32) -> Option<f32> {
    (value != neutral).then_some(value)
}

/// The ids that end the output, each once, the model's own first.
fn stop_ids(sampling: &Sampling) -> Vec<u32> {
    let own = sampling.eos_ids.iter().filter(|_| !sampling.ignore_eos);
    let mut ids = Vec::new();
    for &id in own.chain(&sampling.stop_token_ids) {
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    ids
}

/// Whether this id ends the output.
pub(super) fn is_stop(sampling: &Sampling, id: u32) -> bool {
    (!sampling.ignore_eos && sampling.eos_ids.contains(&id))
        || sampling.stop_token_ids.contains(&id)
}

pub(super) fn unsupported(what: &'static str, why: &str) -> EngineError {
    EngineError::Unsupported { what: what.into(), why: why.to_owned() }
}
