//! `Transfer`: fetches the KV blocks of one sequence from the rank that has prefilled them.
//!
//! ```text
//! Rank (decode) ──spawns, for a leg that has its blocks──▶ Transfer ──pulls──▶ Mover ──▶ transport
//!   ▲  ▲                                                     │                             │
//!   │  └──────────────── Fetched: so many have come ─────────┘                             │
//!   └──── Moved: what happened to a pull, passed on to the Transfer, if that still lives ──┘
//! ```
//! It can be killed at any time: its pulls are aborted, and its `Rank` waits for the proof that nothing
//! writes to the blocks any more (`rank/fetches`). On the other side [`Leases`] keep what was prefilled.

mod fetch;
mod leases;
mod mover;

use std::sync::{Arc, Weak};
use std::time::Instant;

use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use ractor_cluster::RactorMessage;
use tracing::{debug, warn};

pub use leases::Leases;
pub use mover::{Moved, Mover};

use super::context::NodeContext;
use super::link::FetchEnd;
use super::rank;
use super::tree::{Card, CardId, Label};
use crate::engine::PullOut;
use crate::ids::{BlockId, LegId};
use crate::kvxfer::{Event, KvBlocks, KvOrigin, Layout, PeerId, XferError};
use crate::metrics::TransferMetrics;
use fetch::Fetch;

/// What a `Transfer` answers to.
#[derive(RactorMessage)]
pub enum Msg {
    /// More can be fetched; `None`: nothing more will come than what is known.
    More(Option<KvBlocks>),
    /// What happened to its pull.
    Moved(Event),
    /// Internal: begin.
    Begin,
}

/// What a `Transfer` starts from.
pub struct Args {
    /// The node.
    pub node: Arc<NodeContext>,
    /// The card of the `Rank`.
    pub parent: CardId,
    /// The `Rank`; it hears how it ended.
    pub rank: ActorRef<rank::Msg>,
    /// The rank's pool.
    pub mover: Weak<Mover>,
    /// Counts what it does.
    pub metrics: Arc<TransferMetrics>,
    /// What is wanted, and where it goes.
    pub pull: PullOut,
    /// Where it is.
    pub origin: KvOrigin,
    /// What of it there is by now.
    pub blocks: KvBlocks,
}

/// A `Transfer`'s memory; dropping it stops its pull.
pub struct State {
    leg: LegId,
    rank: ActorRef<rank::Msg>,
    mover: Weak<Mover>,
    metrics: Arc<TransferMetrics>,
    origin: KvOrigin,
    fetch: Fetch,
    /// The peer, and how blocks lie there; none before it begins.
    peer: Option<(PeerId, Layout)>,
    began: Instant,
    /// The rank that has it is to blame for what has not come.
    not_given: bool,
    /// The rank knows how it ended, and stops it.
    is_over: bool,
    card: Card,
}

impl Drop for State {
    fn drop(&mut self) {
        if let Some(mover) = self.mover.upgrade() {
            mover.abort(self.leg);
        }
    }
}

/// Whether there is more to do.
enum Flow {
    On,
    Ended,
}

impl State {
    fn begin(&mut self) -> Result<Flow, XferError> {
        let mover = self.mover()?;
        let (peer, info) = mover.connect(&self.origin)?;
        self.peer = Some((peer, info.layout));
        self.next(&mover)
    }

    fn mover(&self) -> Result<Arc<Mover>, XferError> {
        let why = || "the rank's engine has ended".to_owned();
        self.mover.upgrade().ok_or_else(|| XferError::Stopped { transport: "any", why: why() })
    }

    /// Asks for what can be had now, or says that it is over.
    fn next(&mut self, mover: &Mover) -> Result<Flow, XferError> {
        let Some((peer, remote)) = &self.peer else { return Ok(Flow::On) };
        if !self.fetch.is_idle() {
            return Ok(Flow::On);
        }
        let runs = self.fetch.ask(remote, mover.layout(), mover.most_runs())?;
        if !runs.is_empty() {
            self.card.state("pulling");
            self.metrics.runs.observe(runs.len() as u64);
            mover.pull(self.leg, (*peer, &self.origin), runs)?;
            return Ok(Flow::On);
        }
        if self.fetch.is_over(remote, mover.layout()) {
            return Ok(Flow::Ended);
        }
        self.card.state("waiting for more");
        Ok(Flow::On)
    }

