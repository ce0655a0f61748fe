//! What only some engines can do: forms of the output, bad words, adapters, priorities.

use super::super::super::ffi::RequestOptions;
use super::super::super::standin;
use super::super::super::tests::alone;
use super::super::request::ask;
use super::super::{AdapterConfig, Lora};
use super::{all_capabilities, config, ended, leg, open, run, with};
use crate::engine::{Engine, EngineError, Guide, Leg, Reach, Sampling, TokenOut};

fn asked(sampling: Sampling, config: &AdapterConfig) -> Result<RequestOptions, EngineError> {
    let leg = with(leg(1, &[1, 2, 3], 6), sampling);
    ask(&leg, config, &all_capabilities(), false).map(|asked| asked.options)
}

fn guiding() -> AdapterConfig {
    let mut guiding = config();
    guiding.engine.guided.backend = "XGRAMMAR".into();
    guiding.engine.guided.vocabulary = (0..512).map(|id| id.to_string()).collect();
    guiding
}

fn guided(guide: Guide) -> Sampling {
    Sampling { guide: Some(guide), ..Sampling::default() }
}

fn lora() -> Lora {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/trtllm/lora");
    Lora::read("french", folder.as_ref()).unwrap()
}

fn adapted(request: u64) -> Leg {
    let sampling = Sampling { lora: Some("french".to_owned()), ..Sampling::default() };
    with(leg(request, &[1, 2, 3], 6), sampling)
}

fn ids(rows: &[TokenOut]) -> Vec<u32> {
    rows.iter().map(|row| row.token).collect()
}

#[test]
fn forms_cross_in_tensorrt_llms_words() {
    for (guide, kind, text) in [
        (Guide::Json, "JSON", None),
        (Guide::JsonSchema("{}".into()), "JSON_SCHEMA", Some("{}")),
        (Guide::Regex("a+".into()), "REGEX", Some("a+")),
        (Guide::Grammar("r ::= x".into()), "EBNF_GRAMMAR", Some("r ::= x")),
        (Guide::StructuralTag("{}".into()), "STRUCTURAL_TAG", Some("{}")),
    ] {
        let options = asked(guided(guide), &guiding()).unwrap();
        assert_eq!(options.guide_kind, kind.into());
        assert_eq!(options.guide, text.map(str::to_owned).into());
    }
    let error = asked(guided(Guide::Json), &config()).unwrap_err();
    assert_eq!(error.reach(), Reach::Request);
    assert!(
        error.to_string().contains("response_format: this worker guides no decoding"),
        "{error}"
    );
}

#[test]
fn a_form_does_not_go_on_in_the_middle_of_an_answer() {
    let mut moved = with(leg(1, &[1, 2, 3], 6), guided(Guide::Json));
    moved.tokens.push(4);
    let error = ask(&moved, &guiding(), &all_capabilities(), false).unwrap_err();
    assert_eq!(error.reach(), Reach::Request);
    assert!(error.to_string().contains("guided decoding cannot go on with (ask again)"), "{error}");
}

#[test]
fn an_adapter_that_was_refused_is_sent_again() {
    let _alone = alone();
    let mut engine = open(AdapterConfig { loras: vec![lora()], ..config() });
    standin::set("queue_full", "1").unwrap();
    assert!(matches!(engine.admit(adapted(1)), Err(EngineError::QueueFull { .. })));
    standin::set("queue_full", "0").unwrap();
    assert_eq!(run(&mut engine, &adapted(1)).len(), 6);
    assert_eq!(engine.requests.len(), 0);
}

#[test]
fn a_form_that_cannot_be_read_ends_its_request_alone() {
    let _alone = alone();
    let mut engine = open(guiding());
    engine.admit(with(leg(1, &[1], 4), guided(Guide::JsonSchema("no schema".into())))).unwrap();
    engine.admit(with(leg(2, &[1], 4), guided(Guide::JsonSchema("{}".into())))).unwrap();
    let all = ended(&mut engine, 2);
    let (failed, error) = &all.failed[0];
    assert_eq!((*failed, all.failed.len(), all.tokens.len()), (leg(1, &[], 4).id, 1, 4));
    assert!(error.to_string().contains("Invalid JSON schema: no schema"), "{error}");
}

