//! Runs `cuelight bench` as an operator does: against a node of its own, or a server that misbehaves.
#![allow(unreachable_pub, clippy::unwrap_used)] // a module of one test

mod fake;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

pub use fake::{Behaviour, Fake};

/// Longest that a node may take to be ready.
const PATIENCE: Duration = Duration::from_secs(30);

fn folder(name: &str) -> PathBuf {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("bench").join(name);
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

/// One finished run.
pub struct Run {
    pub code: i32,
    pub out: String,
    err: String,
    dir: PathBuf,
}

impl Run {
    pub fn report(&self) -> Value {
        let text = std::fs::read_to_string(self.dir.join("report.json"));
        let text = text.unwrap_or_else(|error| panic!("no report: {error}\n{}", self.shown()));
        serde_json::from_str(&text).unwrap()
    }

    pub fn plot(&self) -> String {
        std::fs::read_to_string(self.dir.join("plot.svg")).unwrap()
    }

    pub fn shown(&self) -> String {
        format!("exit code {}\n{}{}", self.code, self.err, self.out)
    }
}

/// One run under way.
pub struct Running {
    child: Child,
    dir: PathBuf,
}

impl Running {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn finish(self) -> Run {
        let output = self.child.wait_with_output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let code = output.status.code().unwrap_or(-1);
        Run { code, out: text(&output.stdout), err: text(&output.stderr), dir: self.dir }
    }
}

/// Starts `cuelight bench`; the report and the plot go to a folder of this name.
pub fn start(name: &str, args: &[&str]) -> Running {
    let dir = folder(name);
    for file in ["report.json", "plot.svg"] {
        let _ = std::fs::remove_file(dir.join(file)); // of an earlier run
    }
    let child = Command::new(env!("CARGO_BIN_EXE_cuelight"))
        .arg("bench")
        .args(args)
        .arg("--json")
        .arg(dir.join("report.json"))
        .arg("--plot")
        .arg(dir.join("plot.svg"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    Running { child, dir }
}

pub fn bench(name: &str, args: &[&str]) -> Run {
    start(name, args).finish()
}

/// A node with the sim engine, until it is dropped.
pub struct Node {
    child: Child,
    port: u16,
}

impl Node {
    /// With these keys set, beside those that a test needs.
    pub fn start(sets: &[&str]) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let model = concat!(env!("CARGO_MANIFEST_DIR"), "/models/cuelight-tiny");
        let http = format!("frontend.http=127.0.0.1:{port}");
        let all = [http.as_str(), "worker.engine=sim"];
        let child = Command::new(env!("CARGO_BIN_EXE_cuelight"))
            .args(["serve", "--model", model])
            .args(all.iter().chain(sets).flat_map(|set| ["--set", set]))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let node = Self { child, port };
        node.wait_until_ready();
        node
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn wait_until_ready(&self) {
        let start = Instant::now();
        while !self.health().is_some_and(|answer| answer.starts_with("HTTP/1.1 200")) {
            assert!(start.elapsed() < PATIENCE, "the node is not ready within {PATIENCE:?}");
            std::thread::sleep(Duration::from_millis(20)); // between two looks
        }
    }

    fn health(&self) -> Option<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        let request = "GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
