//! What peers may read of our pools. A grant that was taken back is not read any more: readers hold
//! the lock for the short time in which they touch memory.

use std::ops::Range;
use std::sync::{PoisonError, RwLock};

use rustc_hash::FxHashMap;

use super::error::XferError;
use super::transport::{GrantId, RegionId};

/// The ranges of all grants.
#[derive(Debug, Default)]
pub(super) struct Grants {
    table: RwLock<FxHashMap<GrantId, Vec<Granted>>>,
}

/// Sorted, disjoint ranges of one region.
type Granted = (RegionId, Vec<Range<u64>>);

impl Grants {
    /// Adds ranges, which are within the region.
    pub(super) fn add(
        &self,
        grant: GrantId,
        region: RegionId,
        ranges: &[Range<u64>],
        limit: usize,
    ) -> Result<(), XferError> {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let have = table.len();
        if have >= limit && !table.contains_key(&grant) {
            return Err(XferError::Limit { what: "grants", have, limit });
        }
        let regions = table.entry(grant).or_default();
        let known = regions.iter().position(|(id, _)| *id == region);
        let place = known.unwrap_or_else(|| {
            regions.push((region, Vec::new()));
            regions.len() - 1
        });
        let granted = &mut regions[place].1;
        granted.extend(ranges.iter().filter(|range| !range.is_empty()).cloned());
        granted.sort_unstable_by_key(|range| range.start);
        let mut merged: Vec<Range<u64>> = Vec::with_capacity(granted.len());
        for range in granted.drain(..) {
            match merged.last_mut() {
                Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
                _ => merged.push(range),
            }
        }
        *granted = merged;
        Ok(())
    }

    /// Takes a grant back; when this returns, nobody reads under it.
    pub(super) fn remove(&self, grant: GrantId) {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        table.remove(&grant);
    }

    /// Runs `read` while the grant cannot be taken back, if it covers all `ranges`.
    pub(super) fn while_granted<T>(
        &self,
        grant: GrantId,
        region: RegionId,
        mut ranges: impl Iterator<Item = Range<u64>>,
        read: impl FnOnce() -> T,
    ) -> Option<T> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let (_, granted) = table.get(&grant)?.iter().find(|(id, _)| *id == region)?;
        ranges.all(|range| covers(granted, &range)).then(read)
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.table.read().unwrap_or_else(PoisonError::into_inner).len()
    }
}

/// Whether one of the sorted, disjoint ranges holds all of `range`.
fn covers(granted: &[Range<u64>], range: &Range<u64>) -> bool {
    let after = granted.partition_point(|one| one.start <= range.start);
    after.checked_sub(1).is_some_and(|last| range.end <= granted[last].end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_covers_its_ranges_until_it_is_taken_back() {
        let grants = Grants::default();
        let (grant, region) = (GrantId(7), RegionId(0));
        grants.add(grant, region, &[20..30, 0..10, 5..5], 1).unwrap();
        grants.add(grant, region, &[10..12, 12..15], 1).unwrap();
        let may = |id, region, range: Range<u64>| {
            grants.while_granted(id, region, std::iter::once(range), || ()).is_some()
        };
        let cases = [(0..15, true), (3..4, true), (14..16, false), (15..20, false), (20..30, true)];
        for (range, expected) in cases {
            assert_eq!(may(grant, region, range.clone()), expected, "{range:?}");
        }
        assert!(!may(grant, RegionId(1), 0..1) && !may(GrantId(8), region, 0..1));
        let full = grants.add(GrantId(8), region, &[0..1, 2..3], 1);
        assert_eq!(full, Err(XferError::Limit { what: "grants", have: 1, limit: 1 }));
        grants.remove(grant);
        assert!(!may(grant, region, 0..1));
        assert_eq!(grants.len(), 0);
    }
}
