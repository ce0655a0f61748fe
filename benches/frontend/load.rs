//! What the load client is told, and what it reports: arguments in, one line of JSON out.

use std::collections::BTreeMap;
use std::io::{self, BufRead, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::client::Client;

/// One closed-loop load.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Load {
    /// Where the server listens; a loopback address
    #[arg(long)]
    pub(crate) addr: SocketAddr,
    /// Model name in the requests
    #[arg(long)]
    pub(crate) model: String,
    /// Concurrent streams, one connection each
    #[arg(long)]
    pub(crate) streams: usize,
    /// Requests in all
    #[arg(long)]
    pub(crate) requests: usize,
    /// Prompt tokens, about
    #[arg(long)]
    pub(crate) prompt: usize,
    /// Output tokens, exactly
    #[arg(long)]
    pub(crate) output: u32,
    /// Time over which the first requests of the streams are spread
    #[arg(long)]
    pub(crate) ramp_ms: u64,
    /// Seed of the prompts
    #[arg(long)]
    pub(crate) seed: u64,
}

impl Load {
    /// Time over which the streams start.
    pub(crate) fn ramp(&self) -> Duration {
        Duration::from_millis(self.ramp_ms)
    }

    /// The command line that carries this load to the client process.
    pub(crate) fn to_args(&self) -> Vec<String> {
        [
            ("--addr", self.addr.to_string()),
            ("--model", self.model.clone()),
            ("--streams", self.streams.to_string()),
            ("--requests", self.requests.to_string()),
            ("--prompt", self.prompt.to_string()),
            ("--output", self.output.to_string()),
            ("--ramp-ms", self.ramp_ms.to_string()),
            ("--seed", self.seed.to_string()),
        ]
        .into_iter()
        .flat_map(|(name, value)| [name.to_string(), value])
        .collect()
    }
}

/// What a load came to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// Requests answered in full.
    pub(crate) requests: usize,
    /// Tokens of those, by `usage`.
    pub(crate) tokens: u64,
    /// Events with text of those.
    pub(crate) events: u64,
    /// Prompt tokens of those, by `usage`.
    pub(crate) prompt_tokens: u64,
    /// Length of the run.
    pub(crate) wall_s: f64,
    /// Time to the first text: p50, p99.
    pub(crate) ttft_ms: [f64; 2],
    /// Time between texts: p50, p99.
    pub(crate) itl_ms: [f64; 2],
    /// Requests that failed, by reason.
    pub(crate) errors: BTreeMap<String, usize>,
}

/// Progress of `hold`, one line of JSON each.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Held {
    /// Requests sent.
    pub(crate) sent: usize,
    /// Requests whose first text has come.
    pub(crate) streaming: usize,
    /// Requests that failed or ended.
    pub(crate) errors: BTreeMap<String, usize>,
}

/// How long `hold` waits for a wave of requests to be where it should be.
const WAVE_LIMIT: Duration = Duration::from_secs(120);

/// Opens `load.streams` streams and, when a line comes on standard input, `waiting` requests more
/// that the server cannot start yet; reports after each, and keeps all open until the next line.
///
/// # Errors
/// Sockets fail, or a wave is not complete in time.
pub(crate) fn hold(load: &Load, waiting: usize) -> io::Result<()> {
    let lines = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&lines);
    std::thread::spawn(move || {
        for _line in io::stdin().lock().lines() {
            seen.fetch_add(1, Ordering::Relaxed);
        }
        seen.store(usize::MAX / 2, Ordering::Relaxed);
    });
    let mut client = Client::new(load.addr, &load.model, load.prompt, load.output, load.seed)?;
    let mut events = mio::Events::with_capacity(4096);
    for (wave, target) in [load.streams, load.streams + waiting].into_iter().enumerate() {
        let start = Instant::now();
        let mut opened = client.written;
        let complete = |client: &Client| {
            if wave == 0 { client.first_texts >= target } else { client.written >= target }
        };
        while !complete(&client) {
            while opened < target && client.may_open() {
                client.open()?;
                opened += 1;
            }
            client.turn(&mut events, 10)?;
            if start.elapsed() > WAVE_LIMIT || !client.errors().is_empty() {
                break;
            }
        }
        report(&client)?;
        while lines.load(Ordering::Relaxed) <= wave {
            client.turn(&mut events, 50)?;
        }
    }
    report(&client)
}

fn report(client: &Client) -> io::Result<()> {
    let held = Held {
        sent: client.written,
        streaming: client.first_texts,
        errors: client.errors().clone(),
    };
    print_line(&held)
}

/// Prints `value` as one line of JSON.
///
/// # Errors
/// Standard output is closed.
pub(crate) fn print_line(value: &impl Serialize) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, value)?;
    writeln!(out)?;
    out.flush()
}
