//! Front-end benchmarks: what a streamed token costs the server, and what an open request holds.
//!
//! `cargo bench --bench frontend` compares `cuelight serve` (with an engine that computes nothing)
//! with a bare hyper server that writes the same bytes; `-- memory` holds thousands of requests
//! open; `--target` adds a server that runs already. benches/README.md says more.

mod bare;
mod client;
mod load;
mod measure;
mod memory;
mod process;
mod prompt;
mod report;
mod servers;
mod sse;

use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::load::Load;
use crate::report::Row;
use crate::servers::{NamedUrl, Shape, Target};

/// 43 tokens a second a stream.
const PACE: Duration = Duration::from_micros(23_255);
/// Time between tokens while memory is measured: streams stay open and cost next to nothing.
const MEMORY_PACE: Duration = Duration::from_secs(2);
/// Output tokens while memory is measured: so many that no stream ends while it is held.
const MEMORY_OUTPUT: u32 = 512;
/// Streams that run while the others wait.
const RUNNING_BEFORE_WAITING: usize = 16;
/// Open files: a connection is one here and one in the server.
const OPEN_FILES: u64 = 16_384;

/// Measures CPU time and memory of HTTP front ends that stream tokens.
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    options: Options,
    /// What `cargo bench` adds to every benchmark's arguments
    #[arg(long, hide = true, global = true)]
    bench: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Memory a request, with thousands held open
    Memory {
        /// Streaming requests; then, on a fresh server, as many that wait
        #[arg(long, default_value_t = 10_000)]
        requests: usize,
        #[command(flatten)]
        options: Options,
    },
    #[command(hide = true)]
    Bare {
        #[arg(long)]
        pace_us: Option<u64>,
        #[arg(long)]
        threads: Option<usize>,
        #[arg(long)]
        one_buffer: bool,
    },
    #[command(hide = true)]
    Client {
        #[command(flatten)]
        load: Load,
    },
    #[command(hide = true)]
    Hold {
        #[command(flatten)]
        load: Load,
        #[arg(long)]
        waiting: usize,
    },
}