    fn moved(&mut self, event: Event) -> Result<Flow, XferError> {
        let mover = self.mover()?;
        match event {
            Event::Done { bytes, .. } => {
                self.metrics.pulled_bytes.inc_by(bytes);
                let comparable = self
                    .peer
                    .as_ref()
                    .is_some_and(|(_, remote)| remote.is_arranged_like(mover.layout()));
                let is_good = |block: BlockId, checksum: u64| {
                    !comparable || mover.checksum(block).is_none_or(|own| own == checksum)
                };
                if !self.fetch.came(is_good) {
                    self.not_given = true;
                    self.metrics.mismatches.inc();
                    warn!(leg = %self.leg, "a fetched KV block differs from the one that was prefilled");
                }
                self.card.count(0, self.fetch.have().into());
                self.card.add(1, bytes);
                self.next(&mover)
            }
            Event::Failed { why, .. } => {
                self.card.state("failed");
                self.not_given |= blames_peer(&why);
                debug!(leg = %self.leg, %why, "a pull of KV blocks failed");
                Ok(Flow::On) // until nothing writes any more
            }
            Event::Quiesced { .. } => {
                self.fetch.failed();
                Ok(Flow::Ended)
            }
            Event::PeerDown { .. } => Ok(Flow::On), // its pulls are told
        }
    }

    fn more(&mut self, more: Option<KvBlocks>) -> Result<Flow, XferError> {
        let mover = self.mover()?;
        match more {
            Some(more) => self.fetch.more(more),
            None => {
                self.fetch.end();
                // The rank that has it is gone, or the way to it: what is on its way may never come.
                mover.abort(self.leg);
            }
        }
        self.next(&mover)
    }

    /// Tells the rank how much has come. It does not end by itself: its end could overtake its word.
    fn report(&self) -> Result<(), ActorProcessingErr> {
        self.metrics.pull.observe(self.began.elapsed());
        let end = match self.fetch.is_complete() {
            true => FetchEnd::Whole,
            false if self.not_given => FetchEnd::NotGiven,
            false => FetchEnd::NotTaken,
        };
        self.rank.cast(rank::Msg::Fetched { leg: self.leg, have: self.fetch.have(), end })?;
        Ok(())
    }
}

/// Whether another rank might have given what this one did not.
fn blames_peer(why: &XferError) -> bool {
    matches!(
        why,
        XferError::PeerLost { .. }
            | XferError::Deadline { .. }
            | XferError::Corrupt { .. }
            | XferError::BadDescriptor { .. }
            | XferError::BadLayout(_)
    )
}

/// See the module's description.
pub struct Transfer;

impl Actor for Transfer {
    type Msg = Msg;
    type State = State;
    type Arguments = Args;

    async fn pre_start(
        &self,
        myself: ActorRef<Msg>,
        args: Args,
    ) -> Result<State, ActorProcessingErr> {
        let Args { node, parent, rank, mover, metrics, pull, origin, blocks } = args;
        let label = Label {
            kind: "Transfer",
            name: pull.leg.to_string(),
            generation: u32::from(pull.leg.attempt) + 1,
            counters: &["blocks", "bytes"],
        };
        let card = node.board.hang(parent, label, myself.get_cell());
        let fetch = Fetch::new(&pull, blocks);
        myself.cast(Msg::Begin)?;
        let (leg, began) = (pull.leg, Instant::now());
        let (peer, not_given, is_over) = (None, false, false);
        Ok(State {
            leg,
            rank,
            mover,
            metrics,
            origin,
            fetch,
            peer,
            began,
            not_given,
            is_over,
            card,
        })
    }

    async fn handle(
        &self,
        _: ActorRef<Msg>,
        message: Msg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        if state.is_over {
            return Ok(());
        }
        let flow = match message {
            Msg::Begin => state.begin(),
            Msg::More(more) => state.more(more),
            Msg::Moved(event) => state.moved(event),
        };
        let flow = flow.unwrap_or_else(|why| {
            // Nothing is on its way: a pull that was accepted does not fail like this.
            warn!(leg = %state.leg, %why, "KV blocks cannot be fetched");
            state.not_given |= blames_peer(&why);
            state.fetch.failed();
            Flow::Ended
        });
        if let Flow::Ended = flow {
            state.is_over = true;
            state.report()?;
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<Msg>,
        _: SupervisionEvent,
        _: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        Ok(()) // it has no children
    }
}
