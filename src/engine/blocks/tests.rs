//! The pool's promises, by example and against random operations.

use proptest::prelude::*;

use super::*;

const SIZE: usize = 4;

/// A sequence on its own: what a scheduler does with a table.
#[derive(Default)]
struct Chain {
    table: Vec<BlockId>,
    hashes: Vec<BlockHash>,
    cached: usize,
}

fn pool(blocks: u32) -> BlockManager {
    BlockManager::new(blocks, 0, SIZE, &HashKey::default())
}

/// Takes blocks for all of `tokens`, from the cache where it can; does not fill them.
fn open(pool: &mut BlockManager, tokens: &[u32], salt: u64) -> Option<Chain> {
    let mut chain = Chain::default();
    pool.extend_hashes(tokens, salt, &mut chain.hashes);
    let hit = pool.find(tokens, salt, &chain.hashes, &mut chain.table);
    let (rest, parent) = (&tokens[hit.blocks * SIZE..], hit.blocks.checked_sub(1));
    let (parent, names) = (parent.map(|last| chain.hashes[last]), &chain.hashes[hit.blocks..]);
    let loaded = pool.find_in_host(rest, salt, names, parent);
    let fresh = (tokens.len().div_ceil(SIZE) - hit.blocks) as u32;
    if pool.free() - hit.idle < fresh {
        return None;
    }
    pool.hold(&chain.table);
    let loading = pool.take_from_host(&names[..loaded]);
    chain.cached = hit.blocks + loaded;
    assert!(pool.allocate(fresh, &mut chain.table));
    let (before, fresh) = chain.table.split_at(hit.blocks);
    pool.load(loading, fresh, before.last().copied(), rest, salt);
    Some(chain)
}

/// Fills all full blocks of a chain.
fn fill(pool: &mut BlockManager, chain: &mut Chain, tokens: &[u32], salt: u64) -> Vec<Filled> {
    let mut out = Vec::new();
    for i in chain.cached..chain.hashes.len() {
        let parent = (i > 0).then(|| chain.table[i - 1]);
        let part = &tokens[i * SIZE..(i + 1) * SIZE];
        let filled = pool.fill(chain.table[i], parent, chain.hashes[i], part, salt);
        if let Filled::Same(other) = filled {
            chain.table[i] = other;
        }
        out.push(filled);
        if filled == Filled::Taken {
            break;
        }
    }
    out
}

fn events(pool: &mut BlockManager) -> Vec<KvEvent> {
    let mut out = Vec::new();
    pool.drain_events(&mut out);
    out
}

#[test]
fn a_prefix_is_found_only_after_it_was_filled_and_only_under_its_salt() {
    let mut pool = pool(8);
    let tokens = [1, 2, 3, 4, 5, 6, 7, 8, 9];
    let mut first = open(&mut pool, &tokens, 0).unwrap();
    let mut early = open(&mut pool, &tokens, 0).unwrap();
    assert_eq!(early.cached, 0, "not computed yet");
    pool.release(&mut early.table);

    assert_eq!(fill(&mut pool, &mut first, &tokens, 0), [Filled::Stored, Filled::Stored]);
    let mut shared = open(&mut pool, &[1, 2, 3, 4, 5, 6, 7, 8, 1], 0).unwrap();
    assert_eq!((shared.cached, &shared.table[..2]), (2, &first.table[..2]));
    let mut salted = open(&mut pool, &tokens, 1).unwrap();
    assert_eq!(salted.cached, 0);
    for chain in [&mut first, &mut shared, &mut salted] {
        pool.release(&mut chain.table);
    }
    assert_eq!((pool.used(), pool.cached()), (0, 2));
    pool.check(std::iter::empty()).unwrap();
}

#[test]
fn eviction_takes_unfindable_blocks_first_then_the_least_recent_tail() {
    let mut pool = pool(4);
    let (old, new) = ([1, 1, 1, 1, 2, 2, 2, 2], [3, 3, 3, 3, 4]);
    for tokens in [&old[..], &new[..]] {
        let mut chain = open(&mut pool, tokens, 0).unwrap();
        fill(&mut pool, &mut chain, tokens, 0);
        pool.release(&mut chain.table);
    }
    let stored = events(&mut pool);
    let [KvEvent::Stored { hash: head, parent: None, .. }, KvEvent::Stored { hash: tail, .. }, _] =
        stored[..]
    else {
        panic!("{stored:?}")
    };

    let mut table = Vec::new();
    assert!(pool.allocate(1, &mut table));
    assert_eq!(events(&mut pool), [], "the partial block goes first");
    assert!(pool.allocate(1, &mut table));
    assert_eq!(events(&mut pool), [KvEvent::Removed { hash: tail }]);
    assert!(pool.allocate(1, &mut table));
    assert_eq!(events(&mut pool), [KvEvent::Removed { hash: head }]);
    assert!(!pool.allocate(2, &mut table), "all or nothing");
    assert_eq!(table.len(), 3);
    pool.check([&table[..]].into_iter()).unwrap();
}

