//! Nodes find each other through a real etcd and through a directory, and through every fault of both.
//!
//! Needs Debian's `etcd-server`.

#![allow(clippy::unwrap_used)] // a test may

mod etcd;
mod etcd_faults;
mod etcd_nodes;
mod file;

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, Once};
use std::time::Duration;

use cuelight::actors::cluster::discovery::{Announcement, Discovery, Following, Known, follow};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;

/// Longest that anything may take that is not measured against a promise.
const PATIENCE: Duration = Duration::from_secs(30);

/// One node: as much of it as discovery knows.
struct Node {
    runtime: Runtime,
    following: Following,
    own: Announcement,
    /// The peers that were ever known, and the fewest known at once since all were there.
    fewest: Arc<Mutex<usize>>,
}

impl Node {
    fn start(name: &str, incarnation: u64, discovery: Discovery) -> Self {
        note_logs();
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let own = Announcement { name: name.into(), incarnation, address: format!("{name}:7000") };
        let _inside = runtime.enter();
        let following = follow(discovery, own.clone());
        Self { following, own, fewest: Arc::new(Mutex::new(usize::MAX)), runtime }
    }

    fn now(&self) -> Known {
        self.following.known.borrow().clone()
    }

    /// Waits for what `known` must become.
    fn until(&self, what: &str, condition: impl FnMut(&Known) -> bool) -> Known {
        let mut known = self.following.known.clone();
        let wait = async { tokio::time::timeout(PATIENCE, known.wait_for(condition)).await };
        match self.runtime.block_on(wait) {
            Ok(met) => met.expect("discovery goes on").clone(),
            Err(_) => panic!("{}: no {what} within {PATIENCE:?}: {:?}", self.own.name, self.now()),
        }
    }

    /// Waits until exactly the nodes of these names and incarnations are known.
    fn sees(&self, expected: &[(&str, u64)]) -> Known {
        let expected: BTreeSet<(String, u64)> =
            expected.iter().map(|(name, incarnation)| ((*name).into(), *incarnation)).collect();
        self.until(&format!("{expected:?}"), |known| {
            let peers = known.peers.iter();
            let seen = peers.map(|peer| (peer.name.clone().unwrap(), peer.incarnation.unwrap()));
            seen.collect::<BTreeSet<_>>() == expected
        })
    }

    fn has_problem(&self, text: &str) {
        let has = |known: &Known| known.problem.as_ref().is_some_and(|has| has.contains(text));
        self.until(&format!("problem with {text:?}"), has);
    }

    fn works(&self) {
        self.until("end of the problem", |known| known.problem.is_none());
    }

    /// From now on [`Node::fewest`] is the fewest peers known at any time.
    fn count_peers(&self) {
        let (mut known, fewest) = (self.following.known.clone(), self.fewest.clone());
        *fewest.lock().unwrap() = known.borrow_and_update().peers.len();
        self.runtime.spawn(async move {
            while known.changed().await.is_ok() {
                let peers = known.borrow_and_update().peers.len();
                let mut fewest = fewest.lock().unwrap();
                *fewest = peers.min(*fewest);
            }
        });
    }

    fn fewest(&self) -> usize {
        *self.fewest.lock().unwrap()
    }

    /// Ends without a word, as a killed process does.
    fn kill(self) {
        self.runtime.shutdown_background();
        std::mem::forget(self.following); // dropping it would be leaving
    }

    fn leave(self) {
        self.runtime.block_on(self.following.leave());
    }
}

/// Every log line of this process.
static LOGS: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct Logs;

impl Write for Logs {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        LOGS.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn note_logs() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        tracing_subscriber::fmt().with_ansi(false).with_writer(|| Logs).init();
    });
}

/// The warnings that name `word`.
fn warnings(word: &str) -> Vec<String> {
    let logs = LOGS.lock().unwrap();
    let text = String::from_utf8_lossy(&logs);
    let about = |line: &&str| line.contains(" WARN ") && line.contains(word);
    text.lines().filter(about).map(str::to_owned).collect()
}

/// Waits until `condition` holds.
fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "no {what} within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whether `known` stays free of what `broken` finds for `time`.
fn stays(node: &Node, time: Duration, broken: impl FnMut(&Known) -> bool) {
    let mut known: watch::Receiver<Known> = node.following.known.clone();
    let wait = async { tokio::time::timeout(time, known.wait_for(broken)).await.is_err() };
    assert!(node.runtime.block_on(wait), "{}: {:?}", node.own.name, node.now());
}
