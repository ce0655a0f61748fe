//! Requests that wait for a rank with room, and whose turn it is. A pure record.
//!
//! Those of the lowest priority number go first. Among them tenants (API keys) take turns, each by what
//! it has been given so far in KV blocks, so that one that asks a lot waits for the others and not
//! the others for it. Within a tenant the policy decides.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Which request of a tenant goes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// The one that came first.
    #[default]
    Fcfs,
    /// The one with the fewest blocks to compute; of equals the first.
    ShortestUncachedFirst,
}

impl Policy {
    /// All of them, as they are written in the configuration.
    pub const NAMES: &[&str] = &["fcfs", "shortest-uncached-first"];

    /// The policy of this name.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "fcfs" => Some(Self::Fcfs),
            "shortest-uncached-first" => Some(Self::ShortestUncachedFirst),
            _ => None,
        }
    }
}

/// What a request that waits is judged by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Lower goes first.
    pub priority: i32,
    /// Whose it is.
    pub tenant: u64,
    /// KV blocks that it will have to compute, as far as is known.
    pub blocks: u32,
}

/// Names a place in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(u64);

struct Waiting<T> {
    ticket: Ticket,
    claim: Claim,
    since: Instant,
    who: T,
}

/// See the module's description.
pub struct Queue<T> {
    limit: usize,
    policy: Policy,
    last: u64,
    /// In the order of their tickets.
    waiting: Vec<Waiting<T>>,
    /// Blocks given to each tenant that has somebody waiting, above what all have been given.
    given: HashMap<u64, u64>,
}

/// As many wait as may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{limit} requests wait for a rank already")]
pub struct Full {
    /// The limit.
    pub limit: usize,
}

impl<T> Queue<T> {
    /// A queue for up to `limit` requests.
    pub fn new(limit: usize, policy: Policy) -> Self {
        Self { limit, policy, last: 0, waiting: Vec::new(), given: HashMap::new() }
    }

    /// Requests that wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Takes a place at the end; it has waited since `since`.
    ///
    /// # Errors
    /// There is none.
    pub fn push(&mut self, claim: Claim, since: Instant, who: T) -> Result<Ticket, Full> {
        if self.waiting.len() >= self.limit {
            return Err(Full { limit: self.limit });
        }
        self.last += 1;
        let ticket = Ticket(self.last);
        // Nobody saves up turns by not asking.
        let least = self.given.values().copied().min().unwrap_or(0);
        self.given.entry(claim.tenant).or_insert(least);
        self.waiting.push(Waiting { ticket, claim, since, who });
        Ok(ticket)
    }

    /// Goes back to its place: its turn came to nothing, and is not counted.
    pub fn again(&mut self, ticket: Ticket, claim: Claim, since: Instant, who: T) {
        let given = self.given.entry(claim.tenant).or_default();
        *given = given.saturating_sub(u64::from(claim.blocks.max(1)));
        let at = self.waiting.partition_point(|waiting| waiting.ticket < ticket);
        self.waiting.insert(at, Waiting { ticket, claim, since, who });
    }

    /// Gives up a place; one that is gone already is ignored.
    pub fn remove(&mut self, ticket: Ticket) {
        if let Ok(at) = self.waiting.binary_search_by_key(&ticket, |waiting| waiting.ticket) {
            self.take(at);
        }
    }

    /// Whose turn it is, with what is needed to go [back](Self::again).
    pub fn pop(&mut self) -> Option<(Ticket, Claim, Instant, T)> {
        let first = self.waiting.iter().map(|waiting| waiting.claim.priority).min()?;
        let urgent = || {
            let waiting = self.waiting.iter().enumerate();
            waiting.filter(move |(_, waiting)| waiting.claim.priority == first)
        };
        let given = |waiting: &Waiting<T>| self.given.get(&waiting.claim.tenant).copied();
        let least = urgent().map(|(_, waiting)| given(waiting)).min()?;
        let tenant = urgent().find(|(_, w)| given(w) == least).map(|(_, w)| w.claim.tenant)?;
        let own = urgent().filter(|(_, waiting)| waiting.claim.tenant == tenant);
        let at = match self.policy {
            Policy::Fcfs => own.map(|(at, _)| at).next(),
            Policy::ShortestUncachedFirst => {
                own.min_by_key(|(at, waiting)| (waiting.claim.blocks, *at)).map(|(at, _)| at)
            }
        }?;
        if let Some(given) = self.given.get_mut(&tenant) {
            *given += u64::from(self.waiting[at].claim.blocks.max(1));
        }
        let Waiting { ticket, claim, since, who } = self.take(at);
        Some((ticket, claim, since, who))
    }

