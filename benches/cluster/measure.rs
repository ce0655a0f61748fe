//! CPU time for each token, of a worker's process and of a front end's.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::Outcome;
use crate::process::{Cpu, threads_ns};

/// Streams that get a token in each step.
pub(crate) const STREAMS: usize = 256;
/// Time of a step: 200 tokens a second for each stream.
pub(crate) const STEP: Duration = Duration::from_millis(5);

/// CPU microseconds a token.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Sides {
    /// Of the worker's process; 0 if it is the front end's.
    pub(crate) worker: f64,
    /// Of the front end's process.
    pub(crate) front: f64,
    /// Threads of either, by name.
    pub(crate) threads: [Vec<(String, f64)>; 2],
    /// Tokens a second.
    pub(crate) rate: f64,
}

/// A measurement under way.
pub(crate) struct Meter {
    pids: [Option<u32>; 2],
    cpu: [Cpu; 2],
    threads: [std::collections::BTreeMap<String, u64>; 2],
    tokens: u64,
    began: std::time::Instant,
}

impl Meter {
    /// Begins, with so many tokens delivered already.
    ///
    /// # Errors
    /// A process has ended.
    pub(crate) fn start(pids: [Option<u32>; 2], tokens: u64) -> Outcome<Self> {
        let of = |pid: Option<u32>| Cpu::of(pid.as_slice());
        let cpu = [of(pids[0])?, of(pids[1])?];
        let threads = pids.map(|pid| threads_ns(pid.as_slice()));
        Ok(Self { pids, cpu, threads, tokens, began: std::time::Instant::now() })
    }

    /// Ends it.
    ///
    /// # Errors
    /// A process has ended, or no token came.
    pub(crate) fn stop(self, tokens: u64) -> Outcome<Sides> {
        let seconds = self.began.elapsed().as_secs_f64();
        let tokens = tokens.checked_sub(self.tokens).filter(|more| *more > 0).ok_or("no tokens")?;
        let each = |side: usize| -> Outcome<f64> {
            let now = Cpu::of(self.pids[side].as_slice())?;
            Ok(now.since(self.cpu[side]).total_s() * 1e6 / tokens as f64)
        };
        let threads = [0, 1].map(|side| {
            let now = threads_ns(self.pids[side].as_slice()).into_iter();
            let us = now.map(|(name, ns)| {
                let before = self.threads[side].get(&name).copied().unwrap_or(0);
                (name, ns.saturating_sub(before) as f64 / 1e3 / tokens as f64)
            });
            us.filter(|(_, us)| *us >= 0.005).collect()
        });
        Ok(Sides { worker: each(0)?, front: each(1)?, threads, rate: tokens as f64 / seconds })
    }
}
