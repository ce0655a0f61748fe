//! Nodes as processes of their own, and what they say on `node.admin`.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::Outcome;
use crate::process::Server;

/// The model that is served.
pub(crate) const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/cuelight-tiny");
/// Longest that anything may take that is not measured.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// How often such a thing is looked at.
const LOOK: Duration = Duration::from_millis(5);

/// Requests that may stand in a front end's line.
const LINE: usize = 100;

/// A folder for configurations and logs.
pub(crate) struct Scratch {
    folder: PathBuf,
    /// `cluster.failure_detection_ms` of every node; `None`: the default.
    detection_ms: Option<u64>,
}

impl Scratch {
    /// An empty one, with the cluster's cookie in it.
    ///
    /// # Errors
    /// The file system's word.
    pub(crate) fn new() -> io::Result<Self> {
        let name = format!("cluster-bench-{}", std::process::id());
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("cookie"), "a secret of this benchmark")?;
        Ok(Self { folder, detection_ms: None })
    }

    /// Nodes that take a silent one for lost within so many milliseconds.
    ///
    /// # Errors
    /// The file system's word.
    pub(crate) fn detecting(ms: u64) -> io::Result<Self> {
        let mut scratch = Self::new()?;
        scratch.detection_ms = Some(ms);
        Ok(scratch)
    }

    /// Writes a configuration; JSON is YAML.
    ///
    /// # Errors
    /// The file system's word.
    pub(crate) fn write(&self, name: &str, config: &Value) -> io::Result<PathBuf> {
        let path = self.folder.join(format!("{name}.yaml"));
        fs::write(&path, config.to_string())?;
        Ok(path)
    }

    /// `cluster:` of a node.
    pub(crate) fn cluster(&self, listen: SocketAddr, seeds: &[SocketAddr]) -> Value {
        let cookie = format!("file:{}", self.folder.join("cookie").display());
        let mut cluster = json!({ "listen": listen, "seeds": seeds, "cookie": cookie });
        if let Some(ms) = self.detection_ms {
            cluster["failure_detection_ms"] = json!(ms);
        }
        cluster
    }

    /// A front end that runs in this process, and moves a leg so many times.
    ///
    /// # Errors
    /// The file system's word.
    pub(crate) fn front(
        &self,
        listen: SocketAddr,
        worker: SocketAddr,
        migrations: u32,
    ) -> io::Result<PathBuf> {
        let mut cluster = self.cluster(listen, &[worker]);
        cluster["redial_max_ms"] = json!(50);
        let frontend = json!({
            "models": [MODEL], "max_requests": 200_000, "migration_limit": migrations,
            "router": { "queue": LINE },
        });
        let config = json!({
            "node": { "name": "front", "runtime_threads": 2 },
            "frontend": frontend,
            "cluster": cluster,
        });
        self.write("front", &config)
    }

    /// Starts a worker node with these additions to `worker:`.
    ///
    /// # Errors
    /// It cannot be started.
    pub(crate) fn worker(
        &self,
        listen: SocketAddr,
        admin: SocketAddr,
        worker: &Value,
    ) -> io::Result<Node> {
        let config = json!({
            "node": { "name": "worker", "admin": admin, "runtime_threads": 2 },
            "worker": worker,
            "cluster": self.cluster(listen, &[]),
        });
        Node::start(self, "worker", &config)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder); // left over: the next clean build takes it along
    }
}

/// Free ports of the loopback address.
///
/// # Errors
/// There are none.
pub(crate) fn free<const N: usize>() -> io::Result<[SocketAddr; N]> {
    let mut held = Vec::new();
    for _ in 0..N {
        held.push(TcpListener::bind("127.0.0.1:0")?);
    }
    let mut ports = [SocketAddr::from(([127, 0, 0, 1], 0)); N];
    for (port, listener) in ports.iter_mut().zip(&held) {
        *port = listener.local_addr()?;
    }
    Ok(ports)
}

/// A `cuelight node`; killed when dropped.
pub(crate) struct Node {
    server: Server,
}

