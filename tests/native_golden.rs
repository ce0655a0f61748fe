//! The shipped model against the float32 reference, and against itself to the bit.
#![allow(clippy::unwrap_used)] // a test

mod native_support;

use cuelight::engine::model::Model;
use cuelight::engine::native::{Instructions, KvSize, NativeModel, Options, Precision};
use cuelight::ids::BlockId;
use native_support::{Sequence, bits, greedy, options, repo, run, step};
use serde_json::Value;

fn load(options: Options) -> NativeModel {
    NativeModel::load(&repo("models/cuelight-tiny"), options).unwrap()
}

fn cases() -> Vec<Value> {
    let text = std::fs::read_to_string(repo("tests/fixtures/golden.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// Prompts of several lengths, the longest about 300 tokens.
fn prompts() -> Vec<Vec<u32>> {
    cases().iter().map(|case| ids(&case["prompt_ids"])).collect()
}

/// Runs all cases greedily; `within` is the largest allowed difference of the prompts' top logits.
fn check_golden(precision: Precision, within: f64) {
    let mut model = load(Options { precision, ..options() });
    let cases = cases();
    assert_eq!(cases.len(), 16);
    for (index, case) in cases.iter().enumerate() {
        let want = ids(&case["greedy_ids"]);
        let prompt = ids(&case["prompt_ids"]);
        let mut sequence = Sequence::new(&prompt, 0, prompt.len() + want.len());
        let mut logits = run(&mut model, &mut sequence, usize::MAX);
        let top = case["top_logits"].as_array().unwrap();
        for (id, want) in ids(&case["top_ids"]).into_iter().zip(top) {
            let (got, want) = (f64::from(logits[id as usize]), want.as_f64().unwrap());
            assert!((got - want).abs() < within, "case {index}, id {id}: {got} for {want}");
        }
        for (place, want) in want.into_iter().enumerate() {
            let next = greedy(&logits);
            assert_eq!(next, want, "case {index}, output token {place}");
            sequence.tokens.push(next);
            logits = run(&mut model, &mut sequence, 1);
        }
    }
}

#[test]
fn in_float32_all_golden_cases_have_the_reference_tokens_and_logits() {
    check_golden(Precision::F32, 2e-2);
}

#[test]
fn in_the_weights_precision_all_golden_cases_have_the_reference_tokens() {
    check_golden(Precision::Weights, 0.25);
}

#[test]
fn chunking_the_prompt_does_not_change_a_bit() {
    let mut model = load(options());
    for prompt in prompts() {
        let mut whole = Sequence::new(&prompt, 0, prompt.len());
        let want = bits(&run(&mut model, &mut whole, usize::MAX));
        for chunk in [1, 2, 5, 6, 7, 16, 17, 33] {
            let mut sequence = Sequence::new(&prompt, 40, prompt.len());
            let got = bits(&run(&mut model, &mut sequence, chunk));
            assert!(got == want, "{} tokens in chunks of {chunk}", prompt.len());
        }
    }
}

#[test]
fn company_in_the_batch_does_not_change_a_bit() {
    let mut model = load(options());
    let prompts = prompts();
    let alone: Vec<_> = prompts
        .iter()
        .map(|prompt| bits(&run(&mut model, &mut Sequence::new(prompt, 0, 512), usize::MAX)))
        .collect();
    // All but the last token, then that token: once as prefill, once as a decode step.
    let mut model = load(Options { kv: KvSize::Blocks(512), ..options() });
    let mut sequences: Vec<_> = prompts
        .iter()
        .enumerate()
        .map(|(i, prompt)| Sequence::new(prompt, 32 * i as u32, 512))
        .collect();
    let mut work: Vec<_> = sequences.iter_mut().map(|s| (s.tokens.len() - 1, s)).collect();
    let mut work: Vec<_> = work.iter_mut().map(|(rows, s)| (&mut **s, *rows)).collect();
    step(&mut model, &mut work);
    for count in [1, 3, 16] {
        for group in (0..prompts.len()).collect::<Vec<_>>().chunks(count) {
            let mut last: Vec<_> = group.iter().map(|i| sequences[*i].clone()).collect();
            let mut work: Vec<_> = last.iter_mut().map(|s| (s, 1)).collect();
            for (i, logits) in group.iter().zip(step(&mut model, &mut work)) {
                assert!(bits(&logits) == alone[*i], "case {i} in a batch of {count}");
            }
        }
    }
}

#[test]
fn physical_blocks_do_not_change_a_bit() {
    let mut model = load(options());
    let prompt = prompts().into_iter().max_by_key(Vec::len).unwrap();
    let mut first = Sequence::new(&prompt, 0, prompt.len());
    let want = bits(&run(&mut model, &mut first, usize::MAX));
    let mut second = Sequence::new(&prompt, 0, prompt.len());
    // 255, 4, 250, 9, …: all distinct, far apart, over blocks that hold the first run.
    second.blocks = (0..second.blocks.len() as u32)
        .map(|i| BlockId(if i % 2 == 0 { 255 - 5 * i / 2 } else { 4 + 5 * (i / 2) }))
        .collect();
    assert!(bits(&run(&mut model, &mut second, 32)) == want);
}

#[test]
fn block_size_does_not_change_a_bit() {
    let prompt = prompts().into_iter().max_by_key(Vec::len).unwrap();
    let results = [16, 32, 128].map(|block_tokens| {
        let mut model = load(Options { block_tokens, ..options() });
        bits(&run(&mut model, &mut Sequence::new(&prompt, 0, prompt.len()), 50))
    });
    assert!(results[0] == results[1] && results[1] == results[2]);
}

#[test]
fn threads_and_instructions_do_not_change_a_bit() {
    for precision in [Precision::Weights, Precision::F32] {
        threads_and_instructions(precision);
    }
}

fn threads_and_instructions(precision: Precision) {
    let prompt: Vec<u32> = prompts().into_iter().flatten().take(60).collect();
    let mut reference = None;
    for instructions in [Instructions::Best, Instructions::Avx2, Instructions::Scalar] {
        for threads in [1, 2, 3] {
            // The plain path is slow, and its threads run the same code.
            if instructions == Instructions::Scalar && threads != 2 {
                continue;
            }
            let options = Options { threads, instructions, precision, ..options() };
            let Ok(mut model) = NativeModel::load(&repo("models/cuelight-tiny"), options) else {
                assert_eq!(instructions, Instructions::Avx2, "only AVX2 may be missing");
                continue;
            };
            let mut sequence = Sequence::new(&prompt, 0, prompt.len());
            let prefill = bits(&run(&mut model, &mut sequence, 37));
            let decode = bits(&run(&mut model, &mut Sequence::new(&prompt[..20], 20, 20), 1));
            let got = (prefill, decode);
            let reference = reference.get_or_insert_with(|| got.clone());
            assert!(*reference == got, "{instructions:?} on {threads} threads, {precision:?}");
        }
    }
}

#[test]
fn a_smaller_vocabulary_cuts_the_logits_and_changes_nothing_else() {
    let prompt = &prompts()[0];
    let whole = run(&mut load(options()), &mut Sequence::new(prompt, 0, 64), usize::MAX);
    let limit = 3001;
    let mut model = load(Options { vocab_limit: Some(limit), ..options() });
    assert_eq!(model.shape().vocab, limit);
    let cut = run(&mut model, &mut Sequence::new(prompt, 0, 64), usize::MAX);
    assert!(bits(&cut) == bits(&whole[..limit]));
}
