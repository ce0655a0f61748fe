//! Every architecture and switch, on tiny checkpoints whose logits come from transformers.
#![allow(clippy::unwrap_used)] // a test

mod native_support;

use std::fs;
use std::path::{Path, PathBuf};

use cuelight::engine::native::{Instructions, NativeModel, Options, Precision, checkpoint};
use native_support::{Sequence, bits, greedy, options, repo, run};
use serde_json::Value;

/// Largest allowed difference: rounding in float32, in another order.
const TOLERANCE: f64 = 2e-3;

fn folders() -> Vec<PathBuf> {
    let mut folders: Vec<_> = fs::read_dir(repo("tests/fixtures/arch"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("expected.json").exists())
        .collect();
    folders.sort();
    assert!(!folders.is_empty(), "no fixtures under tests/fixtures/arch");
    folders
}

struct Expected {
    prompt: Vec<u32>,
    greedy: Vec<u32>,
    /// Positions in prompt and greedy output, and the logits after them.
    logits: Vec<(usize, Vec<f64>)>,
}

fn expected(folder: &Path) -> Expected {
    let text = fs::read_to_string(folder.join("expected.json")).unwrap();
    let value: Value = serde_json::from_str(&text).unwrap();
    let numbers = |value: &Value| -> Vec<f64> {
        value.as_array().unwrap().iter().map(|n| n.as_f64().unwrap()).collect()
    };
    let ids = |key: &str| numbers(&value[key]).into_iter().map(|id| id as u32).collect();
    let positions = numbers(&value["logits_positions"]).into_iter().map(|p| p as usize);
    let rows = value["logits"].as_array().unwrap().iter().map(numbers);
    Expected {
        prompt: ids("prompt_ids"),
        greedy: ids("greedy_ids"),
        logits: positions.zip(rows).collect(),
    }
}

#[test]
fn logits_and_greedy_tokens_equal_those_of_transformers() {
    for folder in folders() {
        let case = folder.file_name().unwrap().to_string_lossy().into_owned();
        let want = expected(&folder);
        let options = Options { precision: Precision::F32, ..options() };
        let mut model = NativeModel::load(&folder, options).unwrap();
        let room = want.prompt.len() + want.greedy.len();
        let mut sequence = Sequence::new(&want.prompt, 0, room);
        let mut logits = run(&mut model, &mut sequence, usize::MAX);
        let mut checked = 0;
        for next in want.greedy.iter().map(Some).chain([None]) {
            for (_, row) in want.logits.iter().filter(|(at, _)| at + 1 == sequence.done) {
                assert_eq!(row.len(), logits.len(), "{case}");
                for (id, (want, got)) in row.iter().zip(&logits).enumerate() {
                    let off = (f64::from(*got) - want).abs();
                    let place = sequence.done;
                    assert!(off < TOLERANCE, "{case} after {place}, id {id}: {got} for {want}");
                }
                checked += 1;
            }
            if let Some(next) = next {
                assert_eq!(greedy(&logits), *next, "{case} after {} tokens", sequence.done);
                sequence.tokens.push(*next);
                logits = run(&mut model, &mut sequence, 1);
            }
        }
        assert_eq!(checked, want.logits.len(), "{case}");
    }
}

#[test]
fn chunks_and_instruction_sets_do_not_change_a_bit() {
    for folder in folders() {
        let want = expected(&folder);
        let tokens: Vec<u32> = [want.prompt, want.greedy].concat();
        let mut first = None;
        for instructions in [Instructions::Scalar, Instructions::Avx2, Instructions::Avx512] {
            let options = Options { instructions, ..options() };
            let Ok(mut model) = NativeModel::load(&folder, options) else {
                assert_ne!(instructions, Instructions::Scalar, "{}", folder.display());
                continue;
            };
            for chunk in [usize::MAX, 13, 1] {
                let mut sequence = Sequence::new(&tokens, 0, tokens.len());
                let got = bits(&run(&mut model, &mut sequence, chunk));
                let first = first.get_or_insert_with(|| got.clone());
                assert!(*first == got, "{} {instructions:?} by {chunk}", folder.display());
            }
        }
    }
}

#[test]
fn cards_are_read_without_the_weights() {
    for folder in folders() {
        let card = checkpoint::read_card(&folder).unwrap();
        assert!(card.vocab >= 256 && card.context >= 128, "{}", folder.display());
        assert_eq!(card.eos_ids[0], 2, "{}", folder.display());
        assert_eq!(card.block_bytes(16), 16 * card.kv_bytes_per_token);
    }
}
