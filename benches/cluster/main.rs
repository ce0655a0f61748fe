//! Cluster benchmarks: what the token path costs on both sides, what a remote leg holds, how fast a
//! loss and a cancellation reach the other side, what an idle cluster takes.
//!
//! `cargo bench --bench cluster` runs all of it, `-- token-path,legs,…` some. benches/README.md says
//! more.

mod cancel;
mod client;
mod detect;
mod idle;
mod legs;
mod measure;
mod nodes;
mod path;
#[path = "../frontend/process.rs"]
mod process;
mod report;
mod scale;
mod tokens;

use std::error::Error;
use std::net::SocketAddr;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use serde::de::DeserializeOwned;

use crate::measure::Sides;
use crate::report::{HEAD, Row, line, median_and_least};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What a measurement comes to.
pub(crate) type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Open files: every node has a connection to every other one.
const OPEN_FILES: u64 = 16_384;

/// Measures what the cluster costs and how fast it notices.
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    command: Option<Task>,
    /// What to measure
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["token-path", "legs", "kill", "stop", "cancel", "idle", "scale"])]
    parts: Vec<Part>,
    /// Repetitions of the token path; the medians count
    #[arg(long, default_value_t = 5)]
    repeat: usize,
    /// Only shows that everything works
    #[arg(long)]
    quick: bool,
    /// What `cargo bench` adds to every benchmark's arguments
    #[arg(long, hide = true, global = true)]
    bench: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum Part {
    TokenPath,
    Legs,
    Kill,
    Stop,
    Cancel,
    Idle,
    Scale,
}

/// What a process of its own measures; the answer is a line of JSON.
#[derive(Clone, Debug, Subcommand)]
enum Task {
    #[command(hide = true)]
    TwoNodes { ms: u64 },
    #[command(hide = true)]
    OneProcess { ms: u64 },
    #[command(hide = true)]
    Path { ms: u64 },
    #[command(hide = true)]
    Replay { address: SocketAddr },
    #[command(hide = true)]
    Legs { count: usize },
    #[command(hide = true)]
    Kill { count: usize },
    #[command(hide = true)]
    Stop { count: usize },
    #[command(hide = true)]
    Cancel { count: usize },
    #[command(hide = true)]
    Idle { ms: u64 },
    #[command(hide = true)]
    Scale { ranks: usize, requests: usize },
}

impl Task {
    async fn run(self) -> Outcome<String> {
        let after = Duration::from_millis;
        Ok(match self {
            Self::TwoNodes { ms } => serde_json::to_string(&tokens::two_nodes(after(ms)).await?),
            Self::OneProcess { ms } => {
                serde_json::to_string(&tokens::one_process(after(ms)).await?)
            }
            Self::Path { ms } => serde_json::to_string(&path::front(after(ms)).await?),
            Self::Replay { address } => serde_json::to_string(&path::replay(address).await?),
            Self::Legs { count } => serde_json::to_string(&legs::run(count).await?),
            Self::Kill { count } => serde_json::to_string(&detect::kills(count).await?),
            Self::Stop { count } => serde_json::to_string(&detect::stops(count).await?),
            Self::Cancel { count } => serde_json::to_string(&cancel::run(count).await?),
            Self::Idle { ms } => serde_json::to_string(&idle::run(after(ms)).await?),
            Self::Scale { ranks, requests } => {
                serde_json::to_string(&scale::run(ranks, requests).await?)
            }
        }?)
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.command.clone() {
        Some(task) => measure(task),
        None => all(&cli),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cluster: {error}");
            ExitCode::FAILURE
        }
    }
}

/// In a process of its own, so that nothing earlier counts.
fn measure(task: Task) -> Outcome<()> {
    rlimit::increase_nofile_limit(OPEN_FILES)?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    println!("{}", runtime.block_on(task.run())?);
    Ok(())
}

