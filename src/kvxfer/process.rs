//! Whether another process of this host is still there: the proof that it touches nothing any more.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;

use bincode::{Decode, Encode};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::time::Timespec;

/// One life of one process of one host.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Process {
    /// `/proc/sys/kernel/random/boot_id`: which host, and since when it runs.
    boot: String,
    /// Inode of its PID namespace: which numbers its `pid` is one of.
    namespace: u64,
    pid: u32,
    /// When it started, in clock ticks since the boot: tells it from a later one of the same number.
    start: u64,
}

impl Process {
    /// This process; `None` where `/proc` does not say.
    pub fn me() -> Option<Self> {
        let pid = std::process::id();
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?.trim().to_owned();
        let namespace = fs::metadata("/proc/self/ns/pid").ok()?.ino();
        Some(Self { boot, namespace, pid, start: start_of(pid)? })
    }
}

/// An eye on one process.
#[derive(Debug)]
pub enum Watch {
    /// It lived when the watch began.
    Living(OwnedFd),
    /// It was gone already.
    Gone,
}

impl Watch {
    /// Begins to watch; `None` for a process that cannot be seen from here (another host or
    /// container), of which nothing can be proven.
    pub fn new(process: &Process) -> Option<Self> {
        let me = Process::me()?;
        if (&me.boot, me.namespace) != (&process.boot, process.namespace) {
            return None;
        }
        let pid = Pid::from_raw(i32::try_from(process.pid).ok()?)?;
        match pidfd_open(pid, PidfdFlags::empty()) {
            // Looked at after the opening: the descriptor cannot be of a later process then.
            Ok(fd) if start_of(process.pid) == Some(process.start) => Some(Self::Living(fd)),
            Ok(_) | Err(rustix::io::Errno::SRCH) => Some(Self::Gone),
            Err(_) => None, // no such call here: an old kernel, or a sandbox
        }
    }

    /// Whether it has ended, reaped or not.
    pub fn has_ended(&self) -> bool {
        let Self::Living(fd) = self else { return true };
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&now)).is_ok_and(|ready| ready > 0)
    }
}

/// Field 22 of `/proc/PID/stat`; the name before it may hold anything.
fn start_of(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_process_is_seen_before_anybody_reaps_it() {
        let me = Process::me().unwrap();
        assert!(!Watch::new(&me).unwrap().has_ended());
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let pid = child.id();
        let other = Process { pid, start: start_of(pid).unwrap(), ..me.clone() };
        let watch = Watch::new(&other).unwrap();
        assert!(!watch.has_ended());
        child.kill().unwrap();
        let Watch::Living(fd) = &watch else { panic!("it lived") };
        poll(&mut [PollFd::new(fd, PollFlags::IN)], None).unwrap();
        assert!(watch.has_ended());
        child.wait().unwrap();
        assert!(Watch::new(&other).unwrap().has_ended());
        let earlier = Process { start: me.start - 1, ..me.clone() };
        assert!(Watch::new(&earlier).unwrap().has_ended(), "a number that was given again");
        let elsewhere = Process { boot: "another".into(), ..me };
        assert!(Watch::new(&elsewhere).is_none());
    }
}
