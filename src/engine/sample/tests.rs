//! The sampler against a naive one: full sorts, no buffers, the documented order line by line.

use proptest::prelude::*;

use super::*;

/// What [`Sampler::sample`] promises, written to be read.
fn reference(
    logits: &[f32],
    sampling: &Sampling,
    (prompt, output): (&[u32], &[u32]),
    position: Position,
) -> Option<(u32, TokenLogprobs)> {
    let mut row = logits.to_vec();
    for (token, logit) in (0..).zip(&mut row) {
        let times = output.iter().filter(|&&seen| seen == token).count();
        if times > 0 || prompt.contains(&token) {
            let by = sampling.repetition_penalty;
            *logit = if *logit > 0.0 { *logit / by } else { *logit * by };
        }
        if times > 0 {
            *logit -= sampling.presence_penalty;
            *logit -= sampling.frequency_penalty * times as f32;
        }
        for &(_, bias) in sampling.logit_bias.iter().filter(|(id, _)| *id == token) {
            *logit += bias;
        }
        let ends = sampling.eos_ids.contains(&token) || sampling.stop_token_ids.contains(&token);
        if ends && position.index < sampling.min_tokens as usize {
            *logit = f32::NEG_INFINITY;
        }
    }
    let mut order: Vec<u32> = (0..row.len() as u32).collect();
    order.sort_by(|&a, &b| row[b as usize].total_cmp(&row[a as usize]).then(a.cmp(&b)));
    let greatest = row[order[0] as usize];
    if row.iter().any(|logit| logit.is_nan()) || !greatest.is_finite() {
        return None;
    }
    let token = if sampling.temperature == 0.0 {
        order[0]
    } else {
        naive_draw(&row, greatest, sampling, position)
    };
    let sum: f64 = row.iter().map(|&logit| (f64::from(logit) - f64::from(greatest)).exp()).sum();
    let logprob = |token: u32| (f64::from(row[token as usize] - greatest) - sum.ln()) as f32;
    order.retain(|&token| row[token as usize] > f32::NEG_INFINITY);
    order.truncate(sampling.logprobs.unwrap_or(0).into());
    let top = order.iter().map(|&token| Candidate { token, logprob: logprob(token) }).collect();
    Some((token, TokenLogprobs { chosen: logprob(token), top }))
}

fn naive_draw(row: &[f32], greatest: f32, sampling: &Sampling, position: Position) -> u32 {
    let mut relative = Vec::new();
    logits::relative(row, greatest, 1.0 / sampling.temperature, &mut relative);
    let mut kept: Vec<(f32, u32)> = relative.iter().copied().zip(0..).collect();
    kept.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    if sampling.top_k > 0 {
        kept.truncate(sampling.top_k as usize);
    }
    let weight = |one: &(f32, u32)| logits::weight(one.0);
    let total: u64 = kept.iter().map(weight).sum();
    if sampling.top_p < 1.0 {
        let target = (f64::from(sampling.top_p) * total as f64).ceil().max(1.0) as u64;
        let mut reached = 0;
        let enough = kept.iter().position(|one| {
            reached += weight(one);
            reached >= target
        });
        kept.truncate(enough.map_or(kept.len(), |last| last + 1));
    }
    kept.retain(|one| one.0 >= sampling.min_p);
    kept.sort_by_key(|one| one.1);
    let total: u64 = kept.iter().map(weight).sum();
    let bits = random_bits(sampling.seed, position.choice, position.index as u64);
    let mut left = (u128::from(bits) * u128::from(total)) >> 64;
    for one in &kept {
        match left.checked_sub(weight(one).into()) {
            Some(rest) => left = rest,
            None => return one.1,
        }
    }
    panic!("nothing left to draw from");
}

fn logit_rows() -> impl Strategy<Value = Vec<f32>> {
    let logit = prop_oneof![
        8 => -12.0_f32..12.0,
        4 => (-3_i32..4).prop_map(|logit| logit as f32),
        1 => Just(f32::NEG_INFINITY),
        1 => -1e6_f32..-100.0,
    ];
    prop::collection::vec(logit, 1..400)
}

prop_compose! {
    fn rules()(
        temperature in prop_oneof![Just(0.0_f32), 0.05_f32..3.0, Just(1.0)],
        top_p in prop_oneof![Just(1.0_f32), 0.0_f32..1.0],
        top_k in prop_oneof![Just(0_u32), 1_u32..20, 1_u32..500],
        min_p in prop_oneof![Just(0.0_f32), 0.0_f32..1.0],
        (presence, frequency, repetition) in prop_oneof![
            Just((0.0_f32, 0.0_f32, 1.0_f32)),
            (-2.0_f32..2.0, -2.0_f32..2.0, 0.5_f32..2.0),
        ],
        bias in prop::collection::btree_map(0_u32..500, -20.0_f32..20.0, 0..5),
        ends in prop::collection::vec(0_u32..450, 0..4),
        min_tokens in 0_u32..8,
        seed in any::<u64>(),
        logprobs in prop::option::of(0_u8..=20),
    ) -> Sampling {
        Sampling {
            temperature, top_p, top_k, min_p, seed, min_tokens, logprobs,
            presence_penalty: presence,
            frequency_penalty: frequency,
            repetition_penalty: repetition,
            logit_bias: bias.into_iter().collect(),
            eos_ids: ends.iter().take(1).copied().collect(),
            stop_token_ids: ends.iter().skip(1).copied().collect(),
            ..Sampling::default()
        }
    }
}

