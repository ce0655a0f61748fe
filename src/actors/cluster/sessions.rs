//! The sessions of `ractor_cluster`, and the workers that nodes tell of over them.

use std::sync::Arc;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use ractor_cluster::node::NodeServerSessionInformation;
use ractor_cluster::{NodeEventSubscription, NodeServer, NodeServerMessage};

use super::Msg;
use super::card::{NodeCard, WorkerCard};
use super::stream::RemoteWorker;
use super::transport::Transport;
use crate::actors::worker::{Way, WorkerUp};
use crate::ids::{NodeId, WorkerId};
use crate::metrics::Depth;

/// A worker that the node of this card tells of, as front ends see it.
pub(super) fn remote_worker(
    transport: &Arc<Transport>,
    depth: Arc<Depth>,
    node: &NodeCard,
    worker: WorkerCard,
) -> WorkerUp {
    let (id, address) = (node.node.clone(), node.address.clone());
    let way = RemoteWorker::new(transport.clone(), id, address, depth);
    WorkerUp {
        id: WorkerId { node: node.node.clone(), worker: worker.worker },
        model: worker.model,
        generation: worker.generation,
        ranks: worker.ranks,
        description: worker.description,
        tokenizer: worker.tokenizer,
        role: worker.role,
        way: Way::Remote(Arc::new(way)),
    }
}

/// Mails what happens to ractor's sessions.
struct Events(ActorRef<Msg>);

impl NodeEventSubscription for Events {
    fn node_session_opened(&self, _: NodeServerSessionInformation) {}

    /// Its end closes the pipe, which says so.
    fn node_session_disconnected(&self, _: NodeServerSessionInformation) {}

    fn node_session_authenticated(&self, _: NodeServerSessionInformation) {}

    fn node_session_ready(&self, session: NodeServerSessionInformation) {
        if let Some(peer) = session.peer_name {
            let _ = self.0.cast(Msg::Ready(peer.name)); // ending with it
        }
    }
}

/// Starts what keeps the sessions with other nodes.
pub(super) async fn serve_sessions(
    myself: &ActorRef<Msg>,
    node: &NodeId,
    transport: &Transport,
) -> Result<ActorRef<NodeServerMessage>, ActorProcessingErr> {
    let cookie = transport.session_cookie();
    let boot = format!("{:x}", node.boot);
    let server = NodeServer::new(0, cookie, node.name.to_string(), boot, None, None)
        .with_listen_addr(std::net::Ipv4Addr::LOCALHOST.into());
    let (server, _) = Actor::spawn_linked(None, server, (), myself.get_cell()).await?;
    // Sessions come over our own connections, which have proved the cookie. The server insists on a
    // listener of its own, and would start it again: taken off it, then ended.
    for listener in server.get_children() {
        listener.unlink(server.get_cell());
        listener.kill(); // `stop` would wait for its pending accept
    }
    let (id, subscription) = ("cuelight".to_string(), Box::new(Events(myself.clone())));
    server.cast(NodeServerMessage::SubscribeToEvents { id, subscription })?;
    Ok(server)
}
