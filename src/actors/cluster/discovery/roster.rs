//! Who is announced, with patience for a service that has lost its memory.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::{Announcement, Found};

/// The announcements, by the key or file that holds them.
pub(super) struct Roster {
    /// How long an announcement outlives an outage that it did not survive.
    grace: Duration,
    /// Until when what disappears may only have been forgotten.
    doubtful_until: Option<Instant>,
    entries: BTreeMap<String, Entry>,
    /// Announcements ever noted: a later one has a higher number.
    noted: u64,
}

struct Entry {
    announcement: Announcement,
    number: u64,
    /// Since when the service does not list it although its node may live.
    missing: Option<Instant>,
}

impl Roster {
    pub(super) fn new(grace: Duration) -> Self {
        Self { grace, doubtful_until: None, entries: BTreeMap::new(), noted: 0 }
    }

    /// Takes over all that the service lists, the oldest first. What it does not list is gone, or,
    /// within the grace after an outage, may have been forgotten: it is held for the grace.
    pub(super) fn list(
        &mut self,
        listed: Vec<(String, Announcement)>,
        after_outage: bool,
        now: Instant,
    ) {
        if after_outage {
            self.doubtful_until = Some(now + self.grace);
        }
        let (doubtful, grace) = (self.doubtful(now), self.grace);
        let present: BTreeSet<&String> = listed.iter().map(|(key, _)| key).collect();
        self.entries.retain(|key, entry| {
            if present.contains(key) {
                return true;
            }
            if doubtful {
                entry.missing.get_or_insert(now);
            }
            entry.missing.is_some_and(|since| now.saturating_duration_since(since) < grace)
        });
        for (key, announcement) in listed {
            self.put(key, announcement);
        }
    }

    fn doubtful(&self, now: Instant) -> bool {
        self.doubtful_until.is_some_and(|until| now < until)
    }

    /// Notes one announcement.
    pub(super) fn put(&mut self, key: String, announcement: Announcement) {
        self.noted += 1;
        self.entries.insert(key, Entry { announcement, number: self.noted, missing: None });
    }

    /// An announcement was withdrawn or has lapsed. Within the grace after an outage it is held: a
    /// service that was stopped lets everything lapse when it goes on.
    pub(super) fn remove(&mut self, key: &str, now: Instant) {
        if !self.doubtful(now) {
            self.entries.remove(key);
        } else if let Some(entry) = self.entries.get_mut(key) {
            entry.missing.get_or_insert(now);
        }
    }

    /// The other nodes, in order. Of several at one address the latest: only one can listen there.
    pub(super) fn peers(&self, own: &Announcement) -> Vec<Found> {
        let mut latest: BTreeMap<&str, &Entry> = BTreeMap::new();
        for entry in self.entries.values() {
            let other = &entry.announcement;
            let same_node = other.name == own.name && other.incarnation == own.incarnation;
            if same_node || other.address == own.address {
                continue;
            }
            let known = latest.entry(&other.address).or_insert(entry);
            if known.number < entry.number {
                *known = entry;
            }
        }
        let found = |entry: &Entry| Found {
            address: entry.announcement.address.clone(),
            name: Some(entry.announcement.name.clone()),
            incarnation: Some(entry.announcement.incarnation),
        };
        latest.into_values().map(found).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(10);

    fn node(name: &str, incarnation: u64) -> (String, Announcement) {
        let announcement =
            Announcement { name: name.into(), incarnation, address: format!("{name}:1") };
        (format!("{name}/{incarnation}"), announcement)
    }

    fn names(roster: &Roster) -> Vec<String> {
        let peers = roster.peers(&node("own", 1).1).into_iter();
        peers.map(|peer| format!("{}/{}", peer.name.unwrap(), peer.incarnation.unwrap())).collect()
    }

    #[test]
    fn who_is_no_longer_listed_is_gone_at_once_unless_the_service_was_out() {
        let (mut roster, start) = (Roster::new(GRACE), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        roster.list(vec![node("a", 1), node("b", 1), node("c", 1)], false, at(0));
        roster.list(vec![node("a", 1), node("b", 1)], false, at(1));
        assert_eq!(names(&roster), ["a/1", "b/1"]);

        // The service comes back empty: everybody is held until they had time to come back.
        roster.list(vec![], true, at(100));
        assert_eq!(names(&roster), ["a/1", "b/1"]);
        roster.list(vec![node("b", 1)], false, at(109));
        assert_eq!(names(&roster), ["a/1", "b/1"]);
        roster.list(vec![node("b", 1)], false, at(110));
        assert_eq!(names(&roster), ["b/1"]);
    }

    #[test]
    fn outages_in_a_row_do_not_hold_the_dead_forever() {
        let (mut roster, start) = (Roster::new(GRACE), Instant::now());
        roster.list(vec![node("a", 1)], false, start);
        for second in 1..=10 {
            roster.list(vec![], true, start + Duration::from_secs(second));
            assert_eq!(names(&roster), ["a/1"], "after {second} s");
        }
        roster.list(vec![], true, start + Duration::from_secs(11));
        assert_eq!(names(&roster), [""; 0]);
    }

    #[test]
    fn what_lapses_right_after_an_outage_is_held_for_the_grace() {
        let (mut roster, start) = (Roster::new(GRACE), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        roster.list(vec![node("a", 1), node("b", 1)], true, at(0));
        roster.remove("a/1", at(1));
        assert_eq!(names(&roster), ["a/1", "b/1"]);
        roster.list(vec![node("b", 1)], false, at(9));
        assert_eq!(names(&roster), ["a/1", "b/1"]);
        roster.list(vec![node("b", 1)], false, at(11));
        assert_eq!(names(&roster), ["b/1"]);
        roster.remove("b/1", at(12));
        assert_eq!(names(&roster), [""; 0], "the outage is long over");
    }

    #[test]
    fn of_two_incarnations_at_one_address_the_later_counts() {
        let mut roster = Roster::new(GRACE);
        roster.list(vec![node("a", 9), node("a", 3)], false, Instant::now());
        assert_eq!(names(&roster), ["a/3"]);
        let (key, announcement) = node("a", 5);
        roster.put(key, announcement);
        assert_eq!(names(&roster), ["a/5"]);
        roster.remove("a/5", Instant::now());
        assert_eq!(names(&roster), ["a/3"]);
    }

    #[test]
    fn a_node_does_not_find_itself_nor_who_had_its_address_before() {
        let mut roster = Roster::new(GRACE);
        let (key, mut elsewhere) = node("own", 4);
        elsewhere.address = "elsewhere:1".into();
        roster.list(vec![node("own", 1), node("own", 2)], false, Instant::now());
        assert_eq!(names(&roster), [""; 0]);
        roster.put(key, elsewhere); // a node of the same name: connecting tells what it is
        assert_eq!(names(&roster), ["own/4"]);
    }
}
