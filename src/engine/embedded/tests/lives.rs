//! Whole lives of legs, by example, on the simulated model and on one that computes logits.

use super::*;
use crate::engine::processors::{LogitsProcessor, Wanted};

/// Legs with sampling of all kinds.
fn sampled_legs() -> Vec<Leg> {
    let base = Sampling { temperature: 0.9, seed: 5, eos_ids: vec![2], ..Sampling::default() };
    let kinds = [
        Sampling::default(),
        base.clone(),
        Sampling { top_k: 5, top_p: 0.9, min_p: 0.02, ..base.clone() },
        Sampling { presence_penalty: 1.0, frequency_penalty: 0.5, ..base.clone() },
        Sampling { repetition_penalty: 1.4, temperature: 0.0, ..base.clone() },
        Sampling { logprobs: Some(3), min_tokens: 10, stop_token_ids: vec![5, 6], ..base },
    ];
    let legs = kinds.into_iter().map(Arc::new).zip(1..);
    legs.map(|(sampling, i)| leg(i, prompt(i as usize, 20 + i as usize), 40, &sampling)).collect()
}

fn outputs_of(blocks: u32, limits: Limits, legs: Vec<Leg>) -> (HashMap<LegId, Vec<u32>>, u64) {
    let mut driver = Driver::new(LogitModel::new(blocks), limits);
    legs.into_iter().for_each(|leg| driver.admit(leg).unwrap());
    driver.run();
    assert_eq!(driver.failed, []);
    (driver.outputs, driver.engine.load().preemptions)
}

#[test]
fn sampled_tokens_do_not_depend_on_batch_chunks_or_preemption() {
    let (alone, none) = outputs_of(400, limits(1, 400), sampled_legs());
    let (crowded, some) = outputs_of(24, limits(6, 7), sampled_legs());
    assert_eq!(alone, crowded);
    assert!(none == 0 && some > 0, "{none} and {some} preemptions");
}

#[test]
fn a_leg_resumed_at_any_token_goes_on_as_if_nothing_had_happened() {
    let (whole, _) = outputs_of(400, limits(8, 400), sampled_legs());
    for leg in sampled_legs() {
        let output = &whole[&leg.id];
        for cut in 1..output.len() {
            let mut resumed = leg.clone();
            resumed.tokens.extend_from_slice(&output[..cut]);
            let (rest, _) = outputs_of(400, limits(8, 400), vec![resumed]);
            assert_eq!(rest[&leg.id], output[cut..], "{:?} cut at {cut}", leg.sampling);
        }
    }
}

#[test]
fn choices_of_one_prompt_differ_and_share_its_blocks() {
    let sampling = Arc::new(Sampling { temperature: 1.0, ..Sampling::default() });
    let mut driver = Driver::new(LogitModel::new(64), limits(8, 64));
    for choice in 0..4 {
        let mut leg = leg(choice, prompt(0, 22), 8, &sampling);
        leg.choice = choice as u32;
        driver.admit(leg).unwrap();
    }
    driver.run();
    let distinct: HashSet<_> = driver.outputs.values().collect();
    assert_eq!(distinct.len(), 4);
    assert_eq!(driver.cached.values().sum::<u32>(), 3 * 20);
    assert_eq!(driver.computed, 22 + 3 * 2 + 4 * 7, "the prompt is computed once");
}

#[test]
fn a_draw_depends_on_seed_choice_and_index_of_the_output_token_alone() {
    let mut driver = Driver::new(LogitModel { flat: true, ..LogitModel::new(64) }, limits(8, 64));
    let sampling = Arc::new(Sampling { temperature: 1.0, seed: 77, ..Sampling::default() });
    let mut legs = HashMap::new();
    for (request, len, output, choice) in [(1, 5, 0, 0), (2, 17, 0, 3), (3, 12, 4, 3)] {
        let mut leg = leg(request, prompt(1, len), 12, &sampling);
        (leg.prompt_len, leg.choice) = (len - output, choice);
        driver.admit(leg.clone()).unwrap();
        legs.insert(leg.id, (output as u64, choice));
    }
    driver.run();
    for (id, (output, choice)) in legs {
        // The top 6 bits choose among 64 equals.
        let want = (output..12).map(|i| (random_bits(77, choice, i) >> 58) as u32);
        assert_eq!(driver.outputs[&id], want.collect::<Vec<_>>(), "{id}");
    }
}

