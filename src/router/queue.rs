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

/// See the module's description. Finding out whose turn it is looks at all who wait.
pub struct Queue<T> {
    limit: usize,
    policy: Policy,
    last: u64,
    /// In the order of their tickets.
    waiting: Vec<Waiting<T>>,
    tenants: HashMap<u64, Tenant>,
    /// What the tenant had been given whose turn was the last.
    floor: u64,
}

/// What is known of a tenant until nobody waits any more.
#[derive(Clone, Copy, Debug, Default)]
struct Tenant {
    /// Its requests that wait.
    waiting: usize,
    /// Blocks that it has been given.
    given: u64,
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
        Self { limit, policy, last: 0, waiting: Vec::new(), tenants: HashMap::new(), floor: 0 }
    }

    /// Requests that wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Takes a place at the end; it waits since `now`.
    ///
    /// # Errors
    /// There is none.
    pub fn push(&mut self, claim: Claim, now: Instant, who: T) -> Result<Ticket, Full> {
        if self.waiting.len() >= self.limit {
            return Err(Full { limit: self.limit });
        }
        self.last += 1;
        let ticket = Ticket(self.last);
        let least = self.least(); // nobody saves up turns by not asking
        let tenant = self.tenants.entry(claim.tenant).or_default();
        (tenant.waiting, tenant.given) = (tenant.waiting + 1, tenant.given.max(least));
        self.waiting.push(Waiting { ticket, claim, since: now, who });
        Ok(ticket)
    }

    /// Goes back to its place: its turn came to nothing, and is not counted.
    pub fn again(&mut self, ticket: Ticket, claim: Claim, since: Instant, who: T) {
        let (least, blocks) = (self.least(), u64::from(claim.blocks.max(1)));
        let forgotten = || Tenant { waiting: 0, given: least + blocks };
        let tenant = self.tenants.entry(claim.tenant).or_insert_with(forgotten);
        (tenant.waiting, tenant.given) = (tenant.waiting + 1, tenant.given.saturating_sub(blocks));
        let at = self.waiting.partition_point(|waiting| waiting.ticket < ticket);
        self.waiting.insert(at, Waiting { ticket, claim, since, who });
    }

    /// Gives up a place; one that is gone already is ignored.
    pub fn remove(&mut self, ticket: Ticket) {
        if let Ok(at) = self.waiting.binary_search_by_key(&ticket, |waiting| waiting.ticket) {
            self.take(at);
        }
    }

    /// Whose turn it is, of those that `can` go, with what is needed to go [back](Self::again).
    pub fn pop(&mut self, can: impl Fn(&T) -> bool) -> Option<(Ticket, Claim, Instant, T)> {
        let given = |tenant| self.tenants.get(&tenant).map_or(0, |tenant: &Tenant| tenant.given);
        // The first of each tenant, by what decides between tenants and then within one.
        let rank = |(at, waiting): (usize, &Waiting<T>)| {
            let Claim { priority, tenant, blocks } = waiting.claim;
            let work = if self.policy == Policy::Fcfs { 0 } else { blocks };
            (priority, given(tenant), tenant, work, at)
        };
        let able = || self.waiting.iter().enumerate().filter(|(_, waiting)| can(&waiting.who));
        let (priority, least, ..) = able().map(rank).min_by_key(|key| (key.0, key.1))?;
        // Of tenants that were given the same, the one whose request came first.
        let of_least = |key: &(i32, u64, u64, u32, usize)| (key.0, key.1) == (priority, least);
        let tenant = able().map(rank).find(of_least)?.2;
        let own = able().map(rank).filter(|key| key.0 == priority && key.2 == tenant);
        let at = own.min_by_key(|key| (key.3, key.4))?.4;
        let Waiting { ticket, claim, since, who } = self.take(at);
        self.floor = least;
        if let Some(tenant) = self.tenants.get_mut(&claim.tenant) {
            tenant.given += u64::from(claim.blocks.max(1));
        }
        Some((ticket, claim, since, who))
    }

    /// Takes out everybody who has waited for `limit` or longer.
    pub fn expire(&mut self, limit: Duration, now: Instant) -> Vec<T> {
        let is_late = |waiting: &mut Waiting<T>| now.duration_since(waiting.since) >= limit;
        let late: Vec<_> = self.waiting.extract_if(.., is_late).collect();
        late.iter().for_each(|waiting| self.left(waiting.claim.tenant));
        late.into_iter().map(|waiting| waiting.who).collect()
    }

    fn take(&mut self, at: usize) -> Waiting<T> {
        let gone = self.waiting.remove(at);
        self.left(gone.claim.tenant);
        gone
    }

    fn left(&mut self, tenant: u64) {
        if let Some(tenant) = self.tenants.get_mut(&tenant) {
            tenant.waiting -= 1;
        }
    }

    /// Forgets tenants that do not wait and have been given no more than those that do.
    pub fn forget_idle(&mut self) {
        let least = self.least();
        self.tenants.retain(|_, tenant| tenant.waiting > 0 || tenant.given > least);
        if self.waiting.is_empty() {
            self.tenants.clear(); // nobody owes anybody a turn
            self.floor = 0;
        }
    }

    /// All who wait, in the order of their tickets.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.waiting.iter_mut().map(|waiting| &mut waiting.who)
    }

    /// What the tenant has been given that was given the least of those that wait.
    fn least(&self) -> u64 {
        let waiting = self.tenants.values().filter(|tenant| tenant.waiting > 0);
        waiting.map(|tenant| tenant.given).min().unwrap_or(self.floor)
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
        queue.pop(|_| true).map(|(.., who)| who)
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
        let (ticket, claim, since, who) = queue.pop(|_| true).unwrap();
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
        queue.forget_idle();
        assert!(queue.is_empty() && queue.tenants.is_empty());
    }

    #[test]
    fn who_cannot_go_lets_others_pass_and_keeps_its_place() {
        let mut queue = queue(Policy::Fcfs, &[(0, 7, 1), (-1, 7, 1), (0, 8, 1)]);
        assert_eq!(queue.pop(|who| *who == 2).map(|(.., who)| who), Some(2));
        assert!(queue.pop(|_| false).is_none());
        assert_eq!(order(queue), [1, 0]);
    }

    #[test]
    fn one_that_asks_a_lot_one_at_a_time_waits_for_the_others_too() {
        let mut queue = queue(Policy::Fcfs, &[(0, 8, 4); 4]);
        let big = Claim { priority: 0, tenant: 7, blocks: 10 };
        let mut order = Vec::new();
        for who in [100, 101] {
            queue.push(big, Instant::now(), who).unwrap();
            while !order.contains(&who) {
                order.extend(next(&mut queue));
            }
        }
        assert_eq!(order, [0, 100, 1, 2, 101]);
    }

    #[test]
    fn what_was_given_while_nobody_else_asked_is_not_held_against_a_tenant() {
        let mut queue = queue(Policy::Fcfs, &[(0, 7, 10); 5]);
        (0..4).for_each(|who| assert_eq!(next(&mut queue), Some(who)));
        assert_eq!(next(&mut queue), Some(4)); // nobody waits for a moment
        for (who, tenant) in [(10, 8), (11, 8), (12, 7), (13, 8)] {
            queue.push(Claim { priority: 0, tenant, blocks: 10 }, Instant::now(), who).unwrap();
        }
        assert_eq!(order(queue), [10, 11, 12, 13]);
    }

    #[test]
    fn tenants_that_are_owed_nothing_are_forgotten() {
        let mut queue = Queue::new(10_000, Policy::Fcfs);
        let claim = |tenant| Claim { priority: 0, tenant, blocks: 5 };
        queue.push(claim(0), Instant::now(), 0).unwrap();
        for tenant in 1..100 {
            queue.push(claim(tenant), Instant::now(), 1).unwrap();
            next(&mut queue);
            queue.push(claim(0), Instant::now(), 0).unwrap();
            next(&mut queue);
            queue.forget_idle();
        }
        assert!(queue.tenants.len() < 5, "{:?}", queue.tenants);
    }
}
