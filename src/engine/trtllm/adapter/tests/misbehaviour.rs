//! What TensorRT-LLM is known to do wrong, one after the other, by the stand-in.

use std::time::{Duration, Instant};

use super::super::super::standin;
use super::super::super::tests::alone;
use super::super::{Adapter, AdapterConfig};
use super::{config, ended, leg, lost, open, rows, run, tokens, until};
use crate::engine::processors::Processors;
use crate::engine::{Engine, EngineError, FinishReason, KvEvent, Reach, StepOutput};

#[test]
fn a_refused_request_fails_alone() {
    let _alone = alone();
    standin::set("request_error_every", "2").unwrap();
    let mut engine = open(config());
    let legs: Vec<_> = (0..4).map(|i| leg(i, &[1, 2, 3], 3)).collect();
    for leg in &legs {
        engine.admit(leg.clone()).unwrap();
    }
    let all = ended(&mut engine, 4);
    assert_eq!(all.failed.len(), 2);
    for (_, error) in &all.failed {
        assert_eq!(error.reach(), Reach::Request);
        assert!(error.to_string().contains("refused on request"), "{error}");
    }
    assert!(engine.legs.is_empty() && engine.load().waiting == 0);
}

#[test]
fn a_failed_step_loses_the_engine() {
    let _alone = alone();
    standin::set("forward_error_at", "4").unwrap();
    let mut engine = open(config());
    for i in 0..3 {
        engine.admit(leg(i, &[1, 2, 3], 100)).unwrap();
    }
    let error = lost(&mut engine);
    assert!(error.to_string().contains("CUDA runtime error"), "{error}");
    assert_eq!(error.reach(), Reach::Engine);
    assert!(engine.has_work(), "it goes on saying so");
    assert_eq!(engine.step(&mut StepOutput::default()), Err(error.clone()));
    assert_eq!(engine.admit(leg(9, &[1], 1)), Err(error));
    engine.abort(leg(1, &[], 1).id);
}

#[test]
fn empty_final_rows_change_nothing() {
    let _alone = alone();
    let mut engine = open(config());
    let want = run(&mut engine, &leg(1, &[1, 2, 3], 6));
    standin::set("zero_final", "1").unwrap();
    let got = run(&mut engine, &leg(1, &[1, 2, 3], 6));
    assert_eq!(want, got);
    assert_eq!(got.last().unwrap().finish, Some(FinishReason::Length));
}

#[test]
fn several_tokens_in_a_step_are_the_tokens_of_several_steps() {
    let _alone = alone();
    let mut engine = open(config());
    let want = run(&mut engine, &leg(1, &[1, 2, 3], 11));
    let told = crate::engine::Sampling { logprobs: Some(0), ..Default::default() };
    let told = super::with(leg(2, &[1, 2, 3], 11), told);
    let want_told = run(&mut engine, &told);
    standin::set("tokens_per_step", "4").unwrap();
    assert_eq!(run(&mut engine, &leg(1, &[1, 2, 3], 11)), want);
    assert_eq!(run(&mut engine, &told), want_told, "log probabilities are told from the start");
}

#[test]
fn a_full_queue_is_pressure() {
    let _alone = alone();
    standin::set("queue_full", "1").unwrap();
    let mut engine = open(config());
    let error = engine.admit(leg(1, &[1], 1)).unwrap_err();
    assert_eq!(error.reach(), Reach::Retry);
    standin::reset();
    standin::set("step_us", "2000").unwrap();
    let mut engine = open(AdapterConfig { max_waiting: 2, ..config() });
    for i in 0..10 {
        engine.admit(leg(i, &[1, 2, 3], 1000)).unwrap();
    }
    let error = engine.admit(leg(10, &[1], 1)).unwrap_err();
    assert!(matches!(error, EngineError::QueueFull { waiting: 2, limit: 2 }));
    let mut all = StepOutput::default();
    until(&mut engine, &mut all, |all| all.started.len() == 8).unwrap();
    assert_eq!((engine.load().running, engine.load().waiting), (8, 2));
    assert_eq!(engine.load().waiting_tokens, 6);
}