impl Node {
    /// Starts a node.
    ///
    /// # Errors
    /// It cannot be started.
    pub(crate) fn start(scratch: &Scratch, name: &str, config: &Value) -> io::Result<Self> {
        let path = scratch.write(name, config)?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_cuelight"));
        command.args(["node", "--config"]).arg(&path);
        let server = Server::start(&mut command, &path.with_extension("log"))?;
        Ok(Self { server })
    }

    /// Its process.
    pub(crate) fn pid(&mut self) -> u32 {
        self.server.child().id()
    }

    /// Stops the process, which stays as it is.
    ///
    /// # Errors
    /// It has ended already.
    pub(crate) fn stop(&mut self) -> io::Result<()> {
        let pid = rustix::process::Pid::from_child(self.server.child());
        Ok(rustix::process::kill_process(pid, rustix::process::Signal::STOP)?)
    }

    /// Kills the process, without waiting for its end.
    ///
    /// # Errors
    /// It has ended already.
    pub(crate) fn kill(&mut self) -> io::Result<()> {
        self.server.child().kill()
    }
}

/// A kept connection to `node.admin`.
pub(crate) struct Admin(BufReader<TcpStream>);

impl Admin {
    /// Connects, as soon as the node listens.
    ///
    /// # Errors
    /// It does not in time.
    pub(crate) fn connect(address: SocketAddr) -> io::Result<Self> {
        let began = Instant::now();
        loop {
            match TcpStream::connect(address) {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    stream.set_read_timeout(Some(PATIENCE))?;
                    return Ok(Self(BufReader::new(stream)));
                }
                Err(error) if began.elapsed() > PATIENCE => return Err(error),
                Err(_) => std::thread::sleep(LOOK),
            }
        }
    }

    /// A series' value, summed over its labels.
    ///
    /// # Errors
    /// The node does not answer.
    pub(crate) fn metric(&mut self, name: &str) -> io::Result<f64> {
        self.0.get_mut().write_all(b"GET /metrics HTTP/1.1\r\nHost: node\r\n\r\n")?;
        let mut length = 0;
        loop {
            let mut line = String::new();
            if self.0.read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().map_err(io::Error::other)?;
            }
            if line.trim().is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body)?;
        Ok(sum(&String::from_utf8_lossy(&body), name))
    }

    /// Polls for `window`; the last moment at which one of the series was above 0, if there was one,
    /// and how often it was polled.
    ///
    /// # Errors
    /// The node does not answer.
    pub(crate) fn last_seen(
        &mut self,
        names: &[&str],
        window: Duration,
    ) -> Outcome<(Option<Instant>, u32)> {
        let (began, mut last, mut polls) = (Instant::now(), None, 0);
        while began.elapsed() < window {
            for name in names {
                polls += 1;
                if self.metric(name)? > 0.0 {
                    last = Some(Instant::now());
                }
            }
        }
        Ok((last, polls))
    }

    /// Polls until a series satisfies `condition`; says how often it was polled.
    ///
    /// # Errors
    /// It does not in time.
    pub(crate) fn until(&mut self, name: &str, condition: impl Fn(f64) -> bool) -> Outcome<u32> {
        let began = Instant::now();
        for polls in 1.. {
            let value = self.metric(name)?;
            if condition(value) {
                return Ok(polls);
            }
            if began.elapsed() > PATIENCE {
                return Err(format!("{name} is still {value} after {PATIENCE:?}").into());
            }
        }
        Ok(u32::MAX)
    }
}

/// A series' value in this text, summed over its labels.
pub(crate) fn sum(text: &str, name: &str) -> f64 {
    let of = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{']));
    let value = |line: &str| line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok());
    text.lines().filter(of).filter_map(value).sum()
}

/// Waits until `condition` holds.
///
/// # Errors
/// It does not in time.
pub(crate) async fn eventually(what: &str, condition: impl Fn() -> bool) -> Outcome<()> {
    let began = Instant::now();
    while !condition() {
        if began.elapsed() > PATIENCE {
            return Err(format!("no {what} within {PATIENCE:?}").into());
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}
