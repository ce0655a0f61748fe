//! Rows and tables.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use crate::load::Outcome;
use crate::process::Cpu;

/// One measured load on one server.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    /// The server.
    pub(crate) server: String,
    /// Time between tokens; 0 for as fast as it can.
    pub(crate) pace_us: u64,
    /// Concurrent streams.
    pub(crate) streams: usize,
    /// Prompt tokens asked for.
    pub(crate) prompt: usize,
    /// Output tokens.
    pub(crate) output: u32,
    /// CPU seconds of the server's processes.
    pub(crate) cpu: Cpu,
    /// CPU milliseconds by thread name.
    pub(crate) threads_ms: BTreeMap<String, f64>,
    /// Most resident memory seen during the load.
    pub(crate) rss_kib: u64,
    /// What the client saw.
    pub(crate) outcome: Outcome,
}

impl Row {
    /// CPU microseconds a token.
    pub(crate) fn us_per_token(&self) -> f64 {
        self.cpu.total_s() * 1e6 / (self.outcome.tokens.max(1) as f64)
    }

    fn ms_per_request(&self) -> f64 {
        self.cpu.total_s() * 1e3 / (self.outcome.requests.max(1) as f64)
    }
}

/// The median of each server's repetitions by CPU per token, servers in order of appearance.
pub(crate) fn medians(rows: Vec<Row>) -> Vec<Row> {
    let mut by_server: Vec<Vec<Row>> = Vec::new();
    for row in rows {
        match by_server.iter_mut().find(|same| same[0].server == row.server) {
            Some(same) => same.push(row),
            None => by_server.push(vec![row]),
        }
    }
    by_server
        .into_iter()
        .map(|mut same| {
            same.sort_by(|a, b| a.us_per_token().total_cmp(&b.us_per_token()));
            same.swap_remove((same.len() - 1) / 2)
        })
        .collect()
}

/// The rows as a Markdown table; the first row is what the others are compared with.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut text = String::from(
        "| server | pace | streams | prompt | output | requests | tokens | CPU µs/token \
         | × first row | CPU ms/request | user share | RSS MiB | TTFT p50/p99 ms | ITL p50/p99 ms \
         | tokens/s | errors |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for row in rows {
        let outcome = &row.outcome;
        let pace = match row.pace_us {
            0 => "none".to_string(),
            us => format!("{:.1} ms", us as f64 / 1e3),
        };
        let [ttft50, ttft99] = outcome.ttft_ms;
        let [itl50, itl99] = outcome.itl_ms;
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "| {} | {pace} | {} | {} | {} | {} | {} | {:.2} | {:.2} | {:.3} | {:.0} % | {:.1} \
             | {ttft50:.1} / {ttft99:.1} | {itl50:.1} / {itl99:.1} | {:.0} | {} |",
            row.server,
            row.streams,
            outcome.prompt_tokens / outcome.requests.max(1) as u64,
            row.output,
            outcome.requests,
            outcome.tokens,
            row.us_per_token(),
            row.us_per_token() / rows[0].us_per_token(),
            row.ms_per_request(),
            100.0 * row.cpu.user_s / row.cpu.total_s().max(1e-9),
            row.rss_kib as f64 / 1024.0,
            outcome.tokens as f64 / outcome.wall_s,
            errors(&outcome.errors),
        );
    }
    text
}

/// Where the CPU time went, thread by thread.
pub(crate) fn threads(rows: &[Row]) -> String {
    let mut text = String::new();
    for row in rows {
        let names: Vec<String> = row
            .threads_ms
            .iter()
            .filter(|(_, ms)| **ms >= 1.0)
            .map(|(name, ms)| format!("{name} {:.2}", ms * 1e3 / row.outcome.tokens.max(1) as f64))
            .collect();
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{}: CPU µs/token by thread: {}", row.server, names.join(", "));
    }
    text
}

/// Errors with their counts; "0" if there were none.
pub(crate) fn errors(errors: &BTreeMap<String, usize>) -> String {
    if errors.is_empty() {
        return "0".to_string();
    }
    errors.iter().map(|(why, count)| format!("{count} × {why}")).collect::<Vec<_>>().join(", ")
}
