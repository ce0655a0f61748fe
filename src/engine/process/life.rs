//! The life of a child process: who started it waits for it, always.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::mpsc;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use tracing::{info, warn};

/// Hears that a process was started, and that one has ended (`false`).
pub type Count = Box<dyn Fn(bool) + Send>;

/// A child process with a process group of its own.
pub struct Process {
    pid: Pid,
    /// How it ended. While there is nothing here its id is its own.
    end: Mutex<Option<String>>,
    ended: Condvar,
}

impl Process {
    /// Starts a process; `socket` is shut down when it has ended.
    ///
    /// A thread of its own does so and waits: a child that asks to end with its parent would else end with
    /// the thread that happened to start it.
    ///
    /// # Errors
    /// The system refused.
    pub fn start(command: Command, socket: UnixStream, count: Count) -> io::Result<Arc<Self>> {
        let (tell, told) = mpsc::sync_channel(1);
        let name = "engine-process".to_owned();
        thread::Builder::new().name(name).spawn(move || {
            let mut command = command;
            let spawned = command.process_group(0).spawn();
            drop(command); // with our copy of the other end of the socket
            let child = match spawned {
                Ok(child) => child,
                Err(error) => return drop(tell.send(Err(error))), // who asked waits for it
            };
            count(true);
            let pid = Pid::from_child(&child);
            info!(pid = pid.as_raw_pid(), "an engine's process was started");
            let process = Arc::new(Self { pid, end: Mutex::new(None), ended: Condvar::new() });
            let _ = tell.send(Ok(process.clone())); // nobody there: it is reaped all the same
            process.reap(child);
            count(false);
            let _ = socket.shutdown(Shutdown::Both); // closed already
        })?;
        told.recv().unwrap_or_else(|_| Err(io::Error::other("the thread that starts it ended")))
    }

    /// Its id.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_pid()
    }

    /// Waits for its end. What it has started and left behind ends with it.
    fn reap(&self, mut child: Child) {
        let until = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        while let Err(rustix::io::Errno::INTR) = waitid(WaitId::Pid(self.pid), until) {}
        let mut end = self.lock();
        let _ = kill_process_group(self.pid, Signal::KILL); // nobody is left in it
        let how = child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
        info!(pid = self.pid(), how, "an engine's process has ended");
        *end = Some(how);
        self.ended.notify_all();
    }

    /// Kills it and all that it has started. Once it has ended, nothing happens.
    pub fn kill(&self) {
        let end = self.lock();
        // Until it was waited for, which needs the lock, the id is nobody else's.
        if end.is_none() {
            let _ = kill_process_group(self.pid, Signal::KILL); // it ends by itself just now
        }
    }

    /// Stops it and all that it has started, for good.
    pub(super) fn freeze(&self) {
        let end = self.lock();
        if end.is_none() {
            let _ = kill_process_group(self.pid, Signal::STOP); // it ends by itself just now
        }
    }

    /// How it ended, if it does so within this time.
    pub fn end(&self, within: Duration) -> Option<String> {
        let ended = self.ended.wait_timeout_while(self.lock(), within, |end| end.is_none());
        ended.unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    /// Kills it if it has not ended by itself after this time; does not wait.
    pub(super) fn end_or_kill(self: Arc<Self>, within: Duration) {
        if within.is_zero() {
            return self.kill();
        }
        let process = self.clone();
        let wait = move || {
            if process.end(within).is_none() {
                warn!(
                    pid = process.pid(),
                    "killing an engine's process: it did not end in time (worker.process_stop_s)"
                );
                process.kill();
            }
        };
        if thread::Builder::new().name("engine-process-end".into()).spawn(wait).is_err() {
            self.kill(); // there is nobody to wait
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<String>> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
