//! Memory a request: thousands held open at once, streaming and waiting.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde::Serialize;

use crate::load::{Held, Load};
use crate::process::rss_kib;
use crate::servers::Target;
use crate::{measure, report};

/// How long memory is left to settle before it is read.
const SETTLE: Duration = Duration::from_secs(3);

/// What holding requests open cost one server.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct MemoryRow {
    pub(crate) server: String,
    pub(crate) prompt: usize,
    pub(crate) streaming: usize,
    pub(crate) waiting: usize,
    /// After a small load, with nothing in flight.
    pub(crate) base_kib: u64,
    pub(crate) streaming_kib: u64,
    pub(crate) waiting_kib: u64,
    /// After the client has hung up on all of them.
    pub(crate) after_kib: u64,
    pub(crate) errors: BTreeMap<String, usize>,
}

/// Holds `load.streams` streaming and then `waiting` more requests open on `target`.
///
/// # Errors
/// The client or the server ends early.
pub(crate) fn run(target: &Target, load: &Load, waiting: usize) -> io::Result<MemoryRow> {
    let warm_up = Load { streams: 64, requests: 128, output: 2, ramp_ms: 0, ..load.clone() };
    measure::client(&warm_up)?;
    std::thread::sleep(SETTLE);
    let base_kib = rss_kib(&target.pids)?;
    let mut client = Command::new(std::env::current_exe()?)
        .arg("hold")
        .args(load.to_args())
        .args(["--waiting", &waiting.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let (Some(mut go_on), Some(lines)) = (client.stdin.take(), client.stdout.take()) else {
        return Err(io::Error::other("the client has no pipes"));
    };
    let mut lines = BufReader::new(lines).lines();
    let mut wave = || -> io::Result<(Held, u64)> {
        let line = lines.next().ok_or_else(|| io::Error::other("the client ended early"))??;
        std::thread::sleep(SETTLE);
        Ok((serde_json::from_str(&line)?, rss_kib(&target.pids)?))
    };
    let (streaming, streaming_kib) = wave()?;
    writeln!(go_on)?;
    let (both, waiting_kib) = wave()?;
    writeln!(go_on)?;
    drop(go_on);
    client.wait()?;
    std::thread::sleep(SETTLE);
    let mut errors = both.errors;
    if streaming.streaming < load.streams {
        errors.insert("not started in time".to_string(), load.streams - streaming.streaming);
    }
    Ok(MemoryRow {
        server: target.name.clone(),
        prompt: load.prompt,
        streaming: streaming.streaming,
        waiting: both.sent - both.streaming,
        base_kib,
        streaming_kib,
        waiting_kib,
        after_kib: rss_kib(&target.pids)?,
        errors,
    })
}

/// The rows as a Markdown table.
pub(crate) fn table(rows: &[MemoryRow]) -> String {
    let mut text = String::from(
        "| server | prompt | idle MiB | streaming | MiB | KiB/streaming | waiting | MiB \
         | KiB/waiting | after hang-up MiB | errors |\n|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    let mib = |kib: u64| kib as f64 / 1024.0;
    let each = |more: u64, less: u64, count: usize| match count {
        0 => "–".to_string(),
        count => format!("{:.1}", (more as f64 - less as f64) / count as f64),
    };
    for row in rows {
        text.push_str(&format!(
            "| {} | {} | {:.0} | {} | {:.0} | {} | {} | {:.0} | {} | {:.0} | {} |\n",
            row.server,
            row.prompt,
            mib(row.base_kib),
            row.streaming,
            mib(row.streaming_kib),
            each(row.streaming_kib, row.base_kib, row.streaming),
            row.waiting,
            mib(row.waiting_kib),
            each(row.waiting_kib, row.streaming_kib, row.waiting),
            mib(row.after_kib),
            report::errors(&row.errors),
        ));
    }
    text
}