#[test]
fn an_engine_that_hangs_is_lost_and_left_behind() {
    let _alone = alone();
    standin::set("wedge_at", "3").unwrap();
    let mut engine = open(AdapterConfig { step_timeout: Duration::from_millis(300), ..config() });
    let leg = leg(1, &[1, 2, 3], 100);
    engine.admit(leg.clone()).unwrap();
    let began = Instant::now();
    let error = lost(&mut engine);
    assert!(error.to_string().contains("no step for 0.3 s with 1 legs"), "{error}");
    assert!(began.elapsed() >= Duration::from_millis(300));
    let began = Instant::now();
    drop(engine);
    assert!(began.elapsed() < Duration::from_secs(5), "nobody waits for what hangs");
}

#[test]
fn an_idle_engine_is_not_taken_for_one_that_hangs() {
    let _alone = alone();
    let mut engine = open(AdapterConfig { step_timeout: Duration::from_millis(100), ..config() });
    let until = Instant::now() + Duration::from_millis(400);
    while Instant::now() < until {
        assert!(engine.step(&mut StepOutput::default()).is_ok());
        std::thread::yield_now();
    }
    assert_eq!(run(&mut engine, &leg(1, &[1, 2], 3)).len(), 3);
}

#[test]
fn whatever_is_thrown_loses_the_engine() {
    let _alone = alone();
    for (call, name) in [
        ("await", "Executor.awaitResponses"),
        ("stats", "Executor.getLatestIterationStats"),
        ("events", "KVCacheEventManager.getLatestEvents"),
    ] {
        standin::reset();
        let mut engine = open(config());
        standin::set("throw_kind", "int").unwrap();
        standin::set("throw_in", call).unwrap();
        let error = lost(&mut engine);
        assert!(error.to_string().contains(name), "{error}");
        assert!(engine.admit(leg(1, &[1], 1)).is_err());
    }
    for call in ["enqueue", "cancel"] {
        standin::reset();
        let mut engine = open(config());
        engine.admit(leg(1, &[1], 2000)).unwrap();
        standin::set("throw_in", call).unwrap();
        assert_eq!(engine.admit(leg(2, &[1], 1)).is_err(), call == "enqueue");
        engine.abort(leg(1, &[], 1).id);
        assert!(engine.has_work(), "{call}");
        assert_eq!(lost(&mut engine).reach(), Reach::Engine);
    }
    standin::set("throw_in", "open").unwrap();
    let error = Adapter::open(config(), Processors::default()).unwrap_err();
    assert!(error.to_string().contains("during loading: Executor"), "{error}");
    standin::reset();
    standin::set("open_error", "no such engine").unwrap();
    let error = Adapter::open(config(), Processors::default()).unwrap_err();
    assert!(error.to_string().contains("no such engine"), "{error}");
}

#[test]
fn rows_of_nobody_are_nobodys() {
    let _alone = alone();
    standin::set("stray_every", "1").unwrap();
    let mut engine = open(config());
    let leg = leg(1, &[1, 2, 3], 8);
    engine.admit(leg.clone()).unwrap();
    let all = ended(&mut engine, 1);
    assert_eq!((tokens(&all, &leg).len(), all.failed.len()), (8, 0));
    assert_eq!(rows(&all, &leg).filter(|row| row.finish.is_some()).count(), 1);
}

#[test]
fn lost_and_doubled_events_leave_no_name_that_was_withdrawn() {
    let _alone = alone();
    // Not a divisor of what a leg tells, or it would always be the same event.
    standin::set("kv_gap_every", "7").unwrap();
    standin::set("kv_windows", "2").unwrap();
    let mut engine = open(config());
    let mut all = StepOutput::default();
    for i in 0..30 {
        let prompt: Vec<u32> = (0..40).map(|token| (token * 7 + i) % 500).collect();
        engine.admit(leg(u64::from(i), &prompt, 20)).unwrap();
        let ends = |all: &StepOutput| {
            all.tokens.iter().filter(|row| row.finish.is_some()).count() as u32 > i
        };
        until(&mut engine, &mut all, ends).unwrap();
    }
    let removed = |event: &KvEvent| matches!(event, KvEvent::Removed { .. });
    until(&mut engine, &mut all, |all| all.kv_events.iter().any(removed)).unwrap();
    let mut told = std::collections::BTreeMap::new();
    for event in &all.kv_events {
        match event.change() {
            (hash, Some(tier)) => drop(told.insert(hash, tier)),
            (hash, None) => assert!(told.remove(&hash).is_some(), "removed and never told"),
        }
    }
    let mut found = Vec::new();
    engine.cached_blocks(&mut found);
    assert_eq!(told, found.into_iter().collect(), "events add up to what is found");
}
