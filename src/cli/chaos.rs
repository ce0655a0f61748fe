//! `cuelight chaos`: the fault-injection harness, from the command line to the exit code.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};

use super::{UNAVAILABLE, USAGE};
use crate::chaos::{ChaosError, Interrupt, Options, Report, Wires, run};

/// A promise was broken.
pub const VIOLATED: u8 = 1;
/// Faults of a run without `--faults` and `--duration`.
const FAULTS: usize = 20;

/// `cuelight chaos`
#[derive(Debug, Args)]
pub struct ChaosArgs {
    /// Configuration of a node to start; once for each node. All nodes of a file that holds several,
    /// or one of them
    #[arg(long, value_name = "FILE[#NAME]", required_unless_present = "attach")]
    pub node: Vec<PathBuf>,
    /// Use a running node instead, by its frontend.http or node.admin; once for each node
    #[arg(long, value_name = "URL", conflicts_with_all = ["node", "netns", "etcd", "faketime", "set"])]
    pub attach: Vec<String>,
    /// Set one key in every node, over its file; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Decides the schedule; the same seed gives the same one [default: made up and reported]
    #[arg(long, value_name = "NUMBER")]
    pub seed: Option<u64>,
    /// End after so many faults [default: 20, unless there is --duration]
    #[arg(long, value_name = "NUMBER")]
    pub faults: Option<usize>,
    /// End after so many seconds
    #[arg(long, value_name = "SECONDS")]
    pub duration: Option<u64>,
    /// Only these kinds of faults, separated by commas
    #[arg(long, value_name = "KIND,…", value_delimiter = ',')]
    pub only: Vec<String>,
    /// Hit only these: front_end, aggregated, prefill, decode
    #[arg(long, value_name = "PART,…", value_delimiter = ',')]
    pub victims: Vec<String>,
    /// Wait before each fault until a request of the victim is in one of these phases, in turns: queued,
    /// prefilling, lent, reserved, transferring, decoding
    #[arg(long, value_name = "PHASE,…", value_delimiter = ',')]
    pub phases: Vec<String>,
    /// Clients that ask, each one request at a time
    #[arg(long, value_name = "NUMBER", default_value_t = 12)]
    pub clients: usize,
    /// Ask for the likeliest tokens only: for engines whose random numbers do not go on after a migration
    #[arg(long)]
    pub greedy: bool,
    /// Also hit the last worker or front end
    #[arg(long)]
    pub allow_outage: bool,
    /// A network namespace for each node, for faults of the network; needs root
    #[arg(long)]
    pub netns: bool,
    /// What joins them: the kernel (veth), which needs netem for delay and loss, or a switch in this
    /// process, which also hits the network of front ends; auto is veth if this kernel has netem
    #[arg(long, value_name = "auto|veth|switch", default_value = "auto", requires = "netns")]
    pub netns_wires: WiresArg,
    /// Start this etcd at the nodes' cluster.etcd.endpoints, and kill it now and then
    #[arg(long, value_name = "PROGRAM")]
    pub etcd: Option<PathBuf>,
    /// Start the nodes with this libfaketime.so, and let their clocks jump
    #[arg(long, value_name = "LIBRARY")]
    pub faketime: Option<PathBuf>,
    /// Longest wait between two faults in milliseconds; the shortest is a quarter of it
    #[arg(long, value_name = "MS", default_value_t = 1000)]
    pub pause_ms: u64,
    /// How long the cluster may take to be ready, and to be well after a fault
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub heal_timeout: u64,
    /// Longest life of a request
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub request_timeout: u64,
    /// How long it may take in the end until nothing is left of any request
    #[arg(long, value_name = "SECONDS", default_value_t = 20)]
    pub settle_timeout: u64,
    /// Growth of a process' memory that is no leak, next to a quarter of what it was
    #[arg(long, value_name = "MIB", default_value_t = 96)]
    pub rss_slack_mib: u64,
    /// Where the nodes' logs go [default: a new folder in the system's temporary one]
    #[arg(long, value_name = "DIR")]
    pub logs: Option<PathBuf>,
    /// Write the whole report as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// The program that runs a node [default: this one]
    #[arg(long, value_name = "PROGRAM")]
    pub program: Option<PathBuf>,
}

/// `--netns-wires`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WiresArg {
    /// What this machine does best.
    Auto,
    /// A bridge of the kernel's.
    Veth,
    /// A switch in this process.
    Switch,
}

