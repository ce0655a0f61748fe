//! What chat and completions have in common: sampling, stopping, streaming, extensions.

use std::collections::BTreeMap;

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::fields::{self, Fields};
use super::{format, processors};
use crate::actors::models::ServedModel;
use crate::engine::processors::Wanted;
use crate::engine::{Guide, Sampling};
use crate::http::errors::{ApiError, Problem};

/// Stop strings of one request; OpenAI takes 4.
const MAX_STOP: usize = 16;
/// Bad words of one request, each at most so many bytes long.
const MAX_BAD_WORDS: (usize, usize) = (128, 256);
/// Stop ids of one request: enough for any model's special tokens.
const MAX_STOP_IDS: usize = 256;
/// The engine reports at most this many candidates a token.
const MAX_LOGPROBS: i64 = 20;

/// Bounds of `priority`.
const PRIORITY: (i64, i64) = (i32::MIN as i64, i32::MAX as i64);

/// What parsing needs to know of the configuration.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// `frontend.max_choices`: largest `n`, times the prompts of one request.
    pub max_choices: usize,
}

/// The checked common part of a request. `None` where the client said nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct Common {
    /// The name of the model asked for.
    pub model: String,
    /// Choices for each prompt.
    pub n: usize,
    /// Most output tokens of each choice.
    pub max_tokens: Option<u32>,
    /// How to choose tokens, what the model does not decide.
    pub sampling: SamplingFields,
    /// Stop strings.
    pub stop: Vec<String>,
    /// Whether a matched stop string is part of the text.
    pub include_stop: bool,
    /// Whether special tokens are left out of the text.
    pub skip_special_tokens: bool,
    /// Whether the tokenizer adds its own special tokens, such as a beginning of sequence.
    pub add_special_tokens: bool,
    /// Separates prefix caches.
    pub salt: u64,
    /// Events instead of one body.
    pub stream: bool,
    /// A last event with the usage.
    pub include_usage: bool,
    /// Say which ranks served each choice.
    pub return_ranks: bool,
    /// Say why those.
    pub explain_routing: bool,
    /// The rank that the client wants, as node/worker/rank.
    pub rank: Option<String>,
    /// When all ranks are full, lower goes first.
    pub priority: i32,
    /// Texts that must not be in the output.
    pub bad_words: Vec<String>,
    /// The session that the request belongs to.
    pub session: Option<String>,
}

/// [`Sampling`] as far as the client filled it in.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SamplingFields {
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<u32>,
    min_p: Option<f32>,
    seed: Option<u64>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    repetition_penalty: Option<f32>,
    logit_bias: BTreeMap<u32, f32>,
    stop_token_ids: Vec<u32>,
    min_tokens: u32,
    ignore_eos: bool,
    processors: Vec<Wanted>,
    guide: Option<Guide>,
    lora: Option<String>,
    /// Filled in by the endpoint: chat and completions ask in different ways.
    pub(super) logprobs: Option<u8>,
}

/// Reads everything but `logprobs`. `add_special_tokens` is the endpoint's default for it.
pub(super) fn read(
    fields: Fields<'_>,
    limits: Limits,
    add_special_tokens: bool,
) -> Result<Common, ApiError> {
    let stream = fields.flag("stream")?.unwrap_or(false);
    let common = Common {
        model: model(fields)?,
        n: n(fields, limits)?,
        max_tokens: max_tokens(fields)?,
        sampling: sampling(fields)?,
        stop: stop(fields)?,
        include_stop: fields.flag("include_stop_str_in_output")?.unwrap_or(false),
        skip_special_tokens: fields.flag("skip_special_tokens")?.unwrap_or(true),
        add_special_tokens: fields.flag("add_special_tokens")?.unwrap_or(add_special_tokens),
        salt: salt(fields)?,
        stream,
        include_usage: include_usage(fields, stream)?,
        return_ranks: fields.flag("return_ranks")?.unwrap_or(false),
        explain_routing: fields.flag("explain_routing")?.unwrap_or(false),
        rank: fields.text("rank")?.map(str::to_owned),
        priority: fields.integer("priority", PRIORITY.0, PRIORITY.1)?.unwrap_or(0) as i32,
        bad_words: bad_words(fields)?,
        session: fields.text("session")?.map(str::to_owned),
    };
    // Accepted and ignored, but not whatever their type.
    for name in ["user", "service_tier", "safety_identifier", "prompt_cache_key", "verbosity"] {
        fields.text(name)?;
    }
    for name in ["store", "parallel_tool_calls"] {
        fields.flag(name)?;
    }
    fields.object("metadata")?;
    let min = common.sampling.min_tokens;
    match common.max_tokens {
        Some(max) if min > max => {
            let rule = format!("must be at most max_tokens, which is {max}");
            Err(fields.problem(Problem::InvalidValue, "min_tokens", &rule))
        }
        _ => Ok(common),
    }
}

/// The model's name.
pub(super) fn model(fields: Fields<'_>) -> Result<String, ApiError> {
    match fields.text("model")? {
        Some(name) => Ok(name.to_owned()),
        None => Err(fields.missing("model", "name one of the models of GET /v1/models")),
    }
}

