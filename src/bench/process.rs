//! CPU time and memory of processes, as `/proc` tells them.

use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

/// Clock ticks in a second, as `/proc` counts them: part of Linux's interface (`USER_HZ`).
const TICKS: f64 = 100.0;

/// One reading.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Reading {
    cpu_s: f64,
    rss_kib: u64,
}

/// A process under observation.
#[derive(Debug)]
pub(super) struct Watched {
    pid: u32,
    name: String,
    before: Reading,
    last: Reading,
    peak_kib: u64,
    ended: bool,
}

/// What a process took from the start of a run to its end.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Taken {
    pub(super) pid: u32,
    pub(super) name: String,
    /// User and system time.
    pub(super) cpu_s: f64,
    /// For each complete request.
    pub(super) cpu_ms_per_request: f64,
    /// For each token that came.
    pub(super) cpu_us_per_token: f64,
    pub(super) rss_mib_before: f64,
    pub(super) rss_mib_peak: f64,
    pub(super) rss_mib_after: f64,
    /// It ended during the run; its figures are those of the last look.
    pub(super) ended: bool,
}

impl Watched {
    /// Starts to watch; `None` if there is no such process.
    pub(super) fn start(pid: u32) -> Option<Self> {
        let before = read(pid)?;
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim().to_owned();
        Some(Self { pid, name, before, last: before, peak_kib: before.rss_kib, ended: false })
    }

    /// Measures from now on.
    pub(super) fn restart(&mut self) {
        self.look();
        self.before = self.last;
        self.peak_kib = self.last.rss_kib;
    }

    /// Looks how it is now.
    pub(super) fn look(&mut self) {
        match read(self.pid) {
            Some(now) => {
                self.last = now;
                self.peak_kib = self.peak_kib.max(now.rss_kib);
            }
            None => self.ended = true,
        }
    }

    pub(super) fn taken(&self, requests: u64, tokens: u64) -> Taken {
        let cpu_s = self.last.cpu_s - self.before.cpu_s;
        let per =
            |count: u64, unit: f64| if count == 0 { 0.0 } else { cpu_s * unit / count as f64 };
        let mib = |kib: u64| kib as f64 / 1024.0;
        Taken {
            pid: self.pid,
            name: self.name.clone(),
            cpu_s,
            cpu_ms_per_request: per(requests, 1e3),
            cpu_us_per_token: per(tokens, 1e6),
            rss_mib_before: mib(self.before.rss_kib),
            rss_mib_peak: mib(self.peak_kib),
            rss_mib_after: mib(self.last.rss_kib),
            ended: self.ended,
        }
    }
}

fn read(pid: u32) -> Option<Reading> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let cpu_s = if pid == std::process::id() {
        // Of itself a process knows it to the nanosecond, of others to a clock tick.
        let time = clock_gettime(ClockId::ProcessCPUTime);
        time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
    } else {
        cpu_s(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?
    };
    Some(Reading { cpu_s, rss_kib: rss_kib(&status)? })
}

/// User and system time; the name in brackets may contain anything.
fn cpu_s(stat: &str) -> Option<f64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let [user, system] = [fields.next()?, fields.next()?].map(str::parse::<f64>);
    Some((user.ok()? + system.ok()?) / TICKS)
}

fn rss_kib(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_behind_any_name() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 9 0 0 0 150 50 0 0 20 0 1 0 5 9 9";
        assert_eq!(cpu_s(stat), Some(2.0));
        assert_eq!(rss_kib("Name:\tx\nVmRSS:\t  2048 kB\n"), Some(2048));
        assert_eq!((cpu_s("7 (x"), rss_kib("Name: x")), (None, None));
    }

    #[test]
    fn this_process_is_watched_and_a_missing_one_is_not() {
        let mut watched = Watched::start(std::process::id()).unwrap();
        let ballast = vec![1_u8; 64 << 20];
        let busy = std::time::Instant::now();
        let mut sum = 0_u64;
        while busy.elapsed().as_millis() < 60 {
            sum += ballast.iter().map(|&byte| u64::from(byte)).sum::<u64>();
        }
        watched.look();
        let taken = watched.taken(10, 1000);
        assert!(sum > 0 && taken.cpu_s > 0.0 && !taken.ended, "{taken:?}");
        assert!((taken.cpu_ms_per_request - taken.cpu_s * 100.0).abs() < 1e-6);
        assert!((taken.cpu_us_per_token - taken.cpu_s * 1e3).abs() < 1e-6);
        assert!(taken.rss_mib_peak >= taken.rss_mib_before && taken.rss_mib_after > 60.0);
        assert!(Watched::start(u32::MAX).is_none());
    }
}
