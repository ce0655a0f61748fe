//! The ledger's rules, one by one, and against a model that only knows what may be touched.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

const LIMITS: LedgerLimits = LedgerLimits { alarm: 2, cap: 4, remembered: 8 };

fn ids(numbers: &[u32]) -> Vec<BlockId> {
    numbers.iter().copied().map(BlockId).collect()
}

#[test]
fn a_block_is_free_again_only_after_proof_and_then_has_a_new_generation() {
    let mut ledger = Ledger::new(8, LIMITS);
    let first = ledger.reserve(1u32, Access::Write, &ids(&[3, 4])).unwrap();
    assert_eq!(first, [BlockGeneration(1); 2]);
    assert_eq!(ledger.reserve(1, Access::Write, &ids(&[3, 4])).unwrap(), first);
    assert!(matches!(ledger.done(1), Err(LedgerError::Phase { .. })));
    ledger.expose(1).unwrap();
    assert!(matches!(ledger.quiesced(1), Err(LedgerError::Phase { .. })));
    assert_eq!(ledger.abort(1).unwrap(), []);
    assert!(matches!(ledger.expose(1), Err(LedgerError::Phase { .. })));
    assert!(!ledger.is_free(BlockId(3)));
    assert_eq!(ledger.quarantine(1).unwrap(), Level::Alarm);
    let held = LedgerError::Held { block: 3 };
    assert_eq!(ledger.reserve(2, Access::Read, &ids(&[0, 3])), Err(held));
    assert_eq!(ledger.census(), Census { free: 6, quarantined: 2, holds: 1, ..Census::default() });
    assert_eq!(ledger.quiesced(1).unwrap(), ids(&[3, 4]));
    assert_eq!(ledger.quiesced(1).unwrap(), []);
    assert_eq!(ledger.done(1).unwrap(), []);
    assert_eq!(
        ledger.reserve(1, Access::Write, &ids(&[3, 4])),
        Err(LedgerError::Ended { hold: "1".into() })
    );
    assert!(!ledger.is_current(BlockId(3), BlockGeneration(1)));
    assert_eq!(ledger.reserve(2, Access::Read, &ids(&[3])).unwrap(), [BlockGeneration(2)]);
    assert!(ledger.is_current(BlockId(3), BlockGeneration(2)));
}

#[test]
fn readers_share_a_block_and_the_last_one_frees_it() {
    let mut ledger = Ledger::new(2, LIMITS);
    for hold in 1..=3u32 {
        assert_eq!(ledger.reserve(hold, Access::Read, &ids(&[0])).unwrap(), [BlockGeneration(1)]);
        ledger.expose(hold).unwrap();
    }
    let held = Err(LedgerError::Held { block: 0 });
    assert_eq!(ledger.reserve(4, Access::Write, &ids(&[0])), held);
    assert_eq!(ledger.done(1).unwrap(), []);
    ledger.quarantine(2).unwrap();
    assert_eq!(ledger.done(3).unwrap(), []);
    assert_eq!(ledger.census().quarantined, 1);
    assert_eq!(ledger.done(2).unwrap(), ids(&[0]));
}

#[test]
fn a_full_quarantine_takes_no_new_holds_but_all_that_must_go_there() {
    let mut ledger = Ledger::new(16, LIMITS);
    for hold in 0..6u32 {
        ledger.reserve(hold, Access::Write, &ids(&[hold])).unwrap();
        ledger.expose(hold).unwrap();
    }
    let levels: Vec<Level> = (0..6).map(|hold| ledger.quarantine(hold).unwrap()).collect();
    use Level::{Alarm, Full, Normal};
    assert_eq!(levels, [Normal, Alarm, Alarm, Full, Full, Full]);
    let full = LedgerError::QuarantineFull { quarantined: 6, cap: 4 };
    assert_eq!(ledger.reserve(7, Access::Read, &ids(&[9])), Err(full));
    for hold in 0..3 {
        ledger.quiesced(hold).unwrap();
    }
    ledger.reserve(7, Access::Read, &ids(&[9])).unwrap();
}

#[test]
fn what_cannot_be_is_refused_and_takes_nothing() {
    let mut ledger = Ledger::new(4, LIMITS);
    let outside = LedgerError::NoSuchBlock { block: 4, blocks: 4 };
    assert_eq!(ledger.reserve(1u32, Access::Read, &ids(&[0, 4])), Err(outside));
    let twice = LedgerError::Twice { block: 2 };
    assert_eq!(ledger.reserve(1, Access::Read, &ids(&[2, 2])), Err(twice));
    assert_eq!(ledger.census(), Census { free: 4, ..Census::default() });
    ledger.reserve(1, Access::Read, &ids(&[0])).unwrap();
    let conflict = LedgerError::Conflict { hold: "1".into() };
    assert_eq!(ledger.reserve(1, Access::Write, &ids(&[0])), Err(conflict));
    assert_eq!(ledger.abort(1).unwrap(), ids(&[0]));
    assert_eq!(ledger.abort(9), Err(LedgerError::Unknown { hold: "9".into() }));
    assert!(!ledger.is_free(BlockId(4)));
}

