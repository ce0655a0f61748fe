//! `NodeControl`: the one actor of a node that other nodes can reach. Nodes tell each other who
//! they are and what they serve, and ask for each other's tree.

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use bincode::{Decode, Encode};
use ractor::{
    Actor, ActorProcessingErr, ActorRef, BytesConvertable, RpcReplyPort, SupervisionEvent, pg,
};
use ractor_cluster::RactorClusterMessage;
use tracing::warn;

use super::card::NodeCard;
use super::wire::{ReadError, decode, encode};
use crate::actors::context::NodeContext;
use crate::actors::tree::{Card, CardId, Label, Snapshot};
use crate::ids::NodeId;

/// A value's bytes, as they travel in a message between nodes.
pub struct Wire<T> {
    bytes: Vec<u8>,
    of: PhantomData<fn() -> T>,
}

impl<T: Encode + Decode<()>> Wire<T> {
    fn seal(value: &T) -> Self {
        Self { bytes: encode(value), of: PhantomData }
    }

    fn open(&self) -> Result<T, ReadError> {
        decode(&self.bytes)
    }
}

impl<T> BytesConvertable for Wire<T> {
    fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    fn from_bytes(bytes: Vec<u8>) -> Self {
        Self { bytes, of: PhantomData }
    }
}

/// What nodes say to each other.
#[derive(RactorClusterMessage)]
pub enum Msg {
    /// Who a node is and what it serves; whenever that changes.
    Card(Wire<NodeCard>),
    /// What lives on the node.
    #[rpc]
    Tree(RpcReplyPort<Wire<Snapshot>>),
}

/// Another node's `NodeControl`. Nothing but these may be done to a remote actor: stopping or
/// killing one would end the whole session with its node.
#[derive(Clone)]
pub struct RemoteControl(ActorRef<Msg>);

impl RemoteControl {
    /// The one of this node, if its session is ready.
    pub fn find(node: &NodeId) -> Option<Self> {
        let members = pg::get_members(&group(node));
        let remote = members.into_iter().filter(|cell| !cell.get_id().is_local());
        // Of a session that has just been replaced and its successor, the latter has the larger id.
        remote.max_by_key(|cell| cell.get_id()).map(|cell| Self(cell.into()))
    }

    /// Tells the node about this one.
    pub fn tell(&self, card: &NodeCard) {
        let _ = self.0.cast(Msg::Card(Wire::seal(card))); // lost: it hears all when it is back
    }

    /// Asks for the node's tree; `None` if it does not answer in time.
    pub async fn tree(&self, wait: Duration) -> Option<Snapshot> {
        let answer = self.0.call(Msg::Tree, Some(wait)).await;
        answer.ok()?.success_or(()).ok()?.open().ok()
    }
}

/// The process group that holds a node's control actor, alone.
fn group(node: &NodeId) -> String {
    format!("cuelight.node.{node}")
}

/// What a `NodeControl` starts from.
pub struct Args {
    /// The node.
    pub node: Arc<NodeContext>,
    /// The name under which others meet it.
    pub me: NodeId,
    /// The card of the `Cluster`.
    pub parent: CardId,
    /// The `Cluster`; it hears the cards.
    pub cluster: ActorRef<super::Msg>,
}

/// A `NodeControl`'s memory.
pub struct State {
    args: Args,
    card: Card,
}

/// See the module's description.
pub struct NodeControl;

impl Actor for NodeControl {
    type Msg = Msg;
    type State = State;
    type Arguments = Args;

    async fn pre_start(
        &self,
        myself: ActorRef<Msg>,
        args: Args,
    ) -> Result<State, ActorProcessingErr> {
        let label = Label {
            kind: "NodeControl",
            name: args.me.to_string(),
            generation: 1,
            counters: &["cards", "trees"],
        };
        let card = args.node.board.hang(args.parent, label, myself.get_cell());
        pg::join(group(&args.me), vec![myself.get_cell()]);
        card.state("listening");
        Ok(State { args, card })
    }

    async fn handle(
        &self,
        _: ActorRef<Msg>,
        message: Msg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Msg::Card(card) => match card.open() {
                Ok(card) => {
                    state.card.add(0, 1);
                    state.args.cluster.cast(super::Msg::Card(card))?;
                }
                Err(error) => warn!(%error, "a node's card cannot be read"),
            },
            Msg::Tree(reply) => {
                if let Some(tree) = state.args.node.board.snapshot() {
                    state.card.add(1, 1);
                    let _ = reply.send(Wire::seal(&tree)); // asked too long ago
                }
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
