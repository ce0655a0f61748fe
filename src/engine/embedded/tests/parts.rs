//! Legs that are parts: prefills that are kept, decodes whose blocks come from elsewhere, late, or not
//! at all.

use proptest::prelude::*;

use super::*;

/// What a random life does.
#[derive(Clone, Debug)]
enum Op {
    Admit {
        which: usize,
        len: usize,
        max_tokens: u32,
        part: u32,
    },
    Steps(usize),
    /// The first so many blocks have come, or as many as were asked for; the others will not.
    Pulled(prop::sample::Index, u32),
    /// Something is written to blocks that are being fetched.
    Write(prop::sample::Index),
    Abort(prop::sample::Index),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let admit = (0_usize..4, 5_usize..60, 1_u32..30, 0_u32..20);
    let index = any::<prop::sample::Index>;
    let op = prop_oneof![
        4 => admit.prop_map(|(which, len, max_tokens, part)| Op::Admit { which, len, max_tokens, part }),
        3 => (1_usize..6).prop_map(Op::Steps),
        2 => (index(), 0_u32..16).prop_map(|(at, come)| Op::Pulled(at, come)),
        1 => index().prop_map(Op::Write),
        2 => index().prop_map(Op::Abort),
    ];
    prop::collection::vec(op, 1..80)
}

/// A part by a number: every third leg is a prefill, every third a whole one.
fn part(number: u32) -> Part {
    match number % 3 {
        0 => Part::Prefill,
        1 => Part::Whole,
        _ => Part::Decode { blocks: number },
    }
}

impl Driver<SimModel> {
    /// The end of a fetch: so much of what was asked for, and nonsense after it.
    fn end_pull(&mut self, at: usize, legs: &HashMap<LegId, Leg>, come: u32) {
        let pull = self.pulls.swap_remove(at);
        let first = pull.first as usize;
        let come = come.min(pull.blocks.len() as u32);
        for (block, nth) in pull.blocks.iter().zip(first + 1..) {
            let model = self.engine.model_mut();
            match nth <= first + come as usize {
                true => model.receive(*block, &legs[&pull.leg].tokens[..nth * 4]),
                false => model.corrupt(*block),
            }
        }
        self.engine.pulled(pull.leg, come);
        self.engine.scheduler.check().unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn parts_give_the_tokens_of_the_whole_whatever_comes_late_or_not_at_all(
        ops in ops(),
        blocks in 16_u32..60,
        max_running in 1_usize..6,
        prefix_cache in any::<bool>(),
        host_blocks in prop_oneof![Just(0_u32), 1_u32..20],
    ) {
        let config = sim_with_host(blocks, host_blocks);
        let limits = Limits { prefix_cache, ..limits(max_running, 20) };
        let mut driver = Driver::new(SimModel::new(config.clone()), limits);
        let (mut legs, mut aborted) = (HashMap::new(), HashSet::new());
        for (i, op) in ops.into_iter().enumerate() {
            match op {
                Op::Admit { which, len, max_tokens, part: number } => {
                    let mut leg = leg(i as u64, prompt(which, len), max_tokens, &greedy());
                    leg.part = part(number);
                    if driver.admit(leg.clone()).is_ok() {
                        legs.insert(leg.id, leg);
                    }
                }
                Op::Steps(count) => (0..count)
                    .for_each(|_| if driver.engine.has_work() { driver.step() }),
                Op::Pulled(at, come) if !driver.pulls.is_empty() => {
                    driver.end_pull(at.index(driver.pulls.len()), &legs, come);
                }
                Op::Write(at) if !driver.pulls.is_empty() => {
                    let pull = at.get(&driver.pulls).clone();
                    let model = driver.engine.model_mut();
                    pull.blocks.iter().for_each(|block| model.corrupt(*block));
                }
                Op::Abort(at) if !driver.live.is_empty() => {
                    let mut live: Vec<_> = driver.live.iter().copied().collect();
                    live.sort();
                    let id = *at.get(&live);
                    driver.abort(id);
                    aborted.insert(id);
                }
                Op::Pulled(..) | Op::Write(_) | Op::Abort(_) => {}
            }
        }
        // Everything ends: fetches first, prefills when nothing else can go on.
        for _ in 0..ENOUGH_STEPS {
            if driver.engine.has_work() {
                driver.step();
            } else if !driver.pulls.is_empty() {
                driver.end_pull(0, &legs, u32::MAX);
            } else if let Some(&id) = driver.held.keys().min() {
                let leg = &legs[&id];
                let full = (leg.tokens.len() - 1) / 4;
                prop_assert_eq!(driver.held[&id].len(), full, "{:?}", leg);
                driver.abort(id);
                aborted.insert(id);
            } else {
                break;
            }
        }
        prop_assert!(driver.live.is_empty(), "lost: {:?}", driver.live);
        prop_assert_eq!(driver.engine.load().blocks_used, 0);
        for (id, leg) in legs {
            if aborted.contains(&id) {
                continue;
            }
            let (tokens, finish) = expected(&config, &leg);
            prop_assert_eq!(&driver.outputs[&id], &tokens, "{:?}", leg);
            prop_assert_eq!(driver.ends[&id], finish, "{:?}", leg);
        }
    }
}

#[test]
fn a_decode_computes_only_what_was_not_fetched() {
    let config = SimConfig { eos: None, ..sim(64) };
    let mut driver = Driver::new(SimModel::new(config.clone()), limits(4, 64));
    let mut first = leg(1, prompt(0, 45), 3, &greedy());
    first.part = Part::Prefill;
    driver.admit(first.clone()).unwrap();
    driver.step();
    assert_eq!((driver.held[&first.id].len(), driver.computed), (11, 44));
    assert!(!driver.engine.has_work(), "it only keeps its blocks");
    let mut other = Driver::new(SimModel::new(config.clone()), limits(4, 64));
    let mut second = leg(2, prompt(0, 45), 3, &greedy());
    second.part = Part::Decode { blocks: 11 };
    other.admit(second.clone()).unwrap();
    other.step();
    assert!(!other.engine.has_work() && other.computed == 0, "it waits for its blocks");
    other.end_pull(0, &HashMap::from([(second.id, second.clone())]), u32::MAX);
    other.run();
    assert_eq!(
        (other.outputs[&second.id].clone(), other.computed),
        (expected(&config, &second).0, 3)
    );
    driver.abort(first.id);
    assert_eq!(driver.engine.load().blocks_used, 0);
}
