//! Prompts that go from one engine to another, and what becomes of them when they do not arrive.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::super::ffi::{EngineOptions, Handoff, TransceiverOptions};
use super::super::super::handoff::{Identity, State};
use super::super::super::standin;
use super::super::super::tests::alone;
use super::super::handover::HandoverConfig;
use super::super::{Adapter, AdapterConfig};
use super::{PATIENCE, config, leg, lost, open, run, until, with};
use crate::engine::processors::{LogitsProcessor, Processors, SoFar, Wanted};
use crate::engine::{Engine, EngineError, Guide, HandedEnd, Leg, Part, Sampling, StepOutput};

/// Longer than a test lasts.
const NEVER: Duration = Duration::from_secs(600);
const SHORT: Duration = Duration::from_millis(200);

fn handing(lease: Duration, timeout: Duration, grace: Duration) -> AdapterConfig {
    let identity = Identity { tokens_per_block: 16, tp: 1, pp: 1, ..Identity::default() };
    let transceiver = TransceiverOptions { backend: "UCX".into(), ..Default::default() };
    AdapterConfig {
        engine: EngineOptions { transceiver, ..config().engine },
        handover: Some(HandoverConfig { identity, lease, timeout, grace, kept: None }),
        ..config()
    }
}

fn patient() -> AdapterConfig {
    handing(NEVER, NEVER, NEVER)
}

fn prompt() -> Vec<u32> {
    (1..50).collect()
}

fn prefill_leg(request: u64) -> Leg {
    Leg { part: Part::Prefill, ..leg(request, &prompt(), 6) }
}

fn decode_leg(request: u64) -> Leg {
    Leg { part: Part::Decode { blocks: 3 }, ..leg(request, &prompt(), 6) }
}

/// What an engine leaves of a prompt.
fn prefilled(engine: &mut Adapter, request: u64) -> Arc<[u8]> {
    engine.admit(prefill_leg(request)).unwrap();
    let mut all = StepOutput::default();
    until(engine, &mut all, |all| !all.handed.is_empty()).unwrap();
    assert_eq!((all.handed[0].leg, all.handed[0].blocks), (prefill_leg(request).id, 3));
    assert_eq!((all.tokens.len(), all.failed.len()), (0, 0));
    all.handed[0].state.clone()
}

/// Steps until the leg has ended: its tokens, and what became of its prompt.
fn decoded(engine: &mut Adapter) -> (Vec<u32>, Vec<HandedEnd>) {
    let mut all = StepOutput::default();
    until(engine, &mut all, |all| all.tokens.iter().any(|row| row.finish.is_some())).unwrap();
    assert!(all.failed.is_empty() && !all.started.is_empty(), "{all:?}");
    let tokens = all.tokens.iter().map(|row| row.token).collect();
    (tokens, all.fetched.iter().map(|(_, end)| *end).collect())
}

/// What one engine that does both says.
fn alone_with(leg: &Leg) -> Vec<u32> {
    let leg = Leg { part: Part::Whole, ..leg.clone() };
    run(&mut open(config()), &leg).iter().map(|row| row.token).collect()
}

fn stepping(engine: &mut Adapter, enough: impl Fn(&Adapter) -> bool) {
    let (end, mut out) = (Instant::now() + PATIENCE, StepOutput::default());
    while !enough(engine) {
        assert!(Instant::now() < end, "{:?} {:?}", engine.load(), engine.handover);
        engine.step(&mut out).unwrap();
        std::thread::yield_now();
    }
}

fn waits(engine: &Adapter) -> bool {
    engine.handover.as_ref().is_some_and(|handover| handover.has_timers())
}

/// Steps until it holds nothing of anybody's.
fn let_go(engine: &mut Adapter) {
    stepping(engine, |engine| !waits(engine));
    assert_eq!(engine.load().blocks_used, 0);
}

