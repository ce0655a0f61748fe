//! Runs `cuelight chaos` as an operator does, and serves it lies.
#![allow(unreachable_pub, clippy::unwrap_used)] // a module of one test

mod liar;

use std::collections::HashMap;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

pub use liar::Liar;

/// One finished run.
pub struct Run {
    pub code: i32,
    out: String,
    err: String,
    json: PathBuf,
}

impl Run {
    /// The whole report.
    pub fn report(&self) -> Value {
        let text = std::fs::read_to_string(&self.json);
        let text = text.unwrap_or_else(|error| panic!("no report: {error}\n{}", self.shown()));
        serde_json::from_str(&text).unwrap()
    }

    /// What it printed.
    pub fn shown(&self) -> String {
        format!("exit code {}\n{}{}", self.code, self.err, self.out)
    }
}

/// Runs the harness with these arguments and a folder of its own.
pub fn chaos(name: &str, args: &[&str]) -> Run {
    let dir = folder(name);
    let json = dir.join("report.json");
    let _ = std::fs::remove_file(&json); // of an earlier run
    let output = Command::new(env!("CARGO_BIN_EXE_cuelight"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .arg("chaos")
        .args(args)
        .arg("--json")
        .arg(&json)
        .arg("--logs")
        .arg(dir.join("logs"))
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let code = output.status.code().unwrap_or(-1);
    Run { code, out: text(&output.stdout), err: text(&output.stderr), json }
}

fn folder(name: &str) -> PathBuf {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("chaos").join(name);
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

/// The files of `configs/chaos` with ports that are free now.
pub fn cluster_files(name: &str) -> Vec<String> {
    let (dir, mut ports) = (folder(name), HashMap::new());
    // Held until all are chosen, so that no port is chosen twice.
    let mut held = Vec::new();
    let mut file = |node: &str| {
        let path = format!("{}/configs/chaos/{node}.yaml", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(&path).unwrap();
        let mut parts = text.split("127.0.0.1:");
        let mut moved = parts.next().unwrap().to_owned();
        for part in parts {
            let digits = part.bytes().take_while(u8::is_ascii_digit).count();
            let port = ports.entry(part[..digits].to_owned()).or_insert_with(|| {
                let listener = TcpListener::bind("127.0.0.1:0").unwrap();
                let port = listener.local_addr().unwrap().port();
                held.push(listener);
                port
            });
            moved.push_str(&format!("127.0.0.1:{port}{}", &part[digits..]));
        }
        let file = dir.join(format!("{node}.yaml"));
        std::fs::write(&file, moved).unwrap();
        file.display().to_string()
    };
    ["front", "w1", "w2", "w3"].map(&mut file).to_vec()
}