impl ChaosArgs {
    /// Checks what clap cannot.
    fn options(&self, key: Option<String>) -> Result<Options, String> {
        let seed = self.seed.unwrap_or_else(|| made_up(0) % 1_000_000);
        let program = match &self.program {
            Some(program) => program.clone(),
            None => std::env::current_exe().map_err(|error| format!("--program: {error}"))?,
        };
        let attach = self.attach.iter().map(|url| address(url)).collect::<Result<_, _>>()?;
        let (faults, duration) = match (self.faults, self.duration) {
            (None, None) => (Some(FAULTS), None),
            (faults, duration) => (faults, duration.map(Duration::from_secs)),
        };
        if self.clients == 0 || self.clients > 4096 {
            return Err(format!("--clients {}: must be from 1 to 4096", self.clients));
        }
        Ok(Options {
            program,
            nodes: self.node.clone(),
            sets: self.set.clone(),
            attach,
            seed,
            faults,
            duration,
            only: self.only.clone(),
            victims: self.victims.clone(),
            phases: self.phases.clone(),
            clients: self.clients,
            greedy: self.greedy,
            allow_outage: self.allow_outage,
            netns: self.netns,
            wires: match self.netns_wires {
                WiresArg::Auto => None,
                WiresArg::Veth => Some(Wires::Veth),
                WiresArg::Switch => Some(Wires::Switch),
            },
            etcd: self.etcd.clone(),
            faketime: self.faketime.clone(),
            pause_ms: (self.pause_ms / 4, self.pause_ms),
            heal: Duration::from_secs(self.heal_timeout),
            request: Duration::from_secs(self.request_timeout),
            settle: Duration::from_secs(self.settle_timeout),
            rss_slack_mib: self.rss_slack_mib,
            logs: self.logs.clone(),
            key,
            cookie: format!("{:016x}{:016x}", made_up(1), made_up(2)),
            command: self.command(seed),
        })
    }

    /// A command line that gives the same schedule again.
    fn command(&self, seed: u64) -> String {
        let mut words = vec!["cuelight chaos".to_owned()];
        let mut flag = |name: &str, value: String| {
            words.push(format!("--{name} {value}").trim_end().to_owned())
        };
        self.node.iter().for_each(|node| flag("node", node.display().to_string()));
        self.attach.iter().for_each(|url| flag("attach", url.clone()));
        self.set.iter().for_each(|set| flag("set", set.clone()));
        flag("seed", seed.to_string());
        if let Some(faults) = self.faults {
            flag("faults", faults.to_string());
        }
        if let Some(duration) = self.duration {
            flag("duration", duration.to_string());
        }
        let lists = [("only", &self.only), ("victims", &self.victims), ("phases", &self.phases)];
        for (name, list) in lists.iter().filter(|(_, list)| !list.is_empty()) {
            flag(name, list.join(","));
        }
        flag("clients", self.clients.to_string());
        flag("pause-ms", self.pause_ms.to_string());
        if self.greedy {
            flag("greedy", String::new());
        }
        if let Some(etcd) = &self.etcd {
            flag("etcd", etcd.display().to_string());
        }
        if let Some(library) = &self.faketime {
            flag("faketime", library.display().to_string());
        }
        let wires = self.netns_wires.to_possible_value().filter(|_| self.netns);
        if let Some(wires) = wires {
            flag("netns-wires", wires.get_name().to_owned());
        }
        for (name, set) in [("--allow-outage", self.allow_outage), ("--netns", self.netns)] {
            if set {
                words.push(name.to_owned());
            }
        }
        words.join(" ")
    }
}

/// A number that nobody can guess: a keyed hash, with a key of the system's.
fn made_up(which: u64) -> u64 {
    RandomState::new().hash_one(which)
}

fn address(url: &str) -> Result<SocketAddr, String> {
    use std::net::ToSocketAddrs;
    let bare = url.strip_prefix("http://").unwrap_or(url).trim_end_matches('/');
    let found = bare.to_socket_addrs().ok().and_then(|mut found| found.next());
    found
        .ok_or_else(|| format!("--attach {url}: must be http://HOST:PORT (https is not supported)"))
}

