//! The actor that keeps a [`Link`]: opens its stream, deals what comes, and ends it with itself.

use std::sync::Arc;

use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use ractor_cluster::RactorMessage;
use tokio::sync::mpsc;
use tracing::info;

use super::{Burst, Frame, Link, LinkId, Road};
use crate::actors::cluster::stream::{Down, FromWorker, RemoteWorker, ToWorker};
use crate::actors::context::NodeContext;
use crate::actors::frontend;
use crate::actors::rank::RankRef;
use crate::actors::router::ModelRouter;
use crate::actors::tree::{Card, CardId, Counters, Label};
use crate::actors::worker::{Way, WorkerUp};
use crate::task::Task;

/// What a `WorkerLink` answers to.
#[derive(RactorMessage)]
pub enum Msg {
    /// Internal: the worker's node has opened the stream.
    Opened(ToWorker, FromWorker),
    /// Internal: the stream ended, or could not be opened, for this reason.
    Ended(String),
}

/// What a `WorkerLink` starts from.
pub struct Args {
    /// The node.
    pub node: Arc<NodeContext>,
    /// The card of the `Frontend`.
    pub parent: CardId,
    /// The `Frontend`; it hears when the link is up.
    pub frontend: ActorRef<frontend::Msg>,
    /// The worker to link.
    pub up: WorkerUp,
    /// Chooses ranks for the model that it serves.
    pub router: Arc<ModelRouter>,
}

/// A `WorkerLink`'s memory; dropping it ends the link.
pub struct State {
    up: WorkerUp,
    router: Arc<ModelRouter>,
    frontend: ActorRef<frontend::Msg>,
    link: Option<Arc<Link>>,
    task: Option<Task>,
    card: Card,
}

impl Drop for State {
    fn drop(&mut self) {
        if let Some(link) = &self.link {
            link.end();
        }
    }
}

impl State {
    /// Attaches to the ranks of a worker of this process.
    fn attach(
        &mut self,
        myself: &ActorRef<Msg>,
        ranks: Vec<RankRef>,
        node: &NodeContext,
    ) -> Result<(), ActorProcessingErr> {
        let link = LinkId::next();
        let (frames, stream) = mpsc::channel(node.stream_frames(ranks.len()));
        for rank in &ranks {
            if !rank.attach(link, frames.clone()) {
                // Its worker is being replaced: that must not cost the front end anything.
                myself.cast(Msg::Ended("a rank of the worker has ended".to_string()))?;
                return Ok(());
            }
        }
        let depth = node.metrics.mailboxes.ranks.clone();
        self.linked(myself, Road::Local { link, ranks, depth }, Source::Local(stream))
    }

    /// Takes up work; what comes on the stream is dealt out from now on.
    fn linked(
        &mut self,
        myself: &ActorRef<Msg>,
        road: Road,
        source: Source,
    ) -> Result<(), ActorProcessingErr> {
        let link = Arc::new(Link::new(&self.up, self.router.clone(), myself.clone(), road));
        self.link = Some(link.clone());
        self.card.state("linked");
        let end = Ending { actor: myself.clone(), why: "the worker closed the stream".into() };
        self.task = Some(Task::spawn(pump(source, link.clone(), self.card.counters(), end)));
        self.frontend.cast(frontend::Msg::Linked(link))?;
        Ok(())
    }
}

/// See the parent module's description.
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
        let Args { node, parent, frontend, up, router } = args;
        let label = Label {
            kind: "WorkerLink",
            name: up.id.to_string(),
            generation: up.generation.0,
            counters: &["frames", "tokens"],
        };
        let card = node.board.hang(parent, label, myself.get_cell());
        let mut state = State { up, router, frontend, link: None, task: None, card };
        match state.up.way.clone() {
            Way::Local(ranks) => state.attach(&myself, ranks, &node)?,
            Way::Remote(worker) => {
                state.card.state("connecting");
                state.task = Some(Task::spawn(open(worker, state.up.clone(), myself)));
            }
        }
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<Msg>,
        message: Msg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Msg::Opened(to, from) => {
                state.linked(&myself, Road::Remote(to), Source::Remote(from))?;
            }
            Msg::Ended(why) => {
                if let Some(link) = &state.link {
                    link.end();
                }
                myself.stop(Some(why));
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

async fn open(worker: Arc<RemoteWorker>, up: WorkerUp, actor: ActorRef<Msg>) {
    let outcome = match worker.open(&up).await {
        Ok((to, from)) => Msg::Opened(to, from),
        Err(error) => Msg::Ended(error.to_string()),
    };
    let _ = actor.cast(outcome); // stopped meanwhile: the stream closes with the message
}

/// Tells the actor that the stream has ended, however the pump ends.
struct Ending {
    actor: ActorRef<Msg>,
    why: String,
}

impl Drop for Ending {
    fn drop(&mut self) {
        let why = std::mem::take(&mut self.why);
        let _ = self.actor.cast(Msg::Ended(why)); // already stopped: nothing left to tell
    }
}

/// Where frames come from.
enum Source {
    Local(mpsc::Receiver<Frame>),
    Remote(FromWorker),
}

impl Source {
    async fn next(&mut self) -> Result<Down, String> {
        match self {
            Self::Local(frames) => {
                let frame = frames.recv().await.ok_or("the worker closed the stream")?;
                Ok(Down::Frame(frame))
            }
            Self::Remote(stream) => stream.next().await.map_err(|error| error.to_string()),
        }
    }
}

async fn pump(mut source: Source, link: Arc<Link>, counters: Counters, mut end: Ending) {
    let mut burst = Burst::default();
    loop {
        match source.next().await {
            Ok(Down::Frame(frame)) => {
                counters.add(0, 1);
                counters.add(1, frame.tokens.len() as u64);
                if !link.deal(frame, &mut burst) {
                    end.why = "the link was ended".to_string();
                    return;
                }
            }
            Ok(Down::Draining) => {
                info!(worker = %link.worker, "the worker drains: no new legs go there");
                link.close();
            }
            Err(why) => {
                link.end(); // at once: the legs must not wait for the actor's turn
                end.why = why;
                return;
            }
        }
    }
}
