//! Lives of legs against a stand-in that behaves.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::super::super::ffi::EngineOptions;
use super::super::super::standin;
use super::super::super::tests::alone;
use super::super::{Adapter, AdapterConfig};
use super::{config, ended, leg, open, rows, run, tokens, until, with};
use crate::engine::blocks::{BlockHasher, HashKey};
use crate::engine::processors::{Processors, Wanted};
use crate::engine::{
    Engine, FinishReason, KvEvent, Leg, PrefixCache, Sampling, StepOutput, Tier, TokenOut,
};

fn ids(rows: &[TokenOut]) -> Vec<u32> {
    rows.iter().map(|row| row.token).collect()
}

#[test]
fn many_legs_at_once_have_the_tokens_that_each_has_alone() {
    let _alone = alone();
    let mut engine = open(config());
    let legs: Vec<Leg> = (0..40).map(|i| leg(i, &[1, 2, i as u32], 3 + i as u32 % 5)).collect();
    let each: Vec<_> = legs.iter().map(|leg| ids(&run(&mut engine, leg))).collect();
    for leg in &legs {
        engine.admit(leg.clone()).unwrap();
        engine.admit(leg.clone()).unwrap();
    }
    let all = ended(&mut engine, legs.len());
    assert_eq!(all.started.len(), legs.len());
    for (leg, each) in legs.iter().zip(&each) {
        assert_eq!((&tokens(&all, leg), each.len()), (each, leg.max_tokens as usize));
        assert_eq!(rows(&all, leg).last().unwrap().finish, Some(FinishReason::Length));
    }
    assert_eq!((engine.load().running, engine.load().waiting), (0, 0));
}

#[test]
fn a_leg_ends_with_the_id_that_ends_it() {
    let _alone = alone();
    for in_output in ["0", "1"] {
        standin::set("end_in_output", in_output).unwrap();
        let mut engine = open(config());
        let free = ids(&run(&mut engine, &leg(1, &[1, 2, 3], 6)));
        let at = free.iter().position(|token| *token == free[3]).unwrap();
        for logprobs in [None, Some(0)] {
            let eos = Sampling { eos_ids: vec![free[3], 501], logprobs, ..Sampling::default() };
            let stop = Sampling {
                eos_ids: vec![501],
                stop_token_ids: vec![free[3]],
                logprobs,
                ..eos.clone()
            };
            for sampling in [eos, stop] {
                let got = run(&mut engine, &with(leg(2, &[1, 2, 3], 6), sampling));
                assert_eq!(ids(&got), free[..=at]);
                assert_eq!(got.last().unwrap().finish, Some(FinishReason::Stop));
                assert!(got.iter().all(|row| row.logprobs.is_some() == logprobs.is_some()));
            }
        }
    }
}

#[test]
fn no_end_comes_before_min_tokens() {
    let _alone = alone();
    let mut engine = open(config());
    let free = ids(&run(&mut engine, &leg(1, &[1, 2, 3], 6)));
    let stops = vec![free[0], free[1], free[2]];
    let sampling = Sampling { eos_ids: stops.clone(), min_tokens: 4, ..Sampling::default() };
    let got = ids(&run(&mut engine, &with(leg(2, &[1, 2, 3], 6), sampling)));
    assert!(got.len() >= 4 && got[..4].iter().all(|token| !stops.contains(token)), "{got:?}");
}

#[test]
fn log_probabilities_of_other_tokens_come_from_the_logits() {
    let _alone = alone();
    let gathers = EngineOptions { gather_generation_logits: true.into(), ..config().engine };
    let mut engine = open(AdapterConfig { engine: gathers, ..config() });
    let asks = |k| with(leg(1, &[1, 2], 4), Sampling { logprobs: Some(k), ..Sampling::default() });
    let plain = run(&mut engine, &asks(0));
    let top = run(&mut engine, &asks(3));
    assert_eq!(ids(&plain), ids(&top));
    for (plain, top) in plain.iter().zip(&top) {
        let (plain, logprobs) = (plain.logprobs.as_ref().unwrap(), top.logprobs.as_ref().unwrap());
        assert!((plain.chosen - logprobs.chosen).abs() < 1e-4, "{plain:?} {logprobs:?}");
        assert!(plain.top.is_empty() && logprobs.top.len() == 3);
        assert_eq!(logprobs.top[0].token, top.token);
    }
}

#[test]
fn an_aborted_leg_says_nothing_and_can_be_admitted_again() {
    let _alone = alone();
    standin::set("step_us", "500").unwrap();
    standin::set("late_cancel_steps", "5").unwrap();
    let mut engine = open(config());
    let (long, short) = (leg(1, &[1, 2], 400), leg(1, &[1, 2], 3));
    engine.admit(long.clone()).unwrap();
    let mut all = StepOutput::default();
    until(&mut engine, &mut all, |all| all.tokens.len() >= 3).unwrap();
    let begin = tokens(&all, &long);
    engine.abort(long.id);
    engine.abort(long.id);
    assert_eq!(engine.load().running + engine.load().waiting, 0);
    // What the first one still says is not taken for the second one's.
    let again = run(&mut engine, &short);
    assert_eq!(ids(&again), begin[..3]);
    let mut late = StepOutput::default();
    let end = std::time::Instant::now() + super::PATIENCE;
    while !engine.requests.is_empty() {
        assert!(std::time::Instant::now() < end, "the cancelled request does not end");
        engine.step(&mut late).unwrap();
        assert!(late.tokens.is_empty() && late.failed.is_empty());
    }
}