#[test]
fn legs_cancelled_at_random_moments_leave_nothing_behind() {
    for seed in 0..200 {
        let mut driver = Driver::new(LogitModel::new(40), limits(4, 16));
        let legs = sampled_legs();
        for leg in legs.clone() {
            driver.admit(leg).unwrap();
        }
        for (i, leg) in legs.iter().enumerate() {
            for _ in 0..random_bits(seed, 0, i as u64) % 12 {
                driver.step();
            }
            driver.abort(leg.id);
        }
        driver.run();
        assert_eq!(driver.engine.load().blocks_used, 0, "seed {seed}");
        let mut extras = driver.engine.extras.iter();
        assert!(
            extras.all(|extra| extra.history.is_none() && extra.processors.is_empty()),
            "seed {seed}"
        );
    }
}

#[test]
fn the_oldest_running_leg_advances_in_every_step() {
    let mut driver = Driver::new(SimModel::new(SimConfig { eos: None, ..sim(24) }), limits(8, 9));
    for request in 0..40 {
        driver.admit(leg(request, prompt(request as usize, 30), 60, &greedy())).unwrap();
    }
    let mut oldest_done = 0;
    while driver.engine.has_work() {
        let before = driver.engine.scheduler.oldest_running();
        driver.step();
        if let Some((slot, id)) = before {
            let planned = driver.engine.scheduler.planned();
            assert!(planned.iter().any(|one| one.slot == slot), "{id} stood still");
            oldest_done += 1;
        }
    }
    assert!(oldest_done > 100 && driver.engine.load().preemptions > 0);
    assert_eq!(driver.ends.len(), 40);
}

#[test]
fn legs_end_at_eos_stop_ids_max_tokens_and_the_end_of_the_context() {
    let config = SimConfig { answers: 9..10, eos: None, ..sim(64) };
    let always = |sampling: Sampling, len, max_tokens| {
        let mut driver = Driver::new(SimModel::new(config.clone()), limits(4, 64));
        driver.admit(leg(1, prompt(0, len), max_tokens, &Arc::new(sampling))).unwrap();
        driver.run();
        (driver.outputs[&id(1)].len(), driver.ends[&id(1)])
    };
    let eos = Sampling { eos_ids: vec![9], ..Sampling::default() };
    let stop = Sampling { stop_token_ids: vec![9], ..Sampling::default() };
    let cases = [
        (Sampling::default(), 5, 7, 7, FinishReason::Length),
        (Sampling::default(), 90, 50, 6, FinishReason::Length),
        (eos.clone(), 5, 7, 1, FinishReason::Stop),
        (Sampling { min_tokens: 3, ..eos.clone() }, 5, 7, 4, FinishReason::Stop),
        (Sampling { ignore_eos: true, ..eos }, 5, 7, 7, FinishReason::Length),
        (Sampling { ignore_eos: true, ..stop.clone() }, 5, 7, 1, FinishReason::Stop),
        (Sampling { min_tokens: 6, ..stop }, 5, 7, 7, FinishReason::Stop),
    ];
    for (sampling, len, max_tokens, want, finish) in cases {
        let got = always(sampling.clone(), len, max_tokens);
        assert_eq!(got, (want, finish), "{sampling:?} {len} {max_tokens}");
    }
}

#[test]
fn bad_numbers_end_their_leg_and_no_other() {
    let mut model = LogitModel::new(64);
    model.poison = Some(3);
    let mut driver = Driver::new(model, limits(8, 64));
    for request in 0..30 {
        driver.admit(leg(request, vec![request as u32; 5], 20, &greedy())).unwrap();
    }
    driver.run();
    assert!(!driver.failed.is_empty() && !driver.ends.is_empty());
    assert_eq!(driver.failed.len() + driver.ends.len(), 30);
}

