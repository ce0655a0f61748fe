//! Discovery through a directory that all nodes share: one file a node.
//!
//! A node writes its file again and again, each time with the next beat. That it lives is read from
//! the beat, which changes, not from times: clocks of hosts need not agree.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tracing::{debug, warn};

use super::roster::Roster;
use super::{Announcement, Board, Complaints, MAX_ANNOUNCEMENT_BYTES, MAX_ANNOUNCEMENTS};

/// Longest time between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// A dead node's file is removed after so many times the `ttl`; a node that wakes up writes it again.
const SWEEP_AFTER: u32 = 10;
/// Characters of the node's name that its file's name tells.
const NAME_CHARS: usize = 64;

/// What cannot be done with the directory.
#[derive(Debug, thiserror::Error)]
enum FileError {
    #[error(
        "discovery directory {} cannot be read: {source}; create or mount it, and let this node read it",
        directory.display()
    )]
    Read { directory: PathBuf, source: io::Error },
    #[error(
        "discovery file {} cannot be written: {source}; let this node write into the directory",
        file.display()
    )]
    Write { file: PathBuf, source: io::Error },
    #[error(
        "discovery directory {} holds more than {MAX_ANNOUNCEMENTS} files; the rest is ignored, \
         remove what does not belong there",
        directory.display()
    )]
    Crowded { directory: PathBuf },
}

/// What a file holds.
#[derive(Serialize, Deserialize)]
struct Page {
    #[serde(flatten)]
    announcement: Announcement,
    /// Differs from the one before; nothing else can be said of it.
    beat: u64,
}

/// Announces and looks until `stopped`, then takes the file back.
pub(super) async fn run(
    directory: PathBuf,
    ttl: Duration,
    own: Announcement,
    board: Board,
    mut stopped: oneshot::Receiver<()>,
) {
    let (looks_per_beat, pause) = cadence(ttl);
    let mut shared = Shared::new(directory, ttl, own);
    let mut look = 0_u32;
    loop {
        let write = look.is_multiple_of(looks_per_beat);
        look = look.wrapping_add(1);
        shared = match watched(shared, ttl, &board, move |shared| shared.round(write)).await {
            Some(shared) => shared,
            None => return,
        };
        board.peers(shared.roster.peers(&shared.own));
        board.report("directory", shared.problem.take());
        tokio::select! {
            _ = &mut stopped => break,
            () = tokio::time::sleep(pause) => {}
        }
    }
    watched(shared, ttl, &board, Shared::withdraw).await;
}

/// Looks per beat and the time between them: a beat every third of the `ttl`.
fn cadence(ttl: Duration) -> (u32, Duration) {
    let beat = ttl / 3;
    let looks = beat.as_nanos().div_ceil(LOOK.as_nanos()).clamp(1, u128::from(u32::MAX)) as u32;
    (looks, beat / looks)
}

/// Does `work` off the runtime, since a network file system may hang; says so while it does.
/// `None` if the work panicked or the runtime ends.
async fn watched(
    mut shared: Shared,
    patience: Duration,
    board: &Board,
    work: impl FnOnce(&mut Shared) + Send + 'static,
) -> Option<Shared> {
    let directory = shared.directory.clone();
    let mut work = tokio::task::spawn_blocking(move || {
        work(&mut shared);
        shared
    });
    loop {
        match tokio::time::timeout(patience, &mut work).await {
            Ok(done) => return done.ok(),
            Err(_) => {
                let problem = format!(
                    "discovery directory {} did not answer for {patience:?}; check its file system",
                    directory.display()
                );
                board.report("directory", Some(problem));
            }
        }
    }
}

/// The directory as this node sees it. All of it blocks.
struct Shared {
    directory: PathBuf,
    ttl: Duration,
    own: Announcement,
    own_file: String,
    beat: u64,
    /// Whether the last write came through.
    written: bool,
    sightings: Sightings,
    roster: Roster,
    complaints: Complaints,
    /// Whether the last look failed, or found the own file gone: the directory may have lost others.
    outage: bool,
    /// The last that did not fail.
    last_look: Instant,
    problem: Option<String>,
}

impl Shared {
    fn new(directory: PathBuf, ttl: Duration, own: Announcement) -> Self {
        Self {
            directory,
            ttl,
            own_file: file_name(&own),
            own,
            beat: 0,
            written: false,
            sightings: Sightings::default(),
            roster: Roster::new(ttl),
            complaints: Complaints::default(),
            outage: false,
            last_look: Instant::now(),
            problem: None,
        }
    }