#[test]
fn whoever_drives_it_is_told_of_news() {
    let _alone = alone();
    let mut engine = open(config());
    let told = Arc::new(AtomicUsize::new(0));
    let count = told.clone();
    engine.on_ready(Arc::new(move || {
        count.fetch_add(1, Ordering::SeqCst);
    }));
    engine.admit(leg(1, &[1, 2], 1)).unwrap();
    ended(&mut engine, 1);
    assert!(told.load(Ordering::SeqCst) > 0);
    let mut out = StepOutput::default();
    while engine.has_work() {
        engine.step(&mut out).unwrap();
    }
    let before = told.load(Ordering::SeqCst);
    engine.admit(leg(2, &[1, 2], 1)).unwrap();
    let end = std::time::Instant::now() + super::PATIENCE;
    while told.load(Ordering::SeqCst) == before {
        assert!(std::time::Instant::now() < end && engine.lost.is_none(), "nobody was told");
        std::thread::yield_now();
    }
    assert!(engine.has_work());
}

#[test]
fn its_prefix_cache_is_told_under_the_names_of_prompts() {
    let _alone = alone();
    let mut engine = open(config());
    assert_eq!(engine.describe().prefix_cache, PrefixCache::Told);
    let prompt: Vec<u32> = (1..60).collect();
    let mut want = Vec::new();
    BlockHasher::new(&HashKey::default(), 16).extend(&prompt, 0, &mut want);
    let salted = Leg { salt: 9, ..leg(1, &[7; 40], 2) };
    for leg in [&salted, &leg(2, &prompt, 2)] {
        engine.admit(leg.clone()).unwrap();
    }
    let mut all = ended(&mut engine, 2);
    until(&mut engine, &mut all, |all| all.kv_events.len() >= want.len()).unwrap();
    let mut parent = None;
    for (event, &hash) in all.kv_events.iter().zip(&want) {
        assert_eq!(*event, KvEvent::Stored { hash, parent, tier: Tier::Device });
        parent = Some(hash);
    }
    let mut found = Vec::new();
    engine.cached_blocks(&mut found);
    assert_eq!(found.len(), want.len(), "nothing of the salted leg");
    let load = engine.load();
    assert_eq!((load.blocks_total, load.blocks_cached), (1024, 3));
}

#[test]
fn processors_change_logits_and_fail_alone() {
    let _alone = alone();
    let wants = |name: &str, arguments: &str| Sampling {
        processors: vec![Wanted { name: name.to_owned(), arguments: arguments.to_owned() }],
        ..Sampling::default()
    };
    let encoder = |text: &str| Ok(text.bytes().map(u32::from).collect());
    let processors = Processors::new(encoder).with("broken", |_, _| {
        struct Broken;
        impl crate::engine::processors::LogitsProcessor for Broken {
            fn process(
                &self,
                so_far: crate::engine::processors::SoFar<'_>,
                logits: &mut [f32],
            ) -> Result<(), String> {
                logits.fill(f32::NAN);
                assert!(so_far.beams[0].len() < 4, "three tokens are enough");
                logits.fill(0.0);
                Ok(())
            }
        }
        Ok(Box::new(Broken))
    });
    let mut engine = Adapter::open(config(), processors).unwrap();
    let plain = leg(1, &[1, 2], 6);
    let forced = with(leg(2, &[1, 2], 3), wants("forced_text", r#"{"text": "abc"}"#));
    let broken = with(leg(3, &[1, 2], 6), wants("broken", "{}"));
    let alone = ids(&run(&mut engine, &plain));
    for leg in [&plain, &forced, &broken] {
        engine.admit(leg.clone()).unwrap();
    }
    let all = ended(&mut engine, 3);
    assert_eq!(tokens(&all, &plain), alone);
    assert_eq!(tokens(&all, &forced), [97, 98, 99]);
    let [(id, error)] = all.failed.as_slice() else { panic!("{:?}", all.failed) };
    assert!(*id == broken.id && error.to_string().contains("broken: it panicked"), "{error}");
    let unknown = with(leg(4, &[1], 1), wants("other", "{}"));
    assert!(engine.admit(unknown).unwrap_err().to_string().contains("other"));
}

#[test]
fn an_engine_ends_in_order_with_legs_in_it() {
    let _alone = alone();
    standin::set("step_us", "1000").unwrap();
    let mut engine = open(config());
    for i in 0..20 {
        engine.admit(leg(i, &[1, 2, 3], 1000)).unwrap();
    }
    let weak = Arc::downgrade(engine.engine.as_ref().unwrap());
    drop(engine);
    assert!(weak.upgrade().is_none(), "the executor is gone");
}
