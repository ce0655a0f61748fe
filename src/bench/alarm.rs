//! Waits that end on time: the runtime's own timers count whole milliseconds, too coarse for arrivals.

use std::io;
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::net::unix::pipe::Receiver;

/// A timer of the kernel's. It is read like a pipe: eight bytes, once the time has come.
#[derive(Debug)]
pub(super) struct Alarm {
    timer: Receiver,
}

impl Alarm {
    /// # Errors
    /// The system has no timer to give.
    pub(super) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        Ok(Self { timer: Receiver::from_owned_fd_unchecked(timer)? })
    }

    /// Waits for so long.
    ///
    /// # Errors
    /// The timer is broken.
    pub(super) async fn wait(&self, time: Duration) -> io::Result<()> {
        if time.is_zero() {
            return Ok(());
        }
        let once = Itimerspec {
            it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: Timespec {
                tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: time.subsec_nanos().into(),
            },
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once)?;
        loop {
            self.timer.readable().await?;
            match self.timer.try_read(&mut [0; 8]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return other.map(|_| ()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[tokio::test]
    async fn a_wait_is_never_too_short() {
        let alarm = Alarm::new().unwrap();
        for micros in [0, 1, 150, 2_000, 150] {
            let (time, start) = (Duration::from_micros(micros), Instant::now());
            alarm.wait(time).await.unwrap();
            assert!(start.elapsed() >= time, "{micros} µs");
        }
    }
}
