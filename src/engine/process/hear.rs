//! Hears what an engine's process says, and notices when it should have said something.

use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::frames::Frames;
use super::line::Line;
use super::{Limits, Report, lost};
use crate::engine::EngineError;

/// What has been waited for, and how long. Only time between looks counts, and of that no more than is
/// usual: while this process stands still, nobody else is silent.
struct Watch {
    limits: Limits,
    tick: Duration,
    looked: Instant,
    quiet: Duration,
    stuck: Duration,
}

/// The life of the hearing thread; it ends when nothing more can come.
pub(super) fn hear(line: &Line, mut socket: UnixStream, limits: Limits) {
    let tick = limits.beat().min(limits.step / 8).max(Duration::from_millis(1));
    let zero = Duration::ZERO;
    let mut watch = Watch { limits, tick, looked: Instant::now(), quiet: zero, stuck: zero };
    if let Err(error) = socket.set_read_timeout(Some(tick)) {
        return line.lose(lost("loading", error));
    }
    let mut frames = Frames::default();
    let why = loop {
        match turn(line, &mut socket, &mut frames, &mut watch) {
            Ok(()) => {}
            Err(why) => break why,
        }
    };
    line.lose(why);
}

fn turn(
    line: &Line,
    socket: &mut UnixStream,
    frames: &mut Frames,
    watch: &mut Watch,
) -> Result<(), EngineError> {
    let during = || if line.is_open() { "a step" } else { "loading" };
    let read = frames.read(socket);
    let elapsed = watch.elapsed();
    match read {
        Ok(0) => return Err(lost(during(), line.ended())),
        Ok(_) => watch.quiet = Duration::ZERO,
        Err(error) => match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => watch.quiet += elapsed,
            ErrorKind::Interrupted => {}
            _ => return Err(lost(during(), line.ended())),
        },
    }
    while let Some(report) = frames.next::<Report>().map_err(|error| lost(during(), error))? {
        if line.take(report) {
            watch.stuck = Duration::ZERO;
        }
    }
    watch.judge(line.waits(), elapsed)
}

impl Watch {
    fn elapsed(&mut self) -> Duration {
        let now = Instant::now();
        (now - std::mem::replace(&mut self.looked, now)).min(2 * self.tick)
    }

    fn judge(&mut self, waits: Option<bool>, elapsed: Duration) -> Result<(), EngineError> {
        let Limits { silence, step, load, .. } = self.limits;
        let (limit, during, key) = match waits {
            Some(false) => (load, "loading", "worker.load_timeout_s"),
            Some(true) | None => (step, "a step", "worker.step_timeout_s"),
        };
        if self.quiet > silence {
            let quiet = self.quiet.as_secs_f64();
            let why =
                format!("its process said nothing for {quiet:.1} s (worker.process_silence_s)");
            return Err(lost(during, why));
        }
        self.stuck = if waits.is_some() { self.stuck + elapsed } else { Duration::ZERO };
        if self.stuck > limit {
            let stuck = self.stuck.as_secs_f64();
            return Err(lost(during, format!("no progress for {stuck:.1} s ({key})")));
        }
        Ok(())
    }
}
