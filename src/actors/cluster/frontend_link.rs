//! `FrontendLink`: the worker's end of the token stream to a front end on another node.
//!
//! It attaches to the worker's ranks as a `WorkerLink` of this process would. When the front end is
//! lost (its stream ends or falls silent), the ranks are told and end its legs; when the ranks are
//! lost, the stream closes and the front end places its legs elsewhere.

use std::sync::Arc;

use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use ractor_cluster::RactorMessage;
use tokio::io::{ReadHalf, WriteHalf};
use tokio::sync::mpsc;

use super::stream::{Down, Up, gather};
use super::transport::Connection;
use super::wire::{Io, Pulse, Reader, Writer};
use crate::actors::context::NodeContext;
use crate::actors::link::{Frame, LinkId};
use crate::actors::rank::{self, RankRef};
use crate::actors::tree::{Card, CardId, Counters, Label};
use crate::engine::Leg;
use crate::ids::{Generation, RankIndex};
use crate::kvxfer::KvOffer;
use crate::metrics::{Depth, Queued};
use crate::task::Task;

/// What a `FrontendLink` answers to.
#[derive(RactorMessage)]
pub enum Msg {
    /// The node drains: the front end should place nothing new here.
    Drain,
    /// Internal: one of the stream's directions ended, for this reason.
    Ended(String),
}

/// The ranks of a worker of this process.
pub type Ranks = Vec<RankRef>;

/// What a `FrontendLink` starts from.
pub struct Args {
    /// The node.
    pub node: Arc<NodeContext>,
    /// The card of the `Cluster`.
    pub parent: CardId,
    /// The front end's connection.
    pub connection: Connection,
    /// How it is watched.
    pub pulse: Pulse,
    /// Where its legs go.
    pub ranks: Ranks,
    /// The worker's generation.
    pub generation: Generation,
}

/// A `FrontendLink`'s memory; dropping it ends the front end's legs.
pub struct State {
    link: LinkId,
    ranks: Ranks,
    news: mpsc::Sender<Down>,
    card: Card,
    _reader: Task,
    _writer: Task,
}

impl Drop for State {
    fn drop(&mut self) {
        self.ranks.iter().for_each(|rank| rank.detach(self.link));
    }
}

/// See the module's description.
pub struct FrontendLink;

impl Actor for FrontendLink {
    type Msg = Msg;
    type State = State;
    type Arguments = Args;

    async fn pre_start(
        &self,
        myself: ActorRef<Msg>,
        args: Args,
    ) -> Result<State, ActorProcessingErr> {
        let Args { node, parent, connection, pulse, ranks, generation } = args;
        let label = Label {
            kind: "FrontendLink",
            name: connection.peer.node.to_string(),
            generation: generation.0,
            counters: &["frames", "tokens", "legs"],
        };
        let card = node.board.hang(parent, label, myself.get_cell());
        let link = LinkId::next();
        let (frames, stream) = mpsc::channel(node.stream_frames(ranks.len()));
        if !ranks.iter().all(|rank| rank.attach(link, frames.clone())) {
            ranks.iter().for_each(|rank| rank.detach(link));
            return Err("the worker has ended".into());
        }
        let (read, write) = tokio::io::split(connection.io);
        let reader = Reader::new(read, pulse.clone());
        let (news, told) = mpsc::channel(1);
        let counters = card.counters();
        let writing = write_down(write, stream, told, pulse, counters.clone());
        let _writer = watch(myself.clone(), writing);
        let depth = node.metrics.mailboxes.ranks.clone();
        let legs = Legs { link, ranks: ranks.clone(), frames: frames.downgrade(), depth };
        let _reader = watch(myself, read_up(reader, legs, counters));
        card.state("linked");
        Ok(State { link, ranks, news, card, _reader, _writer })
    }

    async fn handle(
        &self,
        myself: ActorRef<Msg>,
        message: Msg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Msg::Drain => {
                state.card.state("draining");
                let _ = state.news.try_send(Down::Draining); // ended, or told already
            }
            Msg::Ended(why) => myself.stop(Some(why)),
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

/// Runs one direction; its end is the link's.
fn watch(actor: ActorRef<Msg>, work: impl Future<Output = String> + Send + 'static) -> Task {
    Task::spawn(async move {
        let why = work.await;
        let _ = actor.cast(Msg::Ended(why)); // it has ended already
    })
}

/// Where what the front end asks for goes.
struct Legs {
    link: LinkId,
    ranks: Ranks,
    /// Weak: the stream ends with its ranks.
    frames: mpsc::WeakSender<Frame>,
    depth: Arc<Depth>,
}

impl Legs {
    fn rank(&self, index: RankIndex) -> Option<&RankRef> {
        self.ranks.iter().find(|rank| rank.index == index)
    }

    /// A rank that does not live needs to hear nothing.
    fn tell(&self, rank: RankIndex, message: impl FnOnce(LinkId, Queued) -> rank::Msg) {
        if let Some(rank) = self.rank(rank) {
            rank.cast(message(self.link, self.depth.put()));
        }
    }

    async fn admit(&self, rank: RankIndex, leg: Leg, offer: Option<Box<KvOffer>>) {
        let (id, link) = (leg.id, self.link);
        let message = rank::Msg::Admit { leg, offer, link, queued: self.depth.put() };
        let admitted = self.rank(rank).is_some_and(|rank| rank.admit(link, message));
        if let (false, Some(frames)) = (admitted, self.frames.upgrade()) {
            // Closed: the front end is gone, and so are its legs.
            let _ = frames.send(Frame { lost: vec![id], ..Frame::default() }).await;
        }
    }
}

async fn read_up(
    mut reader: Reader<ReadHalf<Box<dyn Io>>>,
    legs: Legs,
    counters: Counters,
) -> String {
    loop {
        match reader.message().await {
            Ok(Up::Admit { rank, leg, offer }) => {
                counters.add(2, 1);
                legs.admit(rank, leg, offer).await;
            }
            Ok(Up::More { rank, leg, more }) => {
                legs.tell(rank, |_, queued| rank::Msg::More { leg, more, queued });
            }
            Ok(Up::Snapshot { rank }) => {
                legs.tell(rank, |link, _| rank::Msg::Snapshot { link });
            }
            Ok(Up::Cancel { rank, leg }) => {
                legs.tell(rank, |_, queued| rank::Msg::Cancel { leg, queued });
            }
            Err(error) => return format!("the front end is gone: {error}"),
        }
    }
}

async fn write_down(
    to: WriteHalf<Box<dyn Io>>,
    mut frames: mpsc::Receiver<Frame>,
    mut news: mpsc::Receiver<Down>,
    pulse: Pulse,
    counters: Counters,
) -> String {
    let mut writer = Writer::new(to);
    let counted = |frame: Frame| {
        counters.add(0, 1);
        counters.add(1, frame.tokens.len() as u64);
        Down::Frame(frame)
    };
    loop {
        let next = async {
            tokio::select! {
                biased;
                Some(told) = news.recv() => Some(told),
                frame = frames.recv() => frame.map(counted),
            }
        };
        match tokio::time::timeout_at(pulse.next_beat(), next).await {
            Err(_) => writer.beat(),
            Ok(None) => {
                writer.close().await;
                return "the worker was lost".to_string();
            }
            Ok(Some(message)) => writer.put(&message),
        }
        gather(&mut writer, || frames.try_recv().ok().map(counted));
        if let Err(error) = writer.flush().await {
            return format!("the front end is gone: {error}");
        }
    }
}
