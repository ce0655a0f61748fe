//! Rows as tokens: ends, late and empty final rows, errors.

use super::super::super::ffi::{Fault, Finish, Metrics, Output, Row};
use super::super::rows::{After, Sizes, Tracked};
use super::{leg, with};
use crate::engine::{EngineError, FinishReason, Sampling, StepOutput};

const SIZES: Sizes = Sizes { vocab: 100, block_tokens: 16, waiting: (3, 4) };

fn row(tokens_len: u32, finish: Finish) -> Row {
    Row {
        request: 1,
        has_client: true,
        client: 1,
        sequence: 0,
        beam: 0,
        is_final: finish != Finish::NotFinished,
        is_sequence_final: finish != Finish::NotFinished,
        finish,
        fault: Fault::None,
        tokens_at: 0,
        tokens_len,
        log_probs_at: 0,
        log_probs_len: 0,
        has_cum_log_prob: false,
        cum_log_prob: 0.0,
        logits_at: 0,
        logits_rows: 0,
        decoding_iter: 0,
        error: -1,
        handoff: -1,
        metrics: -1,
    }
}

fn of(tokens: &[i32]) -> Output {
    Output { tokens: tokens.to_vec(), ..Default::default() }
}

/// A leg with 5 output tokens to come, which 7 ends and 8 does not before the third.
fn tracked() -> Tracked {
    let sampling = Sampling {
        eos_ids: vec![7],
        stop_token_ids: vec![8],
        min_tokens: 2,
        ..Sampling::default()
    };
    Tracked::new(&with(leg(1, &[1, 2, 3], 5), sampling), 1, 5, Some(7))
}

fn said(out: &StepOutput) -> Vec<(u32, Option<FinishReason>)> {
    out.tokens.iter().map(|row| (row.token, row.finish)).collect()
}

#[test]
fn several_tokens_of_a_row_are_several_tokens() {
    let (mut leg, mut out) = (tracked(), StepOutput::default());
    let after = leg.take(&row(3, Finish::NotFinished), &of(&[8, 2, 3]), SIZES, &mut out);
    assert_eq!((after, out.started.len()), (After::GoOn, 1));
    assert_eq!(said(&out), [(8, None), (2, None), (3, None)], "8 is no end before the third");
    // The end is in the middle; what comes after it is dropped.
    leg.take(&row(2, Finish::NotFinished), &of(&[8, 4]), SIZES, &mut out);
    assert_eq!(said(&out)[3..], [(8, Some(FinishReason::Stop))]);
    assert_eq!(out.started.len(), 1);
    assert!(leg.ended && out.failed.is_empty());
    let after = leg.take(&row(1, Finish::Length), &of(&[9]), SIZES, &mut out);
    assert_eq!((after, out.tokens.len()), (After::Forget, 4));
}

#[test]
fn the_last_token_ends_the_leg_before_an_empty_final_row() {
    let (mut leg, mut out) = (tracked(), StepOutput::default());
    leg.take(&row(5, Finish::NotFinished), &of(&[1, 1, 1, 1, 2]), SIZES, &mut out);
    assert_eq!(said(&out)[4], (2, Some(FinishReason::Length)));
    let after = leg.take(&row(0, Finish::Length), &of(&[]), SIZES, &mut out);
    assert_eq!((after, out.tokens.len(), out.failed.len()), (After::Forget, 5, 0));
}

#[test]
fn an_end_id_that_is_no_token_is_added_and_one_that_is_one_is_not() {
    let (mut leg, mut out) = (tracked(), StepOutput::default());
    leg.take(&row(3, Finish::EndId), &of(&[1, 1, 1]), SIZES, &mut out);
    assert_eq!(said(&out)[2..], [(1, None), (7, Some(FinishReason::Stop))]);
    let (mut leg, mut out) = (tracked(), StepOutput::default());
    leg.take(&row(4, Finish::EndId), &of(&[1, 1, 1, 7]), SIZES, &mut out);
    assert_eq!(said(&out)[2..], [(1, None), (7, Some(FinishReason::Stop))]);
}

#[test]
fn a_final_row_that_explains_nothing_fails_its_leg() {
    for finish in
        [Finish::Length, Finish::StopWords, Finish::TimedOut, Finish::Cancelled, Finish::Unknown]
    {
        let (mut leg, mut out) = (tracked(), StepOutput::default());
        let after = leg.take(&row(1, finish), &of(&[1]), SIZES, &mut out);
        assert_eq!((after, said(&out)), (After::Forget, vec![(1, None)]));
        assert!(out.failed[0].1.to_string().contains("after 1 of 5 output tokens"), "{finish:?}");
    }
}