#[test]
fn bad_words_are_not_in_the_output() {
    let _alone = alone();
    let mut engine = open(config());
    let free = ids(&run(&mut engine, &leg(1, &[1, 2, 3], 6)));
    let bad_words = vec![vec![free[0]], vec![free[2], free[3]]];
    let bad = Sampling { bad_words, ..Sampling::default() };
    let got = ids(&run(&mut engine, &with(leg(2, &[1, 2, 3], 6), bad)));
    assert!(got.len() == 6 && !got.contains(&free[0]), "{free:?} {got:?}");
    assert!(!got.windows(2).any(|pair| pair == &free[2..4]));
}

#[test]
fn who_is_to_go_first_goes_first() {
    let _alone = alone();
    let of = |priority| {
        let sampling = Sampling { priority, ..Sampling::default() };
        asked(sampling, &config()).unwrap().priority.value
    };
    assert_eq!((of(0), of(1), of(-1)), (0.5, 0.25, 0.75));
    assert!(of(i32::MIN) <= 1.0 && of(-100) > of(-99) && of(i32::MAX) >= 0.0);
    standin::set("step_us", "500").unwrap();
    let mut config = config();
    config.engine.max_batch_size = 1.into();
    let mut engine = open(config);
    // The first one runs already when the others come.
    for (request, priority) in [(1, 0), (2, 5), (3, 0), (4, -5)] {
        let sampling = Sampling { priority, ..Sampling::default() };
        engine.admit(with(leg(request, &[1, 2], 30), sampling)).unwrap();
        if request == 1 {
            let mut first = Default::default();
            super::until(&mut engine, &mut first, |all| !all.started.is_empty()).unwrap();
        }
    }
    let all = ended(&mut engine, 4);
    let ends = all.tokens.iter().filter(|row| row.finish.is_some());
    let order: Vec<u64> = ends.map(|row| row.leg.request.0).collect();
    assert_eq!(order, [1, 4, 3, 2]);
}

#[test]
fn an_adapter_is_sent_once_and_again_when_it_is_gone() {
    let _alone = alone();
    let with_lora = || AdapterConfig { loras: vec![lora()], ..config() };
    let mut engine = open(with_lora());
    let weights = |engine: &mut super::Adapter, leg: &Leg| {
        let mut options = RequestOptions { lora_id: lora().id.into(), ..Default::default() };
        engine.sent.attach(leg, &[lora()], &mut options);
        options.lora_weights.some
    };
    let first = run(&mut engine, &adapted(1));
    assert_eq!(first.len(), 6);
    assert!(!weights(&mut engine, &adapted(9)), "they have been sent");
    engine.sent.forget(adapted(9).id);
    assert_eq!(ids(&run(&mut engine, &adapted(2))), ids(&first));
    // An executor that has never seen them: as one that has dropped them.
    let mut other = open(with_lora());
    assert!(weights(&mut other, &adapted(9)));
    assert_eq!(ids(&run(&mut other, &adapted(3))), ids(&first));
    assert!(!weights(&mut other, &adapted(8)), "they have been sent again");
}

#[test]
fn adapters_are_known_by_name() {
    let unknown = asked(
        Sampling { lora: Some("dutch".into()), ..Sampling::default() },
        &AdapterConfig { loras: vec![lora()], ..config() },
    );
    let error = unknown.unwrap_err().to_string();
    assert!(error.contains("\"dutch\" is no adapter of this worker, which has: french"), "{error}");
    let plain = config().fingerprint(&all_capabilities());
    let french = AdapterConfig { loras: vec![lora()], ..config() };
    assert_ne!(french.fingerprint(&all_capabilities()), plain);
    assert_ne!(guiding().fingerprint(&all_capabilities()), plain);
    let error = Lora::read("french", "/nowhere".as_ref()).unwrap_err();
    assert!(error.contains("/nowhere/model.lora_weights.npy: No such file"), "{error}");
}

#[test]
fn an_orchestrator_changes_no_logits() {
    let mut orchestrated = config();
    orchestrated.engine.parallel.mode = "ORCHESTRATOR".into();
    let plain = with(leg(1, &[1], 6), Sampling::default());
    let can = all_capabilities();
    assert!(ask(&plain, &orchestrated, &can, false).is_ok());
    let error = ask(&plain, &orchestrated, &can, true).unwrap_err().to_string();
    assert!(error.starts_with("logits_processors: this engine computes in other"), "{error}");
    let stops = Sampling { stop_token_ids: vec![5, 6], min_tokens: 3, ..Sampling::default() };
    let error = ask(&with(plain, stops), &orchestrated, &can, false).unwrap_err().to_string();
    assert!(error.starts_with("min_tokens with several stop ids: "), "{error}");
}
