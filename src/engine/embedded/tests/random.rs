//! Random lives of many legs against the simulated model's definition.

use proptest::prelude::*;

use super::*;

/// What a random life does: admit, step or abort.
#[derive(Clone, Debug)]
enum Op {
    Admit { which: usize, len: usize, output: usize, max_tokens: u32, min_tokens: u32, salt: u64 },
    Steps(usize),
    Abort(usize),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let admit = (0_usize..6, 1_usize..60, 0_usize..9, 1_u32..50, 0_u32..5, 0_u64..2).prop_map(
        |(which, len, output, max_tokens, min_tokens, salt)| Op::Admit {
            which,
            len,
            output,
            max_tokens,
            min_tokens,
            salt,
        },
    );
    let op = prop_oneof![
        4 => admit,
        3 => (1_usize..8).prop_map(Op::Steps),
        1 => any::<prop::sample::Index>().prop_map(|index| Op::Abort(index.index(1000))),
    ];
    prop::collection::vec(op, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn every_leg_ends_once_with_the_right_tokens_whatever_happens_around_it(
        ops in ops(),
        blocks in 8_u32..60,
        max_running in 1_usize..9,
        max_batch_tokens in 1_usize..40,
        prefix_cache in any::<bool>(),
        host_blocks in prop_oneof![Just(0_u32), 1_u32..40],
    ) {
        let config = sim_with_host(blocks, host_blocks);
        let limits = Limits { prefix_cache, ..limits(max_running, max_batch_tokens) };
        let mut driver = Driver::new(SimModel::new(config.clone()), limits);
        let mut legs = HashMap::new();
        for (i, op) in ops.into_iter().enumerate() {
            match op {
                Op::Admit { which, len, output, max_tokens, min_tokens, salt } => {
                    let sampling = Sampling { min_tokens, eos_ids: vec![2], ..Sampling::default() };
                    let mut leg =
                        leg(i as u64, prompt(which, len), max_tokens, &Arc::new(sampling));
                    leg.prompt_len = len.saturating_sub(output).max(1);
                    leg.salt = salt;
                    if driver.admit(leg.clone()).is_ok() {
                        legs.insert(leg.id, leg);
                    }
                }
                Op::Steps(count) => (0..count).for_each(|_| driver.step()),
                Op::Abort(index) => {
                    let mut live: Vec<_> = driver.live.iter().copied().collect();
                    live.sort();
                    if let Some(&id) = live.get(index % live.len().max(1)) {
                        driver.abort(id);
                        legs.remove(&id);
                    }
                }
            }
        }
        driver.run();
        for (id, leg) in legs {
            let (tokens, finish) = expected(&config, &leg);
            prop_assert_eq!(&driver.outputs[&id], &tokens, "{:?}", leg);
            prop_assert_eq!(driver.ends[&id], finish, "{:?}", leg);
        }
    }
}

/// Random numbers by name, so that one seed tells the whole story.
struct Dice {
    seed: u64,
    rolled: u64,
}

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.rolled += 1;
        random_bits(self.seed, 0, self.rolled) % end
    }
}

/// Legs come, are cancelled, and live through losses of their engine: what a rank and its front end
/// do, for as long as it takes to serve a few hundred of them on a pool that is too small.
fn serve_with_losses(seed: u64) {
    let mut dice = Dice { seed, rolled: 0 };
    let config = sim_with_host(30 + dice.below(40) as u32, dice.below(60) as u32);
    let limits = limits(1 + dice.below(12) as usize, 1 + dice.below(50) as usize);
    let mut driver = Driver::new(SimModel::new(config.clone()), limits);
    let mut legs: HashMap<LegId, Leg> = HashMap::new();
    for request in 0..300 {
        let (which, len) = (dice.below(6) as usize, 1 + dice.below(70) as usize);
        let mut leg = leg(request, prompt(which, len), 1 + dice.below(60) as u32, &greedy());
        leg.salt = dice.below(3) / 2;
        if driver.admit(leg.clone()).is_ok() {
            legs.insert(leg.id, leg);
        }
        (0..dice.below(12)).for_each(|_| driver.step());
        if dice.below(10) == 0
            && let Some(&id) = driver.live.iter().min()
        {
            driver.abort(id);
            legs.remove(&id);
        }
        if dice.below(40) == 0 {
            driver.replace_engine(SimModel::new(config.clone()), limits, &legs);
        }
    }
    driver.run();
    assert!(legs.len() > 100, "seed {seed} refuses nearly everything");
    for (id, leg) in legs {
        let (tokens, finish) = expected(&config, &leg);
        assert_eq!(driver.outputs[&id], tokens, "seed {seed}: {leg:?}");
        assert_eq!(driver.ends[&id], finish, "seed {seed}: {leg:?}");
    }
}

impl Driver<SimModel> {
    /// The engine is lost; a new one continues every live leg from what was delivered.
    fn replace_engine(&mut self, model: SimModel, limits: Limits, legs: &HashMap<LegId, Leg>) {
        self.engine = Embedded::new(model, limits, &HashKey::default());
        self.findable.clear();
        self.cached.clear();
        let mut live: Vec<_> = self.live.iter().copied().collect();
        live.sort();
        for id in live {
            let mut leg = legs[&id].clone();
            leg.tokens.extend(self.outputs.get(&id).into_iter().flatten());
            self.admit(leg).unwrap();
        }
    }
}

/// `CUELIGHT_TEST_SEED=n` repeats one life; without it there are fixed ones, and a fresh one.
#[test]
fn legs_survive_the_loss_of_their_engine_with_the_same_tokens() {
    let given = std::env::var("CUELIGHT_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let fresh = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
    let seeds = given.map_or_else(|| (0..40).chain([fresh]).collect(), |seed| vec![seed]);
    for seed in seeds {
        println!("CUELIGHT_TEST_SEED={seed}");
        serve_with_losses(seed);
    }
}