#[test]
fn a_prompt_that_is_handed_over_is_let_go_of() {
    let _alone = alone();
    let (mut prefill, mut decode) = (open(patient()), open(patient()));
    for request in 1..4 {
        let state = prefilled(&mut prefill, request);
        stepping(&mut prefill, |engine| engine.load().blocks_used >= 3);
        decode.admit_handed(decode_leg(request), state).unwrap();
        let want = (alone_with(&decode_leg(request)), vec![HandedEnd::Whole]);
        assert_eq!(decoded(&mut decode), want);
        // Nothing else would make an idle engine look.
        prefill.abort(prefill_leg(request).id);
        let_go(&mut prefill);
    }
    assert!(!waits(&decode));
}

#[test]
fn what_fails_on_the_way_is_computed_where_it_is_decoded() {
    let _alone = alone();
    let (mut prefill, mut decode) = (open(patient()), open(patient()));
    let state = prefilled(&mut prefill, 1);
    standin::set("transfer_error", "1").unwrap();
    decode.admit_handed(decode_leg(1), state).unwrap();
    let want = (alone_with(&decode_leg(1)), vec![HandedEnd::NotGiven]);
    assert_eq!(decoded(&mut decode), want);
    assert!(!waits(&decode));
}

#[test]
fn what_is_late_is_computed_where_it_is_decoded() {
    let _alone = alone();
    let (mut prefill, mut decode) = (open(patient()), open(handing(NEVER, SHORT, NEVER)));
    let state = prefilled(&mut prefill, 1);
    standin::set("transfer_stall", "1").unwrap();
    decode.admit_handed(decode_leg(1), state).unwrap();
    let began = Instant::now();
    let want = (alone_with(&decode_leg(1)), vec![HandedEnd::NotGiven]);
    assert_eq!(decoded(&mut decode), want);
    assert!(began.elapsed() >= SHORT);
    assert!(waits(&decode), "the first request has not ended");
    // It arrives after all, and is nobody's.
    standin::set("transfer_stall", "0").unwrap();
    let_go(&mut decode);
    assert!(decode.requests.is_empty() && decode.lost.is_none());
}

#[test]
fn what_has_lost_its_engine_is_computed_at_once() {
    let _alone = alone();
    let mut decode = open(handing(NEVER, NEVER, SHORT));
    let state = prefilled(&mut open(patient()), 1);
    standin::set("transfer_stall", "1").unwrap();
    decode.admit_handed(decode_leg(1), state).unwrap();
    for request in [1, 1, 9] {
        decode.not_given(decode_leg(request).id);
    }
    let want = (alone_with(&decode_leg(1)), vec![HandedEnd::NotGiven]);
    assert_eq!(decoded(&mut decode), want);
    assert!(waits(&decode) && decode.lost.is_none(), "TensorRT-LLM may take longer to notice");
    standin::set("transfer_stall", "0").unwrap();
    let_go(&mut decode);
}

#[test]
fn an_engine_that_never_ends_a_transfer_is_lost() {
    let _alone = alone();
    let (mut prefill, mut decode) = (open(patient()), open(handing(NEVER, NEVER, SHORT)));
    let state = prefilled(&mut prefill, 1);
    standin::set("transfer_stall", "1").unwrap();
    decode.admit_handed(decode_leg(1), state).unwrap();
    decode.abort(decode_leg(1).id);
    let error = lost(&mut decode);
    assert!(error.to_string().contains("has not ended within 0.2 s"), "{error}");
}

#[test]
fn a_decode_that_is_cancelled_while_its_prompt_comes_ends_with_it() {
    let _alone = alone();
    let (mut prefill, mut decode) = (open(patient()), open(patient()));
    let state = prefilled(&mut prefill, 1);
    standin::set("transfer_ms", "50").unwrap();
    decode.admit_handed(decode_leg(1), state).unwrap();
    decode.abort(decode_leg(1).id);
    assert!(waits(&decode), "it cannot be ended before");
    let_go(&mut decode);
    assert!(decode.lost.is_none() && decode.legs.is_empty());
}

