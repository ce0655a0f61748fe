//! Finding peers to connect to, and being found.
//!
//! A back end announces this node and follows the announcements of the others. It only finds: who is
//! connected stays connected whatever the service says, and while the service cannot be used, the
//! peers known so far are kept. After an outage a peer that the service no longer lists is kept for
//! one more `ttl`, the time that it has to announce itself again.

mod etcd;
mod file;
mod roster;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tracing::{info, warn};

/// Longest wait for the service when a node leaves; its announcement then lapses by itself.
const LEAVE: Duration = Duration::from_secs(2);
/// A shorter `ttl` counts as this one: beats come three times as often.
const LEAST_TTL: Duration = Duration::from_millis(100);
/// Announcements that are followed; more are ignored, and reported as a problem.
const MAX_ANNOUNCEMENTS: usize = 4096;
/// Bytes of one announcement.
const MAX_ANNOUNCEMENT_BYTES: usize = 4096;
/// Bytes of a name, and of an address.
const MAX_TEXT_BYTES: usize = 1024;

/// What a node publishes about itself.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Announcement {
    /// The node's name.
    pub name: String,
    /// Which start of the node it is.
    pub incarnation: u64,
    /// `host:port` to dial.
    pub address: String,
}

/// Where peers are found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Discovery {
    /// A list that never changes.
    Static {
        /// `host:port` of peers; the own address may be among them.
        seeds: Vec<String>,
    },
    /// A directory that all nodes share: one file a node.
    File {
        /// It must exist: one that is missing may be a mount that is missing.
        directory: PathBuf,
        /// A file that does not change for so long is a dead node's.
        ttl: Duration,
    },
    /// etcd, through the JSON gateway of its API v3.
    Etcd {
        /// `http://host:port` of its members; the first that answers is used.
        endpoints: Vec<String>,
        /// Keys are `prefix/name/incarnation`.
        prefix: String,
        /// How long the announcement of a dead node lives; etcd rounds up to whole seconds, 2 or more.
        ttl: Duration,
    },
}

/// What is known now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// The other nodes, in order; no address occurs twice.
    pub peers: Vec<Found>,
    /// Why the service cannot be used now, for people; `None` while it works.
    pub problem: Option<String>,
}

/// A peer to connect to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Found {
    /// `host:port` to dial.
    pub address: String,
    /// Its name, where the back end knows it.
    pub name: Option<String>,
    /// A hint: the node that answers at the address may be a later one.
    pub incarnation: Option<u64>,
}

/// A node's membership; dropping it withdraws the announcement in the background.
#[must_use = "dropping it withdraws the announcement"]
#[derive(Debug)]
pub struct Following {
    /// Changes when peers or the problem change; closed only after the end.
    pub known: watch::Receiver<Known>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Following {
    /// Withdraws the announcement; waits for the service, but not for long.
    pub async fn leave(self) {
        let Self { known: _, stop, mut task } = self;
        drop(stop);
        if tokio::time::timeout(LEAVE, &mut task).await.is_err() {
            warn!(after = ?LEAVE, "discovery did not take the announcement back; it lapses by itself");
            task.abort();
        }
    }
}

/// Announces `own` and follows the others until the answer is dropped or told to leave.
///
/// # Panics
/// Outside of a tokio runtime with time and I/O.
pub fn follow(discovery: Discovery, own: Announcement) -> Following {
    let (board, known) = Board::new();
    let (stop, stopped) = oneshot::channel();
    let task = match discovery {
        Discovery::Static { seeds } => {
            board.peers(seeds_without(seeds, &own));
            // Holding the board keeps `known` open.
            tokio::spawn(async move {
                let _ = stopped.await;
                drop(board);
            })
        }
        Discovery::File { directory, ttl } => {
            tokio::spawn(file::run(directory, ttl.max(LEAST_TTL), own, board, stopped))
        }
        Discovery::Etcd { endpoints, prefix, ttl } => {
            tokio::spawn(etcd::run(endpoints, prefix, ttl.max(LEAST_TTL), own, board, stopped))
        }
    };
    Following { known, stop, task }
}

fn seeds_without(seeds: Vec<String>, own: &Announcement) -> Vec<Found> {
    let seeds: BTreeSet<String> = seeds.into_iter().filter(|seed| *seed != own.address).collect();
    seeds.into_iter().map(|address| Found { address, name: None, incarnation: None }).collect()
}

impl Announcement {
    /// Reads what a node, or anything else, has published; an error says why it is none.
    fn read(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() > MAX_ANNOUNCEMENT_BYTES {
            return Err(format!("has more than {MAX_ANNOUNCEMENT_BYTES} bytes"));
        }
        let read: Self = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        read.check()?;
        Ok(read)
    }