    /// One look, after a beat if it is time for one or if the last look found a problem.
    fn round(&mut self, write: bool) {
        let written = if write || self.outage { self.write() } else { Ok(()) };
        let looked = self.look(Instant::now());
        self.outage |= matches!(looked, Err(FileError::Read { .. }));
        self.problem = looked.err().or(written.err()).map(|error| error.to_string());
    }

    /// Writes the own file as a whole: readers see the old one or the new one.
    fn write(&mut self) -> Result<(), FileError> {
        self.beat += 1;
        let page = Page { announcement: self.own.clone(), beat: self.beat };
        let (file, draft) = (self.directory.join(&self.own_file), self.draft(&self.own_file));
        let written = serde_json::to_vec(&page)
            .map_err(io::Error::from)
            .and_then(|bytes| fs::write(&draft, bytes))
            .and_then(|()| fs::rename(&draft, &file));
        self.written = written.is_ok();
        written.map_err(|source| FileError::Write { file, source })
    }

    /// Where a file is written before it gets its name.
    fn draft(&self, file: &str) -> PathBuf {
        self.directory.join(format!(".{file}.draft"))
    }

    fn look(&mut self, now: Instant) -> Result<(), FileError> {
        let (files, crowded) = self.files()?;
        if self.outage {
            self.sightings.excuse(self.last_look, now, self.ttl);
        }
        let mut pages = Vec::new();
        for name in &files {
            match read_page(&self.directory.join(name)) {
                Ok(page) => pages.push((name.clone(), page)),
                Err(Unread::Gone) => {}
                Err(Unread::Garbage(why)) => self.complaints.about(name, &why),
            }
        }
        self.complaints.keep(&files);
        let alive = self.sightings.note(pages, now, self.ttl);
        self.last_look = now;
        let own_missing = self.written && !files.contains(&self.own_file);
        self.roster.list(alive, self.outage || own_missing, now);
        self.outage = own_missing;
        self.sweep(now);
        if crowded { Err(FileError::Crowded { directory: self.directory.clone() }) } else { Ok(()) }
    }

    /// The names of the files of nodes, and whether there are too many.
    fn files(&self) -> Result<(BTreeSet<String>, bool), FileError> {
        let failed = |source| FileError::Read { directory: self.directory.clone(), source };
        let mut files = BTreeSet::new();
        for entry in fs::read_dir(&self.directory).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let Some(name) = name.to_str() else { continue };
            if name.starts_with('.') || !name.ends_with(".json") {
                continue;
            }
            if files.len() == MAX_ANNOUNCEMENTS {
                return Ok((files, true));
            }
            files.insert(name.to_owned());
        }
        Ok((files, false))
    }

    /// Removes files of nodes that are long dead: each start of a node has a file of its own.
    fn sweep(&mut self, now: Instant) {
        for name in self.sightings.longer_dead_than(self.ttl * SWEEP_AFTER, now) {
            if name != self.own_file {
                debug!(name, "removing the file of a dead node");
                self.remove(&name);
            }
        }
    }

    /// Whoever cannot remove a file leaves it to others.
    fn remove(&self, name: &str) {
        let _ = fs::remove_file(self.directory.join(name));
        let _ = fs::remove_file(self.draft(name));
    }

    fn withdraw(&mut self) {
        self.remove(&self.own_file);
        let file = self.directory.join(&self.own_file);
        if file.exists() {
            warn!(file = %file.display(), "the own discovery file cannot be removed; it lapses by itself");
        }
    }
}

/// A name for people, made unique by the incarnation.
fn file_name(node: &Announcement) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '_' };
    let name: String = node.name.chars().take(NAME_CHARS).map(plain).collect();
    format!("{name}-{:016x}.json", node.incarnation)
}

/// Why a file says nothing.
enum Unread {
    /// Its node has just left.
    Gone,
    Garbage(String),
}

impl From<io::Error> for Unread {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::NotFound => Self::Gone,
            _ => Self::Garbage(error.to_string()),
        }
    }
}

