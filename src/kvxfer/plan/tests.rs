//! Plans against an oracle that moves one element at a time.

use std::ops::Range;

use proptest::prelude::*;

use super::*;
use crate::kvxfer::layout::{Layout, Sizes, Strides};

fn sizes(blocks: u32, heads: Range<u32>, block_tokens: u32) -> Sizes {
    Sizes { blocks, layers: 2, planes: 2, heads, block_tokens, head_bytes: 8 }
}

fn ids(numbers: &[u32]) -> Vec<BlockId> {
    numbers.iter().copied().map(BlockId).collect()
}

#[test]
fn equal_pools_move_whole_blocks_and_neighbours_in_one_run() {
    let layout = Layout::block_major(sizes(10, 0..4, 16)).unwrap();
    let block = layout.block_bytes();
    assert_eq!(block, 2 * 2 * 4 * 16 * 8);
    assert_eq!(layout.bytes(), 10 * block);
    let (from, to) = (ids(&[3, 4, 9, 1]), ids(&[6, 7, 8, 5]));
    let (remote, local) =
        (Side { layout: &layout, blocks: &from }, Side { layout: &layout, blocks: &to });
    let runs = plan(remote, local, 0..64).unwrap();
    let run = |remote, local, blocks| Run {
        remote: remote * block,
        local: local * block,
        bytes: blocks * block,
    };
    assert_eq!(runs, [run(1, 5, 1), run(3, 6, 2), run(9, 8, 1)]);
    let ranges = layout.ranges(&to).unwrap();
    assert_eq!((ranges.len(), &ranges[0]), (1, &(5 * block..9 * block)));
}

#[test]
fn bad_tables_and_pools_are_refused() {
    let layout = Layout::block_major(sizes(4, 0..4, 16)).unwrap();
    let other = Layout::block_major(Sizes { layers: 3, ..sizes(4, 0..4, 16) }).unwrap();
    let shard = Layout::block_major(sizes(4, 4..6, 16)).unwrap();
    let (good, outside, twice) = (ids(&[0, 1]), ids(&[0, 4]), ids(&[1, 1]));
    let refused = |from: &Layout, from_blocks: &[BlockId], to_blocks: &[BlockId], end| {
        let remote = Side { layout: from, blocks: from_blocks };
        plan(remote, Side { layout: &layout, blocks: to_blocks }, 0..end).unwrap_err().to_string()
    };
    let cases = [
        (refused(&layout, &outside, &good, 32), "block 4 is outside of a pool of 4 blocks"),
        (refused(&layout, &good, &twice, 32), "block 1 is twice in the local table"),
        (
            refused(&layout, &good, &good, 33),
            "tokens up to 33 are wanted, but the table of 2 blocks",
        ),
        (
            refused(&other, &good, &good, 32),
            "the two pools differ in layers: 3 at the peer, 2 here",
        ),
        (
            refused(&shard, &good, &good, 32),
            "the peer's heads 4..6 and ours 0..4 have none in common",
        ),
    ];
    for (text, start) in cases {
        assert!(text.starts_with(start), "{text}");
    }
    let empty = Layout::block_major(sizes(0, 0..4, 16)).unwrap_err().to_string();
    assert!(empty.starts_with("bad KV layout: no size may be 0"), "{empty}");
    let tight = Strides { token: 7, ..layout.strides };
    assert!(Layout::from_parts(sizes(4, 0..4, 16), tight).is_err());
    let vast = Sizes { head_bytes: u64::MAX / 2, ..sizes(4, 0..4, 16) };
    assert!(Layout::block_major(vast).is_err());
}

/// A pool whose axes lie in any order, with gaps.
fn any_layout(heads: Range<u32>, block_tokens: u32) -> impl Strategy<Value = Layout> {
    let order = Just([0usize, 1, 2, 3, 4]).prop_shuffle();
    (1u32..3, order, [0u64..3, 0..3, 0..3, 0..3, 0..3], any::<bool>()).prop_map(
        move |(spare, order, gaps, dense)| {
            let blocks = 64 / block_tokens + spare;
            let sizes =
                Sizes { head_bytes: 3, layers: 2, ..sizes(blocks, heads.clone(), block_tokens) };
            if dense {
                return Layout::block_major(sizes).unwrap();
            }
            let counts =
                [sizes.blocks, sizes.layers, sizes.planes, heads.end - heads.start, block_tokens];
            let (mut strides, mut extent) = ([0; 5], sizes.head_bytes);
            for axis in order {
                strides[axis] = extent + gaps[axis];
                extent = strides[axis] * u64::from(counts[axis]);
            }
            let [block, layer, plane, head, token] = strides;
            let strides = Strides { block, layer, plane, head, token };
            Layout::from_parts(sizes, strides).unwrap()
        },
    )
}