#[test]
fn what_another_engine_left_is_computed_again() {
    let _alone = alone();
    let mut prefill = open(patient());
    let state = prefilled(&mut prefill, 1);
    let mut other = patient();
    other.handover.as_mut().unwrap().identity.kv_dtype = "fp8".into();
    let mut decode = open(other);
    let garbage: Arc<[u8]> = b"garbage".as_slice().into();
    // Those of the right mark that TensorRT-LLM refuses at once, and when it comes to them.
    let identity = &decode.handover.as_ref().unwrap().config.identity;
    let marked = |bytes| -> Arc<[u8]> {
        let state = vec![7; bytes];
        let handoff = Handoff { some: true, has_state: true, state, ..Handoff::default() };
        State::pack(identity, &handoff).unwrap().into()
    };
    let (short, long) = (marked(4), marked(40));
    for (request, state, end) in [
        (1, state, HandedEnd::NotGiven),
        (2, garbage, HandedEnd::NotGiven),
        (3, short, HandedEnd::NotGiven),
        (4, long, HandedEnd::NotTaken),
    ] {
        let again = decode_leg(request);
        decode.admit_handed(again.clone(), state.clone()).unwrap();
        decode.admit_handed(again, state).unwrap(); // changes nothing
        let want = (alone_with(&decode_leg(request)), vec![end]);
        assert_eq!(decoded(&mut decode), want);
    }
}

#[test]
fn a_leg_with_log_probabilities_is_computed_where_it_is_decoded() {
    let _alone = alone();
    let (mut prefill, mut decode) = (open(patient()), open(patient()));
    let state = prefilled(&mut prefill, 1);
    let told = Sampling { logprobs: Some(0), ..Sampling::default() };
    decode.admit_handed(with(decode_leg(1), told), state).unwrap();
    let want = (alone_with(&decode_leg(1)), vec![HandedEnd::NotTaken]);
    assert_eq!(decoded(&mut decode), want);
}

#[test]
fn a_guided_leg_is_computed_where_it_is_decoded() {
    let _alone = alone();
    let mut guiding = patient();
    guiding.engine.guided.backend = "XGRAMMAR".into();
    guiding.engine.guided.vocabulary = (0..512).map(|id| id.to_string()).collect();
    let (mut prefill, mut decode) = (open(patient()), open(guiding));
    let state = prefilled(&mut prefill, 1);
    let guided = Sampling { guide: Some(Guide::Json), ..Sampling::default() };
    decode.admit_handed(with(decode_leg(1), guided), state).unwrap();
    let want = (alone_with(&decode_leg(1)), vec![HandedEnd::NotTaken]);
    assert_eq!(decoded(&mut decode), want);
}

/// An engine that decodes one leg at a time, and has a long one.
fn busy(timeout: Duration, grace: Duration) -> Adapter {
    standin::set("step_us", "2000").unwrap();
    let mut config = handing(NEVER, timeout, grace);
    (config.engine.max_batch_size, config.max_running) = (1.into(), 1);
    let mut decode = open(config);
    decode.admit(leg(7, &[1, 2, 3], 400)).unwrap();
    let mut all = StepOutput::default();
    until(&mut decode, &mut all, |all| !all.started.is_empty()).unwrap();
    decode
}

#[test]
fn a_prompt_that_waits_for_its_turn_is_not_late() {
    let _alone = alone();
    let mut decode = busy(SHORT, NEVER);
    let mut prefill = open(patient());
    let state = prefilled(&mut prefill, 1);
    decode.admit_handed(decode_leg(1), state).unwrap();
    let began = Instant::now();
    let mut all = StepOutput::default();
    let ends = |all: &StepOutput| all.tokens.iter().filter(|row| row.finish.is_some()).count();
    until(&mut decode, &mut all, |all| ends(all) == 2).unwrap();
    assert!(began.elapsed() > 2 * SHORT, "it has waited for longer than a transfer may take");
    assert_eq!(all.fetched, [(decode_leg(1).id, HandedEnd::Whole)]);
}

#[test]
fn a_cancel_before_its_turn_does_not_cost_the_engine() {
    let _alone = alone();
    let mut decode = busy(NEVER, SHORT);
    let mut prefill = open(patient());
    let state = prefilled(&mut prefill, 1);
    decode.admit_handed(decode_leg(1), state).unwrap();
    decode.abort(decode_leg(1).id);
    assert!(waits(&decode));
    let all = super::ended(&mut decode, 1);
    assert_eq!((all.failed, all.fetched), (vec![], vec![]));
    let_go(&mut decode);
    assert!(decode.lost.is_none() && decode.requests.is_empty());
}

