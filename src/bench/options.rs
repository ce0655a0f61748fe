//! What a run is told, already checked.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Map, Value};

use super::prompt::Api;
use super::slo::Slo;
use super::workload::Workload;

/// How requests are spread over time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Load {
    /// So many clients, each of which sends its next request after the answer to the one before.
    Closed {
        /// Clients.
        concurrency: usize,
    },
    /// Jobs come whether or not earlier ones are done.
    Open {
        /// When they come.
        arrivals: Arrivals,
        /// Most jobs at a time; one that comes beyond it is not sent.
        max_in_flight: usize,
    },
}

/// When jobs come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arrivals {
    /// Independently of each other, so many a second on average.
    Poisson(f64),
    /// At equal distances, so many a second.
    Constant(f64),
    /// As in the trace, so many times as fast.
    Trace(f64),
}

/// All that a run is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// The server, as it was named.
    pub url: String,
    /// Where it may listen; the first that accepts a connection is used.
    pub addresses: Vec<SocketAddr>,
    /// `Host` of the requests.
    pub host: String,
    /// The model; without one, the first that the server lists.
    pub model: Option<String>,
    /// Which API is asked.
    pub api: Api,
    /// What is asked.
    pub workload: Workload,
    /// When it is asked.
    pub load: Load,
    /// Ends the run after so many requests.
    pub requests: Option<u64>,
    /// Sends nothing more after so long.
    pub duration: Option<Duration>,
    /// Requests before the measurement.
    pub warmup: u64,
    /// Token ids are below this.
    pub vocab: u32,
    /// Ask for exactly the output length.
    pub ignore_eos: bool,
    /// Put into each body.
    pub extra: Map<String, Value>,
    /// Sent with each request, beside those that every request has.
    pub headers: Vec<(String, String)>,
    /// Decides the prompts, the lengths and the arrivals.
    pub seed: u64,
    /// What makes a request good.
    pub slo: Option<Slo>,
    /// Processes whose CPU time and memory are reported.
    pub pids: Vec<u32>,
    /// Longest life of a request.
    pub timeout: Duration,
    /// Standard error is a terminal: draw a bar instead of lines.
    pub terminal: bool,
}
