//! Keeps a rank's part of the prefix index true: news come numbered, reports of the load repeat the
//! last number, and what cannot be trusted is asked for again. A pure record of one rank.

use bincode::{Decode, Encode};

use crate::engine::Tier;
use crate::ids::{BlockHash, RankIndex};

/// What changed in a rank's prefix cache since its last news on the same stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct KvNews {
    /// The rank.
    pub rank: RankIndex,
    /// One more than that of the news before.
    pub number: u64,
    /// Forget all that was said before: what follows is what the rank has.
    pub reset: bool,
    /// Blocks, in the order of what happened, and the fastest tier that has each now; `None`: it is
    /// gone.
    pub changes: Vec<(BlockHash, Option<Tier>)>,
}

/// What to do with news.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Take the changes in.
    Apply,
    /// Forget what the rank had, then take the changes in.
    Replace,
    /// Something is missing: forget what the rank had and ask for all of it.
    Ask,
    /// All of it has been asked for already.
    Wait,
}

/// News and reports that may come between a question and its answer before it is asked again: what
/// was on its way, and some patience.
const ASK_AGAIN: u32 = 8;

/// The news that were taken in from one rank.
#[derive(Clone, Copy, Debug, Default)]
pub struct Follower {
    /// The number of the last news; `None` before the first and after a gap.
    last: Option<u64>,
    /// News since all was asked for, while that has not come.
    waited: Option<u32>,
}

impl Follower {
    /// Judges the next news.
    pub fn judge(&mut self, news: &KvNews) -> Verdict {
        if news.reset {
            *self = Self { last: Some(news.number), waited: None };
            return Verdict::Replace;
        }
        if self.last.is_some_and(|last| last.wrapping_add(1) == news.number) {
            self.last = Some(news.number);
            return Verdict::Apply;
        }
        self.missed()
    }

    /// Judges whether the last news that the rank has sent, of this number, are the last that came:
    /// nothing else tells of the loss of what nothing follows. `Apply` if so.
    pub fn check(&mut self, number: u64) -> Verdict {
        match self.last == Some(number) {
            true => Verdict::Apply,
            false => self.missed(),
        }
    }

    fn missed(&mut self) -> Verdict {
        self.last = None;
        let waited = self.waited.map_or(0, |waited| waited + 1);
        self.waited = Some(waited);
        if waited.is_multiple_of(ASK_AGAIN) { Verdict::Ask } else { Verdict::Wait }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn news(number: u64, reset: bool) -> KvNews {
        KvNews { number, reset, ..KvNews::default() }
    }

    #[test]
    fn news_in_order_are_applied_and_a_gap_asks_once_for_everything() {
        let mut follower = Follower::default();
        let mut judge = |number, reset| follower.judge(&news(number, reset));
        assert_eq!(judge(4, true), Verdict::Replace);
        assert_eq!((judge(5, false), judge(6, false)), (Verdict::Apply, Verdict::Apply));
        assert_eq!(judge(8, false), Verdict::Ask, "7 is missing");
        assert_eq!((judge(9, false), judge(7, false)), (Verdict::Wait, Verdict::Wait));
        assert_eq!((judge(20, true), judge(21, false)), (Verdict::Replace, Verdict::Apply));
        assert_eq!(judge(21, false), Verdict::Ask, "told twice");
    }

    #[test]
    fn an_answer_that_does_not_come_is_asked_for_again() {
        let mut follower = Follower::default();
        let asked = (0..32).filter(|&i| follower.judge(&news(2 * i, false)) == Verdict::Ask);
        assert_eq!(asked.count(), 4);
    }

    #[test]
    fn a_loss_that_nothing_follows_shows_with_the_next_report() {
        let mut follower = Follower::default();
        follower.judge(&news(1, true));
        assert_eq!((follower.check(1), follower.check(1)), (Verdict::Apply, Verdict::Apply));
        assert_eq!((follower.check(2), follower.check(2)), (Verdict::Ask, Verdict::Wait));
        let asked = (0..32).filter(|_| follower.check(2) == Verdict::Ask);
        assert_eq!(asked.count(), 4, "an answer that does not come is asked for again");
        assert_eq!(follower.judge(&news(3, true)), Verdict::Replace);
        assert_eq!(follower.check(3), Verdict::Apply);
    }

    #[test]
    fn what_does_not_begin_with_everything_is_asked_for() {
        assert_eq!(Follower::default().judge(&news(0, false)), Verdict::Ask);
    }
}
