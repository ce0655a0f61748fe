//! How often a choice has lost its rank, and whether that was once too often: a plain record.

use crate::actors::inbox::Lost;

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Losses {
    /// Legs that a rank had taken on. One that it never heard of cannot be what ended it.
    taken: u16,
    /// Legs lost in a row before any rank had taken them: where a front end is cut off, one rank after the
    /// other is. Bounded as well, since what ends a rank at once is never taken on.
    untaken: u16,
    last: Option<Lost>,
    /// Whether the rank has taken on the present leg.
    is_taken: bool,
}

impl Losses {
    /// A leg was placed on a rank.
    pub(super) fn placed(&mut self) {
        self.is_taken = false;
    }

    /// The rank has taken it on.
    pub(super) fn taken(&mut self) {
        (self.is_taken, self.untaken) = (true, 0);
    }

    /// It was lost.
    pub(super) fn lost(&mut self, lost: Lost) {
        let count = if self.is_taken { &mut self.taken } else { &mut self.untaken };
        *count = count.saturating_add(1);
        self.last = Some(lost);
    }

    /// How often and how it was lost, if that is more than it may be.
    pub(super) fn too_many(&self, limit: u16) -> Option<(usize, Lost)> {
        let most = self.taken.max(self.untaken);
        (most > limit).then_some((usize::from(most), self.last?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(legs: &[bool]) -> Losses {
        let mut losses = Losses::default();
        for is_taken in legs {
            losses.placed();
            if *is_taken {
                losses.taken();
            }
            losses.lost(Lost::Worker);
        }
        losses
    }

    #[test]
    fn a_leg_that_no_rank_took_on_counts_only_in_a_row_of_such() {
        assert_eq!(after(&[true, false, true, false, true, false]).too_many(3), None);
        assert_eq!(after(&[true; 4]).too_many(3), Some((4, Lost::Worker)));
        assert_eq!(
            after(&[true, false, false, true, true, false, true]).too_many(3),
            Some((4, Lost::Worker))
        );
    }

    #[test]
    fn what_ends_every_rank_before_it_is_taken_on_ends_too() {
        assert_eq!(after(&[false; 3]).too_many(3), None);
        assert_eq!(after(&[false; 4]).too_many(3), Some((4, Lost::Worker)));
        assert_eq!(after(&[false]).too_many(0), Some((1, Lost::Worker)));
    }
}
