//! TensorRT-LLM's KV events as ours: names, what is left out, gaps.

use super::super::super::ffi::{KvBlockRow, KvEventKind, KvEventRow, KvEvents};
use super::super::events::Mirror;
use crate::engine::blocks::{BlockHasher, HashKey};
use crate::engine::{KvEvent, Tier};
use crate::ids::BlockHash;

const BLOCK: usize = 4;

fn event(id: u64, kind: KvEventKind) -> KvEventRow {
    KvEventRow {
        id,
        kind,
        window: 100,
        dp_rank: -1,
        has_parent: false,
        parent: 0,
        blocks_at: 0,
        blocks_len: 0,
        old_level: -1,
        new_level: -1,
        old_priority: -1,
        new_priority: -1,
    }
}

/// Blocks of these tokens under the handles that follow, after the block `parent`.
fn stored(id: u64, parent: Option<u64>, handles: &[u64], tokens: &[i32]) -> KvEvents {
    let row = KvEventRow {
        has_parent: parent.is_some(),
        parent: parent.unwrap_or(0),
        blocks_len: handles.len() as u32,
        ..event(id, KvEventKind::Stored)
    };
    let block = |(at, &hash): (usize, &u64)| KvBlockRow {
        hash,
        tokens_at: (at * BLOCK) as u32,
        tokens_len: (tokens.len() - at * BLOCK).min(BLOCK) as u32,
        ..Default::default()
    };
    KvEvents {
        rows: vec![row],
        blocks: handles.iter().enumerate().map(block).collect(),
        tokens: tokens.to_vec(),
        token_extra_ids: vec![0; tokens.len()],
        ..Default::default()
    }
}

fn with_hash(row: KvEventRow, hash: u64) -> KvEvents {
    let row = KvEventRow { blocks_len: 1, ..row };
    KvEvents { rows: vec![row], hashes: vec![hash], ..Default::default() }
}

fn names(tokens: &[u32]) -> Vec<BlockHash> {
    let mut names = Vec::new();
    BlockHasher::new(&HashKey::default(), BLOCK).extend(tokens, 0, &mut names);
    names
}

fn mirror() -> Mirror {
    Mirror::new(&HashKey::default(), BLOCK)
}

fn take(mirror: &mut Mirror, events: &KvEvents) -> Vec<KvEvent> {
    let mut out = Vec::new();
    mirror.take(events, &mut out);
    out
}

fn stores(hash: BlockHash, parent: Option<BlockHash>, tier: Tier) -> KvEvent {
    KvEvent::Stored { hash, parent, tier }
}

#[test]
fn blocks_have_the_names_that_routers_compute() {
    let mut mirror = mirror();
    let want = names(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
    // The third block is partial.
    let first = take(&mut mirror, &stored(0, None, &[70, 71, 72], &[1, 2, 3, 4, 5, 6, 7, 8, 9]));
    let device = Tier::Device;
    assert_eq!(first, [stores(want[0], None, device), stores(want[1], Some(want[0]), device)]);
    let next = take(&mut mirror, &stored(1, Some(71), &[73], &[9, 10, 11, 12]));
    assert_eq!(next, [stores(want[2], Some(want[1]), device)]);
    assert_eq!(take(&mut mirror, &stored(2, Some(72), &[74], &[1, 2, 3, 4])), []);
    assert_eq!(take(&mut mirror, &with_hash(event(3, KvEventKind::Removed), 72)), []);
    assert_eq!(mirror.counted(), (3, 0));
}

#[test]
fn levels_are_tiers_and_removals_end_them() {
    let mut mirror = mirror();
    let name = names(&[1, 2, 3, 4])[0];
    take(&mut mirror, &stored(0, None, &[70], &[1, 2, 3, 4]));
    let to = |id, level| KvEventRow {
        old_level: 0,
        new_level: level,
        ..event(id, KvEventKind::Updated)
    };
    assert_eq!(take(&mut mirror, &with_hash(to(1, 1), 70)), [stores(name, None, Tier::Host)]);
    assert_eq!((mirror.counted(), take(&mut mirror, &with_hash(to(2, -1), 70))), ((0, 1), vec![]));
    assert_eq!(take(&mut mirror, &with_hash(to(3, 0), 70)), [stores(name, None, Tier::Device)]);
    let gone = with_hash(event(4, KvEventKind::Removed), 70);
    assert_eq!(take(&mut mirror, &gone), [KvEvent::Removed { hash: name }]);
    assert_eq!(mirror.counted(), (0, 0));
}

#[test]
fn of_several_windows_the_largest_counts() {
    let mut mirror = mirror();
    let mut small = stored(1, None, &[71], &[1, 2, 3, 4]);
    small.rows[0].window = 50;
    assert_eq!(take(&mut mirror, &stored(0, None, &[70], &[1, 2, 3, 4])).len(), 1);
    assert_eq!(take(&mut mirror, &small), []);
    let mut large = stored(2, None, &[72], &[1, 2, 3, 4]);
    large.rows[0].window = 200;
    assert_eq!(take(&mut mirror, &large).len(), 2, "withdrawn, and told anew");
}

#[test]
fn a_gap_withdraws_everything() {
    let mut mirror = mirror();
    let want = names(&[1, 2, 3, 4]);
    take(&mut mirror, &stored(5, None, &[70], &[1, 2, 3, 4]));
    let after = take(&mut mirror, &stored(7, Some(70), &[71], &[5, 6, 7, 8]));
    assert_eq!(after, [KvEvent::Removed { hash: want[0] }], "its parent is not known any more");
    let mut left = Vec::new();
    mirror.findable(&mut left);
    assert!(left.is_empty());
    let again = take(&mut mirror, &stored(8, None, &[70], &[1, 2, 3, 4]));
    assert_eq!(again, [stores(want[0], None, Tier::Device)]);
}

#[test]
fn what_has_no_certain_name_is_not_told() {
    let mut mirror = mirror();
    mirror.salted(&[1, 2, 3, 4, 5]);
    let salted = stored(0, None, &[70, 71], &[1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(take(&mut mirror, &salted), []);
    assert_eq!(take(&mut mirror, &stored(1, Some(71), &[72], &[1, 1, 1, 1])), []);
    let mut adapted = stored(2, None, &[73], &[2, 2, 2, 2]);
    adapted.blocks[0].has_lora = true;
    assert_eq!(take(&mut mirror, &adapted), []);
    let mut pictured = stored(3, None, &[74], &[2, 2, 2, 2]);
    pictured.blocks[0].images = 1;
    assert_eq!(take(&mut mirror, &pictured), []);
    let mut extra = stored(4, None, &[75], &[2, 2, 2, 2]);
    extra.token_extra_ids[3] = 9;
    assert_eq!(take(&mut mirror, &extra), []);
    assert_eq!(take(&mut mirror, &stored(5, None, &[76], &[2, 2, 2, 2])).len(), 1);
}

#[test]
fn a_block_with_two_handles_goes_with_the_last() {
    let mut mirror = mirror();
    assert_eq!(take(&mut mirror, &stored(0, None, &[70], &[1, 2, 3, 4])).len(), 1);
    assert_eq!(take(&mut mirror, &stored(1, None, &[71], &[1, 2, 3, 4])), []);
    assert_eq!(take(&mut mirror, &stored(2, None, &[71], &[1, 2, 3, 4])), []);
    assert_eq!(take(&mut mirror, &with_hash(event(3, KvEventKind::Removed), 70)), []);
    assert_eq!(take(&mut mirror, &with_hash(event(4, KvEventKind::Removed), 71)).len(), 1);
}
