//! `cuelight bench`: the load generator, from the command line to the exit code.

use std::io::Write;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

use super::{UNAVAILABLE, USAGE};
use crate::bench::{BenchError, Lengths, Report, Slo, run};

mod check;

/// A request failed.
pub const FAILED: u8 = 1;

/// `cuelight bench`
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// The server; any with an OpenAI API
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8000")]
    pub url: String,
    /// The model [default: the first that the server lists]
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// Token ids of exact length on /v1/completions, or words on /v1/chat/completions
    #[arg(long, value_name = "API", value_enum, default_value_t = ApiName::Completions)]
    pub api: ApiName,
    /// What is asked [default: random, or trace with --trace]
    #[arg(long, value_name = "KIND", value_enum)]
    pub workload: Option<WorkloadName>,
    /// Recorded requests: JSON lines in Mooncake's format
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Tokens of a block of the trace, which one of its hash_ids stands for [default: 512]
    #[arg(long, value_name = "NUMBER")]
    pub block_tokens: Option<u32>,
    /// Closed loop: clients, each with one request at a time [default: 16]
    #[arg(long, value_name = "NUMBER", conflicts_with_all = ["rate", "speedup"])]
    pub concurrency: Option<usize>,
    /// Open loop: requests a second (conversations, for sessions)
    #[arg(long, value_name = "NUMBER", conflicts_with = "speedup")]
    pub rate: Option<f64>,
    /// Open loop: how requests come [default: poisson]
    #[arg(long, value_name = "KIND", value_enum, requires = "rate")]
    pub arrivals: Option<ArrivalsName>,
    /// Trace: play its times so many times as fast [default: 1, without --concurrency and --rate]
    #[arg(long, value_name = "FACTOR")]
    pub speedup: Option<f64>,
    /// Open loop: most requests at a time; what comes beyond is counted as not sent [default: 1024]
    #[arg(long, value_name = "NUMBER", conflicts_with = "concurrency")]
    pub max_in_flight: Option<usize>,
    /// End after so many requests [default: 200, unless there is --duration or a trace]
    #[arg(long, value_name = "NUMBER")]
    pub requests: Option<u64>,
    /// Send nothing more after so many seconds
    #[arg(long, value_name = "SECONDS")]
    pub duration: Option<f64>,
    /// Requests before the measurement, which are not in the report
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    pub warmup: u64,
    /// Prompt tokens: N, LOW:HIGH or lognormal:MEAN:SIGMA; what is not shared, for prefix-tree and sessions [default: 256]
    #[arg(long, value_name = "LENGTHS")]
    pub prompt_tokens: Option<Lengths>,
    /// Output tokens, likewise [default: 128]
    #[arg(long, value_name = "LENGTHS")]
    pub output_tokens: Option<Lengths>,
    /// Prefix-tree and sessions: number of shared beginnings [default: 8]
    #[arg(long, value_name = "NUMBER")]
    pub prefix_groups: Option<u32>,
    /// Prefix-tree and sessions: tokens of a shared beginning [default: 1024; 0 for sessions]
    #[arg(long, value_name = "NUMBER")]
    pub prefix_tokens: Option<u32>,
    /// Prefix-tree and sessions: levels of a shared beginning; neighbours share all but the last [default: 1]
    #[arg(long, value_name = "NUMBER")]
    pub prefix_depth: Option<u32>,
    /// Sessions: requests of a conversation, at most 4096 [default: 5]
    #[arg(long, value_name = "LENGTHS")]
    pub turns: Option<Lengths>,
    /// Sessions: milliseconds between an answer and the next request [default: 0]
    #[arg(long, value_name = "LENGTHS")]
    pub think_ms: Option<Lengths>,
    /// Token ids are below this
    #[arg(long, value_name = "NUMBER", default_value_t = 1000)]
    pub vocab: u32,
    /// Do not send ignore_eos: answers may be shorter than --output-tokens
    #[arg(long)]
    pub no_ignore_eos: bool,
    /// Fields for each request's body
    #[arg(long, value_name = "JSON")]
    pub extra_body: Option<String>,
    /// A header of each request; may be repeated
    #[arg(long, value_name = "NAME:VALUE")]
    pub header: Vec<String>,
    /// Decides prompts, lengths and arrivals; the same seed gives the same ones
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    pub seed: u64,
    /// Limits that a good request keeps: ttft=500ms,itl=50ms; also max-itl and e2e
    #[arg(long, value_name = "LIMITS")]
    pub slo: Option<Slo>,
    /// A process of the server whose CPU time and memory are reported; may be repeated
    #[arg(long, value_name = "PID")]
    pub pid: Vec<u32>,
    /// Longest life of a request in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    pub timeout: u64,
    /// End with 0 also if requests failed
    #[arg(long)]
    pub allow_errors: bool,
    /// Write the whole report as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write plots as an SVG image
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,
}