fn all(cli: &Cli) -> Outcome<()> {
    println!("{HEAD}");
    let count = |whole: usize, quick: usize| (if cli.quick { quick } else { whole }).to_string();
    for part in &cli.parts {
        let rows = match part {
            Part::TokenPath => token_path(cli)?,
            Part::Legs => child::<Vec<Row>>("legs", &count(10_000, 500))?,
            Part::Kill => child("kill", &count(50, 3))?,
            Part::Stop => child("stop", &count(20, 2))?,
            Part::Cancel => child("cancel", &count(200, 5))?,
            Part::Idle => child("idle", &count(20_000, 2_000))?,
            Part::Scale => scale(cli)?,
        };
        rows.iter().for_each(|row| println!("{}", line(row)));
    }
    Ok(())
}

/// The same number of requests on more and more ranks, then very many on very many.
fn scale(cli: &Cli) -> Outcome<Vec<Row>> {
    let mut rows = Vec::new();
    let sizes = [("10", "10000"), ("100", "10000"), ("1000", "10000"), ("1000", "100000")];
    for (ranks, requests) in if cli.quick { &[("10", "500")][..] } else { &sizes[..] } {
        rows.extend(child_of::<Vec<Row>>(&["scale", ranks, requests])?);
    }
    Ok(rows)
}

/// The three loads in turn, so that what else the machine does touches all of them.
fn token_path(cli: &Cli) -> Outcome<Vec<Row>> {
    let (ms, repeat) = if cli.quick { ("1000", 1) } else { ("7000", cli.repeat.max(1)) };
    let mut loads = [("path", Vec::new()), ("two-nodes", Vec::new()), ("one-process", Vec::new())];
    for _ in 0..repeat {
        for (task, sides) in &mut loads {
            sides.push(child::<Sides>(task, ms)?);
        }
    }
    let [path, two, one] = loads.map(|(_, sides)| sides);
    let us =
        |sides: &[Sides], of: fn(&Sides) -> f64| median_and_least(sides.iter().map(of).collect());
    let show = |[median, least]: [f64; 2]| format!("{median:.2} µs (least {least:.2})");
    let (worker, front) = (us(&path, |s| s.worker), us(&path, |s| s.front));
    let both = |s: &Sides| s.worker + s.front;
    let (together, alone) = (us(&two, both), us(&one, both));
    for (name, sides) in [("path", &path), ("two nodes", &two), ("one process", &one)] {
        for (side, threads) in ["worker", "front end"].iter().zip(&sides[0].threads) {
            let named = threads.iter().map(|(name, us)| format!("{name} {us:.2}"));
            let named = named.collect::<Vec<_>>().join(", ");
            eprintln!("{name}, {side}, {:.0} tokens/s: µs/token by thread: {named}", sides[0].rate);
        }
    }
    let whole = |what: &str, us: [f64; 2]| Row::of(format!("CPU a token, whole: {what}"), show(us));
    Ok(vec![
        Row::of("CPU a token, token path: worker", show(worker)).at_most(worker[0], 0.6, "µs"),
        Row::of("CPU a token, token path: front end", show(front)).at_most(front[0], 1.2, "µs"),
        whole("worker node", us(&two, |s| s.worker)),
        whole("front-end node", us(&two, |s| s.front)),
        whole("both nodes", together),
        whole("both in one process, no cluster", alone),
    ])
}

/// Runs a task in a child process and reads what it says.
fn child<T: DeserializeOwned>(task: &str, argument: &str) -> Outcome<T> {
    child_of(&[task, argument])
}

fn child_of<T: DeserializeOwned>(arguments: &[&str]) -> Outcome<T> {
    let mut command = Command::new(std::env::current_exe()?);
    let out = command.args(arguments).stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
    if !out.status.success() {
        return Err(format!("{} ended with {}", arguments.join(" "), out.status).into());
    }
    Ok(serde_json::from_slice(&out.stdout)?)
}
