//! The index's promises, by example; `random` holds it against a plain map, `managers` against the
//! engines' own block managers.

mod managers;
mod part;
mod random;

use std::time::{Duration, Instant};

use super::*;

/// Blocks `0..=length` of a prompt that begins like prompt `root` and goes on like prompt `branch`
/// after `shared` blocks.
fn chain(root: u64, shared: usize, branch: u64, length: usize) -> Vec<BlockHash> {
    let seed = |at: usize| if at < shared { root } else { branch ^ 0xB4A2_0000_0000 };
    (0..length).map(|at| block(seed(at), at as u64)).collect()
}

/// A well mixed hash of its own for every pair.
fn block(chain: u64, at: u64) -> BlockHash {
    let half = |salt: u64| {
        let x = (chain ^ salt).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (at + 1);
        let x = (x ^ (x >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let x = (x ^ (x >> 32)).wrapping_mul(0x94D0_49BB_1331_11EB);
        u128::from(x ^ (x >> 31))
    };
    BlockHash(half(0xA5 << 56) << 64 | half(0))
}

/// Blocks of `chain` that each slot holds, by the index.
fn depths(index: &PrefixIndex, chain: &[BlockHash]) -> Vec<u32> {
    depths_with(index, chain, &mut Scratch::default())
}

/// The same in both ways the index tells it.
fn depths_with(index: &PrefixIndex, chain: &[BlockHash], scratch: &mut Scratch) -> Vec<u32> {
    let (mut depths, mut told) = (vec![0; index.slots()], vec![0; index.slots()]);
    let matches = index.matches(chain, scratch);
    matches.raise(&mut depths);
    matches.each(|slot, blocks| told[slot.index()] = blocks.max(told[slot.index()]));
    assert_eq!(told, depths);
    depths
}

#[test]
fn each_rank_is_told_with_the_length_of_its_prefix() {
    let prompt = chain(1, 200, 1, 200);
    for held in [0, 1, 2, 3, 17, 18, 100, 199, 200] {
        let mut index = PrefixIndex::new();
        let slots = [index.add_rank(), index.add_rank(), index.add_rank()];
        index.store(slots[0], &prompt[..held]);
        index.store(slots[1], &prompt);
        index.store(slots[2], &chain(1, held, 9, 200));
        for asked in [1, 2, 16, 199, 200] {
            let expected = [held.min(asked) as u32, asked as u32, held.min(asked) as u32];
            assert_eq!(depths(&index, &prompt[..asked]), expected, "{held} of {asked}");
        }
    }
}

#[test]
fn runs_name_the_ranks_of_every_prefix() {
    let mut index = PrefixIndex::new();
    let slots: Vec<Slot> = (0..300).map(|_| index.add_rank()).collect();
    let prompt = chain(1, 64, 1, 64);
    for (nth, &slot) in slots.iter().enumerate() {
        index.store(slot, &prompt[..if nth % 100 == 0 { 64 } else { 10 }]);
    }
    let mut scratch = Scratch::default();
    let matches = index.matches(&prompt, &mut scratch);
    let runs: Vec<_> = matches.runs().collect();
    assert_eq!(runs.iter().map(|(blocks, _)| *blocks).collect::<Vec<_>>(), [10, 64]);
    assert_eq!(runs.iter().map(|(_, ranks)| ranks.len()).collect::<Vec<_>>(), [300, 3]);
    let mut long = Vec::new();
    runs[1].1.each(|slot| long.push(slot));
    assert_eq!(long, [slots[0], slots[100], slots[200]]);
    assert!(runs[1].1.contains(slots[100]) && !runs[1].1.contains(slots[101]));
    assert_eq!(matches.longest(), 64);
    let mut told = 0;
    matches.each(|_, _| told += 1);
    assert_eq!(told, 300, "each rank once");
}

#[test]
fn blocks_that_the_same_ranks_hold_share_one_set() {
    let mut index = PrefixIndex::new();
    let slots: Vec<Slot> = (0..64).map(|_| index.add_rank()).collect();
    let chains: Vec<_> = (0..50).map(|nth| chain(nth, 20, nth, 20)).collect();
    for &slot in &slots {
        chains.iter().for_each(|chain| index.store(slot, chain));
    }
    assert_eq!((index.blocks(), index.sets()), (1000, 1));
    for &slot in &slots {
        chains.iter().for_each(|chain| index.store(slot, chain));
        assert_eq!(index.holdings(slot), 1000, "storing again changes nothing");
    }
    for &slot in &slots {
        chains.iter().for_each(|chain| index.remove(slot, chain));
        chains.iter().for_each(|chain| index.remove(slot, chain));
        assert_eq!(index.holdings(slot), 0);
    }
    assert_eq!((index.blocks(), index.sets()), (0, 0));
}

#[test]
fn a_retired_rank_vanishes_at_once_and_its_slot_comes_back_clean() {
    let mut index = PrefixIndex::new();
    let (one, two) = (index.add_rank(), index.add_rank());
    let (shared, own) = (chain(1, 500, 1, 500), chain(2, 500, 2, 500));
    index.store(one, &shared);
    index.store(two, &shared);
    index.store(one, &own);
    index.retire(one);
    index.store(one, &chain(3, 9, 3, 9)); // an event that came too late
    assert_eq!(depths(&index, &shared), [0, 500]);
    assert_eq!(depths(&index, &own), [0, 0]);
    assert_eq!(index.matches(&own, &mut Scratch::default()).longest(), 0);
    assert_eq!(index.holdings(one), 0);

    let three = index.add_rank();
    assert_ne!(three, one, "not before the sweep is done");
    index.store(three, &own[..100]);
    assert_eq!(depths(&index, &own), [0, 0, 100]);
    let mut rounds = 0;
    while !index.sweep(100) {
        index.store(two, &chain(100 + rounds, 7, 100 + rounds, 7));
        rounds += 1;
    }
    assert!(rounds > 10, "{rounds} rounds");
    let again = index.add_rank();
    assert_eq!(again, one);
    assert_eq!(depths(&index, &shared), [0, 500, 0]);
    assert_eq!(depths(&index, &own), [0, 0, 100]);
    assert_eq!(index.blocks(), 500 + 100 + 7 * rounds as usize);
}

#[test]
fn memory_follows_the_number_of_blocks_both_ways() {
    let mut index = PrefixIndex::new();
    let empty = index.bytes();
    let slot = index.add_rank();
    let chains: Vec<_> = (0..500).map(|nth| chain(nth, 200, nth, 200)).collect();
    for (nth, chain) in chains.iter().enumerate() {
        index.store(slot, chain);
        let blocks = (nth + 1) * 200;
        if blocks >= 20_000 {
            assert!(index.bytes() - empty < blocks * 34, "{} for {blocks}", index.bytes());
        }
    }
    chains.iter().for_each(|chain| index.remove(slot, chain));
    assert!(index.bytes() < empty + 100_000, "{} after {empty}", index.bytes());
}

#[test]
fn a_prediction_lasts_most_of_its_time_and_never_longer() {
    let (start, ttl) = (Instant::now(), Duration::from_secs(8));
    let mut index = PrefixIndex::new();
    let slot = index.add_rank();
    let prompt = chain(1, 30, 1, 30);
    for begun in 0..4_u32 {
        let mut predicted = Predicted::new(ttl, 1000);
        predicted.route(slot, &chain(2, 5, 2, 5), start);
        let sent = start + Duration::from_millis(700) * begun;
        predicted.route(slot, &prompt, sent);
        let told = |predicted: &mut Predicted, after: Duration| {
            let mut depths = [0];
            predicted.expire(sent + after);
            predicted.raise(&prompt, &mut Scratch::default(), &mut depths);
            depths[0]
        };
        assert_eq!(told(&mut predicted, ttl * 3 / 4), 30, "{begun}");
        assert_eq!(told(&mut predicted, ttl), 0, "{begun}");
        assert_eq!(predicted.blocks(), 0);
    }
}

#[test]
fn predictions_are_bounded_and_forget_the_oldest_first() {
    let now = Instant::now();
    let mut index = PrefixIndex::new();
    let slots = [index.add_rank(), index.add_rank()];
    let mut predicted = Predicted::new(Duration::from_secs(60), 100);
    let told = |predicted: &Predicted, nth: u64| {
        let mut depths = [0; 2];
        predicted.raise(&chain(nth, 10, nth, 10), &mut Scratch::default(), &mut depths);
        depths
    };
    for nth in 0..40 {
        predicted.route(slots[nth as usize % 2], &chain(nth, 10, nth, 10), now);
        predicted.route(slots[0], &chain(1000, 10, 1000, 10), now);
        assert!(predicted.blocks() <= 100, "{}", predicted.blocks());
        assert_eq!(told(&predicted, 1000), [10, 0], "what is used stays");
    }
    assert_eq!(told(&predicted, 39), [0, 10]);
    assert_eq!(told(&predicted, 20), [0, 0]);
    predicted.route(slots[1], &chain(7, 5000, 7, 5000), now);
    assert!(predicted.blocks() <= 100, "one prompt beyond the bound");
}

#[test]
fn a_retired_rank_is_predicted_nothing_until_it_is_sent_something() {
    let now = Instant::now();
    let mut index = PrefixIndex::new();
    let slots = [index.add_rank(), index.add_rank()];
    let mut predicted = Predicted::new(Duration::from_secs(60), 10_000);
    let prompt = chain(1, 10, 1, 10);
    let told = |predicted: &Predicted| {
        let mut depths = [0; 2];
        predicted.raise(&prompt, &mut Scratch::default(), &mut depths);
        depths
    };
    for _ in 0..50 {
        predicted.route(slots[0], &prompt, now);
        predicted.route(slots[1], &prompt[..4], now);
        assert_eq!(told(&predicted), [10, 4]);
        predicted.retire(slots[0]);
        assert_eq!(told(&predicted), [0, 4]);
    }
    assert!(predicted.bytes() < 1 << 20, "{} bytes", predicted.bytes());
}
