//! `WorkerLink`: the front end's link to one worker, here or remote: its token stream and its loss.
//!
//! A request places legs through the [`Link`]; the worker's frames come back on one bounded stream,
//! one frame a step, and are dealt out to the inboxes. However the link ends (the stream ends, the
//! actor is killed), every leg that is still on it hears [`LegEvent::Lost`] exactly once, and the
//! worker, whose side of the stream closes, ends the legs on its side.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use rustc_hash::FxHashMap;
use tokio::sync::mpsc;

use super::context::NodeContext;
use super::inbox::{Inbox, LegEvent, Lost};
use super::rank;
use super::tree::{Card, CardId, Counters, Label};
use super::worker::WorkerUp;
use crate::engine::{EngineError, Leg, Load, Started, StepOutput, TokenOut};
use crate::ids::{Generation, LegId, RankIndex};

/// Names one stream between a front end and a worker, unique within the process's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LinkId(u64);

static LAST_LINK: AtomicU64 = AtomicU64::new(0);

/// What a rank says about the legs of one link: at most one a step.
#[derive(Debug, Default)]
pub struct Frame {
    /// Legs that were queued.
    pub accepted: Vec<LegId>,
    /// Legs that left the queue.
    pub started: Vec<Started>,
    /// New tokens.
    pub tokens: Vec<TokenOut>,
    /// Legs that the engine ended.
    pub failed: Vec<(LegId, EngineError)>,
    /// Legs whose actor on the rank was lost.
    pub lost: Vec<LegId>,
    /// The rank, and how busy it is.
    pub load: Option<(RankIndex, Load)>,
}

impl Frame {
    /// Whether there is nothing to tell.
    pub fn is_empty(&self) -> bool {
        self.accepted.is_empty()
            && self.started.is_empty()
            && self.tokens.is_empty()
            && self.failed.is_empty()
            && self.lost.is_empty()
    }

    /// Moves a step's rows in; the step keeps its allocations where it can.
    pub fn append_step(&mut self, step: &mut StepOutput) {
        self.started.append(&mut step.started);
        self.tokens.append(&mut step.tokens);
        self.failed.append(&mut step.failed);
    }
}

/// A rank as a router sees it.
pub struct RankLink {
    /// Its index in the worker.
    pub index: RankIndex,
    rank: ActorRef<rank::Msg>,
    /// Legs placed by this front end that have not ended.
    placed: AtomicU32,
    /// Legs the rank last reported as running and waiting, over all front ends.
    reported: AtomicU32,
}

impl RankLink {
    /// Legs on this rank, as far as this front end knows: its own, or the last report if larger.
    pub fn legs(&self) -> u32 {
        self.placed.load(Ordering::Relaxed).max(self.reported.load(Ordering::Relaxed))
    }
}

/// Where a leg's events go, and which rank it is on.
struct Placed {
    inbox: Arc<Inbox>,
    rank: usize,
}

/// `None` once the link has ended.
type Table = Option<FxHashMap<LegId, Placed>>;

/// The way to one worker; shared by the actor, the router's view and the requests.
pub struct Link {
    id: LinkId,
    /// The worker's name.
    pub worker: String,
    /// The worker's generation.
    pub generation: Generation,
    /// Its ranks.
    pub ranks: Vec<RankLink>,
    table: Mutex<Table>,
}

impl Link {
    /// A link on which nothing is placed yet; its `WorkerLink` attaches it to the worker.
    pub fn new(up: &WorkerUp) -> Self {
        let ranks = up.ranks.iter().map(|(index, rank)| RankLink {
            index: *index,
            rank: rank.clone(),
            placed: AtomicU32::new(0),
            reported: AtomicU32::new(0),
        });
        Self {
            id: LinkId(LAST_LINK.fetch_add(1, Ordering::Relaxed)),
            worker: up.name.clone(),
            generation: up.generation,
            ranks: ranks.collect(),
            table: Mutex::new(Some(FxHashMap::default())),
        }
    }

    /// Sends a leg to a rank; its events go to `inbox` from now on.
    ///
    /// # Errors
    /// [`Lost::Worker`]: the link has ended; the inbox will not hear of this leg.
    pub fn place(&self, rank: usize, leg: Leg, inbox: Arc<Inbox>) -> Result<(), Lost> {
        let id = leg.id;
        self.table().as_mut().ok_or(Lost::Worker)?.insert(id, Placed { inbox, rank });
        self.ranks[rank].placed.fetch_add(1, Ordering::Relaxed);
        if self.ranks[rank].rank.cast(rank::Msg::Admit { leg, link: self.id }).is_err() {
            self.forget(id);
            return Err(Lost::Worker);
        }
        Ok(())
    }

    /// Ends a leg: no more events of it, and its rank frees what it holds.
    pub fn cancel(&self, leg: LegId) {
        if let Some(rank) = self.forget(leg) {
            // A rank that is gone has nothing to free.
            let _ = self.ranks[rank].rank.cast(rank::Msg::Cancel { leg });
        }
    }

