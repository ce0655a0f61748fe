//! `cuelight chaos`: starts a cluster, asks it things, breaks it on purpose, and checks from outside
//! that no client can tell.
//!
//! What is decided is decided in plain functions: the schedule is a function of the seed (`plan`), an
//! answer is judged by its bytes (`client`), a fault's cost by the requests that lived at its time
//! (`ledger`), leaks by what metrics, trees and `/proc` show (`checks`). The rest waits: `load` asks,
//! `inject` breaks, `cluster` starts processes and sees whether they are well.

mod aim;
mod asks;
mod checks;
mod client;
mod cluster;
mod inject;
mod ledger;
mod load;
mod plan;
mod random;
mod report;
mod run;
mod sight;
mod site;
mod victims;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::watch;

use plan::{KINDS, Kind, Part, Phase};

pub use report::Report;
pub use run::run;

/// What joins the network namespaces of the nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wires {
    /// A bridge of the kernel's, and its queues.
    Veth,
    /// A switch in this process.
    Switch,
}

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The program that runs a node.
    pub program: PathBuf,
    /// Configurations of the nodes to start: `FILE` or `FILE#NAME`.
    pub nodes: Vec<PathBuf>,
    /// `key=value`, for every node.
    pub sets: Vec<String>,
    /// Running nodes to use instead.
    pub attach: Vec<SocketAddr>,
    /// Decides the schedule and the load.
    pub seed: u64,
    /// Ends after so many faults.
    pub faults: Option<usize>,
    /// Ends after this time.
    pub duration: Option<Duration>,
    /// Kinds of faults by name; all that are possible if empty.
    pub only: Vec<String>,
    /// What may be hit, by name; all if empty.
    pub victims: Vec<String>,
    /// Phases that faults wait for, by name.
    pub phases: Vec<String>,
    /// Clients in a closed loop.
    pub clients: usize,
    /// Whether all requests are greedy.
    pub greedy: bool,
    /// Also hit the last worker or front end.
    pub allow_outage: bool,
    /// A network namespace for each node.
    pub netns: bool,
    /// What joins them; what this machine does best if `None`.
    pub wires: Option<Wires>,
    /// The etcd to start.
    pub etcd: Option<PathBuf>,
    /// The libfaketime to start nodes with.
    pub faketime: Option<PathBuf>,
    /// Wait between two faults: shortest and longest, in milliseconds.
    pub pause_ms: (u64, u64),
    /// How long the cluster may take to be ready, and to be well after a fault.
    pub heal: Duration,
    /// Longest life of a request.
    pub request: Duration,
    /// How long it may take until nothing is left of any request.
    pub settle: Duration,
    /// Growth of resident memory that is no leak, in MiB, next to a quarter.
    pub rss_slack_mib: u64,
    /// Where logs go; a new folder of the system's if `None`.
    pub logs: Option<PathBuf>,
    /// API key of the cluster.
    pub key: Option<String>,
    /// The secret of a cluster whose configuration takes one from a variable that is not set.
    pub cookie: String,
    /// How the run was called, for the report.
    pub command: String,
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChaosError {
    /// An option names something that there is not.
    #[error("--{option} {name}: no such {what}; there are {known}")]
    Unknown {
        /// Which option.
        option: &'static str,
        /// What it names.
        what: &'static str,
        /// What was given.
        name: String,
        /// What there is.
        known: String,
    },
    /// Nothing that was asked for can be done.
    #[error("no fault is possible here: {0}")]
    NothingPossible(String),
    /// A node's configuration says too little.
    #[error("{}: {why}", file.display())]
    Node {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A node, or the cluster, did not start.
    #[error("{node} did not start: {why}")]
    NotStarted {
        /// Its name or address.
        node: String,
        /// Why.
        why: String,
    },
    /// The cluster gave no right answer before any fault.
    #[error("before any fault: {0}")]
    NoAnswer(String),
    /// Namespaces cannot be made.
    #[error("--netns: {0}; it needs root, and `ip` and `tc` of iproute2")]
    Net(String),
    /// etcd cannot be used.
    #[error("--etcd: {0}")]
    Etcd(String),
    /// Nodes cannot be given clocks of their own.
    #[error("--faketime {}: {why}", library.display())]
    Clock {
        /// The library.
        library: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A second signal came.
    #[error("ended by a second signal, without a report")]
    Interrupted,
    /// Files cannot be written.
    #[error("{path}: {why}", path = path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        why: std::io::Error,
    },
}

impl ChaosError {
    /// Whether the command line or a configuration is at fault, rather than what was started.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Unknown { .. } | Self::NothingPossible(_) | Self::Node { .. })
    }
}

/// Set when the run shall end early.
#[derive(Clone, Debug)]
pub struct Interrupt(watch::Receiver<bool>);

impl Interrupt {
    /// One that is set through the sender.
    pub fn new() -> (watch::Sender<bool>, Self) {
        let (set, interrupt) = watch::channel(false);
        (set, Self(interrupt))
    }

    fn is_set(&self) -> bool {
        *self.0.borrow()
    }
}

/// The names of all faults and what each does, one a line.
pub fn faults_text() -> String {
    let line = |(_, name, _, what): &(Kind, &str, _, &str)| format!("  {name:<18} {what}\n");
    KINDS.iter().map(line).collect()
}

/// The kinds with these names; all if there are none.
fn kinds(names: &[String]) -> Result<Vec<Kind>, ChaosError> {
    let known: Vec<_> = KINDS.iter().map(|(kind, name, ..)| (*kind, *name)).collect();
    match names {
        [] => Ok(known.into_iter().map(|(kind, _)| kind).collect()),
        names => chosen(names, ("only", "fault"), &known),
    }
}

/// What may be hit, of these names.
fn victims(names: &[String]) -> Result<Vec<Part>, ChaosError> {
    chosen(names, ("victims", "part"), &Part::ALL.map(|part| (part, part.name())))
}

/// The phases of these names.
fn phases(names: &[String]) -> Result<Vec<Phase>, ChaosError> {
    chosen(names, ("phases", "phase"), &Phase::ALL.map(|phase| (phase, phase.name())))
}

fn chosen<T: Copy>(
    names: &[String],
    (option, what): (&'static str, &'static str),
    known: &[(T, &str)],
) -> Result<Vec<T>, ChaosError> {
    let one = |name: &String| {
        let found = known.iter().find(|(_, known)| known == name);
        found.map(|(one, _)| *one).ok_or_else(|| {
            let known: Vec<_> = known.iter().map(|(_, name)| *name).collect();
            ChaosError::Unknown { option, what, name: name.clone(), known: known.join(", ") }
        })
    };
    names.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_chosen_by_name_and_a_wrong_name_is_told_the_right_ones() {
        let chosen = kinds(&["kill".to_owned(), "stop".to_owned()]).unwrap();
        assert_eq!(chosen, [Kind::Kill, Kind::Stop]);
        assert_eq!(kinds(&[]).unwrap().len(), KINDS.len());
        let error = kinds(&["Kill".to_owned()]).unwrap_err();
        assert!(error.is_usage());
        assert!(error.to_string().contains("Kill: no such fault; there are kill, stop, drain"));
        assert_eq!(victims(&["decode".to_owned()]).unwrap(), [Part::Decode]);
        assert_eq!(phases(&[]).unwrap(), []);
        let error = phases(&["lost".to_owned()]).unwrap_err().to_string();
        assert!(error.starts_with("--phases lost: no such phase; there are queued, "), "{error}");
        assert_eq!(faults_text().lines().count(), KINDS.len());
    }
}
