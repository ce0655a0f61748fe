//! The simulated model's promises: real KV, exact pace.

use std::time::{Duration, Instant};

use super::*;

fn config() -> SimConfig {
    let shape = Shape {
        context: 64,
        vocab: 256,
        block_tokens: 4,
        blocks: 8,
        block_bytes: 32,
        host_blocks: 0,
    };
    SimConfig { shape, attend: true, ..SimConfig::default() }
}

/// Computes positions `from..` of `tokens` in these blocks and returns the next token.
fn run(model: &mut SimModel, tokens: &[u32], from: usize, blocks: &[u32]) -> u32 {
    let span = Span {
        first_row: 0,
        rows: tokens.len() - from,
        start: from,
        first_block: 0,
        blocks: blocks.len(),
        wants_logits: true,
    };
    let batch = Batch {
        tokens: tokens[from..].to_vec(),
        spans: vec![span],
        blocks: blocks.iter().map(|&block| BlockId(block)).collect(),
        ..Batch::default()
    };
    match model.forward(&batch) {
        Ok(Produced::Tokens(tokens)) => tokens[0],
        other => panic!("{other:?}"),
    }
}

#[test]
fn chunks_and_places_of_blocks_do_not_matter() {
    let tokens: Vec<u32> = (0..10).collect();
    let want = config().next_token(&tokens);
    for blocks in [[0, 1, 2], [7, 2, 5]] {
        for cut in 0..10 {
            let mut model = SimModel::new(config());
            if cut > 0 {
                run(&mut model, &tokens[..cut], 0, &blocks[..cut.div_ceil(4)]);
            }
            assert_eq!(run(&mut model, &tokens, cut, &blocks), want, "{blocks:?} cut at {cut}");
        }
    }
}

#[test]
fn wrong_blocks_and_corrupt_blocks_give_wrong_tokens() {
    let tokens: Vec<u32> = (0..10).collect();
    let want = config().next_token(&tokens);
    let mut model = SimModel::new(SimConfig { answers: 0..256, ..config() });
    let want_wide = model.config().next_token(&tokens);
    assert!(config().answers.contains(&want));
    run(&mut model, &tokens[..9], 0, &[0, 1, 2]);
    run(&mut model, &[9; 9], 0, &[3, 4, 5]);
    assert_eq!(run(&mut model, &tokens, 9, &[0, 1, 2]), want_wide);
    for wrong in [[3, 1, 2], [0, 4, 2], [0, 1, 5], [1, 0, 2]] {
        assert_ne!(run(&mut model, &tokens, 9, &wrong), want_wide, "{wrong:?}");
        run(&mut model, &[9; 9], 0, &[3, 4, 5]);
        run(&mut model, &tokens[..9], 0, &[0, 1, 2]);
    }
    for block in 0..3 {
        run(&mut model, &tokens[..9], 0, &[0, 1, 2]);
        model.corrupt(BlockId(block));
        assert_ne!(run(&mut model, &tokens, 9, &[0, 1, 2]), want_wide, "block {block}");
    }
}

#[test]
fn eos_comes_as_often_as_asked_and_never_otherwise() {
    let config = SimConfig { eos: Some((2, 10)), ..config() };
    let ends = (0..4000_u32).filter(|&i| config.next_token(&[i, i + 1]) == 2).count();
    assert!((300..500).contains(&ends), "{ends} of 4000, expected about 400");
    let never = SimConfig { eos: None, ..config };
    assert!((0..4000).all(|i| never.answers.contains(&never.next_token(&[i, i + 1]))));
}

#[test]
fn steps_take_the_time_the_config_says() {
    let formula = Formula {
        step_us: 100.0,
        prefill_us_per_token: 10.0,
        prefill_ns_per_pair: 1000.0,
        decode_us_per_leg: 50.0,
        decode_ns_per_pair: 500.0,
        decode_ns_per_context_token: 250.0,
    };
    let timing = Timing { law: Law::Formula(formula), load_us_per_block: 7.0, speedup: 2.0 };
    let span = |rows, start| Span {
        first_row: 0,
        rows,
        start,
        first_block: 0,
        blocks: 1,
        wants_logits: true,
    };
    let batch = Batch {
        tokens: vec![0; 15],
        spans: vec![span(9, 0), span(4, 10), span(1, 3), span(1, 7)],
        blocks: Vec::new(),
        moves: vec![
            Move::Save { block: BlockId(1), place: 0 },
            Move::Load { place: 1, block: BlockId(1) },
            Move::Load { place: 2, block: BlockId(2) },
        ],
    };
    let work = Work::of(&batch);
    let pairs = 45.0 + (11 + 12 + 13 + 14) as f64;
    let expected = Work {
        prefill_tokens: 13.0,
        prefill_pairs: pairs,
        legs: 2.0,
        context_tokens: 12.0,
        loaded_blocks: 2.0,
    };
    assert_eq!(work, expected);
    let us = 100.0 + 130.0 + pairs + 100.0 + 2.0 + 3.0 + 14.0;
    assert_eq!(timing.of(&work), Duration::from_secs_f64(us / 2e6));

    let formula = Formula { step_us: 1000.0, ..Formula::default() };
    let timing = Timing { law: Law::Formula(formula), load_us_per_block: 0.0, speedup: 1.0 };
    let mut model = SimModel::new(SimConfig { timing, ..config() });
    let start = Instant::now();
    for _ in 0..20 {
        run(&mut model, &[1], 0, &[0]);
    }
    assert!(start.elapsed() >= Duration::from_millis(20));
}