#[test]
fn a_request_that_goes_on_after_its_leg_is_cancelled_once() {
    let (mut leg, mut out) = (tracked(), StepOutput::default());
    leg.ended = true;
    let more = row(1, Finish::NotFinished);
    assert_eq!(leg.take(&more, &of(&[1]), SIZES, &mut out), After::Cancel);
    assert_eq!(leg.take(&more, &of(&[1]), SIZES, &mut out), After::GoOn);
    assert_eq!(leg.take(&row(0, Finish::Cancelled), &of(&[]), SIZES, &mut out), After::Forget);
    assert!(out.tokens.is_empty() && out.failed.is_empty() && out.started.is_empty());
}

#[test]
fn faults_reach_as_far_as_they_should() {
    let mut of = of(&[]);
    of.errors.push("CUDA".to_owned());
    let fault = |fault| Row { fault, is_final: true, error: 0, ..row(0, Finish::NotFinished) };
    let take = |row: &Row, out: &mut StepOutput| tracked().take(row, &of, SIZES, out);
    let mut out = StepOutput::default();
    assert_eq!(take(&fault(Fault::Stale), &mut out), After::GoOn);
    assert!(matches!(
        take(&fault(Fault::Forward), &mut out),
        After::Lost(EngineError::Lost { .. })
    ));
    assert!(out.failed.is_empty());
    for kind in [Fault::Request, Fault::QueueFull, Fault::LoraMissing, Fault::Other] {
        assert_eq!(take(&fault(kind), &mut out), After::Forget);
    }
    assert!(matches!(out.failed[0].1, EngineError::Unsupported { .. }));
    assert!(matches!(out.failed[1].1, EngineError::QueueFull { waiting: 3, limit: 4 }));
    assert!(out.failed[3].1.to_string().contains("CUDA") && out.started.is_empty());
}

#[test]
fn log_probabilities_belong_to_the_last_tokens_of_a_row() {
    let asks = |k| Sampling { logprobs: Some(k), ..Sampling::default() };
    let mut out = StepOutput::default();
    let mut told = of(&[1, 2]);
    told.log_probs = vec![9.0, -0.5, -0.25];
    let both = Row { log_probs_at: 1, log_probs_len: 2, ..row(2, Finish::NotFinished) };
    Tracked::new(&with(leg(1, &[1], 5), asks(0)), 1, 5, None).take(&both, &told, SIZES, &mut out);
    let chosen: Vec<_> =
        out.tokens.iter().map(|row| row.logprobs.as_ref().unwrap().chosen).collect();
    assert_eq!(chosen, [-0.5, -0.25]);
    let one = Row { log_probs_at: 2, log_probs_len: 1, ..both };
    Tracked::new(&with(leg(1, &[1], 5), asks(0)), 1, 5, None).take(&one, &told, SIZES, &mut out);
    assert!(out.failed[0].1.to_string().contains("without a log probability"));
    let mut logits = of(&[1]);
    (logits.logits, logits.logits_width) = (vec![0.0, 1.0, 0.0, 0.0], 4);
    out.clear();
    let row = Row { logits_rows: 1, ..row(1, Finish::NotFinished) };
    Tracked::new(&with(leg(1, &[1], 5), asks(2)), 1, 5, None).take(&row, &logits, SIZES, &mut out);
    let told = out.tokens[0].logprobs.as_ref().unwrap();
    assert_eq!(told.top.iter().map(|one| one.token).collect::<Vec<_>>(), [1, 0]);
    assert_eq!(told.chosen, told.top[0].logprob);
}

#[test]
fn blocks_found_in_the_cache_are_told_with_the_first_row() {
    let mut out = StepOutput::default();
    let mut told = of(&[1]);
    told.metrics.push(Metrics { reused_blocks: 2, ..Default::default() });
    let first = Row { metrics: 0, ..row(1, Finish::NotFinished) };
    let long = leg(1, &[1; 40], 5);
    Tracked::new(&long, 1, 5, None).take(&first, &told, SIZES, &mut out);
    assert_eq!(out.started[0].cached_tokens, 32);
}
