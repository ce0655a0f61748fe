//! `Rank`: one data-parallel rank of a worker. Owns an engine with its KV pool, which runs on the
//! rank's own thread, and holds one `Sequence` for each leg.
//!
//! ```text
//! WorkerLink ──Admit, Cancel──▶ Rank ──holds──▶ Sequence ──Admit; Abort when it ends──▶ thread
//!      ▲                                                                                  │
//!      └─────────── one frame a step: accepted, started, tokens, failed, lost ────────────┘
//! ```
//! A leg lives as long as its `Sequence`: whatever ends that also frees the leg's KV blocks. Where its KV
//! comes from another rank, a `Transfer` fetches it (`transfers`).

mod credit;
mod fetches;
pub(in crate::actors) mod kv;
mod parts;
mod progress;
mod reference;
mod sequence;
mod steps;
mod stream;
mod thread;
mod transfers;

use std::collections::HashSet;
use std::sync::{Arc, Weak};

use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use ractor_cluster::RactorMessage;
use rustc_hash::FxHashMap;
use tokio::sync::mpsc;
use tracing::{debug, warn};

use super::context::NodeContext;
use super::link::{FetchEnd, Frame, LinkId};
use super::restart::ended;
use super::transfer::{Moved, Mover};
use super::tree::{Card, CardId, Label};
use super::worker;
use crate::engine::{Description, Engine, EngineError, Leg, PullOut};
use crate::ids::{Generation, LegId, RankIndex};
use crate::kvxfer::{KvBlocks, KvOffer};
use crate::metrics::{Queued, TransferMetrics};
use fetches::Fetches;
use sequence::Sequence;
use thread::{Command, Thread};

/// Makes a rank's engine; runs on the rank's thread, since loading takes long.
pub type Launch = Arc<dyn Fn(RankIndex) -> Result<Box<dyn Engine>, EngineError> + Send + Sync>;

/// What a `Rank` answers to.
#[derive(RactorMessage)]
pub enum Msg {
    /// A front end's token stream: frames about its legs go there. When the stream is closed, its
    /// legs end.
    Attach {
        /// Names the stream.
        link: LinkId,
        /// Where frames go.
        frames: mpsc::Sender<Frame>,
    },
    /// A front end's token stream is gone: its legs end.
    Detach {
        /// The stream.
        link: LinkId,
    },
    /// Starts a leg. Its outcome is in the link's frames: accepted, then tokens, then one of a token
    /// with `finish`, failed, lost; or nothing more after a `Cancel`. Idempotent by the leg's id.
    Admit {
        /// The leg.
        leg: Leg,
        /// Where the KV of its prompt can be fetched, if that is computed elsewhere.
        offer: Option<Box<KvOffer>>,
        /// An attached stream.
        link: LinkId,
        /// Counts it while it waits here.
        queued: Queued,
    },
    /// More of a leg's KV can be fetched. Unknown legs are ignored.
    More {
        /// The leg.
        leg: LegId,
        /// What follows; `None`: nothing more will come.
        more: Option<KvBlocks>,
        /// Counts it while it waits here.
        queued: Queued,
    },
    /// Ends a leg. Unknown legs are ignored.
    Cancel {
        /// The leg.
        leg: LegId,
        /// Counts it while it waits here.
        queued: Queued,
    },
    /// A front end wants to hear all that the prefix cache has: it has missed something.
    Snapshot {
        /// Its stream.
        link: LinkId,
    },
    /// Fault injection: a leg's `Sequence` ends though nobody asked it to.
    Kill {
        /// The leg.
        leg: LegId,
    },
    /// Internal: the engine is loaded, with what moves its blocks if it has a role for that.
    Loaded(Description, Option<Weak<Mover>>),
    /// Internal: these legs have blocks for KV that is to be fetched.
    Pulls(Vec<PullOut>),
    /// Internal: what happened to a pull.
    Moved(Moved),
    /// Internal, from a `Transfer`: it is over.
    Fetched {
        /// The leg.
        leg: LegId,
        /// Leading blocks of what was wanted that have come.
        have: u32,
        /// Whether all have, or why not.
        end: FetchEnd,
    },
    /// Internal: `worker.transfer.quiet_s` after a pull for this leg has failed.
    Unquiet(LegId),
    /// Internal: these legs have ended in the engine.
    Ended(Vec<LegId>),
    /// Internal: a front end closed its stream.
    LinkClosed(LinkId),
    /// Internal: loading or a step failed or panicked.
    EngineLost(EngineError),
}

/// What a `Rank` starts from.
pub struct Args {
    /// The node.
    pub node: Arc<NodeContext>,
    /// The card of the `Worker`.
    pub parent: CardId,
    /// The `Worker`; it hears when the engine is loaded.
    pub worker: ActorRef<worker::Msg>,
    /// The worker's name.
    pub worker_name: String,
    /// The worker's generation.
    pub generation: Generation,
    /// This rank's index in the worker.
    pub index: RankIndex,
    /// Which life of it this is in the worker, from 1.
    pub life: u32,
    /// Makes the engine.
    pub launch: Launch,
    /// Shared with the `Worker`, which watches it.
    pub progress: Arc<Progress>,
}

