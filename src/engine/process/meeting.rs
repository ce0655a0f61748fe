//! Where an engine's processes find their node when a launcher, such as `mpirun`, stands between them: standard
//! input does not come through that.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::life::Process;
use super::lost;
use crate::engine::EngineError;

/// How often it is looked whether the launcher still lives.
const LOOK: Duration = Duration::from_millis(20);
/// Folders of others that may be in the way.
const TRIES: u32 = 1000;
const SOCKET: &str = "socket";
const SPEC: &str = "spec";

/// A folder that only this user can read, with a socket and what the engine is made of. It is gone when this is
/// dropped.
pub struct Meeting {
    folder: PathBuf,
    listener: UnixListener,
}

impl Meeting {
    /// # Errors
    /// The folder for temporary files does not take it.
    pub fn new(spec: &[u8]) -> io::Result<Self> {
        let folder = new_folder()?;
        let made = || {
            let listener = UnixListener::bind(folder.join(SOCKET))?;
            listener.set_nonblocking(true)?;
            let mut how = OpenOptions::new();
            how.write(true).create_new(true).mode(0o600);
            how.open(folder.join(SPEC))?.write_all(spec)?;
            Ok(listener)
        };
        match made() {
            Ok(listener) => Ok(Self { folder, listener }),
            Err(error) => {
                let _ = std::fs::remove_dir_all(&folder); // the first error counts
                Err(error)
            }
        }
    }

    /// For [`Meeting::join`] and [`Meeting::spec`].
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Waits for the one process that speaks to the node.
    pub(super) fn accept(
        &self,
        launcher: &Process,
        within: Duration,
    ) -> Result<UnixStream, EngineError> {
        let by = Instant::now() + within;
        loop {
            match self.listener.accept() {
                Ok((socket, _)) => {
                    socket.set_nonblocking(false).map_err(|error| lost("loading", error))?;
                    return Ok(socket);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(lost("loading", error)),
            }
            if let Some(how) = launcher.end(LOOK) {
                let why = format!("what worker.process_command started ended with {how}");
                return Err(lost("loading", why));
            }
            if Instant::now() > by {
                launcher.kill();
                let why = "no process of worker.process_command came (worker.load_timeout_s)";
                return Err(lost("loading", why));
            }
        }
    }

    /// The other side: to the node.
    ///
    /// # Errors
    /// There is none any more.
    pub fn join(folder: &Path) -> io::Result<UnixStream> {
        UnixStream::connect(folder.join(SOCKET))
    }

    /// What the engine is made of, for processes that do not speak to the node.
    ///
    /// # Errors
    /// The node is gone.
    pub fn spec(folder: &Path) -> io::Result<Vec<u8>> {
        std::fs::read(folder.join(SPEC))
    }
}

/// A folder that was not there before: one of an earlier process of the same id may have been left.
fn new_folder() -> io::Result<PathBuf> {
    static LAST: AtomicU64 = AtomicU64::new(0);
    for left in (0..TRIES).rev() {
        let nth = LAST.fetch_add(1, Ordering::Relaxed);
        let name = format!("cuelight-engine-{}-{nth}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        match DirBuilder::new().mode(0o700).create(&folder) {
            Ok(()) => return Ok(folder),
            Err(error) if error.kind() == ErrorKind::AlreadyExists && left > 0 => {}
            Err(error) => {
                let what = format!("cannot make {}: {error}", folder.display());
                return Err(io::Error::new(error.kind(), what));
            }
        }
    }
    Err(io::Error::from(ErrorKind::AlreadyExists))
}

impl Drop for Meeting {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder); // a file more in a folder for such
    }
}
