//! What the operating system says about this process, read from `/proc/self` at each scrape.

use std::fmt;
use std::fs;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// Clock ticks in a second, as `/proc` counts them: part of Linux's interface (`USER_HZ`).
const TICKS: f64 = 100.0;

/// Exports `process_*` under the names every Prometheus client uses. Exports nothing where there is
/// no `/proc`.
#[derive(Debug)]
pub(super) struct Process;

/// One reading.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Reading {
    /// User and system time.
    cpu_seconds: f64,
    /// Unix time of the start.
    start_seconds: f64,
    /// Resident memory.
    resident_bytes: u64,
    /// Address space.
    virtual_bytes: u64,
    /// Threads.
    threads: u64,
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        if let Some(now) = read() {
            counter(&mut encoder, "cpu_seconds", "User and system CPU time.", now.cpu_seconds)?;
            let help = "Start of the process in seconds since the Unix epoch.";
            gauge(&mut encoder, "start_time_seconds", help, now.start_seconds)?;
            let help = "Resident memory in bytes.";
            gauge(&mut encoder, "resident_memory_bytes", help, now.resident_bytes as f64)?;
            let help = "Virtual memory in bytes.";
            gauge(&mut encoder, "virtual_memory_bytes", help, now.virtual_bytes as f64)?;
            gauge(&mut encoder, "threads", "Threads of the process.", now.threads as f64)?;
        }
        if let Ok(open) = fs::read_dir("/proc/self/fd") {
            // One of them is the directory that we are reading.
            let open = open.count().saturating_sub(1);
            gauge(&mut encoder, "open_fds", "Open file descriptors.", open as f64)?;
        }
        if let Some(overflows) = listen_overflows() {
            let help = "Connections that the kernel dropped because a backlog was full, of all \
                        processes in this network namespace.";
            counter(&mut encoder, "network_listen_overflows", help, overflows)?;
        }
        if let Some(limit) = fd_limit() {
            gauge(&mut encoder, "max_fds", "Most file descriptors that may be open.", limit)?;
        }
        Ok(())
    }
}

fn counter(to: &mut DescriptorEncoder, name: &str, help: &str, value: f64) -> fmt::Result {
    let metric = ConstCounter::new(value);
    let name = format!("process_{name}");
    metric.encode(to.encode_descriptor(&name, help, None, metric.metric_type())?)
}

fn gauge(to: &mut DescriptorEncoder, name: &str, help: &str, value: f64) -> fmt::Result {
    let metric = ConstGauge::new(value);
    let name = format!("process_{name}");
    metric.encode(to.encode_descriptor(&name, help, None, metric.metric_type())?)
}

fn read() -> Option<Reading> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let boot = fs::read_to_string("/proc/stat").ok()?;
    parse(&stat, &status, &boot)
}

fn parse(stat: &str, status: &str, boot: &str) -> Option<Reading> {
    // The second field is the program's name in brackets, which may hold spaces and brackets.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
    let kib = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    };
    let booted: f64 =
        boot.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    Some(Reading {
        cpu_seconds: (field(14)? + field(15)?) / TICKS,
        start_seconds: booted + field(22)? / TICKS,
        resident_bytes: kib("VmRSS:")? * 1024,
        virtual_bytes: kib("VmSize:")? * 1024,
        threads: field(20)? as u64,
    })
}

/// Two lines for each group: names, then values.
fn listen_overflows() -> Option<f64> {
    let netstat = fs::read_to_string("/proc/self/net/netstat").ok()?;
    let mut lines = netstat.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = (lines.next()?.split_whitespace(), lines.next()?.split_whitespace());
    names.zip(values).find(|(name, _)| *name == "ListenOverflows")?.1.parse().ok()
}

fn fd_limit() -> Option<f64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_files_are_read_whatever_the_program_is_called() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 5 0 0 0 150 50 0 0 20 0 9 0 1234 1 2 3";
        let status = "Name:\ta) b\nVmSize:\t    2048 kB\nVmRSS:\t    1024 kB\nThreads:\t9\n";
        let reading = parse(stat, status, "cpu 1 2\nbtime 1700000000\n").unwrap();
        let expected = Reading {
            cpu_seconds: 2.0,
            start_seconds: 1_700_000_012.34,
            resident_bytes: 1 << 20,
            virtual_bytes: 2 << 20,
            threads: 9,
        };
        assert_eq!(reading, expected);
    }

    #[test]
    fn a_strange_proc_gives_nothing_instead_of_a_panic() {
        for stat in ["", ")", "1 (x) S", "1 (x) S 1 2 x y z"] {
            assert_eq!(parse(stat, "VmRSS: 1 kB\nVmSize: 1 kB", "btime 1"), None, "{stat}");
        }
    }

    #[test]
    fn this_process_can_be_read() {
        let reading = read().unwrap();
        assert!(reading.resident_bytes > 0 && reading.threads > 0, "{reading:?}");
        assert!(fd_limit().unwrap() > 0.0);
        assert!(listen_overflows().unwrap() >= 0.0);
    }
}