fn read_page(file: &Path) -> Result<Page, Unread> {
    // Opening a pipe would wait for its writer.
    if !fs::metadata(file)?.is_file() {
        return Err(Unread::Garbage("is not a file".into()));
    }
    let mut bytes = Vec::new();
    File::open(file)?.take(MAX_ANNOUNCEMENT_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    let announcement = Announcement::read(&bytes).map_err(Unread::Garbage)?;
    let page: Page =
        serde_json::from_slice(&bytes).map_err(|error| Unread::Garbage(error.to_string()))?;
    Ok(Page { announcement, ..page })
}

/// When which file was last seen to change.
#[derive(Default)]
struct Sightings(BTreeMap<String, Sighting>);

struct Sighting {
    beat: u64,
    changed: Instant,
}

impl Sightings {
    /// Notes what the files hold now; gives back the living, the one that changed last at the end.
    /// A file that was never seen before counts as changed: most are of nodes that live.
    fn note(
        &mut self,
        pages: Vec<(String, Page)>,
        now: Instant,
        ttl: Duration,
    ) -> Vec<(String, Announcement)> {
        let mut last = std::mem::take(&mut self.0);
        let mut alive = Vec::new();
        for (name, page) in pages {
            let seen = match last.remove(&name) {
                Some(seen) if seen.beat == page.beat => seen,
                _ => Sighting { beat: page.beat, changed: now },
            };
            if now.saturating_duration_since(seen.changed) < ttl {
                alive.push((seen.changed, name.clone(), page.announcement));
            }
            self.0.insert(name, seen);
        }
        alive.sort_by_key(|(changed, ..)| *changed);
        alive.into_iter().map(|(_, name, announcement)| (name, announcement)).collect()
    }

    /// Nobody could look for a while, or write: who lived at the `last_look` gets a full `ttl`.
    fn excuse(&mut self, last_look: Instant, now: Instant, ttl: Duration) {
        for seen in self.0.values_mut() {
            if last_look.saturating_duration_since(seen.changed) < ttl {
                seen.changed = now;
            }
        }
    }

    fn longer_dead_than(&self, limit: Duration, now: Instant) -> Vec<String> {
        let dead = |seen: &Sighting| now.saturating_duration_since(seen.changed) >= limit;
        self.0.iter().filter(|(_, seen)| dead(seen)).map(|(name, _)| name.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(6);

    fn page(name: &str, beat: u64) -> (String, Page) {
        let announcement =
            Announcement { name: name.into(), incarnation: 1, address: format!("{name}:1") };
        (name.to_owned(), Page { announcement, beat })
    }

    fn names(alive: Vec<(String, Announcement)>) -> Vec<String> {
        alive.into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn a_node_lives_while_its_beat_changes_whichever_way() {
        let (mut seen, start) = (Sightings::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut look = |beats: [u64; 2], now| {
            names(seen.note(vec![page("a", beats[0]), page("b", beats[1])], now, TTL))
        };
        assert_eq!(look([5, 5], at(0)), ["a", "b"]);
        assert_eq!(look([6, 5], at(4)), ["b", "a"]);
        assert_eq!(look([7, 5], at(6)), ["a"]);
        assert_eq!(look([8, 1], at(7)), ["a", "b"], "a beat that went back is a beat");
        assert_eq!(look([8, 2], at(20)), ["b"]);
        assert_eq!(seen.longer_dead_than(TTL * 2, at(20)), ["a"]);
    }

    #[test]
    fn an_outage_is_not_held_against_the_living() {
        let (mut seen, start) = (Sightings::default(), Instant::now());
        let both = |a| vec![page("a", a), page("dead", 1)];
        seen.note(both(1), start, TTL);
        assert_eq!(names(seen.note(both(2), start + TTL, TTL)), ["a"]);
        let later = start + TTL * 5;
        seen.excuse(start + TTL, later, TTL);
        assert_eq!(names(seen.note(both(2), later, TTL)), ["a"]);
        assert_eq!(names(seen.note(both(2), later + TTL, TTL)), [""; 0]);
    }

    #[test]
    fn a_beat_comes_every_third_of_the_ttl_and_a_look_at_least_every_second() {
        let ms = Duration::from_millis;
        for (ttl, looks, pause) in [(300, 1, 100), (3000, 1, 1000), (6000, 2, 1000), (4500, 2, 750)]
        {
            assert_eq!(cadence(ms(ttl)), (looks, ms(pause)), "ttl {ttl} ms");
        }
    }

    #[test]
    fn a_file_is_named_after_its_node_and_start() {
        let name = |name: &str| {
            file_name(&Announcement { name: name.into(), incarnation: 255, address: "h:1".into() })
        };
        assert_eq!(name("front-1.example"), "front-1_example-00000000000000ff.json");
        assert_eq!(name("../ü b"), "_____b-00000000000000ff.json");
        assert_eq!(name(&"n".repeat(300)).len(), NAME_CHARS + "-00000000000000ff.json".len());
    }
}
