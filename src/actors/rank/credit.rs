//! How many legs each front end may have on a rank: a pure decision.
//!
//! What a front end has stays its own, and what is free is offered to all in equal shares, so that
//! one that is busy can fill a rank that the others leave idle, and none is shut out while there is
//! room. Offers are rounded up and may cross each other; the rank refuses what is too much.

/// Most legs of a link that has `own` of them, on a rank with room for `free` more, of `links`.
pub(super) fn credit(own: usize, free: usize, links: usize) -> usize {
    own + free.div_ceil(links.max(1))
}

/// Whether a link should hear of its credit though there is nothing else to tell it: there is room
/// for more than twice the legs that it could place by what it was told last, or it could place far
/// too many.
pub(super) fn is_news(told: usize, own: usize, credit: usize) -> bool {
    let (had, has) = (told.saturating_sub(own), credit.saturating_sub(own));
    has > 2 * had || told > 2 * credit.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_front_end_alone_may_fill_the_rank_and_one_of_many_may_grow_into_what_is_idle() {
        assert_eq!(credit(0, 100, 1), 100);
        let (mut own, room) = (0, 100);
        for _ in 0..40 {
            own = credit(own, room - own, 4); // it places all that it may; the others nothing
        }
        assert_eq!(own, room);
    }

    #[test]
    fn nobody_is_shut_out_while_there_is_room_and_nobody_is_called_while_there_is_none() {
        for links in 1..10 {
            assert!(credit(0, 1, links) == 1 && is_news(0, 0, credit(0, 1, links)));
            assert!(credit(3, 0, links) == 3 && !is_news(3, 3, credit(3, 0, links)));
        }
    }

    #[test]
    fn a_link_hears_of_room_that_another_one_gave_back() {
        let (mut told, room) = (credit(0, 4000, 2), 4000);
        let mut reports = 0;
        for others in (0..=room).chain((0..room).rev()) {
            let now = credit(0, room - others, 2);
            if is_news(told, 0, now) {
                (told, reports) = (now, reports + 1);
            }
            assert!(now <= 2 * told && told <= 2 * now.max(1), "told {told} of {now}");
        }
        assert!(reports < 30, "{reports} reports");
    }

    #[test]
    fn a_link_that_knows_of_its_room_is_left_alone_until_most_of_it_is_gone() {
        assert!(!is_news(50, 10, 60));
        assert!(!is_news(50, 10, 25));
        assert!(is_news(50, 10, 24));
        assert!(is_news(4, 0, 0));
    }
}
