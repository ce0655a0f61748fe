//! The prompts that a rank has prefilled and keeps for others to fetch: each under a lease, which ends
//! when its leg does or nobody has fetched it in time.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;

use super::Mover;
use crate::engine::Prefilled;
use crate::ids::LegId;
use crate::kvxfer::{GrantId, KvBlocks, KvOrigin, XferError};
use crate::metrics::TransferMetrics;

/// One prompt, or what there is of it.
struct Lease {
    grant: GrantId,
    until: Instant,
}

/// All of one rank. Its thread has them.
pub struct Leases {
    mover: Arc<Mover>,
    lifetime: Duration,
    metrics: Arc<TransferMetrics>,
    leases: FxHashMap<LegId, Lease>,
    /// By when they may end; one that was prolonged is here again.
    ends: VecDeque<(Instant, LegId)>,
}

impl Leases {
    /// None yet.
    pub fn new(mover: Arc<Mover>, lifetime: Duration, metrics: Arc<TransferMetrics>) -> Self {
        metrics.leases.set(0); // what an earlier life had is gone with it
        Self { mover, lifetime, metrics, leases: FxHashMap::default(), ends: VecDeque::new() }
    }

    /// What moves the pool's blocks.
    pub fn mover(&self) -> Weak<Mover> {
        Arc::downgrade(&self.mover)
    }

    /// Lends what a leg has prefilled. Where from is told the first time.
    ///
    /// # Errors
    /// The transport's limit of grants: the leg must end.
    pub fn lend(
        &mut self,
        row: Prefilled,
        now: Instant,
    ) -> Result<(Option<KvOrigin>, KvBlocks), XferError> {
        let Prefilled { leg, blocks, missing } = row;
        let until = now + self.lifetime;
        self.ends.push_back((until, leg));
        let origin = match self.leases.get_mut(&leg) {
            Some(lease) => {
                lease.until = until;
                self.mover.lend_more(lease.grant, &blocks)?;
                None
            }
            None => {
                let grant = self.mover.lend(&blocks)?;
                self.leases.insert(leg, Lease { grant, until });
                self.metrics.leases.set(self.leases.len() as i64);
                Some(self.mover.origin(grant))
            }
        };
        Ok((origin, self.mover.told(blocks, missing)))
    }

    /// Ends a leg's lease, if it has one. To be called before its blocks are free for others.
    pub fn end(&mut self, leg: LegId) {
        if let Some(lease) = self.leases.remove(&leg) {
            self.mover.take_back(lease.grant);
            self.metrics.leases.set(self.leases.len() as i64);
        }
    }

    /// A lease that has run out, if there is one: its leg must end.
    pub fn expired(&mut self, now: Instant) -> Option<LegId> {
        while let Some(&(end, leg)) = self.ends.front() {
            let until = self.leases.get(&leg).map(|lease| lease.until);
            if until == Some(end) && end > now {
                return None;
            }
            self.ends.pop_front();
            if until == Some(end) {
                self.metrics.leases_expired.inc();
                return Some(leg);
            }
        }
        None
    }

