//! Random events against a plain map.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::*;

/// The truth, and the naive way to look it up.
#[derive(Clone, Default)]
struct Truth(HashMap<BlockHash, HashSet<usize>>);

impl Truth {
    fn depth(&self, slot: usize, chain: &[BlockHash]) -> u32 {
        let holds = |hash: &&BlockHash| self.0.get(hash).is_some_and(|set| set.contains(&slot));
        chain.iter().take_while(holds).count() as u32
    }

    fn store(&mut self, slot: usize, hashes: &[BlockHash]) {
        hashes.iter().for_each(|hash| self.0.entry(*hash).or_default().extend([slot]));
    }

    fn remove(&mut self, slot: usize, hashes: &[BlockHash]) {
        for hash in hashes {
            if let Some(set) = self.0.get_mut(hash) {
                set.remove(&slot);
                if set.is_empty() {
                    self.0.remove(hash);
                }
            }
        }
    }

    fn held(&self, slot: usize) -> Vec<BlockHash> {
        self.0.iter().filter(|(_, set)| set.contains(&slot)).map(|(hash, _)| *hash).collect()
    }
}

const RANKS: usize = 70; // more than one word of a set

/// What happens to a rank's cache, or to the index alone.
#[derive(Clone, Debug)]
enum Event {
    /// A prefix of a prompt becomes findable.
    Fill {
        rank: usize,
        prompt: usize,
        blocks: usize,
    },
    /// A prompt's blocks beyond a depth are reused, in every prompt that goes on from there.
    Evict {
        rank: usize,
        prompt: usize,
        from: usize,
    },
    /// The rank restarts empty.
    Restart {
        rank: usize,
    },
    Sweep {
        places: usize,
    },
}

fn event() -> impl Strategy<Value = Event> {
    let rank = || prop_oneof![3 => 0..4_usize, 1 => 0..RANKS];
    prop_oneof![
        8 => (rank(), 0..12_usize, 0..90_usize)
            .prop_map(|(rank, prompt, blocks)| Event::Fill { rank, prompt, blocks }),
        4 => (rank(), 0..12_usize, 0..90_usize)
            .prop_map(|(rank, prompt, from)| Event::Evict { rank, prompt, from }),
        1 => rank().prop_map(|rank| Event::Restart { rank }),
        1 => (0..400_usize).prop_map(|places| Event::Sweep { places }),
    ]
}

/// Prompts that share beginnings of several lengths.
fn prompts() -> Vec<Vec<BlockHash>> {
    (0..12).map(|nth| chain(nth / 6, [5, 40, 64][nth as usize % 3], nth, 90)).collect()
}

/// An index and what it should tell.
struct Pair {
    index: PrefixIndex,
    slots: Vec<Slot>,
    truth: Truth,
    prompts: Vec<Vec<BlockHash>>,
    /// One for all look-ups, as its guesses must never show.
    scratch: Scratch,
}

impl Pair {
    fn new() -> Self {
        let mut index = PrefixIndex::new();
        let slots = (0..RANKS).map(|_| index.add_rank()).collect();
        Self {
            index,
            slots,
            truth: Truth::default(),
            prompts: prompts(),
            scratch: Scratch::default(),
        }
    }

    fn apply(&mut self, event: &Event) {
        match *event {
            Event::Fill { rank, prompt, blocks } => {
                let hashes = &self.prompts[prompt][..blocks];
                self.index.store(self.slots[rank], hashes);
                self.truth.store(rank, hashes);
            }
            Event::Evict { rank, prompt, from } => {
                let gone: HashSet<_> = self.beyond(prompt, from);
                let gone: Vec<_> = gone.into_iter().collect();
                self.index.remove(self.slots[rank], &gone);
                self.truth.remove(rank, &gone);
            }
            Event::Restart { rank } => {
                self.restart(rank);
                self.truth.remove(rank, &self.truth.held(rank));
            }
            Event::Sweep { places } => {
                self.index.sweep(places);
            }
        }
    }

    /// Everything that needs block `from` of a prompt.
    fn beyond(&self, prompt: usize, from: usize) -> HashSet<BlockHash> {
        let hash = self.prompts[prompt][from];
        let same = self.prompts.iter().filter(|other| other[from] == hash);
        same.flat_map(|prompt| prompt[from..].iter().copied()).collect()
    }

    fn restart(&mut self, rank: usize) {
        self.index.retire(self.slots[rank]);
        self.slots[rank] = self.index.add_rank();
    }

    fn check(&mut self) {
        for (nth, prompt) in self.prompts.iter().enumerate() {
            for asked in [1, 2, 39, 64, 90] {
                let told = depths_with(&self.index, &prompt[..asked], &mut self.scratch);
                let mut expected = vec![0; told.len()];
                for (rank, slot) in self.slots.iter().enumerate() {
                    expected[slot.index()] = self.truth.depth(rank, &prompt[..asked]);
                }
                assert_eq!(told, expected, "{asked} blocks of prompt {nth}");
            }
        }
        for (rank, &slot) in self.slots.iter().enumerate() {
            assert_eq!(self.index.holdings(slot) as usize, self.truth.held(rank).len());
        }
    }

    /// Nothing is kept that nobody has.
    fn check_no_leak(&mut self) {
        while !self.index.sweep(1000) {}
        let mut sets: Vec<Vec<usize>> = self.truth.0.values().map(sorted).collect();
        sets.sort();
        sets.dedup();
        assert_eq!((self.index.blocks(), self.index.sets()), (self.truth.0.len(), sets.len()));
        self.index.blocks.check();
    }
}

fn sorted(set: &HashSet<usize>) -> Vec<usize> {
    let mut ranks: Vec<usize> = set.iter().copied().collect();
    ranks.sort_unstable();
    ranks
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn the_index_tells_the_truth_after_every_event(
        events in proptest::collection::vec(event(), 1..60),
    ) {
        let mut pair = Pair::new();
        for event in &events {
            pair.apply(event);
            pair.check();
        }
        pair.check_no_leak();
        pair.check();
    }

    /// Batches are lost, repeated, swapped and torn; then each rank sends a snapshot.
    #[test]
    fn whatever_happens_to_events_a_snapshot_brings_the_truth_back(
        noise in proptest::collection::vec(
            (0..RANKS, any::<bool>(), proptest::collection::vec((0..12_usize, 0..90_usize), 0..50)),
            0..60,
        ),
        events in proptest::collection::vec(event(), 1..40),
    ) {
        let mut pair = Pair::new();
        for (rank, store, blocks) in noise {
            let hashes: Vec<_> =
                blocks.iter().map(|&(prompt, at)| pair.prompts[prompt][at]).collect();
            match store {
                true => pair.index.store(pair.slots[rank], &hashes),
                false => pair.index.remove(pair.slots[rank], &hashes),
            }
            pair.index.sweep(hashes.len());
            for prompt in &pair.prompts {
                let told = depths_with(&pair.index, prompt, &mut pair.scratch);
                for (slot, depth) in told.into_iter().enumerate() {
                    let rank = pair.slots.iter().position(|known| known.index() == slot);
                    let held = rank.map_or(0, |rank| pair.index.holdings(pair.slots[rank]));
                    assert!(depth == 0 || held > 0, "slot {slot} holds nothing, told {depth}");
                }
            }
        }
        let mut other = Pair::new();
        events.iter().for_each(|event| other.apply(event));
        pair.truth = other.truth;
        for rank in 0..RANKS {
            pair.restart(rank);
            pair.index.store(pair.slots[rank], &pair.truth.held(rank));
        }
        pair.check();
        pair.check_no_leak();
        pair.check();
    }
}
