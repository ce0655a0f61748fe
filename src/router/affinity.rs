//! Which rank a session went to last, so that its next request can go there as well. A pure record.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How strictly a session stays on its rank.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Affinity {
    /// Sessions mean nothing.
    #[default]
    Off,
    /// It goes elsewhere when its rank is full.
    Soft,
    /// It waits for its rank when that is full, and goes elsewhere only when it is gone.
    Hard,
}

impl Affinity {
    /// All of them, as they are written in the configuration.
    pub const NAMES: &[&str] = &["off", "soft", "hard"];

    /// The one of this name.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "off" => Some(Self::Off),
            "soft" => Some(Self::Soft),
            "hard" => Some(Self::Hard),
            _ => None,
        }
    }
}

/// Where sessions are; `R` names a rank.
#[derive(Clone, Debug)]
pub struct Sessions<R> {
    ttl: Duration,
    limit: usize,
    ranks: HashMap<u64, (R, Instant)>,
}

impl<R: Copy> Sessions<R> {
    /// Remembers up to `limit` sessions for `ttl` after their last request.
    pub fn new(ttl: Duration, limit: usize) -> Self {
        Self { ttl, limit, ranks: HashMap::new() }
    }

    /// Where the session's last request went, if that was not too long ago.
    pub fn rank(&self, session: u64, now: Instant) -> Option<R> {
        let (rank, at) = self.ranks.get(&session)?;
        (now.duration_since(*at) < self.ttl).then_some(*rank)
    }

    /// The session's request goes to this rank. Of more sessions than are remembered, new ones are
    /// not, until old ones have ended.
    pub fn went_to(&mut self, session: u64, rank: R, now: Instant) {
        if self.ranks.len() >= self.limit && !self.ranks.contains_key(&session) {
            self.expire(now);
        }
        if self.ranks.len() < self.limit || self.ranks.contains_key(&session) {
            self.ranks.insert(session, (rank, now));
        }
    }

    /// Forgets sessions whose time is over.
    pub fn expire(&mut self, now: Instant) {
        let ttl = self.ttl;
        self.ranks.retain(|_, (_, at)| now.duration_since(*at) < ttl);
    }

    /// Sessions that are remembered.
    pub fn len(&self) -> usize {
        self.ranks.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.ranks.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_remembered_for_a_while_and_only_so_many_are() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut sessions = Sessions::new(2 * second, 2);
        sessions.went_to(1, 'a', start);
        sessions.went_to(2, 'b', start + second);
        sessions.went_to(3, 'c', start + second);
        let at = |sessions: &Sessions<char>, session| sessions.rank(session, start + second);
        assert_eq!([1, 2, 3].map(|s| at(&sessions, s)), [Some('a'), Some('b'), None]);
        assert_eq!(sessions.rank(1, start + 2 * second), None);
        sessions.went_to(3, 'c', start + 2 * second);
        assert_eq!((at(&sessions, 3), sessions.len(), sessions.is_empty()), (Some('c'), 2, false));
    }
}
