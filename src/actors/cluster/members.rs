//! Which nodes are connected: a pure record. Between two nodes there is one connection, and of a
//! node's incarnations only the latest counts.

use std::collections::HashMap;
use std::sync::Arc;

use crate::ids::NodeId;

/// Names one connection to a peer, unique within the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SessionId(pub u64);

/// Who opened a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialler {
    /// This node.
    Me,
    /// The peer.
    Peer,
}

#[derive(Debug)]
struct Member {
    node: NodeId,
    address: String,
    dialler: Dialler,
    session: SessionId,
}

/// Why a connection is not wanted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unwanted {
    /// The node reached itself.
    #[error("this is the node itself")]
    Itself,
    /// Another node, or a copy of this one, has this node's name.
    #[error("both nodes are named {0:?}; give each node its own node.name")]
    SameName(Arc<str>),
    /// There is a connection already.
    #[error("the nodes are connected already")]
    Duplicate,
    /// A later start of the node is connected.
    #[error("a later incarnation of {} is connected", known.name)]
    Superseded {
        /// That one.
        known: NodeId,
    },
}

/// A connection that was taken in.
#[derive(Debug, PartialEq, Eq)]
pub struct Taken {
    /// Its name.
    pub session: SessionId,
    /// The connection that it replaces, to be closed.
    pub replaces: Option<SessionId>,
}

/// See the module's description.
#[derive(Debug)]
pub struct Members {
    me: NodeId,
    by_name: HashMap<Arc<str>, Member>,
    last: u64,
}

impl Members {
    /// Nobody is connected.
    pub fn new(me: NodeId) -> Self {
        Self { me, by_name: HashMap::new(), last: 0 }
    }

    /// Whether a new connection to `peer` is wanted. Both ends decide alike: of two that cross, the
    /// one stays that was dialled by the node whose name, as text, sorts last. The sessions of
    /// `ractor_cluster` that run over them decide by the same rule.
    ///
    /// # Errors
    /// It is not.
    pub fn judge(&self, peer: &NodeId, dialler: Dialler) -> Result<Option<SessionId>, Unwanted> {
        if *peer == self.me {
            return Err(Unwanted::Itself);
        }
        if peer.name == self.me.name {
            return Err(Unwanted::SameName(peer.name.clone()));
        }
        let Some(known) = self.by_name.get(&peer.name) else { return Ok(None) };
        if known.node.boot > peer.boot {
            return Err(Unwanted::Superseded { known: known.node.clone() });
        }
        let mine_is_kept = self.me.to_string() > peer.to_string();
        let preferred = if mine_is_kept { Dialler::Me } else { Dialler::Peer };
        let crossed = known.node == *peer && known.dialler != dialler;
        if crossed && known.dialler == preferred {
            return Err(Unwanted::Duplicate);
        }
        // A later incarnation, the preferred one of two that crossed, or the same dialler again,
        // who does so only after it lost the connection that we still have.
        Ok(Some(known.session))
    }

    /// Takes a connection in.
    ///
    /// # Errors
    /// It is not wanted.
    pub fn take(
        &mut self,
        peer: &NodeId,
        address: &str,
        dialler: Dialler,
    ) -> Result<Taken, Unwanted> {
        let replaces = self.judge(peer, dialler)?;
        self.last += 1;
        let session = SessionId(self.last);
        let (node, address) = (peer.clone(), address.to_string());
        let member = Member { node, address, dialler, session };
        self.by_name.insert(peer.name.clone(), member);
        Ok(Taken { session, replaces })
    }

    /// The connection has ended; one that has replaced it stays.
    pub fn ended(&mut self, session: SessionId) {
        self.by_name.retain(|_, member| member.session != session);
    }

    /// Whether this incarnation is connected.
    pub fn is_connected(&self, node: &NodeId) -> bool {
        self.by_name.get(&node.name).is_some_and(|member| member.node == *node)
    }

    /// Whether the node that says it is at this address is connected.
    pub fn is_connected_at(&self, address: &str) -> bool {
        self.by_name.values().any(|member| member.address == address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, boot: u64) -> NodeId {
        NodeId { name: name.into(), boot }
    }

    #[test]
    fn of_two_connections_that_cross_both_ends_keep_the_same_one() {
        let (a, b) = (node("a", 1), node("b", 1));
        for a_hears_first_of_its_own in [false, true] {
            let mut at_a = Members::new(a.clone());
            let mut at_b = Members::new(b.clone());
            let mut order = [Dialler::Me, Dialler::Peer];
            if !a_hears_first_of_its_own {
                order.reverse();
            }
            let kept_a = order.map(|by| at_a.take(&b, "", by).is_ok());
            let kept_b = order.map(|by| at_b.take(&a, "", by).is_ok());
            assert!(kept_a[0] && kept_b[0], "the first is always taken");
            assert_eq!(at_a.by_name["b"].dialler, Dialler::Peer, "b sorts last");
            assert_eq!(at_b.by_name["a"].dialler, Dialler::Me);
        }
    }

    #[test]
    fn a_later_incarnation_replaces_an_earlier_one_and_never_the_other_way_round() {
        let mut members = Members::new(node("a", 1));
        let first = members.take(&node("b", 5), "at", Dialler::Peer).unwrap();
        let second = members.take(&node("b", 6), "at", Dialler::Me).unwrap();
        assert_eq!(second.replaces, Some(first.session));
        let late = members.take(&node("b", 5), "at", Dialler::Peer);
        assert_eq!(late, Err(Unwanted::Superseded { known: node("b", 6) }));
        members.ended(first.session);
        assert!(members.is_connected(&node("b", 6)) && !members.is_connected(&node("b", 5)));
        assert!(members.is_connected_at("at") && !members.is_connected_at("elsewhere"));
        members.ended(second.session);
        assert!(!members.is_connected(&node("b", 6)) && !members.is_connected_at("at"));
    }

    #[test]
    fn a_dialler_that_comes_again_replaces_what_it_lost() {
        let mut members = Members::new(node("a", 1));
        for by in [Dialler::Me, Dialler::Peer] {
            let peer = node("b", 1);
            let first = members.take(&peer, "", by).unwrap();
            let second = members.take(&peer, "", by).unwrap();
            assert_eq!(second.replaces, Some(first.session));
            members.ended(second.session);
        }
    }

    #[test]
    fn a_node_refuses_itself_and_its_name_in_another() {
        let members = Members::new(node("a", 1));
        assert_eq!(members.judge(&node("a", 1), Dialler::Me), Err(Unwanted::Itself));
        let twin = members.judge(&node("a", 2), Dialler::Peer);
        assert_eq!(twin, Err(Unwanted::SameName("a".into())));
    }
}
