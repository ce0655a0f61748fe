//! Whether a rank that says that it tells what it has cached does so. A pure record of one rank's life.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::router::KvNews;

/// Prompts that a rank may compute before it must have told of a block: engines whose events come
/// late are not mute.
const PROMPTS: u32 = 8;

/// See the module's description. One link writes it, anyone reads it.
#[derive(Debug, Default)]
pub(super) struct Mute {
    has_told: AtomicBool,
    /// Prompts of at least one full block that were computed before anything was told.
    untold: AtomicU32,
}

impl Mute {
    /// What the rank tells. That nothing is cached is no news.
    pub(super) fn heard(&self, news: &KvNews) {
        if news.changes.iter().any(|(_, tier)| tier.is_some()) {
            self.has_told.store(true, Ordering::Relaxed);
        }
    }

    /// The rank has computed a prompt of at least one full block.
    pub(super) fn computed(&self) {
        if !self.has_told.load(Ordering::Relaxed) {
            self.untold.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The rank's life has ended.
    pub(super) fn forget(&self) {
        self.has_told.store(false, Ordering::Relaxed);
        self.untold.store(0, Ordering::Relaxed);
    }

    /// Whether it should have told something by now, and has not.
    pub(super) fn is_mute(&self) -> bool {
        !self.has_told.load(Ordering::Relaxed) && self.untold.load(Ordering::Relaxed) >= PROMPTS
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Tier;
    use crate::ids::BlockHash;

    #[test]
    fn a_rank_is_mute_when_it_has_computed_prompts_and_told_of_no_block() {
        let news = |changes| KvNews { changes, ..KvNews::default() };
        let (nothing, gone) = (news(Vec::new()), news(vec![(BlockHash(1), None)]));
        let block = news(vec![(BlockHash(1), Some(Tier::Device))]);
        let rank = Mute::default();
        assert!(!rank.is_mute(), "it has had nothing to do");
        rank.heard(&nothing);
        (1..PROMPTS).for_each(|_| rank.computed());
        rank.heard(&gone);
        assert!(!rank.is_mute(), "its events may come late");
        rank.computed();
        assert!(rank.is_mute());
        rank.heard(&block);
        assert!(!rank.is_mute());
        (0..PROMPTS).for_each(|_| rank.computed());
        assert!(!rank.is_mute(), "all of them were cached, and told before");
        rank.forget();
        (0..PROMPTS).for_each(|_| rank.computed());
        assert!(rank.is_mute(), "in its next life it must tell again");
    }
}