#[derive(Clone, Debug)]
enum Step {
    Reserve(u8, bool, Vec<u32>),
    Expose(u8),
    Done(u8),
    Abort(u8),
    Quiesced(u8),
    Quarantine(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let hold = || 0u8..12;
    let step = prop_oneof![
        3 => (hold(), any::<bool>(), proptest::collection::vec(0u32..10, 1..4))
            .prop_map(|(hold, write, blocks)| Step::Reserve(hold, write, blocks)),
        3 => hold().prop_map(Step::Expose),
        1 => hold().prop_map(Step::Done),
        1 => hold().prop_map(Step::Abort),
        1 => hold().prop_map(Step::Quiesced),
        1 => hold().prop_map(Step::Quarantine),
    ];
    proptest::collection::vec(step, 1..120)
}

/// What the outside world may do: holds whose transfer can touch memory until it proves quiet.
#[derive(Default)]
struct World {
    live: HashMap<u8, User>,
}

/// May it touch memory, does it write, its blocks with their generations.
type User = (bool, bool, Vec<(BlockId, BlockGeneration)>);

impl World {
    fn apply(&mut self, ledger: &mut Ledger<u8>, step: &Step) -> Vec<BlockId> {
        match step {
            Step::Reserve(hold, write, blocks) => {
                let access = if *write { Access::Write } else { Access::Read };
                let blocks = ids(blocks);
                if let Ok(generations) = ledger.reserve(*hold, access, &blocks) {
                    let pairs = blocks.into_iter().zip(generations).collect();
                    self.live.entry(*hold).or_insert((false, *write, pairs));
                }
                Vec::new()
            }
            Step::Expose(hold) => {
                if ledger.expose(*hold).is_ok() {
                    self.live.get_mut(hold).expect("only known holds are exposed").0 = true;
                }
                Vec::new()
            }
            Step::Done(hold) => self.proof(*hold, ledger.done(*hold)),
            Step::Quiesced(hold) => self.proof(*hold, ledger.quiesced(*hold)),
            Step::Abort(hold) => {
                let freed = ledger.abort(*hold);
                if self.live.get(hold).is_some_and(|(exposed, ..)| !exposed) {
                    return self.proof(*hold, freed);
                }
                freed.unwrap_or_default()
            }
            Step::Quarantine(hold) => {
                let _ = ledger.quarantine(*hold);
                Vec::new()
            }
        }
    }

    fn proof(&mut self, hold: u8, ended: Result<Vec<BlockId>, LedgerError>) -> Vec<BlockId> {
        if ended.is_ok() {
            self.live.remove(&hold);
        }
        ended.unwrap_or_default()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, fork: false, ..ProptestConfig::default() })]
    #[test]
    fn no_block_is_free_while_a_transfer_may_touch_it(steps in steps()) {
        let mut ledger = Ledger::new(10, LedgerLimits { alarm: 3, cap: 6, remembered: 1000 });
        let mut world = World::default();
        for step in &steps {
            let freed = world.apply(&mut ledger, step);
            for block in &freed {
                prop_assert!(ledger.is_free(*block), "{step:?} freed {block:?} that is held");
            }
            let mut users: HashMap<BlockId, (u32, bool)> = HashMap::new();
            for (_, write, blocks) in world.live.values() {
                for (block, generation) in blocks {
                    prop_assert!(!ledger.is_free(*block), "{step:?}: {block:?}");
                    prop_assert!(ledger.is_current(*block, *generation), "{step:?}: {block:?}");
                    let user = users.entry(*block).or_default();
                    *user = (user.0 + 1, user.1 | write);
                }
            }
            prop_assert!(users.values().all(|(users, write)| *users == 1 || !write), "{step:?}");
            let census = ledger.census();
            prop_assert_eq!(census.free as usize, 10 - users.len());
            let Census { free, reserved, exposed, aborting, quarantined, holds } = census;
            prop_assert_eq!(free + reserved + exposed + aborting + quarantined, 10);
            prop_assert_eq!(holds as usize, world.live.len());
        }
        // Proof for all: everything is free again, nothing leaks.
        for hold in 0..12 {
            let _ = ledger.abort(hold);
            let _ = ledger.quiesced(hold);
        }
        prop_assert_eq!(ledger.census(), Census { free: 10, ..Census::default() });
    }
}
