//! Replacing this process by a new one of the same program, arguments and process id: the only way
//! to be rid of an engine that hangs. Sockets close with it, so that front ends notice at once.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::process::WaitOptions;

use crate::config::Supervision;

/// Tells the new process when the ones before it were replaced: seconds since 1970, by commas.
const HISTORY: &str = "CUELIGHT_REPLACED_AT";

/// How long the children of a replaced process may take to end; they are being killed already.
const CHILDREN_END: Duration = Duration::from_secs(1);

/// Why the process was not replaced.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReplaceError {
    /// It happened too often.
    #[error(
        "an engine hangs, and this process was replaced {times} times within {:.0} s already \
         (supervision.restarts, supervision.window_s); giving up", window.as_secs_f64()
    )]
    TooOften {
        /// How often.
        times: usize,
        /// Within this time.
        window: Duration,
    },
    /// The system refused.
    #[error("an engine hangs, and this process could not be replaced: {0}")]
    System(#[from] io::Error),
}

/// Does not return unless it fails.
pub(super) fn replace(limits: &Supervision) -> ReplaceError {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let history = env::var(HISTORY).unwrap_or_default();
    let history = match with_one_more(&history, now, limits) {
        Ok(history) => history,
        Err(error) => return error,
    };
    // By its name, which becomes the process's, unless another file has come in its place.
    let by_name = env::current_exe().ok().filter(|program| program.exists());
    let program = by_name.unwrap_or_else(|| PathBuf::from("/proc/self/exe"));
    let mut arguments = env::args_os();
    let name = arguments.next();
    let name = name.as_deref().unwrap_or(OsStr::new("cuelight"));
    tracing::warn!(pid = std::process::id(), "replacing this process");
    Command::new(program).arg0(name).args(arguments).env(HISTORY, history).exec().into()
}

/// Waits for the children of the process that this one has replaced: engines that end with it.
pub(super) fn reap() {
    let by = Instant::now() + CHILDREN_END;
    while env::var_os(HISTORY).is_some() && Instant::now() < by {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(None) => std::thread::sleep(CHILDREN_END / 100),
            Ok(Some(_)) => {}
            Err(_) => return, // there are none
        }
    }
}

/// The history after a replacement at `now`, if that may be.
fn with_one_more(history: &str, now: u64, limits: &Supervision) -> Result<String, ReplaceError> {
    let window = limits.window;
    let recent = |at: &u64| Duration::from_secs(now.saturating_sub(*at)) < window;
    let mut times: Vec<u64> =
        history.split(',').filter_map(|at| at.parse().ok()).filter(recent).collect();
    if times.len() >= limits.restarts {
        return Err(ReplaceError::TooOften { times: times.len(), window });
    }
    times.push(now);
    Ok(times.iter().map(u64::to_string).collect::<Vec<_>>().join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_replaced_only_so_often_within_the_window() {
        let limits =
            Supervision { restarts: 2, window: Duration::from_secs(60), delay: Duration::ZERO };
        let first = with_one_more("", 1000, &limits).unwrap();
        assert_eq!(first, "1000");
        let second = with_one_more(&first, 1030, &limits).unwrap();
        assert_eq!(second, "1000,1030");
        let error = with_one_more(&second, 1059, &limits).unwrap_err();
        assert!(matches!(error, ReplaceError::TooOften { times: 2, .. }), "{error}");
        assert_eq!(with_one_more(&second, 1060, &limits).unwrap(), "1030,1060");
        assert_eq!(with_one_more("rubbish,,-1", 1060, &limits).unwrap(), "1060");
    }
}