#[test]
fn a_block_that_two_sequences_computed_is_kept_once() {
    let mut pool = pool(8);
    let tokens = [1, 2, 3, 4, 5, 6, 7, 8];
    let mut first = open(&mut pool, &tokens, 0).unwrap();
    let mut second = open(&mut pool, &tokens, 0).unwrap();
    assert_eq!(pool.used(), 4);
    fill(&mut pool, &mut first, &tokens, 0);
    fill(&mut pool, &mut second, &tokens, 0);
    assert_eq!(first.table, second.table);
    assert_eq!(pool.used(), 2);
    pool.check([&first.table[..], &second.table[..]].into_iter()).unwrap();
}

#[test]
fn a_hash_collision_is_a_miss_and_cuts_the_chain() {
    let mut pool = pool(8);
    let mut first = open(&mut pool, &[1, 2, 3, 4], 0).unwrap();
    fill(&mut pool, &mut first, &[1, 2, 3, 4], 0);
    let stolen = first.hashes.clone();

    let mut found = Vec::new();
    for (tokens, salt) in [([9, 2, 3, 4], 0), ([1, 2, 3, 4], 7)] {
        assert_eq!(pool.find(&tokens, salt, &stolen, &mut found).blocks, 0, "{tokens:?} {salt}");
        let mut table = Vec::new();
        assert!(pool.allocate(1, &mut table));
        assert_eq!(pool.fill(table[0], None, stolen[0], &tokens, salt), Filled::Taken);
        pool.release(&mut table);
    }
    // Same tokens and hash, but another parent.
    let mut table = Vec::new();
    assert!(pool.allocate(1, &mut table));
    let parent = Some(first.table[0]);
    assert_eq!(pool.fill(table[0], parent, stolen[0], &[1, 2, 3, 4], 0), Filled::Taken);
}

proptest! {
    #[test]
    fn random_use_never_leaks_and_never_mixes_content(
        blocks in 1_u32..24,
        host_blocks in 0_u32..16,
        ops in prop::collection::vec((0_u8..3, 0_usize..8, 0_usize..40, 0_u64..2), 1..200),
    ) {
        let mut pool = BlockManager::new(blocks, host_blocks, SIZE, &HashKey::default());
        // Prompts share prefixes: `len` tokens of one of two streams that part at token 9.
        let stream = |which: usize, len: usize| -> Vec<u32> {
            (0..len).map(|i| if i < 9 { i } else { i + 100 * (which % 2) } as u32).collect()
        };
        let mut live: Vec<(Chain, Vec<u32>, u64, bool)> = Vec::new();
        let mut content: Vec<Option<(Vec<u32>, u64)>> = vec![None; blocks as usize];
        let mut in_host = vec![None; host_blocks as usize];
        for (op, which, len, salt) in ops {
            match op {
                0 => {
                    let tokens = stream(which, len + 1);
                    if let Some(chain) = open(&mut pool, &tokens, salt) {
                        let mut moves = Vec::new();
                        pool.drain_moves(&mut moves);
                        for one in moves {
                            match one {
                                Move::Save { block, place } => {
                                    in_host[place as usize] = content[block.0 as usize].take();
                                }
                                Move::Load { place, block } => {
                                    content[block.0 as usize] = in_host[place as usize].take();
                                }
                            }
                        }
                        for (i, block) in chain.table.iter().enumerate().take(chain.cached) {
                            let want = Some((tokens[..(i + 1) * SIZE].to_vec(), salt));
                            prop_assert_eq!(&content[block.0 as usize], &want);
                        }
                        live.push((chain, tokens, salt, false));
                    }
                }
                1 if !live.is_empty() => {
                    let which = which % live.len();
                    let (chain, tokens, salt, filled) = &mut live[which];
                    if !std::mem::replace(filled, true) {
                        // What a model writes: the KV of the whole prefix.
                        for i in chain.cached..chain.hashes.len() {
                            let prefix = tokens[..(i + 1) * SIZE].to_vec();
                            content[chain.table[i].0 as usize] = Some((prefix, *salt));
                        }
                        fill(&mut pool, chain, tokens, *salt);
                    }
                }
                2 if !live.is_empty() => {
                    let (mut chain, ..) = live.swap_remove(which % live.len());
                    pool.release(&mut chain.table);
                }
                _ => {}
            }
            let tables = live.iter().map(|(chain, ..)| &chain.table[..]);
            prop_assert_eq!(pool.check(tables), Ok(()));
        }
        for (mut chain, ..) in live {
            pool.release(&mut chain.table);
        }
        prop_assert_eq!(pool.free(), blocks);
        prop_assert_eq!(pool.check(std::iter::empty()), Ok(()));
    }
}
