//! One part of the table against a plain map.

use std::collections::HashMap;

use proptest::prelude::*;

use super::super::part::{Part, Swept};
use super::super::table::NONE;

/// What a sweep takes out.
const GONE: u32 = 9;

#[derive(Clone, Debug)]
enum Step {
    /// A key gets a set, or loses its own.
    Change { key: u64, set: u32 },
    /// Some places of a sweep.
    Sweep { places: usize },
}

/// Keys that belong into few of the buckets, or anywhere; so many stores for so many removes.
fn step(stores: u32, removes: u32) -> impl Strategy<Value = Step> {
    let crowded = (0..4_u64, 0..60_u64).prop_map(|(home, nth)| home << 54 | nth);
    let key = || prop_oneof![crowded.clone(), (0..600_u64).prop_map(|nth| nth << 46)];
    prop_oneof![
        stores => (key(), 0..4_u32).prop_map(|(key, set)| Step::Change { key, set }),
        removes => key().prop_map(|key| Step::Change { key, set: NONE }),
        1 => (0..60_usize).prop_map(|places| Step::Sweep { places }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn a_part_keeps_what_it_is_told_and_a_sweep_misses_nothing(
        at_first in proptest::collection::vec(step(9, 1), 0..900),
        steps in proptest::collection::vec(step(3, 60), 0..2500),
    ) {
        let (mut part, mut truth) = (Part::EMPTY, HashMap::new());
        let mut swept = Swept::default();
        let mut clear = |set| if set == GONE { NONE } else { set };
        for (nth, step) in at_first.iter().chain(&steps).enumerate() {
            match *step {
                Step::Change { key, set } => {
                    // Nobody stores for a rank that is gone.
                    let set = if nth < at_first.len() && set == 0 { GONE } else { set };
                    let before = truth.get(&key).copied().unwrap_or(NONE);
                    part.change(key, |known| {
                        assert!(known == before || known == NONE && before == GONE);
                        set
                    });
                    truth.insert(key, set);
                    truth.retain(|_, set| *set != NONE);
                }
                Step::Sweep { mut places } if nth >= at_first.len() => {
                    part.sweep(&mut swept, &mut places, &mut clear);
                }
                Step::Sweep { .. } => {}
            }
            if nth % 16 == 0 {
                part.check();
            }
        }
        while !part.sweep(&mut swept, &mut 7, &mut clear) {}
        truth.retain(|_, set| *set != GONE);
        part.check();
        prop_assert_eq!(part.iter().collect::<HashMap<_, _>>(), truth);
        prop_assert_eq!(part.used(), part.iter().count());
    }
}
