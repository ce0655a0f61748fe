//! Where a leg goes: a pure decision over the ranks that can take it.

/// The index of the least loaded candidate; the first of equals. `None` if there is none.
pub fn least_loaded(legs: impl IntoIterator<Item = u32>) -> Option<usize> {
    legs.into_iter().enumerate().min_by_key(|&(index, legs)| (legs, index)).map(|(index, _)| index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_loaded_rank_is_taken_and_the_first_of_equals() {
        let cases: [(&[u32], Option<usize>); 4] =
            [(&[], None), (&[7], Some(0)), (&[3, 1, 2], Some(1)), (&[2, 1, 1], Some(1))];
        for (legs, want) in cases {
            assert_eq!(least_loaded(legs.iter().copied()), want, "{legs:?}");
        }
    }
}
