//! Nodes find each other through a directory, and through all that can happen to it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use cuelight::actors::cluster::discovery::Discovery;

use super::{Node, eventually, stays, warnings};

const TTL: Duration = Duration::from_millis(900);
/// For a busy machine.
const SLACK: Duration = Duration::from_secs(2);

/// A directory of its own, removed at the end.
struct Directory(PathBuf);

impl Directory {
    fn create() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("discovery-{}-{count}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn discovery(&self, ttl: Duration) -> Discovery {
        Discovery::File { directory: self.0.clone(), ttl }
    }

    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).unwrap().flatten();
        let mut files: Vec<_> = entries.map(|e| e.file_name().into_string().unwrap()).collect();
        files.sort();
        files
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn file(name: &str, incarnation: u64) -> String {
    format!("{name}-{incarnation:016x}.json")
}

#[test]
fn nodes_find_each_other_and_lose_who_is_killed_after_the_ttl() {
    let directory = Directory::create();
    let start = |name, incarnation| Node::start(name, incarnation, directory.discovery(TTL));
    let (a, b) = (start("a", 1), start("b", 1));
    a.sees(&[("b", 1)]);
    let known = b.sees(&[("a", 1)]);
    assert_eq!((known.peers[0].address.as_str(), known.problem), ("a:7000", None));
    stays(&a, TTL * 3, |known| known.peers.len() != 1 || known.problem.is_some());

    b.kill();
    let killed = Instant::now();
    a.sees(&[]);
    assert!(killed.elapsed() < TTL + SLACK, "{:?}", killed.elapsed());
    assert!(directory.files().contains(&file("b", 1)));

    let b = start("b", 2);
    a.sees(&[("b", 2)]);
    b.sees(&[("a", 1)]);
    // The file of the dead is removed in the end.
    eventually("removal of the dead", || directory.files() == [file("a", 1), file("b", 2)]);
    a.leave();
    assert_eq!(directory.files(), [file("b", 2)]);
    b.sees(&[]);
}

#[test]
fn garbage_in_the_directory_changes_nothing_and_is_complained_about_once() {
    let directory = Directory::create();
    let a = Node::start("a", 1, directory.discovery(TTL));
    let b = Node::start("b", 1, directory.discovery(TTL));
    a.sees(&[("b", 1)]);
    let put = |name: &str, bytes: &[u8]| fs::write(directory.0.join(name), bytes).unwrap();
    let half = fs::read(directory.0.join(file("b", 1))).unwrap();
    put("file-half.json", &half[..half.len() / 2]);
    put("file-empty.json", b"");
    put("file-bytes.json", b"\xff\xfe\x00");
    put("file-huge.json", &vec![b' '; 1 << 20]);
    put("file-beatless.json", br#"{"name":"x","incarnation":1,"address":"x:1"}"#);
    put("notes.txt", b"not ours");
    fs::create_dir(directory.0.join("file-folder.json")).unwrap();
    let pipe = directory.0.join("file-pipe.json");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    stays(&a, TTL * 3, |known| known.peers.len() != 1 || known.problem.is_some());
    for word in ["half", "empty", "bytes", "huge", "beatless", "folder", "pipe"] {
        let told = warnings(&format!("file-{word}.json"));
        assert_eq!(told.len(), 2, "one for each node, of {word}: {told:?}");
    }
    assert_eq!(warnings("notes.txt"), [""; 0]);
    b.leave();
    a.sees(&[]);
    assert_eq!(directory.files().len(), 9, "only the own file is removed");
}

#[test]
fn peers_are_kept_while_the_directory_is_gone_and_when_it_comes_back_empty() {
    let directory = Directory::create();
    let a = Node::start("a", 1, directory.discovery(TTL));
    // It looks half as often: the other sees the directory without its file.
    let b = Node::start("b", 1, directory.discovery(TTL * 2));
    a.sees(&[("b", 1)]);
    b.sees(&[("a", 1)]);
    a.count_peers();
    b.count_peers();
    for with_files in [true, false, false] {
        let away = directory.0.with_extension("away");
        fs::rename(&directory.0, &away).unwrap();
        a.has_problem("cannot be read");
        stays(&a, TTL + TTL / 3, |known| known.peers.len() != 1 || known.problem.is_none());
        if with_files {
            fs::rename(&away, &directory.0).unwrap();
        } else {
            fs::create_dir(&directory.0).unwrap();
            fs::remove_dir_all(&away).unwrap();
        }
        a.works();
        b.works();
        eventually("files", || directory.files() == [file("a", 1), file("b", 1)]);
        stays(&a, TTL * 2, |known| known.peers.len() != 1 || known.problem.is_some());
    }
    assert_eq!((a.fewest(), b.fewest()), (1, 1), "peers were forgotten");
    b.kill();
    a.sees(&[]);
}

#[test]
fn a_directory_that_is_missing_or_not_writable_is_a_problem_until_it_is_not() {
    let directory = Directory::create();
    fs::remove_dir(&directory.0).unwrap();
    let a = Node::start("a", 1, directory.discovery(TTL));
    a.has_problem("cannot be read");
    assert!(!Path::new(&directory.0).exists(), "a mount that is missing must stay missing");
    fs::create_dir(&directory.0).unwrap();
    a.works();

    // Also root cannot write a file where a folder is.
    let draft = directory.0.join(format!(".{}.draft", file("b", 1)));
    fs::create_dir(&draft).unwrap();
    let b = Node::start("b", 1, directory.discovery(TTL));
    b.has_problem("cannot be written");
    b.sees(&[("a", 1)]);
    fs::remove_dir(&draft).unwrap();
    b.works();
    a.sees(&[("b", 1)]);
}