fn close(a: f32, b: f32) -> bool {
    (a - b).abs() <= 1e-5 * (1.0 + a.abs())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]
    #[test]
    fn it_agrees_with_the_naive_sampler(
        logits in logit_rows(),
        sampling in rules(),
        prompt in prop::collection::vec(0_u32..420, 0..12),
        output in prop::collection::vec(0_u32..420, 0..12),
        choice in 0_u32..3,
    ) {
        let position = Position { choice, index: output.len() };
        let history = History::is_needed(&sampling)
            .then(|| History::new(&sampling, &prompt, &output));
        let mut sampler = Sampler::default();
        let want = reference(&logits, &sampling, (&prompt, &output), position);
        for round in 0..2 {
            let row = &mut logits.clone();
            let got = sampler.sample(row, &sampling, history.as_ref(), position);
            let Some((token, logprobs)) = &want else {
                prop_assert!(got.is_err());
                continue;
            };
            let got = got.unwrap();
            prop_assert_eq!(got.0, *token, "round {}", round);
            prop_assert_eq!(got.1.is_some(), sampling.logprobs.is_some());
            if let Some(got) = got.1 {
                prop_assert!(close(got.chosen, logprobs.chosen), "{:?} {:?}", got, logprobs);
                prop_assert_eq!(got.top.len(), logprobs.top.len());
                for (got, want) in got.top.iter().zip(&logprobs.top) {
                    prop_assert_eq!(got.token, want.token);
                    prop_assert!(close(got.logprob, want.logprob), "{:?} {:?}", got, want);
                }
            }
        }
    }

    #[test]
    fn a_history_kept_up_is_one_made_anew(
        prompt in prop::collection::vec(0_u32..20, 0..12),
        output in prop::collection::vec(0_u32..20, 0..12),
    ) {
        let sampling = Sampling {
            repetition_penalty: 1.3, presence_penalty: 0.4, frequency_penalty: 0.2,
            ..Sampling::default()
        };
        let mut kept_up = History::new(&sampling, &prompt, &[]);
        output.iter().for_each(|&token| kept_up.push(token));
        let anew = History::new(&sampling, &prompt, &output);
        let (mut a, mut b) = (vec![1.5; 20], vec![1.5; 20]);
        kept_up.apply(&sampling, &mut a);
        anew.apply(&sampling, &mut b);
        prop_assert_eq!(a, b);
    }
}

#[test]
fn draws_follow_the_probabilities() {
    let logits = [0.0_f32, 1.0, -1.0, 2.0, f32::NEG_INFINITY];
    let weights: Vec<f64> = logits.iter().map(|&logit| f64::from(logit / 0.7).exp()).collect();
    let total: f64 = weights.iter().sum();
    let draws = 40_000;
    let sampling = Sampling { temperature: 0.7, seed: 11, ..Sampling::default() };
    let mut sampler = Sampler::default();
    let mut counts = [0_u32; 5];
    for index in 0..draws {
        let position = Position { choice: 0, index };
        let (token, _) = sampler.sample(&mut logits.clone(), &sampling, None, position).unwrap();
        counts[token as usize] += 1;
    }
    for (count, weight) in counts.into_iter().zip(&weights) {
        let (got, want) = (f64::from(count) / draws as f64, weight / total);
        let deviation = (want * (1.0 - want) / draws as f64).sqrt();
        assert!((got - want).abs() <= 4.0 * deviation, "drawn {got}, probability {want}");
    }
}

#[test]
fn penalties_do_what_hugging_face_and_openai_do() {
    let sampling = Sampling {
        repetition_penalty: 2.0,
        presence_penalty: 0.5,
        frequency_penalty: 0.25,
        ..Sampling::default()
    };
    let mut logits = [4.0, -4.0, 4.0, -4.0, 4.0];
    History::new(&sampling, &[0, 1], &[1, 2, 2]).apply(&sampling, &mut logits);
    // (only in the prompt, in both, twice in the output, unseen, unseen)
    assert_eq!(logits, [2.0, -8.75, 1.0, -4.0, 4.0]);
}

#[test]
fn a_row_of_bad_numbers_is_that_rows_failure() {
    let mut sampler = Sampler::default();
    let (sampling, position) = (Sampling::default(), Position { choice: 0, index: 0 });
    for bad in [[f32::NAN, 1.0], [1.0, f32::INFINITY], [f32::NEG_INFINITY; 2]] {
        let got = sampler.sample(&mut bad.clone(), &sampling, None, position);
        assert!(matches!(got, Err(EngineError::BadNumbers { .. })), "{bad:?}: {got:?}");
    }
    let got = sampler.sample(&mut [1.0, 2.0], &sampling, None, position);
    assert_eq!(got, Ok((1, None)), "the next row is fine");
}

#[test]
fn bad_words_are_excluded_where_they_would_end() {
    let words = vec![vec![1], vec![2, 3], vec![], vec![9], vec![0, 2, 3]];
    let banned = |output: &[u32]| {
        let mut logits = [0.0; 5];
        ban(&mut logits, &words, output);
        (0..5).filter(|&id| logits[id] == f32::NEG_INFINITY).collect::<Vec<_>>()
    };
    assert_eq!(banned(&[]), [1]);
    assert_eq!(banned(&[4, 2]), [1, 3]);
    assert_eq!(banned(&[2, 4]), [1]);
}