    fn forget(&self, leg: LegId) -> Option<usize> {
        let placed = self.table().as_mut()?.remove(&leg)?;
        self.ranks[placed.rank].placed.fetch_sub(1, Ordering::Relaxed);
        Some(placed.rank)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Deals a frame out to the inboxes. Rows of legs that were cancelled meanwhile are dropped.
    fn deal(&self, frame: Frame) {
        let mut guard = self.table();
        let Some(table) = guard.as_mut() else { return };
        if let Some((index, load)) = frame.load
            && let Some(rank) = self.ranks.iter().find(|rank| rank.index == index)
        {
            rank.reported.store(load.running + load.waiting, Ordering::Relaxed);
        }
        for leg in frame.accepted {
            if let Some(placed) = table.get(&leg) {
                placed.inbox.put(leg, LegEvent::Accepted);
            }
        }
        for Started { leg, cached_tokens } in frame.started {
            if let Some(placed) = table.get(&leg) {
                placed.inbox.put(leg, LegEvent::Started { cached_tokens });
            }
        }
        for TokenOut { leg, token, logprobs, finish } in frame.tokens {
            let event = LegEvent::Token { token, logprobs, finish };
            if finish.is_some() {
                self.last_event(table, leg, event);
            } else if let Some(placed) = table.get(&leg) {
                placed.inbox.put(leg, event);
            }
        }
        for (leg, error) in frame.failed {
            self.last_event(table, leg, LegEvent::Failed(error));
        }
        for leg in frame.lost {
            self.last_event(table, leg, LegEvent::Lost(Lost::Sequence));
        }
    }

    fn last_event(&self, table: &mut FxHashMap<LegId, Placed>, leg: LegId, event: LegEvent) {
        if let Some(placed) = table.remove(&leg) {
            self.ranks[placed.rank].placed.fetch_sub(1, Ordering::Relaxed);
            placed.inbox.put(leg, event);
        }
    }

    /// Ends the link: every leg on it hears of its loss, once.
    pub fn end(&self) {
        let Some(table) = self.table().take() else { return };
        for (leg, placed) in table {
            placed.inbox.put(leg, LegEvent::Lost(Lost::Worker));
        }
    }
}

/// What a `WorkerLink` answers to.
pub enum Msg {
    /// Internal: the worker closed its side of the stream.
    StreamEnded,
}

/// What a `WorkerLink` starts from.
pub struct Args {
    /// The node.
    pub node: Arc<NodeContext>,
    /// The card of the `Frontend`.
    pub parent: CardId,
    /// The link to keep.
    pub link: Arc<Link>,
}

/// A `WorkerLink`'s memory; dropping it ends the link.
pub struct State {
    link: Arc<Link>,
    pump: tokio::task::JoinHandle<()>,
    _card: Card,
}

impl Drop for State {
    fn drop(&mut self) {
        self.pump.abort();
        self.link.end();
    }
}

/// See the module's description.
pub struct WorkerLink;

impl Actor for WorkerLink {
    type Msg = Msg;
    type State = State;
    type Arguments = Args;

    async fn pre_start(
        &self,
        myself: ActorRef<Msg>,
        args: Args,
    ) -> Result<State, ActorProcessingErr> {
        let link = args.link;
        let label = Label {
            kind: "WorkerLink",
            name: link.worker.clone(),
            generation: link.generation.0,
            counters: &["frames", "tokens"],
        };
        let card = args.node.board.hang(args.parent, label, myself.get_cell());
        let (frames, stream) = mpsc::channel(args.node.stream_frames());
        for rank in &link.ranks {
            rank.rank.cast(rank::Msg::Attach { link: link.id, frames: frames.clone() })?;
        }
        card.state("linked");
        let work = pump(stream, link.clone(), card.counters(), EndOfStream(myself));
        let pump = tokio::spawn(work);
        Ok(State { link, pump, _card: card })
    }

    async fn handle(
        &self,
        myself: ActorRef<Msg>,
        message: Msg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Msg::StreamEnded => {
                state.link.end();
                myself.stop(Some("the worker closed the stream".to_string()));
            }
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

/// Tells the actor that the stream has ended, however the pump ends.
struct EndOfStream(ActorRef<Msg>);

impl Drop for EndOfStream {
    fn drop(&mut self) {
        let _ = self.0.cast(Msg::StreamEnded); // already stopped: nothing left to tell
    }
}

async fn pump(
    mut stream: mpsc::Receiver<Frame>,
    link: Arc<Link>,
    counters: Counters,
    _end: EndOfStream,
) {
    while let Some(frame) = stream.recv().await {
        counters.add(0, 1);
        counters.add(1, frame.tokens.len() as u64);
        link.deal(frame);
    }
}
