//! Tokens through the stand-in are those of the native engine, whatever the executor does with the work.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::*;
use crate::engine::blocks::HashKey;
use crate::engine::embedded::Embedded;
use crate::engine::schedule::Limits;
use crate::engine::trtllm::ffi::{
    Admission, Engine, EngineOptions, Fault, Output, Phase, RequestOptions, SamplingOptions,
    TransceiverOptions,
};
use crate::engine::trtllm::tests::{alone, engine, prompt, run};
use crate::engine::{Engine as _, Leg, Part, StepOutput};
use crate::ids::{LegId, RequestId};

/// Ids of the tokenizer of the tiny model.
const KNOWN: usize = 2041;
const TOKENS: i32 = 20;

fn repo(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn serve() {
    let options =
        ServeOptions { threads: 2, known_ids: Some(KNOWN), sequences: 24, ..Default::default() };
    serve_model(&repo("models/cuelight-tiny"), options).unwrap();
}

fn options() -> EngineOptions {
    EngineOptions {
        engine_dir: repo("tests/trtllm/engine").to_string_lossy().into_owned(),
        vocab_size: 4096,
        ..Default::default()
    }
}

/// Prompts of many lengths; the last two begin as the one before them.
fn prompts() -> Vec<Vec<i32>> {
    let ids = |which: usize, len: usize| -> Vec<i32> {
        (0..len).map(|i| ((which * 977 + i * i * 31 + i * 7) % (KNOWN - 3) + 3) as i32).collect()
    };
    let mut all: Vec<_> =
        [1, 5, 15, 16, 17, 40, 700].iter().enumerate().map(|(i, len)| ids(i, *len)).collect();
    let long = ids(9, 200);
    all.push([&long[..], &[77, 78]].concat());
    all.push([&long[..180], &[91, 92, 93]].concat());
    all
}

/// Tokens and log probabilities of the native engine.
fn native(prompt: &[i32], sampling: Sampling) -> (Vec<i32>, Vec<f32>) {
    let options = Options {
        threads: 2,
        kv: KvSize::Blocks(64),
        vocab_limit: Some(KNOWN),
        ..Options::default()
    };
    let model = NativeModel::load(&repo("models/cuelight-tiny"), options).unwrap();
    let mut engine = Embedded::new(model, Limits::default(), &HashKey::default());
    let leg = Leg {
        id: LegId { request: RequestId(1), choice: 0, attempt: 0 },
        prompt_len: prompt.len(),
        tokens: prompt.iter().map(|token| token.cast_unsigned()).collect(),
        max_tokens: TOKENS as u32,
        choice: 0,
        sampling: Arc::new(Sampling { ignore_eos: true, logprobs: Some(0), ..sampling }),
        salt: 0,
        part: Part::Whole,
    };
    engine.admit(leg).unwrap();
    let (mut tokens, mut logprobs, mut out) = (Vec::new(), Vec::new(), StepOutput::default());
    while engine.has_work() {
        out.clear();
        engine.step(&mut out).unwrap();
        for one in &out.tokens {
            tokens.push(one.token.cast_signed());
            logprobs.push(one.logprobs.as_ref().unwrap().chosen);
        }
    }
    assert_eq!(tokens.len(), TOKENS as usize);
    (tokens, logprobs)
}

fn expected() -> Vec<Vec<i32>> {
    prompts().iter().map(|prompt| native(prompt, Sampling::default()).0).collect()
}

/// Tokens of all requests, which are there at once; at most a minute.
fn run_all(engine: &Engine, requests: &[RequestOptions]) -> Vec<Vec<i32>> {
    let mut places = HashMap::new();
    for (place, request) in requests.iter().enumerate() {
        let admitted = engine.enqueue(request).unwrap();
        assert_eq!(admitted.status, Admission::Accepted, "{}", admitted.text);
        places.insert(admitted.request, place);
    }
    let (mut tokens, mut out) = (vec![Vec::new(); requests.len()], Output::default());
    let until = Instant::now() + Duration::from_secs(60);
    while !places.is_empty() {
        assert!(Instant::now() < until, "{} requests have not ended", places.len());
        engine.poll(20, &mut out).unwrap();
        for row in &out.rows {
            assert_eq!(row.fault, Fault::None, "{:?}", out.errors);
            let from = row.tokens_at as usize;
            tokens[places[&row.request]]
                .extend_from_slice(&out.tokens[from..from + row.tokens_len as usize]);
            if row.is_final {
                places.remove(&row.request);
            }
        }
    }
    tokens
}

fn requests() -> Vec<RequestOptions> {
    prompts().iter().map(|tokens| prompt(tokens, TOKENS)).collect()
}

#[test]
fn greedy_tokens_are_the_native_engines_alone_and_in_a_batch() {
    let _alone = alone();
    serve();
    let (engine, expected) = (engine(&options()), expected());
    for (request, tokens) in requests().iter().zip(&expected) {
        assert_eq!(&run(&engine, request).0, tokens, "alone: {} tokens", request.tokens.len());
    }
    assert_eq!(run_all(&engine, &requests()), expected);
}

#[test]
fn they_are_with_chunked_prompts_and_with_prefixes_from_the_cache() {
    let _alone = alone();
    serve();
    let chunked = EngineOptions {
        max_num_tokens: 48.into(),
        enable_chunked_context: true.into(),
        ..options()
    };
    let (engine, expected) = (engine(&chunked), expected());
    assert_eq!(run_all(&engine, &requests()), expected);
    let last = RequestOptions { return_perf_metrics: true, ..requests().pop().unwrap() };
    let (tokens, row, out) = run(&engine, &last);
    assert!(out.metrics[row.metrics as usize].reused_blocks > 5);
    assert_eq!(Some(&tokens), expected.last());
}

#[test]
fn they_are_when_one_engine_prefills_and_another_decodes() {
    let _alone = alone();
    serve();
    let transceiver = TransceiverOptions { backend: "UCX".into(), ..Default::default() };
    let options = EngineOptions { transceiver, ..options() };
    // Both name their first request alike.
    let (prefill, decode) = (engine(&options), engine(&options));
    for (whole, tokens) in requests().into_iter().zip(expected()) {
        let first = RequestOptions { phase: Phase::ContextOnly, ..whole };
        let (_, row, out) = run(&prefill, &first);
        let handoff = out.handoffs[row.handoff as usize].clone();
        assert_eq!(handoff.first_tokens, tokens[..1]);
        let second = RequestOptions { phase: Phase::GenerationOnly, handoff, ..first };
        assert_eq!(run(&decode, &second).0, tokens);
    }
}

#[test]
fn engines_that_compute_at_the_same_time_do_not_mix_their_sequences() {
    let _alone = alone();
    serve();
    let (one, other) = (engine(&options()), engine(&options()));
    let (forwards, expected) = (requests(), expected());
    let backwards: Vec<_> = forwards.iter().rev().cloned().collect();
    let (there, back) = std::thread::scope(|scope| {
        let there = scope.spawn(|| run_all(&one, &forwards));
        let back = scope.spawn(|| run_all(&other, &backwards));
        (there.join().unwrap(), back.join().unwrap())
    });
    assert_eq!(there, expected);
    assert_eq!(back.into_iter().rev().collect::<Vec<_>>(), expected);
}

#[test]
fn drawn_tokens_are_known_ones_and_the_seeds() {
    let _alone = alone();
    serve();
    let engine = engine(&options());
    let draw = |seed: u64| {
        let sampling = SamplingOptions {
            // So hot that half of all draws would fall on ids that the tokenizer does not have.
            temperature: 100.0.into(),
            top_p: 1.0.into(),
            seed: seed.into(),
            ..Default::default()
        };
        run(&engine, &RequestOptions { sampling, ..prompt(&[5, 6, 7], 60) }).0
    };
    let tokens = draw(7);
    assert_eq!(tokens.len(), 60);
    assert!(tokens.iter().all(|token| (0..KNOWN as i32).contains(token)), "{tokens:?}");
    assert_eq!(draw(7), tokens);
    assert_ne!(draw(8), tokens);
}

#[test]
fn log_probabilities_are_close_to_the_native_engines() {
    let _alone = alone();
    serve();
    let engine = engine(&options());
    let tokens = &prompts()[5];
    let likeliest = native(tokens, Sampling::default()).0[0];
    // With a bias the stand-in asks for logits, without one for the token.
    for bias in [vec![], vec![(likeliest, -9.0)]] {
        let request = RequestOptions {
            return_log_probs: true,
            streaming: true,
            bias_ids: bias.iter().map(|one| one.0).collect(),
            bias_values: bias.iter().map(|one| one.1).collect(),
            ..prompt(tokens, TOKENS)
        };
        let admitted = engine.enqueue(&request).unwrap();
        let (mut got, mut out, mut over) = ((Vec::new(), Vec::new()), Output::default(), false);
        let until = Instant::now() + Duration::from_secs(20);
        while !over && Instant::now() < until {
            engine.poll(20, &mut out).unwrap();
            got.0.extend_from_slice(&out.tokens);
            got.1.extend_from_slice(&out.log_probs);
            over = out.rows.iter().any(|row| row.request == admitted.request && row.is_final);
        }
        let logit_bias = bias.iter().map(|one| (one.0.cast_unsigned(), one.1)).collect();
        let expected = native(tokens, Sampling { logit_bias, ..Sampling::default() });
        assert_eq!(got.0, expected.0);
        assert_eq!(got.1.len(), expected.1.len());
        for (got, expected) in got.1.iter().zip(&expected.1) {
            assert!((got - expected).abs() < 1e-4, "{got} and not {expected}");
        }
    }
}

#[test]
fn tokens_without_a_place_in_the_model_fail_the_step_and_blocks_come_back() {
    let options = ServeOptions {
        threads: 1,
        known_ids: Some(KNOWN),
        max_context: Some(64),
        sequences: 1,
        ..Default::default()
    };
    let source = Arc::new(ModelSource::load(&repo("models/cuelight-tiny"), &options).unwrap());
    let tokens = [4; 65];
    let row = |sequence, len, known_len| SourceRow {
        sequence,
        tokens: &tokens[..len],
        prompt_len: 1,
        known_len,
        logits: None,
        token: -1,
        logprob: 0.0,
    };
    let step = |rows: &mut [SourceRow<'_>]| source.forward("engine", rows);
    let mut first = [row(1, 40, 0)];
    assert!(step(&mut first));
    assert!(!step(&mut [row(2, 32, 0)]), "three of four blocks are taken");
    source.forget("engine", 2);
    assert!(step(&mut [row(3, 16, 0), row(1, 41, 40)]));
    source.forget("engine", 1);
    source.forget("engine", 3);
    source.forget("engine", 3);
    assert!(!step(&mut [row(4, 65, 0)]), "longer than the context");
    assert!(!step(&mut [row(4, 0, 0)]));
    assert!(!step(&mut [SourceRow { tokens: &[4096], ..row(4, 1, 0) }]));
    assert!(!step(&mut [SourceRow { logits: Some(&mut [0.0; 2040]), ..row(4, 1, 0) }]));
    source.forget("engine", 4);
    // Ids that only the model knows may be in a prompt. What is asked again is the same again.
    let mut logits = vec![0.0; 4100];
    let with = SourceRow { tokens: &[4, 4000], logits: Some(&mut logits), ..row(5, 2, 0) };
    assert!(step(&mut [with]));
    assert!(logits[..KNOWN].iter().all(|logit| logit.is_finite()));
    assert!(logits[KNOWN..].iter().all(|logit| *logit == f32::NEG_INFINITY));
    source.forget("engine", 5);
    for known_len in [0, 40] {
        let mut again = [row(6, 40, known_len)];
        assert!(step(&mut again));
        assert_eq!((again[0].token, again[0].logprob), (first[0].token, first[0].logprob));
    }
    source.forget("engine", 6);
    assert_eq!(source.0.lock().unwrap().free.len(), 4);
}