fn n(fields: Fields<'_>, limits: Limits) -> Result<usize, ApiError> {
    let most = i64::try_from(limits.max_choices).unwrap_or(i64::MAX);
    Ok(fields.integer("n", 1, most)?.unwrap_or(1) as usize)
}

/// `max_completion_tokens` is the newer name and wins.
fn max_tokens(fields: Fields<'_>) -> Result<Option<u32>, ApiError> {
    let old = fields.integer("max_tokens", 1, u32::MAX.into())?;
    let new = fields.integer("max_completion_tokens", 1, u32::MAX.into())?;
    Ok(new.or(old).map(|tokens| tokens as u32))
}

fn sampling(fields: Fields<'_>) -> Result<SamplingFields, ApiError> {
    let top_p = match fields.number("top_p", 0.0, 1.0)? {
        // What is too small for 32 bits is not 0.
        Some(0.0) if fields.get("top_p").and_then(Value::as_f64) > Some(0.0) => {
            Some(f32::MIN_POSITIVE)
        }
        Some(0.0) => {
            let rule = "must be a number above 0 and at most 1";
            return Err(fields.problem(Problem::InvalidValue, "top_p", rule));
        }
        number => number,
    };
    Ok(SamplingFields {
        temperature: fields.number("temperature", 0.0, 2.0)?,
        top_p,
        // -1 is how some clients say "all".
        top_k: fields.integer("top_k", -1, i64::from(i32::MAX))?.map(|k| k.max(0) as u32),
        min_p: fields.number("min_p", 0.0, 1.0)?,
        seed: seed(fields)?,
        presence_penalty: fields.number("presence_penalty", -2.0, 2.0)?,
        frequency_penalty: fields.number("frequency_penalty", -2.0, 2.0)?,
        // Much smaller ones would push logits beyond what 32 bits hold.
        repetition_penalty: fields.number("repetition_penalty", 0.01, 10.0)?,
        logit_bias: logit_bias(fields)?,
        stop_token_ids: stop_token_ids(fields)?,
        min_tokens: fields.integer("min_tokens", 0, u32::MAX.into())?.unwrap_or(0) as u32,
        ignore_eos: fields.flag("ignore_eos")?.unwrap_or(false),
        processors: processors::read(fields)?,
        guide: format::read(fields)?,
        lora: lora(fields)?,
        logprobs: None,
    })
}

/// Any 64-bit number, with or without a sign.
fn seed(fields: Fields<'_>) -> Result<Option<u64>, ApiError> {
    let Some(value) = fields.get("seed") else { return Ok(None) };
    let rule = "must be a whole number of at most 64 bits";
    match fields::whole(value) {
        Some(seed) if (i128::from(i64::MIN)..=i128::from(u64::MAX)).contains(&seed) => {
            Ok(Some(seed as u64))
        }
        Some(_) => Err(fields.problem(Problem::InvalidValue, "seed", rule)),
        None => Err(fields.problem(Problem::WrongType, "seed", rule)),
    }
}

fn logit_bias(fields: Fields<'_>) -> Result<BTreeMap<u32, f32>, ApiError> {
    let mut biases = BTreeMap::new();
    let Some(map) = fields.object("logit_bias")? else { return Ok(biases) };
    let inner = Fields::within(map, "logit_bias.");
    for name in map.keys() {
        let Ok(token) = name.parse() else {
            let rule = "the names in logit_bias must be token ids, such as \"42\"";
            return Err(inner.problem(Problem::InvalidValue, name, rule));
        };
        let Some(bias) = inner.number(name, -100.0, 100.0)? else {
            let rule = "must be a number from -100 to 100";
            return Err(inner.problem(Problem::WrongType, name, rule));
        };
        biases.insert(token, bias);
    }
    Ok(biases)
}

fn stop(fields: Fields<'_>) -> Result<Vec<String>, ApiError> {
    let rule = format!("must be a string or an array of at most {MAX_STOP} strings, none empty");
    let wrong = |problem| Err(fields.problem(problem, "stop", &rule));
    let stop = match fields.get("stop") {
        None => Vec::new(),
        Some(Value::String(one)) => vec![one.clone()],
        Some(Value::Array(many)) if many.len() <= MAX_STOP => {
            let texts: Option<Vec<_>> = many.iter().map(Value::as_str).collect();
            match texts {
                Some(texts) => texts.into_iter().map(str::to_owned).collect(),
                None => return wrong(Problem::WrongType),
            }
        }
        Some(Value::Array(_)) => return wrong(Problem::InvalidValue),
        Some(_) => return wrong(Problem::WrongType),
    };
    if stop.iter().any(String::is_empty) {
        return wrong(Problem::InvalidValue);
    }
    Ok(stop)
}

