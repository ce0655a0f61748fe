//! Two real nodes, a front end and a worker, and what can be seen of them from outside.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{HANDSHAKE, MAX_HANDSHAKES};

/// What the nodes share and strangers do not know.
pub(crate) const COOKIE: &str = "a secret of this test";
/// Longest that anything may take that is not measured against a promise.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `condition` holds.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "no {what} within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A front end and a worker that are connected.
pub(crate) struct Cluster {
    pub(crate) front: Node,
    pub(crate) back: Node,
}

impl Cluster {
    /// Both nodes also dial `seeds`.
    pub(crate) fn start(seeds: &[&str]) -> Self {
        let [front_http, back_http, front_peers, back_peers] = free();
        let cluster = |listen: SocketAddr, others: &[String]| {
            json!({
                "listen": listen, "cookie": "env:CUELIGHT_TEST_COOKIE", "seeds": others,
                "handshake_timeout_s": HANDSHAKE.as_secs_f64(), "max_handshakes": MAX_HANDSHAKES,
                "redial_max_ms": 200,
            })
        };
        let seeds: Vec<String> = seeds.iter().map(|seed| (*seed).to_owned()).collect();
        let both = [seeds.clone(), vec![back_peers.to_string()]].concat();
        let back = json!({
            "node": { "name": "back", "admin": back_http, "runtime_threads": 2 },
            "worker": { "engine": "sim", "sim": { "step_us": 2000, "seed": 1 } },
            "cluster": cluster(back_peers, &seeds),
        });
        let front = json!({
            "node": { "name": "front", "runtime_threads": 2 },
            "frontend": { "http": front_http },
            "cluster": cluster(front_peers, &both),
        });
        let back = Node::start("back", &back, back_http, back_peers);
        let front = Node::start("front", &front, front_http, front_peers);
        eventually("first answer", || front.complete().is_ok());
        Self { front, back }
    }
}

fn free() -> [SocketAddr; 4] {
    let held = [(); 4].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    held.map(|port| port.local_addr().unwrap())
}

/// One process.
pub(crate) struct Node {
    pub(crate) name: &'static str,
    /// Where other nodes connect.
    pub(crate) peers: SocketAddr,
    http: Http,
    folder: PathBuf,
    process: Child,
}

impl Node {
    fn start(name: &'static str, config: &Value, http: SocketAddr, peers: SocketAddr) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = format!("cluster-garbage-{}-{count}", std::process::id());
        let folder = std::env::temp_dir().join(folder);
        fs::create_dir_all(&folder).unwrap();
        // JSON is YAML.
        fs::write(folder.join("node.yaml"), config.to_string()).unwrap();
        let process = launch(&folder);
        let mut node = Self { name, peers, http: Http(http), folder, process };
        node.wait();
        node
    }

    fn wait(&mut self) {
        eventually(&format!("life of {}", self.name), || {
            let ended = self.process.try_wait().unwrap();
            assert!(ended.is_none(), "{} ended: {ended:?}", self.name);
            self.http.get("/live").is_ok_and(|(status, _)| status == 200)
        });
    }

    /// Killed and started again.
    pub(crate) fn restart(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        self.process = launch(&self.folder);
        self.wait();
    }

    pub(crate) fn http(&self) -> Http {
        self.http
    }

    pub(crate) fn complete(&self) -> Result<String, String> {
        self.http.complete()
    }

    /// The sum over all labels.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let (_, text) = self.http.get("/metrics").expect("the node answers");
        let of =
            |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{']));
        let value = |line: &str| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap();
        text.lines().filter(of).map(value).sum()
    }

    /// Open descriptors, connections included.
    pub(crate) fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.process.id())).unwrap().count()
    }

    /// The ports where it listens, in order, over IPv4 and IPv6.
    pub(crate) fn listens(&self) -> Vec<u16> {
        let process = self.process.id();
        let folder = fs::read_dir(format!("/proc/{process}/fd")).unwrap().flatten();
        let links = folder.filter_map(|fd| fs::read_link(fd.path()).ok());
        let own: Vec<String> = links.filter_map(|link| link.to_str().map(str::to_owned)).collect();
        let mut ports = Vec::new();
        for table in ["tcp", "tcp6"] {
            let table = fs::read_to_string(format!("/proc/{process}/net/{table}"));
            for line in table.unwrap_or_default().lines().skip(1) {
                let columns: Vec<&str> = line.split_whitespace().collect();
                let (address, state, inode) = (columns[1], columns[3], columns[9]);
                if state == "0A" && own.contains(&format!("socket:[{inode}]")) {
                    let port = address.rsplit(':').next().unwrap();
                    ports.push(u16::from_str_radix(port, 16).unwrap());
                }
            }
        }
        ports.sort_unstable();
        ports
    }

    /// The ports that its configuration names, in order.
    pub(crate) fn told_to_listen(&self) -> Vec<u16> {
        let mut ports = vec![self.http.0.port(), self.peers.port()];
        ports.sort_unstable();
        ports
    }

    pub(crate) fn memory_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Lines of the log that tell of an error or a panic.
    pub(crate) fn complaints(&self) -> Vec<String> {
        let log = fs::read_to_string(self.folder.join("log")).unwrap();
        let bad = |line: &&str| line.contains("ERROR") || line.contains("panicked");
        log.lines().filter(bad).map(str::to_owned).collect()
    }
}

fn launch(folder: &std::path::Path) -> Child {
    let log = fs::File::options().create(true).append(true).open(folder.join("log")).unwrap();
    Command::new(env!("CARGO_BIN_EXE_cuelight"))
        .args(["node", "--config"])
        .arg(folder.join("node.yaml"))
        .env("CUELIGHT_TEST_COOKIE", COOKIE)
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap()
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            let log = fs::read_to_string(self.folder.join("log")).unwrap_or_default();
            let from = log.len().saturating_sub(4000);
            eprintln!("the end of {}'s log:\n{}", self.name, log.get(from..).unwrap_or(&log));
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Where a node answers over HTTP; every request has a connection of its own.
#[derive(Clone, Copy)]
pub(crate) struct Http(SocketAddr);

impl Http {
    /// What the model says to a fixed question.
    pub(crate) fn complete(self) -> Result<String, String> {
        let body = json!({
            "model": "cuelight-tiny", "prompt": "Strangers at the door", "max_tokens": 16,
            "temperature": 0,
        });
        let (status, text) = self.ask("POST", "/v1/completions", &body.to_string())?;
        let answer: Value = serde_json::from_str(&text).map_err(|e| format!("{e}: {text}"))?;
        let said = answer["choices"][0]["text"].as_str();
        said.filter(|_| status == 200).map(str::to_owned).ok_or(format!("{status}: {text}"))
    }

    fn get(self, path: &str) -> Result<(u16, String), String> {
        self.ask("GET", path, "")
    }

    fn ask(self, method: &str, path: &str, body: &str) -> Result<(u16, String), String> {
        let mut text = String::new();
        let mut ask = || {
            let mut stream = TcpStream::connect(self.0)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            // HTTP/1.0: the answer is plain and ends with the connection.
            write!(
                stream,
                "{method} {path} HTTP/1.0\r\nContent-Type: application/json\r\n\
                 Content-Length: {}\r\n\r\n{body}",
                body.len()
            )?;
            stream.read_to_string(&mut text)
        };
        ask().map_err(|error: std::io::Error| error.to_string())?;
        let (head, body) = text.split_once("\r\n\r\n").ok_or("no answer")?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        Ok((status.ok_or("no status")?, body.to_owned()))
    }
}
