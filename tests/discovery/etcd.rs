//! A real etcd for a test: its own data, its own ports, and all that can happen to it.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cuelight::actors::cluster::discovery::Discovery;
use serde_json::{Value, json};

use super::eventually;

/// Keys of the tests.
pub(crate) const PREFIX: &str = "/cuelight/test";

/// One etcd server.
pub(crate) struct Etcd {
    data: PathBuf,
    client: u16,
    peer: u16,
    server: Option<Child>,
}

impl Etcd {
    pub(crate) fn start() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let data = std::env::temp_dir().join(format!("etcd-{}-{count}", std::process::id()));
        let _ = std::fs::remove_dir_all(&data);
        // Both at once, so that they differ.
        let free = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [client, peer] = free.map(|port| port.local_addr().unwrap().port());
        let mut etcd = Self { data, client, peer, server: None };
        etcd.run();
        etcd
    }

    /// Starts the server, on the data that is there, and waits until it serves.
    pub(crate) fn run(&mut self) {
        let client = format!("http://127.0.0.1:{}", self.client);
        let peer = format!("http://127.0.0.1:{}", self.peer);
        let server = Command::new("etcd")
            .arg("--data-dir")
            .arg(&self.data)
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}"), "--unsafe-no-fsync"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        self.server = Some(server.expect("etcd runs: install Debian's etcd-server"));
        let start = Instant::now();
        while self.keys().is_none() {
            let ended = self.server.as_mut().and_then(|server| server.try_wait().unwrap());
            assert!(ended.is_none(), "etcd ended: {ended:?}; is port {} taken?", self.client);
            assert!(start.elapsed() < super::PATIENCE, "etcd does not serve");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn kill(&mut self) {
        let mut server = self.server.take().expect("etcd runs");
        server.kill().unwrap();
        server.wait().unwrap();
    }

    pub(crate) fn wipe(&self) {
        std::fs::remove_dir_all(&self.data).unwrap();
    }

    /// `-STOP` or `-CONT`.
    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.server.as_ref().expect("etcd runs").id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.client)
    }

    pub(crate) fn discovery(&self, ttl: Duration) -> Discovery {
        Discovery::Etcd { endpoints: vec![self.endpoint()], prefix: PREFIX.into(), ttl }
    }

    pub(crate) fn put(&self, key: &str, value: &[u8]) {
        let body = json!({ "key": STANDARD.encode(key), "value": STANDARD.encode(value) });
        self.post("/v3/kv/put", &body).expect("etcd answers");
    }

    pub(crate) fn delete(&self, key: &str) {
        let answer = self.post("/v3/kv/deleterange", &json!({ "key": STANDARD.encode(key) }));
        assert_eq!(answer.expect("etcd answers")["deleted"], "1", "{key}");
    }

    /// Forgets the history up to now.
    pub(crate) fn compact(&self) {
        let now = self.post("/v3/kv/range", &json!({ "key": STANDARD.encode("x") }));
        let revision = now.expect("etcd answers")["header"]["revision"].clone();
        self.post("/v3/kv/compaction", &json!({ "revision": revision, "physical": true }))
            .expect("etcd answers");
    }

    /// The keys under the prefix, in order; `None` if etcd does not answer.
    pub(crate) fn keys(&self) -> Option<Vec<String>> {
        let end = PREFIX.replace("test", "tesu");
        let body = json!({ "key": STANDARD.encode(PREFIX), "range_end": STANDARD.encode(end) });
        let answer = self.post("/v3/kv/range", &body)?;
        answer.get("header")?;
        let kvs = answer.get("kvs").and_then(Value::as_array).cloned().unwrap_or_default();
        let key = |kv: &Value| STANDARD.decode(kv["key"].as_str().unwrap()).unwrap();
        Some(kvs.iter().map(|kv| String::from_utf8_lossy(&key(kv)).into_owned()).collect())
    }

    pub(crate) fn has_keys(&self, expected: &[String]) {
        eventually(&format!("keys {expected:?}"), || self.keys().as_deref() == Some(expected));
    }

    fn post(&self, path: &str, body: &Value) -> Option<Value> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.client)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let body = body.to_string();
        // HTTP/1.0: the answer is plain and ends with the connection.
        write!(stream, "POST {path} HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}", body.len())
            .ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        if self.server.is_some() {
            self.kill();
        }
        let _ = std::fs::remove_dir_all(&self.data);
    }
}

/// Where a node's announcement is.
pub(crate) fn key(name: &str, incarnation: u64) -> String {
    format!("{PREFIX}/{name}/{incarnation:016x}")
}
