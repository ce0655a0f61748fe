//! The scheduler's decisions, step by step, without a model.

use std::sync::Arc;

use super::*;
use crate::engine::{Part, Sampling};
use crate::ids::RequestId;

fn shape(blocks: u32) -> Shape {
    Shape { context: 256, vocab: 1000, block_tokens: 4, blocks, block_bytes: 1, host_blocks: 0 }
}

fn scheduler(blocks: u32, max_running: usize, max_batch_tokens: usize) -> Scheduler {
    let limits = Limits { max_running, max_waiting: 8, max_batch_tokens, prefix_cache: true };
    Scheduler::new(shape(blocks), limits, &HashKey::default())
}

fn id(request: u64) -> LegId {
    LegId { request: RequestId(request), choice: 0, attempt: 0 }
}

fn leg(request: u64, tokens: Vec<u32>, max_tokens: u32) -> Leg {
    Leg {
        id: id(request),
        prompt_len: tokens.len(),
        tokens,
        max_tokens,
        choice: 0,
        sampling: Arc::new(Sampling::default()),
        salt: 0,
        part: Part::Whole,
    }
}

/// Tokens that no other prompt starts with.
fn own(request: u64, len: usize) -> Vec<u32> {
    (0..len as u32).map(|i| if i == 0 { 500 + request as u32 } else { i }).collect()
}

/// One step with a model that always answers 7; the plan as (request, tokens computed).
fn step(scheduler: &mut Scheduler) -> Vec<(u64, usize)> {
    let (mut batch, mut started) = (Batch::default(), Vec::new());
    scheduler.plan(&mut batch, &mut started);
    scheduler.check().unwrap();
    scheduler.computed();
    let plan = scheduler.planned().to_vec();
    let request = |slot: u32, s: &Scheduler| s.sequence(slot).leg.id.request.0;
    let out = plan.iter().map(|one| (request(one.slot, scheduler), one.rows)).collect();
    for one in plan.iter().filter(|one| one.wants_logits) {
        if scheduler.push_token(one.slot, 7).is_full() {
            scheduler.end(one.slot);
        }
    }
    scheduler.check().unwrap();
    out
}

#[test]
fn decode_rows_come_first_then_chunks_then_newcomers_within_the_budget() {
    let mut scheduler = scheduler(64, 4, 8);
    scheduler.admit(leg(1, own(1, 3), 9)).unwrap();
    scheduler.admit(leg(2, own(2, 12), 9)).unwrap();
    scheduler.admit(leg(3, own(3, 5), 9)).unwrap();
    assert_eq!(step(&mut scheduler), [(1, 3), (2, 5)]);
    assert_eq!(step(&mut scheduler), [(1, 1), (2, 7)]);
    assert_eq!(step(&mut scheduler), [(1, 1), (2, 1), (3, 5)]);
    assert_eq!(step(&mut scheduler), [(1, 1), (2, 1), (3, 1)]);
}

#[test]
fn the_youngest_makes_room_for_the_oldest_and_starts_again_first() {
    let mut scheduler = scheduler(7, 4, 64);
    for request in 1..=2 {
        scheduler.admit(leg(request, own(request, 8), 12)).unwrap();
    }
    assert_eq!(step(&mut scheduler), [(1, 8), (2, 8)]);
    for _ in 0..4 {
        assert_eq!(step(&mut scheduler), [(1, 1), (2, 1)]);
    }
    // 12 computed tokens and 3 blocks each; leg 1 takes the last block, leg 2 gives its own up.
    assert_eq!(step(&mut scheduler), [(1, 1)]);
    assert_eq!(scheduler.load().preemptions, 1);
    scheduler.admit(leg(3, own(3, 4), 4)).unwrap();
    let mut later = Vec::new();
    while scheduler.has_work() {
        later.extend(step(&mut scheduler));
    }
    let first = |request| later.iter().position(|one| one.0 == request).unwrap();
    assert!(first(2) < first(3), "{later:?}");
    assert_eq!(scheduler.load().blocks_used, 0);
}

