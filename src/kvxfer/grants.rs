//! What peers may read of our pools. A grant that was taken back is not read any more: readers hold
//! the lock for the short time in which they touch memory, or look at its word after it.

use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};

use rustc_hash::FxHashMap;

use super::error::XferError;
use super::region::Memory;
use super::transport::{GrantId, RegionId};
use super::words::Words;

/// The ranges of all grants.
#[derive(Debug)]
pub(super) struct Grants {
    table: RwLock<Table>,
    limit: usize,
}

#[derive(Debug)]
struct Table {
    granted: FxHashMap<GrantId, Vec<Granted>>,
    /// Where peers can read for themselves.
    words: Option<Words>,
}

/// Sorted, disjoint ranges of one region.
type Granted = (RegionId, Vec<Range<u64>>);

impl Grants {
    /// With words for peers that read memory by themselves; they have room for `limit` grants.
    pub(super) fn new(limit: usize, words: Option<Words>) -> Self {
        Self { table: RwLock::new(Table { granted: FxHashMap::default(), words }), limit }
    }

    /// The memory of the words.
    pub(super) fn words(&self) -> Option<Arc<Memory>> {
        self.write().words.as_ref().map(|words| words.memory().clone())
    }

    /// Makes a grant of ranges, which are within the region, out of 128 random bits.
    pub(super) fn add(
        &self,
        random: u128,
        region: RegionId,
        ranges: &[Range<u64>],
    ) -> Result<GrantId, XferError> {
        let mut table = self.write();
        let (have, limit) = (table.granted.len(), self.limit);
        if have >= limit {
            return Err(XferError::Limit { what: "grants", have, limit });
        }
        let grant = table.words.as_mut().map_or(GrantId(random), |words| words.open(random));
        table.granted.insert(grant, vec![(region, merged(ranges.to_vec()))]);
        Ok(grant)
    }

    /// Adds ranges, which are within the region, to a grant.
    pub(super) fn extend(
        &self,
        grant: GrantId,
        region: RegionId,
        ranges: &[Range<u64>],
    ) -> Result<(), XferError> {
        let mut table = self.write();
        let regions = table.granted.get_mut(&grant).ok_or(XferError::UnknownGrant)?;
        match regions.iter_mut().find(|(id, _)| *id == region) {
            Some((_, granted)) => {
                granted.extend_from_slice(ranges);
                *granted = merged(std::mem::take(granted));
            }
            None => regions.push((region, merged(ranges.to_vec()))),
        }
        Ok(())
    }

    /// Takes a grant back; when this returns, nobody reads under it, and who looks at its word after
    /// it has read sees that it is gone.
    pub(super) fn remove(&self, grant: GrantId) {
        let mut table = self.write();
        if table.granted.remove(&grant).is_some()
            && let Some(words) = &mut table.words
        {
            words.close(grant);
        }
    }

    /// Takes all of them back.
    pub(super) fn remove_all(&self) {
        let grants: Vec<GrantId> = self.write().granted.keys().copied().collect();
        grants.into_iter().for_each(|grant| self.remove(grant));
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
        let (_, granted) = table.granted.get(&grant)?.iter().find(|(id, _)| *id == region)?;
        ranges.all(|range| covers(granted, &range)).then(read)
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.table.read().unwrap_or_else(PoisonError::into_inner).granted.len()
    }

    fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The same bytes as sorted, disjoint ranges.
fn merged(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_unstable_by_key(|range| range.start);
    let mut merged: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match merged.last_mut() {
            Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

/// Whether one of the sorted, disjoint ranges holds all of `range`.
fn covers(granted: &[Range<u64>], range: &Range<u64>) -> bool {
    let after = granted.partition_point(|one| one.start <= range.start);
    after.checked_sub(1).is_some_and(|last| range.end <= granted[last].end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::slice::from_ref;

    #[test]
    fn a_grant_covers_its_ranges_until_it_is_taken_back() {
        let (grants, region) = (Grants::new(1, None), RegionId(0));
        let grant = grants.add(7, region, &[20..30, 0..10]).unwrap();
        grants.extend(grant, region, &[10..12, 12..15]).unwrap();
        grants.extend(grant, RegionId(2), from_ref(&(3..4))).unwrap();
        let may = |id, region, range: Range<u64>| {
            grants.while_granted(id, region, std::iter::once(range), || ()).is_some()
        };
        let cases = [(0..15, true), (3..4, true), (14..16, false), (15..20, false), (20..30, true)];
        for (range, expected) in cases {
            assert_eq!(may(grant, region, range.clone()), expected, "{range:?}");
        }
        assert!(may(grant, RegionId(2), 3..4) && !may(grant, RegionId(1), 0..1));
        assert!(!may(GrantId(8), region, 0..1));
        let full = grants.add(8, region, from_ref(&(0..1)));
        assert_eq!(full, Err(XferError::Limit { what: "grants", have: 1, limit: 1 }));
        grants.remove(grant);
        assert!(!may(grant, region, 0..1));
        assert_eq!(grants.len(), 0);
        assert_eq!(grants.extend(grant, region, from_ref(&(0..1))), Err(XferError::UnknownGrant));
        assert!(!may(grant, region, 0..1));
    }

    #[test]
    fn no_word_is_left_of_grants_that_were_taken_back() {
        let grants = Grants::new(3, Some(Words::new("test", 3).unwrap()));
        let words = grants.words().unwrap();
        let in_use = || {
            let mut bytes = vec![0; words.bytes() as usize];
            words.read(0, &mut bytes);
            bytes.chunks(16).filter(|word| word.iter().any(|byte| *byte != 0)).count()
        };
        for round in 1..4u128 {
            let add =
                |n: u128| grants.add((round << 64) | n, RegionId(0), from_ref(&(0..1))).unwrap();
            let names: Vec<GrantId> = (0..3).map(add).collect();
            assert_eq!((grants.len(), in_use()), (3, 3));
            grants.remove(names[1]);
            grants.remove(names[1]); // nothing happens
            assert_eq!((grants.len(), in_use()), (2, 2));
            grants.remove_all();
            assert_eq!((grants.len(), in_use()), (0, 0));
        }
    }
}
