//! `cuelight bench`: a load generator for servers with an OpenAI API.
//!
//! One thread drives everything, so that what it takes itself is small and known: connections are kept,
//! all share one buffer, an event with a token is recognized by a search and never read as JSON.
//!
//! ```text
//! options → run ─┬─ workload ─ draw, lengths, trace   what is asked, a function of the seed
//!                ├─ alarm                             open loops, on time
//!                ├─ prompt                            requests as bytes
//!                ├─ client ─ http ─ answer ─ sse      answers, as they come
//!                ├─ record ─ histogram, slo           what was measured, in bounded memory
//!                └─ report ─ table, plot              what is told
//! ```

mod alarm;
mod answer;
mod client;
mod draw;
mod histogram;
mod http;
mod lengths;
mod options;
mod plot;
mod process;
mod progress;
mod prompt;
mod record;
mod report;
mod run;
mod slo;
mod sse;
mod table;
pub mod trace;
mod workload;

pub use lengths::Lengths;
pub use options::{Arrivals, Load, Options};
pub use process::Taken;
pub use prompt::{Api, OWN_KEYS};
pub use report::Report;
pub use run::{BenchError, run};
pub use slo::Slo;
pub use trace::{Entry, TraceError, read as read_trace};
pub use workload::{Tree, Workload};
