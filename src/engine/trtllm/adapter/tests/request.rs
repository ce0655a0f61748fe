//! Legs in TensorRT-LLM's words.

use super::super::request::{Asked, ask};
use super::{all_capabilities, config, leg, with};
use crate::engine::{EngineError, Leg, Part, Reach, Sampling};

fn asked(leg: &Leg) -> Asked {
    ask(leg, &config(), &all_capabilities(), false).unwrap()
}

fn refused(leg: &Leg) -> EngineError {
    let error = ask(leg, &config(), &all_capabilities(), false).unwrap_err();
    assert_eq!(error.reach(), Reach::Request);
    error
}

#[test]
fn greedy_takes_the_likeliest_and_nothing_else() {
    let asked = asked(&leg(1, &[1, 2, 3], 7));
    let sampling = asked.options.sampling;
    assert_eq!((sampling.top_k, sampling.temperature.some), (1.into(), false));
    assert_eq!((sampling.top_p.some, sampling.seed.some), (false, false));
    assert_eq!((asked.options.max_tokens, asked.limit), (7, 7));
    assert!(!asked.options.end_id.some && asked.options.stop_words.lengths.is_empty());
    assert!(!asked.options.own_processor && !asked.options.cache_salt.some);
}

#[test]
fn every_rule_of_sampling_is_passed_on() {
    let sampling = Sampling {
        temperature: 0.5,
        top_p: 0.9,
        top_k: 40,
        min_p: 0.1,
        presence_penalty: 0.2,
        frequency_penalty: 0.3,
        repetition_penalty: 1.1,
        logit_bias: vec![(3, 1.0), (4, -2.0), (9999, 5.0)],
        seed: 7,
        ..Sampling::default()
    };
    let base = with(leg(1, &[1, 2, 3], 7), sampling);
    let options = asked(&base).options;
    let how = &options.sampling;
    assert_eq!((how.temperature, how.top_p, how.top_k), (0.5.into(), 0.9.into(), 40.into()));
    assert_eq!((how.min_p, how.repetition_penalty), (0.1.into(), 1.1.into()));
    assert_eq!((how.presence_penalty, how.frequency_penalty), (0.2.into(), 0.3.into()));
    assert_eq!(how.prompt_ignore_length, 3.into());
    assert_eq!((options.bias_ids, options.bias_values), (vec![3, 4], vec![1.0, -2.0]));
    let seed = how.seed.value;
    let other = Leg { choice: 1, ..base.clone() };
    let moved = Leg { tokens: vec![1, 2, 3, 4], ..base };
    assert!(seed != asked(&other).options.sampling.seed.value);
    let how = asked(&moved).options.sampling;
    assert!(seed != how.seed.value, "the numbers that chose token 4 are not drawn again");
    assert_eq!(how.prompt_ignore_length, 3.into(), "what was delivered is penalized");
}

#[test]
fn without_truncation_all_tokens_can_be_drawn() {
    let all = with(leg(1, &[1], 7), Sampling { temperature: 1.0, ..Sampling::default() });
    let how = asked(&all).options.sampling;
    assert_eq!((how.top_p, how.top_k.some), (1.0.into(), false));
    let old = ask(&all, &config(), &Default::default(), false).unwrap();
    assert!(!old.options.sampling.prompt_ignore_length.some);
}

#[test]
fn the_first_end_is_the_end_id_and_the_others_are_stop_words() {
    let sampling =
        Sampling { eos_ids: vec![5, 6], stop_token_ids: vec![6, 7], ..Sampling::default() };
    let options = asked(&with(leg(1, &[1], 7), sampling.clone())).options;
    assert_eq!(options.end_id, 5.into());
    assert_eq!((options.stop_words.tokens, options.stop_words.lengths), (vec![6, 7], vec![1, 1]));
    let told = Sampling { logprobs: Some(0), ..sampling.clone() };
    let options = asked(&with(leg(1, &[1], 7), told)).options;
    assert!(!options.end_id.some && options.return_log_probs);
    assert_eq!(options.stop_words.tokens, [5, 6, 7]);
    let ignoring = Sampling { ignore_eos: true, ..sampling };
    let options = asked(&with(leg(1, &[1], 7), ignoring)).options;
    assert_eq!((options.end_id, options.stop_words.tokens), (6.into(), vec![7]));
}

#[test]
fn what_was_delivered_counts() {
    let sampling = Sampling { eos_ids: vec![5, 6], min_tokens: 4, ..Sampling::default() };
    let moved = Leg { tokens: vec![1, 2, 3, 9, 9], max_tokens: 6, ..leg(1, &[1, 2, 3], 6) };
    let asked_for = asked(&with(moved.clone(), sampling.clone()));
    assert_eq!((asked_for.options.max_tokens, asked_for.limit), (4, 6));
    assert_eq!(asked_for.options.sampling.min_tokens, 2.into());
    assert_eq!((asked_for.banned, asked_for.options.own_processor), (vec![6], true));
    let enough = Sampling { min_tokens: 2, ..sampling };
    let asked_for = asked(&with(moved.clone(), enough));
    assert!(!asked_for.options.sampling.min_tokens.some && asked_for.banned.is_empty());
    let full = Leg { max_tokens: 2, ..moved };
    assert!(matches!(refused(&full), EngineError::NoTokensLeft { output: 2, max_tokens: 2 }));
}

#[test]
fn the_end_of_the_context_is_the_end_of_the_output() {
    let prompt = vec![1; 2040];
    assert_eq!(asked(&leg(1, &prompt, 1000)).options.max_tokens, 8);
    assert!(matches!(refused(&leg(1, &[1; 2048], 1)), EngineError::PromptTooLong { .. }));
    assert!(matches!(refused(&leg(1, &[], 1)), EngineError::EmptyPrompt));
    assert!(matches!(refused(&leg(1, &[512], 1)), EngineError::UnknownToken { token: 512, .. }));
    let mut small = config();
    small.blocks = 2;
    let error = ask(&leg(1, &[1; 30], 10), &small, &all_capabilities(), false);
    assert!(matches!(error, Err(EngineError::PoolTooSmall { need: 3, total: 2, .. })));
}

#[test]
fn what_cannot_be_done_is_refused_by_name() {
    let salted = Leg { salt: 3, ..leg(1, &[1], 1) };
    assert_eq!(asked(&salted).options.cache_salt, 3.into());
    let error = ask(&salted, &config(), &Default::default(), false).unwrap_err();
    assert!(error.to_string().contains("a cache salt: TensorRT-LLM"), "{error}");
    let top = with(leg(1, &[1], 1), Sampling { logprobs: Some(3), ..Sampling::default() });
    assert!(refused(&top).to_string().contains("gather_generation_logits"));
    let mut gathers = config();
    gathers.engine.gather_generation_logits = true.into();
    let options = ask(&top, &gathers, &all_capabilities(), false).unwrap().options;
    assert!(options.return_generation_logits && !options.return_log_probs);
    let prefill = Leg { part: Part::Prefill, ..leg(1, &[1], 1) };
    assert!(matches!(refused(&prefill), EngineError::Unsupported { .. }));
    assert_eq!(asked(&Leg { part: Part::Decode { blocks: 1 }, ..leg(1, &[1], 1) }).limit, 1);
}