#[test]
fn equal_prompts_are_computed_once_and_others_pass_meanwhile() {
    let mut scheduler = scheduler(64, 8, 16);
    let prompt: Vec<u32> = (0..30).collect();
    for request in 1..=3 {
        scheduler.admit(leg(request, prompt.clone(), 4)).unwrap();
    }
    scheduler.admit(leg(4, own(4, 3), 9)).unwrap();
    assert_eq!(step(&mut scheduler), [(1, 16)]);
    assert_eq!(step(&mut scheduler), [(1, 14), (4, 2)]);
    assert_eq!(step(&mut scheduler), [(1, 1), (4, 1), (2, 2), (3, 2)]);
}

#[test]
fn who_waits_for_a_prefix_goes_on_when_its_computer_is_gone() {
    let mut scheduler = scheduler(64, 8, 16);
    let prompt: Vec<u32> = (0..34).collect();
    scheduler.admit(leg(1, prompt.clone(), 4)).unwrap();
    scheduler.admit(leg(2, prompt, 4)).unwrap();
    assert_eq!(step(&mut scheduler), [(1, 16)]);
    scheduler.abort(id(1));
    assert_eq!(step(&mut scheduler), [(2, 16)], "16 tokens are cached, the rest is its own");
    assert_eq!(step(&mut scheduler), [(2, 2)]);
}

#[test]
fn a_cached_prompt_still_computes_its_last_token() {
    let mut scheduler = scheduler(64, 8, 64);
    for (request, rows) in [(1, 8), (2, 4)] {
        scheduler.admit(leg(request, (0..8).collect(), 1)).unwrap();
        assert_eq!(step(&mut scheduler), [(request, rows)]);
    }
    assert_eq!(scheduler.load().blocks_used, 0);
    assert_eq!(scheduler.load().blocks_cached, 2, "the recomputed block is kept once");
}

#[test]
fn admission_refuses_what_could_never_run_or_is_too_much() {
    let scheduler = &mut scheduler(4, 2, 8);
    let mut resumed = leg(9, own(1, 6), 3);
    resumed.prompt_len = 3;
    let cases = [
        (leg(9, vec![], 1), EngineError::EmptyPrompt),
        (leg(9, vec![1; 256], 1), EngineError::PromptTooLong { tokens: 256, context: 256 }),
        (leg(9, vec![1, 1000], 1), EngineError::UnknownToken { token: 1000, vocab: 1000 }),
        (resumed, EngineError::NoTokensLeft { output: 3, max_tokens: 3 }),
        (leg(9, vec![1; 10], 8), EngineError::PoolTooSmall { tokens: 18, need: 5, total: 4 }),
    ];
    for (leg, error) in cases {
        assert_eq!(scheduler.admit(leg), Err(error));
    }
    assert!(scheduler.admit(leg(0, vec![1; 10], 7)).is_ok(), "fits exactly");
    for request in 1..10 {
        assert!(scheduler.admit(leg(request, vec![1], 1)).unwrap().is_some());
    }
    let full = EngineError::QueueFull { waiting: 8, limit: 8 };
    assert_eq!(scheduler.admit(leg(10, vec![1], 1)), Err(full));
    assert_eq!(scheduler.admit(leg(3, vec![1], 1)), Ok(None), "known already");
}

#[test]
fn a_leg_that_needs_the_whole_pool_is_not_starved_by_small_ones() {
    let mut scheduler = scheduler(16, 8, 32);
    let mut next = 100;
    let mut small = |scheduler: &mut Scheduler| {
        next += 1;
        scheduler.admit(leg(next, own(next % 400, 4), 6)).map(drop)
    };
    for _ in 0..8 {
        small(&mut scheduler).unwrap();
    }
    step(&mut scheduler);
    scheduler.admit(leg(1, own(1, 60), 5)).unwrap();
    let mut steps = 0;
    while scheduler.by_id.contains_key(&id(1)) {
        let _ = small(&mut scheduler); // the queue is never empty, and may be full
        step(&mut scheduler);
        steps += 1;
        assert!(steps < 60, "the large leg starves");
    }
}
