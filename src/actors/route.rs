//! Where a leg goes: a pure decision over the ranks that can take it.

/// What a front end knows of a rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Legs there, over all front ends, as far as is known.
    pub legs: u32,
    /// Legs there of this front end.
    pub placed: u32,
    /// Most legs that this front end may have there.
    pub credit: u32,
}

/// The index of the least loaded candidate with room; the first of equals. `None` if there is none.
pub fn least_loaded(ranks: impl IntoIterator<Item = Seen>) -> Option<usize> {
    let ranks = ranks.into_iter().enumerate();
    let with_room = ranks.filter(|(_, rank)| rank.placed < rank.credit);
    with_room.min_by_key(|&(index, rank)| (rank.legs, index)).map(|(index, _)| index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_loaded_rank_is_taken_and_the_first_of_equals() {
        let cases: [(&[u32], Option<usize>); 4] =
            [(&[], None), (&[7], Some(0)), (&[3, 1, 2], Some(1)), (&[2, 1, 1], Some(1))];
        for (legs, want) in cases {
            let seen = legs.iter().map(|&legs| Seen { legs, placed: legs, credit: 10 });
            assert_eq!(least_loaded(seen), want, "{legs:?}");
        }
    }

    #[test]
    fn a_rank_without_credit_is_left_alone_however_idle_it_is() {
        let spent = Seen { legs: 0, placed: 2, credit: 2 };
        let busy = Seen { legs: 90, placed: 5, credit: 6 };
        assert_eq!(least_loaded([spent, busy]), Some(1));
        assert_eq!(least_loaded([spent, Seen { credit: 0, ..busy }]), None);
    }
}