/// `--api`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ApiName {
    /// Token ids
    Completions,
    /// Words
    Chat,
}

/// `--workload`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WorkloadName {
    /// Prompts that have nothing in common
    Random,
    /// Prompts with shared beginnings
    PrefixTree,
    /// Conversations, each request with all that was said before
    Sessions,
    /// Recorded requests, see --trace
    Trace,
}

/// `--arrivals`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ArrivalsName {
    /// Independently of each other
    Poisson,
    /// At equal distances
    Constant,
}

/// Runs the load: progress on `err`, the table on `out`. An API key, if the server asks for one, is taken
/// from `key`. Returns the exit code: 0, [`FAILED`] if a request failed and errors are not allowed,
/// [`USAGE`] for wrong arguments, [`UNAVAILABLE`] if the server cannot be reached.
pub fn bench(args: &BenchArgs, key: Option<&str>, out: &mut dyn Write, err: &mut dyn Write) -> u8 {
    let options = match args.options(key) {
        Ok(options) => options,
        Err(why) => {
            let _ = writeln!(err, "cuelight bench: {why}");
            return USAGE;
        }
    };
    allow_many_connections();
    let report = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(async { run(options, signalled()?, err).await }),
        Err(error) => Err(error.into()),
    };
    match report {
        Ok(report) => conclude(args, &report, out, err),
        Err(error) => {
            let _ = writeln!(err, "cuelight bench: {error}");
            if matches!(error, BenchError::NoProcess(_)) { USAGE } else { UNAVAILABLE }
        }
    }
}

/// Ready at the first signal.
fn signalled() -> std::io::Result<impl Future<Output = ()>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

/// A connection is an open file, and shells allow few of them.
fn allow_many_connections() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Without it, connections beyond the limit fail, and say why.
    let _ = setrlimit(Resource::Nofile, limit);
}

fn conclude(args: &BenchArgs, report: &Report, out: &mut dyn Write, err: &mut dyn Write) -> u8 {
    let _ = out.write_all(report.to_text().as_bytes());
    let files = [
        ("json", &args.json, Report::to_json as fn(&Report) -> String),
        ("plot", &args.plot, Report::to_svg),
    ];
    for (flag, file, text) in files {
        if let Some(file) = file
            && let Err(error) = std::fs::write(file, text(report))
        {
            let _ = writeln!(err, "cuelight bench: --{flag} {}: {error}", file.display());
            return USAGE;
        }
    }
    if report.failed() && !args.allow_errors { FAILED } else { 0 }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: BenchArgs,
    }

    fn parsed(words: &[&str]) -> Result<BenchArgs, clap::Error> {
        Line::try_parse_from(["bench"].iter().chain(words)).map(|line| line.args)
    }

    #[test]
    fn a_server_that_is_not_there_is_unavailable_and_a_missing_process_is_usage() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let url = format!("http://{free}");
        for (words, code, message) in [
            (&["--url", &url][..], UNAVAILABLE, "does not answer: no connection"),
            (&["--url", &url, "--model", "m"], UNAVAILABLE, "does not answer: no connection"),
            (&["--url", &url, "--pid", "4294967295"], USAGE, "--pid 4294967295: must be a running"),
        ] {
            let (mut out, mut err) = (Vec::new(), Vec::new());
            assert_eq!(bench(&parsed(words).unwrap(), None, &mut out, &mut err), code, "{words:?}");
            let err = String::from_utf8(err).unwrap();
            assert!(out.is_empty() && err.contains(message), "{err}");
        }
    }
}