#[derive(Clone, Debug, Args)]
struct Options {
    /// Servers to start
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["bare", "bare-one-buffer", "cuelight"])]
    servers: Vec<Kind>,
    /// A server that runs already, as NAME=http://127.0.0.1:PORT
    #[arg(long)]
    target: Option<NamedUrl>,
    /// The processes of --target whose CPU time and memory count
    #[arg(long, value_delimiter = ',', requires = "target")]
    pid: Vec<u32>,
    /// The model's name in requests to --target
    #[arg(long, default_value = servers::MODEL)]
    model: String,
    /// How fast tokens come; a --target must be set up accordingly
    #[arg(long, value_enum, default_value = "both")]
    pace: PaceArg,
    /// Concurrent streams
    #[arg(long, default_value_t = 256)]
    streams: usize,
    /// Prompt tokens, about
    #[arg(long, default_value_t = 256)]
    prompt: usize,
    /// Output tokens
    #[arg(long, default_value_t = 128)]
    output: u32,
    /// Requests a stream; default 40 unpaced (10 for --target) and 4 paced
    #[arg(long)]
    rounds: Option<usize>,
    /// Milliseconds over which the streams start; 0 lets paced streams tick in step, which suits a
    /// server with a timer for each
    #[arg(long, default_value_t = 0)]
    ramp_ms: u64,
    /// Repetitions, servers in turn; the median counts
    #[arg(long, default_value_t = 3)]
    repeat: usize,
    /// Threads of the bare server; default the number of cores
    #[arg(long)]
    bare_threads: Option<usize>,
    /// The `cuelight` binary
    #[arg(long, default_value_os_t = servers::cuelight_binary())]
    cuelight: PathBuf,
    /// A few seconds in all: shows that everything works, not how fast
    #[arg(long)]
    quick: bool,
    /// Also writes the rows to this file
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// hyper as it comes
    Bare,
    /// hyper that copies a stream's events into one buffer: fewer, larger writes
    BareOneBuffer,
    /// `cuelight serve`
    Cuelight,
    /// Only --target
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum PaceArg {
    Unpaced,
    Paced,
    Both,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        Some(Command::Bare { pace_us, threads, one_buffer }) => {
            let pace = pace_us.map(Duration::from_micros);
            bare::serve(pace, threads, one_buffer).map(|()| true)
        }
        Some(Command::Client { load }) => run_client(&load).map(|()| true),
        Some(Command::Hold { load, waiting }) => load::hold(&load, waiting).map(|()| true),
        Some(Command::Memory { requests, options }) => memory_mode(requests, &options),
        None => load_mode(&cli.options),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("frontend benchmark: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run_client(load: &Load) -> io::Result<()> {
    let client = client::Client::new(load.addr, &load.model, load.prompt, load.output, load.seed)?;
    load::print_line(&client.run(load)?)
}

/// Both paces on all servers; true if every request was answered in full.
fn load_mode(options: &Options) -> io::Result<bool> {
    raise_open_files()?;
    let mut rows = Vec::new();
    for pace in [None, Some(PACE)] {
        let wanted = match options.pace {
            PaceArg::Both => true,
            PaceArg::Unpaced => pace.is_none(),
            PaceArg::Paced => pace.is_some(),
        };
        if wanted {
            let measured = one_pace(options, pace)?;
            println!("{}\n{}", report::table(&measured), report::threads(&measured));
            rows.extend(measured);
        }
    }
    if let Some(path) = &options.json {
        fs::write(path, serde_json::to_vec_pretty(&rows)?)?;
    }
    Ok(rows.iter().all(|row| row.outcome.errors.is_empty()))
}

fn one_pace(options: &Options, pace: Option<Duration>) -> io::Result<Vec<Row>> {
    let context = options.prompt + options.output as usize;
    let shape = Shape {
        pace,
        running: options.streams.max(1024),
        blocks: (options.streams * (context / 16 + 2)).max(65_536),
    };
    let targets = start(options, shape)?;
    let mut rows = Vec::new();
    for repetition in 0..if options.quick { 1 } else { options.repeat } {
        for target in &targets {
            let load = plan(options, target, pace, repetition);
            if repetition == 0 {
                let requests = load.streams.min(load.requests);
                let warm_up = Load { requests, ramp_ms: 0, seed: 0, ..load.clone() };
                measure::client(&warm_up)?;
            }
            rows.push(measure::row(target, &load, pace)?);
        }
    }
    Ok(report::medians(rows))
}

/// The load of one repetition.
fn plan(options: &Options, target: &Target, pace: Option<Duration>, repetition: usize) -> Load {
    let rounds = match (options.quick, pace) {
        (true, _) => 1,
        (false, Some(_)) => 4,
        (false, None) if target.is_external => 10,
        (false, None) => 40,
    };
    Load {
        addr: target.addr,
        model: target.model.clone(),
        streams: options.streams,
        requests: options.streams * options.rounds.unwrap_or(rounds),
        prompt: options.prompt,
        output: options.output,
        ramp_ms: options.ramp_ms,
        seed: repetition as u64 + 1,
    }
}

/// Starts the wanted servers; the bare one first, for comparison.
fn start(options: &Options, shape: Shape) -> io::Result<Vec<Target>> {
    let mut targets = Vec::new();
    for (kind, one_buffer) in [(Kind::Bare, false), (Kind::BareOneBuffer, true)] {
        if options.servers.contains(&kind) {
            targets.push(Target::bare(shape, options.bare_threads, one_buffer)?);
        }
    }
    if options.servers.contains(&Kind::Cuelight) {
        targets.push(Target::cuelight(&options.cuelight, shape)?);
    }
    if let Some(named) = &options.target {
        targets.push(Target::external(named, options.pid.clone(), options.model.clone()));
    }
    Ok(targets)
}

/// Memory on all servers, one at a time; true if nothing failed. Streaming and waiting requests are
/// held in runs of their own, so that 10,000 of each need no more than that many open files.
fn memory_mode(requests: usize, options: &Options) -> io::Result<bool> {
    raise_open_files()?;
    let requests = if options.quick { requests.min(500) } else { requests };
    let mut rows = Vec::new();
    for kind in &options.servers {
        let waves = [(requests, 0), (RUNNING_BEFORE_WAITING, requests)];
        // The bare server starts everything at once: nothing waits.
        let waves = if *kind == Kind::Cuelight { &waves[..] } else { &waves[..1] };
        for (streaming, waiting) in waves {
            let only = Options { servers: vec![*kind], target: None, ..options.clone() };
            rows.extend(memory_rows(&only, *streaming, *waiting)?);
        }
    }
    let external = Options { servers: Vec::new(), ..options.clone() };
    rows.extend(memory_rows(&external, requests, 0)?);
    println!("{}", memory::table(&rows));
    if let Some(path) = &options.json {
        fs::write(path, serde_json::to_vec_pretty(&rows)?)?;
    }
    Ok(rows.iter().all(|row| row.errors.is_empty()))
}

fn memory_rows(
    options: &Options,
    streaming: usize,
    waiting: usize,
) -> io::Result<Vec<memory::MemoryRow>> {
    let context = options.prompt + MEMORY_OUTPUT as usize;
    let shape = Shape {
        pace: Some(MEMORY_PACE),
        running: streaming,
        blocks: (streaming + 1) * (context / 16 + 2),
    };
    let hold = |target: &Target| {
        let load = Load {
            addr: target.addr,
            model: target.model.clone(),
            streams: streaming,
            requests: streaming,
            prompt: options.prompt,
            output: MEMORY_OUTPUT,
            ramp_ms: 0,
            seed: 1,
        };
        memory::run(target, &load, waiting)
    };
    start(options, shape)?.iter().map(hold).collect()
}

fn raise_open_files() -> io::Result<()> {
    let limit = rlimit::increase_nofile_limit(OPEN_FILES)?;
    if limit < OPEN_FILES {
        eprintln!("frontend benchmark: only {limit} open files allowed; many streams may fail");
    }
    Ok(())
}