pub use progress::{Patience, Progress};
pub use reference::RankRef;

/// A `Rank`'s memory; dropping it ends the thread after the step it is in.
pub struct State {
    args: Args,
    thread: Thread,
    /// Streams that are open: a leg of another one would compute for nobody.
    attached: HashSet<LinkId>,
    live: FxHashMap<LegId, Sequence>,
    /// `None` on a rank that fetches nothing.
    fetches: Option<Fetches>,
    metrics: Arc<TransferMetrics>,
    card: Card,
}

impl State {
    /// Forgets a leg, which frees what it holds.
    fn end(&mut self, leg: LegId) {
        if self.live.remove(&leg).is_some() {
            self.card.count(0, self.live.len() as u64);
        }
    }

    fn end_link(&mut self, link: LinkId) {
        self.attached.remove(&link);
        self.live.retain(|_, sequence| sequence.link != link);
        self.card.count(0, self.live.len() as u64);
    }

    /// A sequence ends that nobody had asked to: its leg is lost, the others are not.
    fn kill(&mut self, leg: LegId) {
        let Some(sequence) = self.live.remove(&leg) else { return };
        warn!(%leg, "the sequence was killed");
        self.card.count(0, self.live.len() as u64);
        self.thread.send(Command::Lost { leg, link: sequence.link });
    }

    fn admit(
        &mut self,
        myself: &ActorRef<Msg>,
        leg: Leg,
        offer: Option<Box<KvOffer>>,
        link: LinkId,
    ) {
        let id = leg.id;
        if self.live.contains_key(&id) || !self.attached.contains(&link) {
            return;
        }
        if let Err(error) = self.thread.has_room(self.live.len()) {
            return self.thread.send(Command::Refused { leg: id, link, error });
        }
        let place = (&self.args.node.board, self.card.id());
        let sequence = Sequence::admit(leg, offer, link, self.thread.commands(), myself, place);
        self.live.insert(id, sequence);
        self.card.count(0, self.live.len() as u64);
    }
}

/// See the module's description.
pub struct Rank;

impl Actor for Rank {
    type Msg = Msg;
    type State = State;
    type Arguments = Args;

    async fn pre_start(
        &self,
        myself: ActorRef<Msg>,
        args: Args,
    ) -> Result<State, ActorProcessingErr> {
        let label = Label {
            kind: "Rank",
            name: format!("{}/{}", args.worker_name, args.index.0),
            generation: args.generation.0,
            counters: &["legs", "steps", "tokens"],
        };
        let name = label.name.clone();
        let card = args.node.board.hang(args.parent, label, myself.get_cell());
        card.state("loading");
        let thread = Thread::start(myself, &args, name, card.counters())?;
        let metrics = args.node.metrics.transfer(&args.worker_name, args.index);
        let (attached, live, fetches) = (HashSet::new(), FxHashMap::default(), None);
        Ok(State { args, thread, attached, live, fetches, metrics, card })
    }

    async fn handle(
        &self,
        myself: ActorRef<Msg>,
        message: Msg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Msg::Attach { link, frames } => {
                state.attached.insert(link);
                state.thread.send(Command::Attach { link, frames });
            }
            Msg::Detach { link } => {
                state.end_link(link);
                state.thread.send(Command::Detach { link });
            }
            Msg::Admit { leg, offer, link, queued } => {
                drop(queued);
                state.admit(&myself, leg, offer, link);
            }
            Msg::More { leg, more, queued } => {
                drop(queued);
                state.more(leg, more);
            }
            Msg::Cancel { leg, queued } => {
                drop(queued);
                state.end(leg);
            }
            Msg::Snapshot { link } => state.thread.send(Command::Snapshot { link }),
            Msg::Kill { leg } => state.kill(leg),
            Msg::Ended(legs) => legs.into_iter().for_each(|leg| state.end(leg)),
            Msg::LinkClosed(link) => state.end_link(link),
            Msg::Pulls(pulls) => {
                for pull in pulls {
                    state.fetch(&myself, pull).await;
                }
            }
            Msg::Moved(moved) => state.moved(&myself, moved),
            Msg::Fetched { leg, have, end } => state.fetched(leg, have, end),
            Msg::Unquiet(leg) => state.unquiet(leg)?,
            Msg::Loaded(description, mover) => {
                debug!(rank = state.args.index.0, ?description, "engine loaded");
                state.card.state("serving");
                state.fetches = mover.and_then(|mover| state.fetches_of(&description, mover));
                state.show_transfers(); // what an earlier life had is gone with it
                let (index, life) = (state.args.index, state.args.life);
                state.args.worker.cast(worker::Msg::RankLoaded { index, life, description })?;
            }
            Msg::EngineLost(error) => return Err(error.into()), // our Worker takes over
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Msg>,
        event: SupervisionEvent,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        if let Some((child, why)) = ended(event) {
            state.orphaned(&myself, child.get_id(), &why);
        }
        Ok(())
    }
}
