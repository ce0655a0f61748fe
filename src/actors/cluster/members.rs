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
    /// one that the smaller node dialled stays.
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
        let preferred = if self.me < *peer { Dialler::Me } else { Dialler::Peer };
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
    pub fn take(&mut self, peer: &NodeId, dialler: Dialler) -> Result<Taken, Unwanted> {
        let replaces = self.judge(peer, dialler)?;
        self.last += 1;
        let session = SessionId(self.last);
        let member = Member { node: peer.clone(), dialler, session };
        self.by_name.insert(peer.name.clone(), member);
        Ok(Taken { session, replaces })
    }

    /// The connection has ended. Says whose it was, unless another one had replaced it.
    pub fn ended(&mut self, session: SessionId) -> Option<NodeId> {
        let (name, _) = self.by_name.iter().find(|(_, member)| member.session == session)?;
        let name = name.clone();
        self.by_name.remove(&name).map(|member| member.node)
    }

    /// Whether this incarnation is connected.
    pub fn is_connected(&self, node: &NodeId) -> bool {
        self.by_name.get(&node.name).is_some_and(|member| member.node == *node)
    }

    /// The connection to this incarnation.
    pub fn session(&self, node: &NodeId) -> Option<SessionId> {
        self.by_name.get(&node.name).filter(|m| m.node == *node).map(|m| m.session)
    }

    /// How many nodes are connected.
    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
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
            let kept_a = order.map(|by| at_a.take(&b, by).is_ok());
            let kept_b = order.map(|by| at_b.take(&a, by).is_ok());
            assert!(kept_a[0] && kept_b[0], "the first is always taken");
            assert_eq!(at_a.by_name["b"].dialler, Dialler::Me, "a is the smaller one");
            assert_eq!(at_b.by_name["a"].dialler, Dialler::Peer);
        }
    }

    #[test]
    fn a_later_incarnation_replaces_an_earlier_one_and_never_the_other_way_round() {
        let mut members = Members::new(node("a", 1));
        let first = members.take(&node("b", 5), Dialler::Peer).unwrap();
        let second = members.take(&node("b", 6), Dialler::Me).unwrap();
        assert_eq!(second.replaces, Some(first.session));
        let late = members.take(&node("b", 5), Dialler::Peer);
        assert_eq!(late, Err(Unwanted::Superseded { known: node("b", 6) }));
        assert_eq!(members.ended(first.session), None, "its successor stays");
        assert!(members.is_connected(&node("b", 6)) && !members.is_connected(&node("b", 5)));
        assert_eq!(members.ended(second.session), Some(node("b", 6)));
        assert!(members.is_empty());
    }

    #[test]
    fn a_dialler_that_comes_again_replaces_what_it_lost() {
        let mut members = Members::new(node("a", 1));
        for by in [Dialler::Me, Dialler::Peer] {
            let peer = node("b", 1);
            let first = members.take(&peer, by).unwrap();
            assert_eq!(members.take(&peer, by).unwrap().replaces, Some(first.session));
            members.ended(members.session(&peer).unwrap());
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
