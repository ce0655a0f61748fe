//! Runs one load on one server and reads the server's CPU time and memory around it.

use std::io::{self, Read};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::load::{Load, Outcome};
use crate::process::{Cpu, rss_kib, threads_ns};
use crate::report::Row;
use crate::servers::Target;

/// How often memory is looked at during a load.
const SAMPLE: Duration = Duration::from_millis(100);

/// Runs the load client as a process of its own, to its end.
///
/// # Errors
/// It does not start, or ends with an error.
pub(crate) fn client(load: &Load) -> io::Result<Outcome> {
    watched(load, || Ok(()))
}

/// Measures one load. The server has been warmed up.
///
/// # Errors
/// The client fails, or the server ends.
pub(crate) fn row(target: &Target, load: &Load, pace: Option<Duration>) -> io::Result<Row> {
    let before = Cpu::of(&target.pids)?;
    let threads_before = threads_ns(&target.pids);
    let mut peak_kib = 0;
    let outcome = watched(load, || {
        peak_kib = peak_kib.max(rss_kib(&target.pids)?);
        Ok(())
    })?;
    let cpu = Cpu::of(&target.pids)?.since(before);
    let threads_ms = threads_ns(&target.pids)
        .into_iter()
        .map(|(name, ns)| {
            let before = threads_before.get(&name).copied().unwrap_or(0);
            (name, ns.saturating_sub(before) as f64 / 1e6)
        })
        .collect();
    Ok(Row {
        server: target.name.clone(),
        pace_us: pace.map_or(0, |pace| pace.as_micros() as u64),
        streams: load.streams,
        prompt: load.prompt,
        output: load.output,
        cpu,
        threads_ms,
        rss_kib: peak_kib,
        outcome,
    })
}

fn watched(load: &Load, mut look: impl FnMut() -> io::Result<()>) -> io::Result<Outcome> {
    let mut client = Command::new(std::env::current_exe()?)
        .arg("client")
        .args(load.to_args())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let status = loop {
        look()?;
        if let Some(status) = client.try_wait()? {
            break status;
        }
        std::thread::sleep(SAMPLE);
    };
    // One short line, so that it fits the pipe while nobody reads.
    let mut line = String::new();
    if let Some(mut out) = client.stdout.take() {
        out.read_to_string(&mut line)?;
    }
    if !status.success() {
        return Err(io::Error::other(format!("the load client ended with {status}")));
    }
    Ok(serde_json::from_str(&line)?)
}