    /// When the next lease may run out.
    pub fn next_end(&self) -> Option<Instant> {
        self.ends.front().map(|(end, _)| *end)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use super::*;
    use crate::actors::transfer::Moved;
    use crate::config::{Config, Profile, TransportKind, load};
    use crate::engine::KvPool;
    use crate::ids::{BlockId, RankIndex, RequestId};
    use crate::kvxfer::{Event, Layout, Memory, Side, Sizes, plan};
    use crate::metrics::Metrics;

    const SHORT: Duration = Duration::from_millis(50);

    /// A rank's pool, and what it hears.
    fn rank() -> (Arc<Mover>, Arc<Memory>, Receiver<Moved>) {
        let sizes =
            Sizes { blocks: 8, layers: 1, planes: 2, heads: 0..1, block_tokens: 16, head_bytes: 8 };
        let layout = Layout::block_major(sizes).unwrap();
        let memory = Memory::zeroed(layout.bytes() as usize).unwrap();
        let config: Config = load(None, &[], Profile::Serve).unwrap();
        let mut transfer = config.worker.unwrap().transfer;
        transfer.transport = TransportKind::Tcp;
        let (to, heard) = channel();
        let pool = KvPool { memory: memory.clone(), layout };
        let mover = Mover::start(&transfer, pool, move |moved| drop(to.send(moved))).unwrap();
        (Arc::new(mover), memory, heard)
    }

    fn leg(request: u64) -> LegId {
        LegId { request: RequestId(request), choice: 0, attempt: 0 }
    }

    fn row(request: u64, block: u32, missing: u32) -> Prefilled {
        Prefilled { leg: leg(request), blocks: vec![BlockId(block)], missing }
    }

    fn leases(mover: &Arc<Mover>, metrics: &Metrics) -> Leases {
        Leases::new(mover.clone(), SHORT, metrics.transfer("w", RankIndex(0)))
    }

    /// Pulls a block of `origin` into block 7; whether it came.
    fn pull(
        here: &(Arc<Mover>, Arc<Memory>, Receiver<Moved>),
        from: &KvOrigin,
        block: u32,
    ) -> bool {
        let (mover, _, heard) = here;
        let (peer, info) = mover.connect(from).unwrap();
        let from_side = Side { layout: &info.layout, blocks: &[BlockId(block)] };
        let into = Side { layout: mover.layout(), blocks: &[BlockId(7)] };
        let runs = plan(from_side, into, 0..16).unwrap();
        mover.pull(leg(9), (peer, from), runs).unwrap();
        loop {
            match heard.recv_timeout(Duration::from_secs(20)).unwrap() {
                (_, Event::Done { .. }) => return true,
                (_, Event::Quiesced { .. }) => return false,
                _ => {}
            }
        }
    }

    #[test]
    fn what_is_lent_can_be_fetched_until_the_lease_ends() {
        let (there, here) = (rank(), rank());
        let metrics = Metrics::new();
        let mut leases = leases(&there.0, &metrics);
        let now = Instant::now();
        there.1.write(3 * 256, b"three");
        let (origin, blocks) = leases.lend(row(1, 3, 1), now).unwrap();
        assert_eq!((blocks.blocks, blocks.missing), (vec![BlockId(3)], 1));
        let origin = origin.unwrap();
        assert!(pull(&here, &origin, 3));
        let mut read = [0; 5];
        here.1.read(7 * 256, &mut read);
        assert_eq!(&read, b"three");
        assert!(!pull(&here, &origin, 4), "that block was not lent");
        let (again, more) = leases.lend(row(1, 4, 0), now).unwrap();
        assert!(again.is_none() && more.missing == 0);
        assert!(pull(&here, &origin, 4));
        leases.end(leg(1));
        assert!(!pull(&here, &origin, 3) && here.0.is_quiet(leg(9)));
        assert_eq!(there.0.counters().grants, 0);
    }

    #[test]
    fn a_lease_ends_when_nobody_has_come_for_it_since_the_last_block() {
        let there = rank();
        let metrics = Metrics::new();
        let mut leases = leases(&there.0, &metrics);
        let now = Instant::now();
        leases.lend(row(1, 0, 1), now).unwrap();
        leases.lend(row(2, 1, 0), now + SHORT / 5).unwrap();
        leases.lend(row(1, 2, 0), now + SHORT / 2).unwrap();
        leases.lend(row(3, 3, 0), now + SHORT).unwrap();
        assert_eq!(leases.next_end(), Some(now + SHORT));
        assert_eq!(leases.expired(now + SHORT), None, "it was prolonged");
        assert_eq!(leases.expired(now + SHORT * 6 / 5), Some(leg(2)));
        leases.end(leg(2));
        leases.end(leg(3)); // in good time
        assert_eq!(leases.expired(now + SHORT * 2), Some(leg(1)));
        leases.end(leg(1));
        assert_eq!((leases.expired(now + 9 * SHORT), leases.next_end()), (None, None));
        assert!(
            metrics
                .encode()
                .contains("cuelight_kv_leases_expired_total{worker=\"w\",rank=\"0\"} 2")
        );
    }
}