/// Runs the harness: progress on `err`, the table on `out`. Returns the exit code: 0 if every promise
/// was kept, [`VIOLATED`] if one was broken, [`USAGE`] for a wrong command line or configuration,
/// [`UNAVAILABLE`] if the cluster cannot be started or reached.
pub fn chaos(
    args: &ChaosArgs,
    key: Option<String>,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> u8 {
    let options = match args.options(key) {
        Ok(options) => options,
        Err(why) => {
            let _ = writeln!(err, "cuelight chaos: {why}");
            return USAGE;
        }
    };
    let _ = writeln!(err, "{}", options.command);
    let report = match tokio::runtime::Runtime::new() {
        Ok(runtime) => {
            let say = &mut |line: &str| drop(writeln!(err, "{line}"));
            runtime.block_on(interruptible(&options, say))
        }
        Err(error) => {
            let _ = writeln!(err, "cuelight chaos: {error}");
            return UNAVAILABLE;
        }
    };
    match report {
        Ok(report) => conclude(args, &report, out, err),
        Err(error) => {
            let _ = writeln!(err, "cuelight chaos: {error}");
            if error.is_usage() { USAGE } else { UNAVAILABLE }
        }
    }
}

fn conclude(args: &ChaosArgs, report: &Report, out: &mut dyn Write, err: &mut dyn Write) -> u8 {
    let _ = out.write_all(report.to_text().as_bytes());
    if let Some(file) = &args.json
        && let Err(error) = std::fs::write(file, report.to_json())
    {
        let _ = writeln!(err, "cuelight chaos: --json {}: {error}", file.display());
        return USAGE;
    }
    if report.holds() { 0 } else { VIOLATED }
}

/// The first signal ends the run with a report of what there was, the second one at once.
async fn interruptible(options: &Options, say: &mut dyn FnMut(&str)) -> Result<Report, ChaosError> {
    let (set, interrupt) = Interrupt::new();
    let watch = tokio::spawn(async move {
        let signals = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
        let (Ok(mut interrupt), Ok(mut terminate)) = signals else {
            return std::future::pending().await;
        };
        for _ in 0..2 {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            let _ = set.send(true);
        }
    });
    tokio::select! {
        report = run(options, interrupt, say) => report,
        _ = watch => Err(ChaosError::Interrupted),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: ChaosArgs,
    }

    fn parsed(words: &str) -> Result<ChaosArgs, clap::Error> {
        let words = std::iter::once("chaos").chain(words.split_whitespace());
        Line::try_parse_from(words).map(|line| line.args)
    }

    #[test]
    fn the_reported_command_gives_the_same_run_again() {
        let words = "--node a.yaml --node b.yaml --only kill,stop --victims decode --netns \
                     --netns-wires switch";
        let args = parsed(words).unwrap();
        let first = args.options(None).unwrap();
        let words = first.command.strip_prefix("cuelight chaos ").unwrap();
        let again = parsed(words).unwrap().options(None).unwrap();
        assert_eq!(
            (first.seed, &first.only, &first.victims, &first.nodes, first.wires),
            (again.seed, &again.only, &again.victims, &again.nodes, Some(Wires::Switch))
        );
        assert_eq!(again.command, first.command);
        assert_eq!((first.faults, first.duration), (Some(FAULTS), None));
    }

    #[test]
    fn wrong_arguments_are_refused() {
        let lone = "--node a --netns-wires switch";
        for words in ["", "--node a --attach b", "--attach b --netns", "--node a --seed x", lone] {
            assert!(parsed(words).is_err(), "{words}");
        }
        for words in ["--attach https://x", "--node a --clients 0"] {
            assert!(parsed(words).unwrap().options(None).is_err(), "{words}");
        }
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let args = parsed("--node a --only nothing").unwrap();
        assert_eq!(chaos(&args, None, &mut out, &mut err), USAGE);
        assert!(String::from_utf8(err).unwrap().contains("--only nothing: no such fault"));
    }

    #[test]
    fn a_cluster_that_is_not_there_is_unavailable_and_a_missing_file_is_usage() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        for (words, code) in [
            (format!("--attach http://{free}"), UNAVAILABLE),
            ("--node does/not/exist.yaml".to_owned(), USAGE),
        ] {
            let (mut out, mut err) = (Vec::new(), Vec::new());
            assert_eq!(chaos(&parsed(&words).unwrap(), None, &mut out, &mut err), code, "{words}");
            assert!(out.is_empty() && !err.is_empty());
        }
    }
}