    fn check(&self) -> Result<(), String> {
        let printable = |text: &str| {
            let bad = |c: char| c.is_control();
            !text.is_empty() && text.len() <= MAX_TEXT_BYTES && !text.contains(bad)
        };
        if !printable(&self.name) {
            return Err(format!("the name {:?} is empty, too long or not printable", self.name));
        }
        let port = |port: &str| port.parse::<u16>().is_ok_and(|port| port != 0);
        let dialable = printable(&self.address)
            && !self.address.contains(char::is_whitespace)
            && self.address.rsplit_once(':').is_some_and(|(host, p)| !host.is_empty() && port(p));
        if !dialable {
            return Err(format!("the address {:?} is not host:port", self.address));
        }
        Ok(())
    }
}

/// Where a back end writes down what it knows.
struct Board {
    known: watch::Sender<Known>,
    /// By the part of the back end that has it.
    problems: Mutex<BTreeMap<&'static str, String>>,
}

impl Board {
    fn new() -> (Self, watch::Receiver<Known>) {
        let (known, receiver) = watch::channel(Known::default());
        (Self { known, problems: Mutex::default() }, receiver)
    }

    fn peers(&self, peers: Vec<Found>) {
        self.known.send_if_modified(|known| {
            let changed = known.peers != peers;
            known.peers = peers;
            changed
        });
    }

    /// Notes the problem of one part, or that it works. Logs when the whole stops or starts to work.
    fn report(&self, part: &'static str, problem: Option<String>) {
        // A map is whole also after a panic.
        let mut problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        match problem {
            Some(problem) => problems.insert(part, problem),
            None => problems.remove(part),
        };
        let problem = problems.values().next().cloned();
        self.known.send_if_modified(|known| {
            match (&known.problem, &problem) {
                (None, Some(problem)) => {
                    warn!(problem, "discovery cannot be used; peers known so far are kept");
                }
                (Some(_), None) => info!("discovery works again"),
                _ => {}
            }
            let changed = known.problem != problem;
            known.problem = problem;
            changed
        });
    }
}

/// What was complained about, so that each thing is complained about once.
#[derive(Default)]
struct Complaints(BTreeSet<String>);

impl Complaints {
    /// Warns that `name` is no announcement, unless that was said before.
    fn about(&mut self, name: &str, why: &str) {
        if self.0.len() < MAX_ANNOUNCEMENTS && self.0.insert(name.to_owned()) {
            warn!(name, why, "skipping what is not an announcement of a node");
        }
    }

    /// Forgets all but `names`: what comes again is complained about again.
    fn keep(&mut self, names: &BTreeSet<String>) {
        self.0.retain(|name| names.contains(name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> Announcement {
        Announcement { name: "a".into(), incarnation: 7, address: "10.0.0.1:7000".into() }
    }

    #[test]
    fn an_announcement_is_read_back_and_anything_else_is_refused_with_a_reason() {
        let bytes = serde_json::to_vec(&own()).unwrap();
        assert_eq!(Announcement::read(&bytes), Ok(own()));
        let cases = [
            ("", "EOF"),
            ("{", "EOF"),
            ("\u{0}\u{1}", "expected value"),
            (r#"{"name":"a","incarnation":7}"#, "missing field `address`"),
            (r#"{"name":"","incarnation":7,"address":"h:1"}"#, "the name \"\""),
            (r#"{"name":"a\nb","incarnation":7,"address":"h:1"}"#, "the name"),
            (r#"{"name":"a","incarnation":-1,"address":"h:1"}"#, "invalid value"),
            (r#"{"name":"a","incarnation":7,"address":"h"}"#, "the address \"h\""),
            (r#"{"name":"a","incarnation":7,"address":"h:0"}"#, "the address"),
            (r#"{"name":"a","incarnation":7,"address":":1"}"#, "the address"),
            (r#"{"name":"a","incarnation":7,"address":"h h:1"}"#, "the address"),
            (r#"{"name":"a","incarnation":7,"address":"h:65536"}"#, "the address"),
        ];
        for (text, reason) in cases {
            let refused = Announcement::read(text.as_bytes()).unwrap_err();
            assert!(refused.contains(reason), "{text:?}: {refused}");
        }
        let long = format!("{}{}", " ".repeat(MAX_ANNOUNCEMENT_BYTES), r#"{"name":"a"}"#);
        assert!(Announcement::read(long.as_bytes()).unwrap_err().contains("more than"));
    }

    #[tokio::test]
    async fn seeds_are_the_peers_without_the_node_itself_and_stay_until_it_leaves() {
        let seeds = ["c:1", "10.0.0.1:7000", "b:1", "c:1"].map(String::from).to_vec();
        let following = follow(Discovery::Static { seeds }, own());
        let mut known = following.known.clone();
        let found =
            |address: &str| Found { address: address.into(), name: None, incarnation: None };
        let expected = Known { peers: vec![found("b:1"), found("c:1")], problem: None };
        assert_eq!(*known.borrow_and_update(), expected);
        assert!(known.has_changed().is_ok(), "closed before the end");
        following.leave().await;
        assert!(known.has_changed().is_err(), "still open");
        assert_eq!(*known.borrow(), expected);
    }

    #[test]
    fn a_problem_lasts_until_every_part_works() {
        let (board, known) = Board::new();
        let problem = || known.borrow().problem.clone();
        board.report("follow", Some("f".into()));
        board.report("register", Some("r".into()));
        assert_eq!(problem().as_deref(), Some("f"));
        board.report("follow", None);
        assert_eq!(problem().as_deref(), Some("r"));
        board.report("register", None);
        assert_eq!(problem(), None);
    }
}