#[test]
fn a_failed_forward_pass_loses_the_engine() {
    let mut engine = Embedded::new(LogitModel::new(64), limits(8, 64), &HashKey::default());
    engine.admit(leg(1, prompt(0, 5), 9, &greedy())).unwrap();
    engine.model.fail = true;
    let mut out = StepOutput::default();
    let error = engine.step(&mut out).unwrap_err();
    assert_eq!(error.reach(), crate::engine::Reach::Engine);
    engine.model.fail = false;
    assert_eq!(engine.step(&mut out), Err(error.clone()), "it stays lost");
    assert_eq!(engine.admit(leg(2, prompt(0, 5), 9, &greedy())), Err(error));
}

#[test]
fn corrupted_kv_gives_other_tokens() {
    let config = SimConfig { eos: None, ..sim(64) };
    let mut driver = Driver::new(SimModel::new(config.clone()), limits(8, 64));
    let leg = leg(1, prompt(0, 20), 30, &greedy());
    driver.admit(leg.clone()).unwrap();
    driver.step();
    (0..64).for_each(|block| driver.engine.model.corrupt(crate::ids::BlockId(block)));
    driver.run();
    assert_ne!(driver.outputs[&leg.id], expected(&config, &leg).0);
}

#[test]
fn blocks_that_the_pool_gave_up_come_back_from_the_host_tier() {
    let config = SimConfig { eos: None, ..sim_with_host(16, 32) };
    let mut driver = Driver::new(SimModel::new(config.clone()), limits(4, 64));
    // Each fills 12 of the 16 blocks, so the second one needs what the first one has left.
    for (request, which) in [(0, 0), (1, 1), (2, 0)] {
        let leg = leg(request, prompt(which, 45), 3, &greedy());
        driver.admit(leg.clone()).unwrap();
        driver.run();
        assert_eq!(driver.outputs[&leg.id], expected(&config, &leg).0, "leg {request}");
    }
    let load = driver.engine.load();
    assert!(load.blocks_in_host >= 4, "what the second one had is there now: {load:?}");
    assert_eq!(driver.cached[&id(2)], 44, "all of it was found, some in the pool, some below it");
    let shared = 8; // of the two prompts
    assert_eq!(driver.computed, 45 + (45 - shared) + 1 + 3 * 2);
}

#[test]
fn a_processor_changes_its_leg_alone_and_so_does_its_error() {
    let wanted = |name: &str| Sampling {
        processors: vec![Wanted::named(name)],
        eos_ids: vec![2],
        ..Sampling::default()
    };
    let fails = |_: &_, _: &_| {
        struct Fails;
        impl LogitsProcessor for Fails {
            fn process(&self, so_far: SoFar<'_>, _: &mut [f32]) -> Result<(), String> {
                let output = so_far.beams[0].len() - so_far.prompt_len;
                if output < 3 { Ok(()) } else { Err("three will do".to_owned()) }
            }
        }
        Ok(Box::new(Fails) as Box<dyn LogitsProcessor>)
    };
    let plain = Arc::new(Sampling::default());
    let (alone, _) = outputs_of(64, limits(8, 64), vec![leg(1, prompt(1, 20), 12, &plain)]);
    let mut driver = Driver::new(LogitModel::new(64), limits(8, 64));
    driver.engine = Embedded::new(LogitModel::new(64), limits(8, 64), &HashKey::default())
        .with_processors(Processors::new(|_| Ok(vec![7, 8, 9])).with("fails", fails));
    let legs = [(1, plain), (2, Arc::new(wanted("forced_text"))), (3, Arc::new(wanted("fails")))];
    let legs = legs.map(|(request, sampling)| leg(request, prompt(1, 20), 12, &sampling));
    legs.iter().for_each(|leg| driver.admit(leg.clone()).unwrap());
    driver.run();
    assert_eq!(driver.outputs[&legs[0].id], alone[&legs[0].id]);
    assert_eq!(driver.outputs[&legs[1].id], [7, 8, 9, 2]);
    let why = "logits processor fails: three will do";
    assert_eq!(driver.failed.len(), 1);
    assert_eq!((driver.failed[0].0, driver.failed[0].1.to_string()), (legs[2].id, why.to_owned()));
}