fn stop_token_ids(fields: Fields<'_>) -> Result<Vec<u32>, ApiError> {
    let Some(values) = fields.array("stop_token_ids")? else { return Ok(Vec::new()) };
    if values.len() > MAX_STOP_IDS {
        let rule = format!("must have at most {MAX_STOP_IDS} token ids");
        return Err(fields.problem(Problem::InvalidValue, "stop_token_ids", &rule));
    }
    let mut ids = Vec::with_capacity(values.len());
    for (i, value) in values.iter().enumerate() {
        match fields::whole(value).map(u32::try_from) {
            Some(Ok(id)) => ids.push(id),
            wrong => {
                let problem =
                    if wrong.is_some() { Problem::InvalidValue } else { Problem::WrongType };
                let param = format!("stop_token_ids[{i}]");
                return Err(fields::at(problem, &param, value, "must be a token id"));
            }
        }
    }
    Ok(ids)
}

fn bad_words(fields: Fields<'_>) -> Result<Vec<String>, ApiError> {
    let (most, longest) = MAX_BAD_WORDS;
    let rule = format!("must have at most {most} texts, each of 1 to {longest} bytes");
    let Some(values) = fields.array("bad_words")? else { return Ok(Vec::new()) };
    if values.len() > most {
        return Err(fields.problem(Problem::InvalidValue, "bad_words", &rule));
    }
    let word = |(i, value): (usize, &Value)| match value.as_str() {
        Some(word) if (1..=longest).contains(&word.len()) => Ok(word.to_owned()),
        wrong => {
            let problem = if wrong.is_some() { Problem::InvalidValue } else { Problem::WrongType };
            Err(fields::at(problem, &format!("bad_words[{i}]"), value, &rule))
        }
    };
    values.iter().enumerate().map(word).collect()
}

/// The name of an adapter.
fn lora(fields: Fields<'_>) -> Result<Option<String>, ApiError> {
    match fields.text("lora")? {
        Some("") => Err(fields.problem(Problem::InvalidValue, "lora", "must not be empty")),
        name => Ok(name.map(str::to_owned)),
    }
}

/// `cache_salt` as a number; 0 is everyone's, so no salt may become it.
fn salt(fields: Fields<'_>) -> Result<u64, ApiError> {
    let Some(salt) = fields.text("cache_salt")? else { return Ok(0) };
    if salt.is_empty() {
        return Err(fields.problem(Problem::InvalidValue, "cache_salt", "must not be empty"));
    }
    let digest: [u8; 32] = Sha256::digest(salt.as_bytes()).into();
    let (head, _) = digest.split_first_chunk().expect("a digest is longer than 8 bytes");
    Ok(u64::from_le_bytes(*head).max(1))
}

fn include_usage(fields: Fields<'_>, stream: bool) -> Result<bool, ApiError> {
    let Some(options) = fields.object("stream_options")? else { return Ok(false) };
    if !stream {
        let rule = "is only allowed together with stream = true";
        return Err(fields.problem(Problem::InvalidValue, "stream_options", rule));
    }
    let options = Fields::within(options, "stream_options.");
    options.flag("include_obfuscation")?;
    Ok(options.flag("include_usage")?.unwrap_or(false))
}

/// `top_logprobs` and the like: `0..=20`.
pub(super) fn logprobs_count(fields: Fields<'_>, name: &str) -> Result<Option<u8>, ApiError> {
    Ok(fields.integer(name, 0, MAX_LOGPROBS)?.map(|k| k as u8))
}

impl SamplingFields {
    /// Fills in what the client left out: from the model, or, for the seed, from `random`. Bad words and the
    /// priority are the caller's.
    ///
    /// # Errors
    /// A token id that the model's tokenizer does not know.
    pub(crate) fn resolve(
        &self,
        model: &ServedModel,
        vocab: usize,
        random: impl FnOnce() -> u64,
    ) -> Result<Sampling, ApiError> {
        known("logit_bias", self.logit_bias.keys(), vocab)?;
        known("stop_token_ids", &self.stop_token_ids, vocab)?;
        let base = &model.sampling;
        Ok(Sampling {
            temperature: self.temperature.unwrap_or(base.temperature),
            top_p: self.top_p.unwrap_or(base.top_p),
            top_k: self.top_k.unwrap_or(base.top_k),
            min_p: self.min_p.unwrap_or(base.min_p),
            seed: self.seed.unwrap_or_else(random),
            presence_penalty: self.presence_penalty.unwrap_or(base.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(base.frequency_penalty),
            repetition_penalty: self.repetition_penalty.unwrap_or(base.repetition_penalty),
            logit_bias: self.logit_bias.iter().map(|(&token, &bias)| (token, bias)).collect(),
            eos_ids: base.eos_ids.clone(),
            stop_token_ids: self.stop_token_ids.clone(),
            min_tokens: self.min_tokens,
            ignore_eos: self.ignore_eos,
            logprobs: self.logprobs,
            processors: self.processors.clone(),
            guide: self.guide.clone(),
            lora: self.lora.clone(),
            ..Sampling::default()
        })
    }
}

fn known<'a>(
    param: &str,
    ids: impl IntoIterator<Item = &'a u32>,
    vocab: usize,
) -> Result<(), ApiError> {
    match ids.into_iter().find(|&&id| id as usize >= vocab) {
        None => Ok(()),
        Some(id) => {
            let text =
                format!("{param}: token id {id} is outside the model's vocabulary of {vocab}");
            Err(ApiError::of(Problem::InvalidValue, param, text))
        }
    }
}