#[test]
fn a_prompt_that_is_not_pulled_has_until_the_executor_drops_it() {
    let _alone = alone();
    let mut config = handing(NEVER, NEVER, SHORT);
    config.engine.transceiver.transfer_timeout_ms = 1500.into();
    config.handover.as_mut().unwrap().kept = Some(Duration::from_millis(1500));
    let mut prefill = open(config);
    prefilled(&mut prefill, 1);
    let began = Instant::now();
    prefill.abort(prefill_leg(1).id);
    let_go(&mut prefill);
    assert!(began.elapsed() > 2 * SHORT, "the grace alone was not enough");
}

#[test]
fn a_prompt_whose_leg_has_ended_before_is_looked_after_as_well() {
    let _alone = alone();
    standin::set("late_cancel_steps", "50").unwrap();
    let mut prefill = open(patient());
    prefill.admit(prefill_leg(1)).unwrap();
    prefill.abort(prefill_leg(1).id);
    stepping(&mut prefill, |engine| engine.requests.is_empty());
    assert!(waits(&prefill), "the executor keeps it");
}

#[test]
fn a_handed_leg_whose_processor_fails_is_over() {
    struct Fails;
    impl LogitsProcessor for Fails {
        fn process(&self, _: SoFar<'_>, _: &mut [f32]) -> Result<(), String> {
            Err("not today".to_owned())
        }
    }
    let _alone = alone();
    let processors = Processors::new(|_: &str| Ok(Vec::new()));
    let processors = processors.with("fails", |_, _| Ok(Box::new(Fails)));
    let mut prefill = open(patient());
    let mut decode = Adapter::open(handing(NEVER, SHORT, NEVER), processors).unwrap();
    let state = prefilled(&mut prefill, 1);
    let fails = vec![Wanted { name: "fails".to_owned(), arguments: "{}".to_owned() }];
    let sampling = Sampling { processors: fails, ..Sampling::default() };
    decode.admit_handed(with(decode_leg(1), sampling), state).unwrap();
    let mut all = StepOutput::default();
    until(&mut decode, &mut all, |all| !all.failed.is_empty()).unwrap();
    assert!(all.failed[0].1.to_string().contains("not today"), "{:?}", all.failed);
    assert!(!waits(&decode), "it does not begin again when its prompt would be late");
    stepping(&mut decode, |engine| engine.requests.is_empty());
}

#[test]
fn a_failed_step_of_an_idle_engine_loses_it() {
    let _alone = alone();
    let mut prefill = open(patient());
    prefilled(&mut prefill, 1);
    standin::set("forward_error_from", "1").unwrap();
    prefill.abort(prefill_leg(1).id);
    let error = lost(&mut prefill);
    assert!(error.to_string().contains("a forward pass"), "{error}");
}

#[test]
fn a_prompt_that_nobody_fetches_is_given_up() {
    let _alone = alone();
    let mut config = handing(SHORT, NEVER, NEVER);
    config.engine.transceiver.transfer_timeout_ms = 100.into();
    let mut prefill = open(config);
    prefilled(&mut prefill, 1);
    let mut all = StepOutput::default();
    until(&mut prefill, &mut all, |all| !all.failed.is_empty()).unwrap();
    assert_eq!(all.failed, [(prefill_leg(1).id, EngineError::Unfetched { seconds: 0 })]);
    let_go(&mut prefill);
}

#[test]
fn an_engine_that_never_lets_go_of_a_prompt_is_lost() {
    let _alone = alone();
    // Without kv_transfer_timeout_ms nothing is let go of that nobody pulls.
    let mut prefill = open(handing(NEVER, NEVER, Duration::from_secs(1)));
    prefilled(&mut prefill, 1);
    prefill.abort(prefill_leg(1).id);
    let error = lost(&mut prefill);
    assert!(error.to_string().contains("the KV of 1 prefilled prompts stays pinned"), "{error}");
}
