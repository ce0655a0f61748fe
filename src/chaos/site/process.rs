//! One process of the cluster: start, signal, end, and what it uses.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use serde::Serialize;
use tokio::process::{Child, Command};

/// How a process is started, each time.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<OsString>,
    /// The network namespace it runs in.
    pub(crate) namespace: Option<String>,
    pub(crate) env: Vec<(String, String)>,
    /// Standard output and error go here, after what is there.
    pub(crate) log: PathBuf,
}

/// A signal that the harness sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    Kill,
    Stop,
    Continue,
    Terminate,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Code(i32),
    Signal(i32),
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

impl From<ExitStatus> for Ended {
    fn from(status: ExitStatus) -> Self {
        match status.code() {
            Some(code) => Self::Code(code),
            None => Self::Signal(status.signal().unwrap_or(0)),
        }
    }
}

/// What a process holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Usage {
    /// Resident memory in KiB.
    pub(crate) rss_kib: u64,
    /// Open descriptors.
    pub(crate) fds: usize,
    /// How many of them are sockets.
    pub(crate) sockets: usize,
}

/// A running process; dropping it kills it.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    pid: u32,
}

impl Process {
    /// Starts it. Its process group is its own, so that a signal to the harness is not one to it.
    pub(crate) fn start(launch: &Launch) -> io::Result<Self> {
        let log: File = OpenOptions::new().create(true).append(true).open(&launch.log)?;
        let mut command = match &launch.namespace {
            // `ip netns exec` becomes the program, so the process id is the program's.
            Some(namespace) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", namespace]).arg(&launch.program);
                command
            }
            None => Command::new(&launch.program),
        };
        command
            .args(&launch.args)
            .envs(launch.env.iter().cloned())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .kill_on_drop(true);
        let child = command.spawn()?;
        let pid = child.id().ok_or_else(|| io::Error::other("ended at once"))?;
        Ok(Self { child, pid })
    }

    /// Sends a signal; one to a process that has ended is lost.
    pub(crate) fn signal(&self, signal: Signal) {
        let signal = match signal {
            Signal::Kill => rustix::process::Signal::KILL,
            Signal::Stop => rustix::process::Signal::STOP,
            Signal::Continue => rustix::process::Signal::CONT,
            Signal::Terminate => rustix::process::Signal::TERM,
        };
        // While the child was not waited for, its id belongs to nobody else.
        if self.child.id().is_some()
            && let Some(pid) = i32::try_from(self.pid).ok().and_then(rustix::process::Pid::from_raw)
        {
            let _ = rustix::process::kill_process(pid, signal);
        }
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<Ended> {
        self.child.try_wait().ok().flatten().map(Ended::from)
    }

    /// Waits for its end; `None` if it goes on for longer than `limit`.
    pub(crate) async fn end_within(&mut self, limit: Duration) -> Option<Ended> {
        let status = tokio::time::timeout(limit, self.child.wait()).await.ok()?;
        status.ok().map(Ended::from)
    }

    /// What it holds now; `None` if it has ended.
    pub(crate) fn usage(&self) -> Option<Usage> {
        let base = PathBuf::from(format!("/proc/{}", self.pid));
        let status = std::fs::read_to_string(base.join("status")).ok()?;
        let mut usage = Usage { rss_kib: rss_kib(&status)?, ..Usage::default() };
        for entry in std::fs::read_dir(base.join("fd")).ok()?.flatten() {
            usage.fds += 1;
            // A descriptor that was closed meanwhile has no target any more.
            if let Ok(target) = std::fs::read_link(entry.path())
                && target.to_string_lossy().starts_with("socket:")
            {
                usage.sockets += 1;
            }
        }
        Some(usage)
    }
}

fn rss_kib(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(script: &str) -> Process {
        let launch = Launch {
            program: "sh".into(),
            args: vec!["-c".into(), script.into()],
            namespace: None,
            env: vec![("CODE".into(), "7".into())],
            log: "/dev/null".into(),
        };
        Process::start(&launch).unwrap()
    }

    #[tokio::test]
    async fn a_process_ends_with_its_code_or_its_signal() {
        let limit = Duration::from_secs(20);
        let mut ends = launch("exit $CODE");
        assert_eq!(ends.end_within(limit).await, Some(Ended::Code(7)));
        ends.signal(Signal::Kill); // lost, and not on anybody else
        let mut waits = launch("sleep 60");
        assert!(waits.ended().is_none());
        assert!(waits.usage().unwrap().rss_kib > 0);
        waits.signal(Signal::Stop);
        assert_eq!(waits.end_within(Duration::from_millis(20)).await, None);
        waits.signal(Signal::Continue);
        waits.signal(Signal::Kill);
        assert_eq!(waits.end_within(limit).await, Some(Ended::Signal(9)));
    }

    #[test]
    fn resident_memory_is_read_from_the_status() {
        assert_eq!(rss_kib("Name:\tx\nVmRSS:\t  1234 kB\n"), Some(1234));
        assert_eq!(rss_kib("Name:\tx\n"), None);
    }
}