#[derive(Debug)]
struct Case {
    remote: Layout,
    local: Layout,
    from: Vec<BlockId>,
    to: Vec<BlockId>,
    tokens: Range<u64>,
}

fn cases() -> impl Strategy<Value = Case> {
    let heads = || prop_oneof![Just(0..4u32), Just(0..2), Just(2..4), Just(1..3)];
    let block_tokens = || prop_oneof![Just(4u32), Just(8), Just(16), Just(5)];
    let layout =
        || (heads(), block_tokens()).prop_flat_map(|(heads, tokens)| any_layout(heads, tokens));
    let pools =
        (layout(), layout()).prop_filter("a common head", |(a, b)| common_heads(a, b).is_ok());
    pools.prop_flat_map(|(remote, local)| {
        let table = |layout: &Layout| {
            Just((0..layout.blocks).map(BlockId).collect::<Vec<_>>()).prop_shuffle()
        };
        let tables = (table(&remote), table(&local), (0u64..=60, 0u64..=60));
        (Just((remote, local)), tables).prop_map(|((remote, local), (from, to, (a, b)))| Case {
            remote,
            local,
            from,
            to,
            tokens: a.min(b)..a.max(b),
        })
    })
}

/// Where an element starts; written down anew, not through the code under test.
fn element(layout: &Layout, block: u32, at: [u32; 4]) -> usize {
    let [layer, plane, head, token] = at.map(u64::from);
    let s = &layout.strides;
    let head = head - u64::from(layout.heads.start);
    let block = u64::from(block) * s.block;
    (block + layer * s.layer + plane * s.plane + head * s.head + token * s.token) as usize
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, fork: false, ..ProptestConfig::default() })]
    #[test]
    fn a_plan_moves_each_element_to_its_place_and_touches_nothing_else(case in cases()) {
        let Case { remote, local, from, to, tokens } = &case;
        let source: Vec<u8> = (0..remote.bytes()).map(|i| (i * 131 % 127) as u8).collect();
        let mut expected = vec![0xEE; local.bytes() as usize];
        let mut written = 0;
        for token in tokens.clone() {
            let theirs = (token / u64::from(remote.block_tokens)) as usize;
            let ours = (token / u64::from(local.block_tokens)) as usize;
            let rows = [remote, local].map(|l| (token % u64::from(l.block_tokens)) as u32);
            for head in remote.heads.clone().filter(|head| local.heads.contains(head)) {
                for (layer, plane) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                    let a = element(remote, from[theirs].0, [layer, plane, head, rows[0]]);
                    let b = element(local, to[ours].0, [layer, plane, head, rows[1]]);
                    expected[b..b + 3].copy_from_slice(&source[a..a + 3]);
                    written += 3;
                }
            }
        }
        let sides = (Side { layout: remote, blocks: from }, Side { layout: local, blocks: to });
        let runs = plan(sides.0, sides.1, tokens.clone()).unwrap();
        let mut target = vec![0xEE; local.bytes() as usize];
        for run in &runs {
            let from = run.remote as usize..(run.remote + run.bytes) as usize;
            let to = run.local as usize..(run.local + run.bytes) as usize;
            target[to].copy_from_slice(&source[from]);
        }
        prop_assert_eq!(&target, &expected);
        prop_assert_eq!(runs.iter().map(|run| run.bytes).sum::<u64>(), written);
        // As few as can be: no two runs could be one.
        prop_assert!(runs.windows(2).all(|w| w[0].local + w[0].bytes < w[1].local
            || (w[0].local + w[0].bytes == w[1].local && w[0].remote + w[0].bytes != w[1].remote)));
    }
}
