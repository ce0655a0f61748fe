//! Child processes, and what `/proc` says about them: CPU seconds, memory, threads.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde::{Deserialize, Serialize};

/// Clock ticks a second in `/proc/PID/stat`; the kernel's user interface fixes it.
const TICKS_PER_SECOND: f64 = 100.0;

/// A server started by this program; killed when dropped.
pub(crate) struct Server {
    child: Child,
}

impl Server {
    /// Starts `command` with its log in `log`.
    ///
    /// # Errors
    /// The program or the log file cannot be opened.
    pub(crate) fn start(command: &mut Command, log: &Path) -> io::Result<Self> {
        if let Some(folder) = log.parent() {
            fs::create_dir_all(folder)?;
        }
        let log = File::create(log)?;
        let child = command.stdin(Stdio::null()).stderr(log).spawn()?;
        Ok(Self { child })
    }

    /// The process.
    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.child
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// CPU time that processes have used so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Cpu {
    /// In user space.
    pub(crate) user_s: f64,
    /// In the kernel.
    pub(crate) system_s: f64,
}

impl Cpu {
    /// User and system seconds of `pids` together, ended threads included.
    ///
    /// # Errors
    /// A process has ended.
    pub(crate) fn of(pids: &[u32]) -> io::Result<Self> {
        let mut sum = Self::default();
        for pid in pids {
            let stat = read(format!("/proc/{pid}/stat"))?;
            let [user, system] = ticks(&stat);
            sum.user_s += user;
            sum.system_s += system;
        }
        Ok(sum)
    }

    /// Both together.
    pub(crate) fn total_s(self) -> f64 {
        self.user_s + self.system_s
    }

    /// What was used since `before`.
    pub(crate) fn since(self, before: Self) -> Self {
        Self { user_s: self.user_s - before.user_s, system_s: self.system_s - before.system_s }
    }
}

/// Nanoseconds on a CPU of every living thread of `pids`, by thread name.
pub(crate) fn threads_ns(pids: &[u32]) -> BTreeMap<String, u64> {
    let mut by_name = BTreeMap::new();
    for pid in pids {
        let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { continue };
        for task in tasks.flatten() {
            // A thread may end between the listing and the reading.
            let (Ok(name), Ok(times)) = (
                fs::read_to_string(task.path().join("comm")),
                fs::read_to_string(task.path().join("schedstat")),
            ) else {
                continue;
            };
            let on_cpu = times.split(' ').next().and_then(|ns| ns.parse::<u64>().ok());
            let name = name.trim().trim_end_matches(|last: char| last.is_ascii_digit());
            *by_name.entry(name.to_string()).or_default() += on_cpu.unwrap_or(0);
        }
    }
    by_name
}

/// Resident memory of `pids` together, in KiB.
///
/// # Errors
/// A process has ended.
pub(crate) fn rss_kib(pids: &[u32]) -> io::Result<u64> {
    let mut sum = 0;
    for pid in pids {
        let status = read(format!("/proc/{pid}/status"))?;
        sum += status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .and_then(|value| value.split_whitespace().next()?.parse::<u64>().ok())
            .unwrap_or(0);
    }
    Ok(sum)
}

fn read(path: String) -> io::Result<String> {
    fs::read_to_string(&path)
        .map_err(|error| io::Error::new(error.kind(), format!("{path}: {error}; has it ended?")))
}

/// utime and stime in seconds; the name in parentheses may hold anything.
fn ticks(stat: &str) -> [f64; 2] {
    let after_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    let mut fields = after_name.split(' ').skip(11);
    [(); 2].map(|()| {
        let ticks = fields.next().and_then(|field| field.parse::<f64>().ok());
        ticks.unwrap_or(0.0) / TICKS_PER_SECOND
    })
}
