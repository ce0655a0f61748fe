//! Which ranks hold which leading blocks of a prompt, by tier: one [`PrefixIndex`] of what is on the
//! device, and one of what is in each slower tier *or a faster one*. So each of them holds whole
//! prefixes, as an index must, and the difference of two depths is what the slower tier adds.
//!
//! Ranks without slower tiers are only in the first one.

use super::index::{PrefixIndex, Scratch, Slot};
use crate::engine::Tier;
use crate::ids::BlockHash;

/// Tiers below the device.
const BELOW: [Tier; 2] = [Tier::Host, Tier::Disk];

/// A rank's numbers in the indexes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slots {
    /// In that of the device.
    pub device: Slot,
    /// In those below; `None` if the rank has no such tier.
    below: [Option<Slot>; 2],
}

/// See the module's description.
#[derive(Debug, Default)]
pub struct TieredIndex {
    device: PrefixIndex,
    below: [PrefixIndex; 2],
}

/// Leading blocks of a chain, by rank; memory that one look-up after another uses.
#[derive(Debug, Default)]
pub struct Depths {
    /// On the device, by slot.
    pub device: Vec<u32>,
    /// In host or device, and in disk, host or device.
    below: [Vec<u32>; 2],
    scratch: [Scratch; 3],
}

impl Depths {
    /// Blocks that the rank has in its slower tiers beyond the first `device` ones: in the host's
    /// memory, and on disk beyond that.
    pub fn beyond(&self, slots: Slots, device: u32) -> [u32; 2] {
        let mut reached = device;
        let mut more = |tier: usize| {
            let depth = slots.below[tier].and_then(|slot| self.below[tier].get(slot.index()));
            let depth = depth.copied().unwrap_or(0);
            let beyond = depth.saturating_sub(reached);
            reached = reached.max(depth);
            beyond
        };
        [more(0), more(1)]
    }
}

impl TieredIndex {
    /// Slots for a rank that holds nothing yet, and whose slowest tier is this one.
    pub fn add_rank(&mut self, slowest: Tier) -> Slots {
        let [host, disk] = &mut self.below;
        Slots {
            device: self.device.add_rank(),
            below: [
                (slowest >= Tier::Host).then(|| host.add_rank()),
                (slowest >= Tier::Disk).then(|| disk.add_rank()),
            ],
        }
    }

    /// Takes in which tier has each block now, in order; `None`: it is gone.
    pub fn tell(&mut self, slots: Slots, changes: &[(BlockHash, Option<Tier>)]) {
        // One kind of change after the other, each as one batch.
        for batch in changes.chunk_by(|(_, a), (_, b)| a == b) {
            let hashes: Vec<_> = batch.iter().map(|(hash, _)| *hash).collect();
            let at = batch[0].1;
            match at {
                Some(Tier::Device) => self.device.store(slots.device, &hashes),
                Some(Tier::Host | Tier::Disk) | None => self.device.remove(slots.device, &hashes),
            }
            for ((index, slot), tier) in self.below.iter_mut().zip(slots.below).zip(BELOW) {
                match (slot, at) {
                    (Some(slot), Some(at)) if at <= tier => index.store(slot, &hashes),
                    (Some(slot), _) => index.remove(slot, &hashes),
                    (None, _) => {}
                }
            }
        }
    }

    /// The rank is gone, and with it all that it held.
    pub fn retire(&mut self, slots: Slots) {
        self.device.retire(slots.device);
        for (index, slot) in self.below.iter_mut().zip(slots.below) {
            slot.into_iter().for_each(|slot| index.retire(slot));
        }
    }

    /// Clears up after retired ranks, in up to `places` places of each table.
    pub fn sweep(&mut self, places: usize) {
        self.device.sweep(places);
        for index in &mut self.below {
            index.sweep(places);
        }
    }

    /// Fills `depths` for a chain of blocks.
    pub fn look_up(&self, chain: &[BlockHash], depths: &mut Depths) {
        let Depths { device, below, scratch: [first, rest @ ..] } = depths;
        fill(&self.device, chain, first, device);
        for ((index, depths), scratch) in self.below.iter().zip(below).zip(rest) {
            fill(index, chain, scratch, depths);
        }
    }

    /// Entries of all tiers; a block that many ranks hold in one tier counts once, one of ranks with
    /// slower tiers once for each.
    pub fn blocks(&self) -> usize {
        self.below.iter().fold(self.device.blocks(), |sum, index| sum + index.blocks())
    }

    /// Blocks that the rank holds, in any tier.
    pub fn holdings(&self, slots: Slots) -> u32 {
        let below = self.below.iter().zip(slots.below);
        let below = below.filter_map(|(index, slot)| Some(index.holdings(slot?)));
        below.fold(self.device.holdings(slots.device), u32::max)
    }
}

fn fill(index: &PrefixIndex, chain: &[BlockHash], scratch: &mut Scratch, depths: &mut Vec<u32>) {
    depths.clear();
    depths.resize(index.slots(), 0);
    if index.blocks() > 0 {
        index.matches(chain, scratch).raise(depths);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(index: &TieredIndex, slots: Slots, chain: &[BlockHash]) -> (u32, [u32; 2]) {
        let mut depths = Depths::default();
        index.look_up(chain, &mut depths);
        let device = depths.device[slots.device.index()];
        (device, depths.beyond(slots, device))
    }

    #[test]
    fn each_tier_adds_what_is_not_in_a_faster_one() {
        let chain: Vec<_> = (1..=8).map(BlockHash).collect();
        let mut index = TieredIndex::default();
        let (rank, plain) = (index.add_rank(Tier::Disk), index.add_rank(Tier::Device));
        let at = |tier| move |hash: &BlockHash| (*hash, tier);
        let all: Vec<_> = chain.iter().map(at(Some(Tier::Device))).collect();
        index.tell(rank, &all);
        index.tell(plain, &all[..3]);
        assert_eq!(told(&index, rank, &chain), (8, [0, 0]));
        index.tell(rank, &chain[3..].iter().map(at(Some(Tier::Host))).collect::<Vec<_>>());
        index.tell(rank, &chain[6..].iter().map(at(Some(Tier::Disk))).collect::<Vec<_>>());
        assert_eq!(told(&index, rank, &chain), (3, [3, 2]));
        index.tell(rank, &chain[7..].iter().map(at(None)).collect::<Vec<_>>());
        assert_eq!(told(&index, rank, &chain), (3, [3, 1]));
        index.tell(rank, &chain[3..5].iter().map(at(Some(Tier::Device))).collect::<Vec<_>>());
        assert_eq!(told(&index, rank, &chain), (5, [1, 1]));
        assert_eq!((index.holdings(rank), index.holdings(plain)), (7, 3));
        assert_eq!(told(&index, plain, &chain), (3, [0, 0]));
        index.retire(rank);
        assert_eq!(told(&index, rank, &chain), (0, [0, 0]));
    }
}
