//! The sequences of a rank whose KV is being fetched, and which of their blocks may still be written: a
//! plain record. The `Rank` obeys what it says, whatever becomes of the `Transfer`s.

use std::sync::Weak;

use ractor::{ActorId, ActorRef};
use rustc_hash::FxHashMap;

use crate::actors::transfer::{self, Mover};
use crate::ids::{BlockId, LegId};
use crate::kvxfer::ledger::{Access, Census, Ledger, LedgerLimits, Level, Phase};

/// Ended fetches that are remembered.
const REMEMBERED: usize = 1024;

/// See the module's description.
pub(super) struct Fetches {
    mover: Weak<Mover>,
    /// By sequence; `None` once its actor has ended without a word.
    fetches: FxHashMap<LegId, Option<ActorRef<transfer::Msg>>>,
    ledger: Ledger<LegId>,
    /// Peers that were lost, as far as that was counted.
    lost: u64,
}

impl Fetches {
    /// None yet, of a pool of so many blocks.
    pub(super) fn new(mover: Weak<Mover>, blocks: u32, alarm: u32, cap: u32) -> Self {
        let ledger = Ledger::new(blocks, LedgerLimits { alarm, cap, remembered: REMEMBERED });
        Self { mover, fetches: FxHashMap::default(), ledger, lost: 0 }
    }

    pub(super) fn mover(&self) -> Weak<Mover> {
        self.mover.clone()
    }

    /// Blocks are about to be written; `false` if they must not be, since too many are in quarantine.
    pub(super) fn reserve(&mut self, leg: LegId, blocks: &[BlockId]) -> bool {
        let held = self.ledger.reserve(leg, Access::Write, blocks);
        held.is_ok() && self.ledger.expose(leg).is_ok()
    }

    /// Nothing was started after all.
    pub(super) fn dismiss(&mut self, leg: LegId) {
        let _ = self.ledger.done(leg); // exposed, and nothing could touch it
    }

    pub(super) fn started(&mut self, leg: LegId, actor: ActorRef<transfer::Msg>) {
        self.fetches.insert(leg, Some(actor));
    }

    pub(super) fn actor(&self, leg: LegId) -> Option<&ActorRef<transfer::Msg>> {
        self.fetches.get(&leg)?.as_ref()
    }

    /// Its actor says that it is over; `false` if it is not known any more.
    pub(super) fn over(&mut self, leg: LegId) -> bool {
        let known = self.fetches.remove(&leg).is_some();
        if known {
            let _ = self.ledger.done(leg); // it was exposed
        }
        known
    }

    /// The fetch whose actor this is, if that has said nothing of its end.
    pub(super) fn orphaned(&mut self, actor: ActorId) -> Option<LegId> {
        let its = |driver: &Option<ActorRef<_>>| {
            driver.as_ref().is_some_and(|driver: &ActorRef<transfer::Msg>| driver.get_id() == actor)
        };
        let (leg, driver) = self.fetches.iter_mut().find(|(_, driver)| its(driver))?;
        *driver = None;
        let leg = *leg;
        let _ = self.ledger.abort(leg); // it was exposed
        Some(leg)
    }

    /// Whether nobody drives this fetch any more and nothing writes to its blocks: it is then forgotten.
    pub(super) fn settled(&mut self, leg: LegId) -> bool {
        let left_alone = self.fetches.get(&leg).is_some_and(Option::is_none);
        // Without its engine there are no blocks either.
        let is_quiet = self.mover.upgrade().is_none_or(|mover| mover.is_quiet(leg));
        if !left_alone || !is_quiet {
            return false;
        }
        self.fetches.remove(&leg);
        let _ = self.ledger.quiesced(leg); // aborted before
        true
    }

    /// A pull of this fetch has failed, and there is no proof yet that it has stopped writing.
    pub(super) fn quarantine(&mut self, leg: LegId) -> Option<Level> {
        // The word of an end that was in time may still be on its way.
        let is_quiet = self.mover.upgrade().is_some_and(|mover| mover.is_quiet(leg));
        let is_known = self.ledger.phase(leg) == Some(Phase::Quarantined);
        if !self.fetches.contains_key(&leg) || is_known || is_quiet {
            return None;
        }
        self.ledger.quarantine(leg).ok()
    }

    /// Of so many lost peers, those that were not counted before.
    pub(super) fn newly_lost(&mut self, lost: u64) -> u64 {
        lost - std::mem::replace(&mut self.lost, lost)
    }

    pub(super) fn census(&self) -> (Census, Level) {
        (self.ledger.census(), self.ledger.level())
    }
}

#[cfg(test)]
mod tests {
    use ractor::{Actor, ActorProcessingErr};

    use super::*;
    use crate::ids::RequestId;

    /// What stands for a `Transfer`.
    struct Nobody;

    impl Actor for Nobody {
        type Msg = transfer::Msg;
        type State = ();
        type Arguments = ();

        async fn pre_start(
            &self,
            _: ActorRef<transfer::Msg>,
            (): (),
        ) -> Result<(), ActorProcessingErr> {
            Ok(())
        }
    }

    async fn actor() -> ActorRef<transfer::Msg> {
        Actor::spawn(None, Nobody, ()).await.unwrap().0
    }

    fn leg(request: u64) -> LegId {
        LegId { request: RequestId(request), choice: 0, attempt: 0 }
    }

    fn blocks(range: std::ops::Range<u32>) -> Vec<BlockId> {
        range.map(BlockId).collect()
    }

    /// Of an engine that has ended: nothing can write.
    fn fetches() -> Fetches {
        Fetches::new(Weak::new(), 20, 2, 4)
    }

    #[tokio::test]
    async fn blocks_are_held_until_their_transfer_says_that_it_is_over() {
        let mut fetches = fetches();
        assert!(fetches.reserve(leg(1), &blocks(0..4)));
        assert!(!fetches.reserve(leg(2), &blocks(3..5)), "block 3 may be written");
        fetches.started(leg(1), actor().await);
        assert!(!fetches.settled(leg(1)), "somebody drives it");
        assert_eq!(fetches.census().0.exposed, 4);
        assert!(fetches.over(leg(1)) && !fetches.over(leg(1)));
        assert!(fetches.reserve(leg(2), &blocks(3..5)));
    }

    #[tokio::test]
    async fn blocks_of_a_lost_transfer_are_free_once_nothing_writes_any_more() {
        let mut fetches = fetches();
        let driver = actor().await;
        assert!(fetches.reserve(leg(1), &blocks(0..4)));
        fetches.started(leg(1), driver.clone());
        assert_eq!(fetches.orphaned(driver.get_id()), Some(leg(1)));
        assert_eq!(fetches.orphaned(driver.get_id()), None);
        assert!(!fetches.over(leg(2)) && fetches.actor(leg(1)).is_none());
        assert!(fetches.settled(leg(1)) && !fetches.settled(leg(1)));
        assert_eq!(fetches.census().0.free, 20);
    }

    #[tokio::test]
    async fn what_is_not_proven_quiet_is_in_quarantine_once_and_a_full_one_stops_all() {
        let mut fetches = fetches();
        assert!(fetches.reserve(leg(1), &blocks(0..5)));
        assert_eq!(fetches.quarantine(leg(1)), None, "it has not begun");
        fetches.started(leg(1), actor().await);
        assert_eq!(fetches.quarantine(leg(1)), Some(Level::Full));
        assert_eq!(fetches.quarantine(leg(1)), None);
        assert!(!fetches.reserve(leg(2), &blocks(7..9)), "five of at most four");
        assert!(fetches.over(leg(1)) && fetches.reserve(leg(2), &blocks(7..9)));
    }
}
