//! The wall clock of one process, set by libfaketime through a file. The monotonic clock is left
//! alone: it does not jump on a real machine either.

use std::io;
use std::path::{Path, PathBuf};

/// See the module's description.
#[derive(Clone, Debug)]
pub(crate) struct Clock {
    file: PathBuf,
}

impl Clock {
    /// A right clock, which keeps its offset in `file`.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn new(file: PathBuf) -> io::Result<Self> {
        let clock = Self { file };
        clock.set(0)?;
        Ok(clock)
    }

    /// Puts it so many seconds ahead of the machine's, or behind.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn set(&self, seconds: i64) -> io::Result<()> {
        // In one step: a process reads it whenever it asks for the time.
        let new = self.file.with_extension("new");
        std::fs::write(&new, format!("{seconds:+}\n"))?;
        std::fs::rename(new, &self.file)
    }

    /// What makes a process that is started with `library` go by it.
    pub(crate) fn environment(&self, library: &Path) -> Vec<(String, String)> {
        let text = |path: &Path| path.display().to_string();
        let pairs = [
            ("LD_PRELOAD", text(library)),
            ("FAKETIME_TIMESTAMP_FILE", text(&self.file)),
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ];
        pairs.map(|(name, value)| (name.to_owned(), value)).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_has_a_sign_as_the_library_wants_it() {
        let file = std::env::temp_dir().join(format!("cuelight-clock-{}", std::process::id()));
        let clock = Clock::new(file.clone()).unwrap();
        for (seconds, text) in [(0, "+0\n"), (3600, "+3600\n"), (-5, "-5\n")] {
            clock.set(seconds).unwrap();
            assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
        }
        std::fs::remove_file(file).unwrap();
    }
}