    /// Takes out everybody who has waited for `limit` or longer.
    pub fn expire(&mut self, limit: Duration, now: Instant) -> Vec<T> {
        let is_late = |waiting: &Waiting<T>| now.duration_since(waiting.since) >= limit;
        let late = |queue: &Self| queue.waiting.iter().position(is_late);
        let mut gone = Vec::new();
        while let Some(at) = late(self) {
            gone.push(self.take(at).who);
        }
        gone
    }

    fn take(&mut self, at: usize) -> Waiting<T> {
        let gone = self.waiting.remove(at);
        let tenant = gone.claim.tenant;
        if self.waiting.iter().all(|waiting| waiting.claim.tenant != tenant) {
            self.given.remove(&tenant);
        }
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(policy: Policy, claims: &[(i32, u64, u32)]) -> Queue<usize> {
        let mut queue = Queue::new(100, policy);
        for (who, &(priority, tenant, blocks)) in claims.iter().enumerate() {
            queue.push(Claim { priority, tenant, blocks }, Instant::now(), who).unwrap();
        }
        queue
    }

    fn next<T>(queue: &mut Queue<T>) -> Option<T> {
        queue.pop().map(|(.., who)| who)
    }

    fn order(mut queue: Queue<usize>) -> Vec<usize> {
        std::iter::from_fn(|| next(&mut queue)).collect()
    }

    #[test]
    fn priority_goes_first_and_then_who_came_first() {
        let claims = [(0, 1, 9), (5, 1, 1), (-1, 1, 9), (0, 1, 1)];
        assert_eq!(order(queue(Policy::Fcfs, &claims)), [2, 0, 3, 1]);
    }

    #[test]
    fn the_shortest_goes_first_where_that_is_the_policy() {
        let claims = [(0, 1, 9), (0, 1, 2), (0, 1, 2), (0, 1, 5), (1, 1, 0)];
        assert_eq!(order(queue(Policy::ShortestUncachedFirst, &claims)), [1, 2, 3, 0, 4]);
    }

    #[test]
    fn tenants_take_turns_by_what_they_were_given() {
        let claims = [(0, 7, 4), (0, 7, 4), (0, 7, 4), (0, 8, 2), (0, 8, 2), (0, 8, 2)];
        assert_eq!(order(queue(Policy::Fcfs, &claims)), [0, 3, 4, 1, 5, 2]);
    }

    #[test]
    fn who_comes_late_has_not_saved_up_turns() {
        let mut queue = queue(Policy::Fcfs, &[(0, 7, 10); 4]);
        assert_eq!((next(&mut queue), next(&mut queue)), (Some(0), Some(1)));
        for who in [10, 11, 12] {
            queue.push(Claim { priority: 0, tenant: 8, blocks: 10 }, Instant::now(), who).unwrap();
        }
        assert_eq!(order(queue), [2, 10, 3, 11, 12]);
    }

    #[test]
    fn a_turn_that_came_to_nothing_is_not_counted() {
        let mut queue = queue(Policy::Fcfs, &[(0, 7, 4), (0, 7, 4), (0, 8, 4)]);
        let (ticket, claim, since, who) = queue.pop().unwrap();
        queue.again(ticket, claim, since, who);
        assert_eq!(order(queue), [0, 2, 1]);
    }

    #[test]
    fn places_are_bounded_in_number_and_time_and_can_be_given_up() {
        let (mut queue, now) = (Queue::new(2, Policy::Fcfs), Instant::now());
        let claim = Claim { priority: 0, tenant: 1, blocks: 1 };
        let first = queue.push(claim, now, 'a').unwrap();
        let second = Duration::from_secs(1);
        queue.push(claim, now + second, 'b').unwrap();
        assert_eq!(queue.push(claim, now, 'c'), Err(Full { limit: 2 }));
        queue.remove(first);
        queue.remove(first);
        queue.push(claim, now + 2 * second, 'd').unwrap();
        assert_eq!(queue.expire(second, now + 2 * second), ['b']);
        assert_eq!((queue.len(), next(&mut queue), next(&mut queue)), (1, Some('d'), None));
        assert!(queue.is_empty() && queue.given.is_empty());
    }
}
