//! The servers under load: the bare one, `cuelight serve` with the `sim` engine, and any other that
//! runs already.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant};

use crate::process::Server;

/// How `cuelight` is started; `{port}`, `{step_us}` and `{running}` are filled in.
const CUELIGHT_ARGS: &[&str] = &[
    "serve",
    "--model",
    "models/cuelight-tiny",
    "--set",
    "frontend.http=127.0.0.1:{port}",
    "--set",
    "frontend.max_requests=25000",
    "--set",
    "frontend.max_connections=25000",
    "--set",
    "worker.engine=sim",
    "--set",
    "worker.sim.step_us={step_us}",
    "--set",
    "worker.max_running={running}",
    "--set",
    "worker.max_waiting=25000",
    "--set",
    "worker.max_batch_tokens=65536",
    "--set",
    "worker.kv_blocks={blocks}",
    "--set",
    "log.level=warn",
];

/// The model's name in requests to `cuelight` and to the bare server, which does not care.
pub(crate) const MODEL: &str = "cuelight-tiny";

/// Logs of the servers.
pub(crate) const LOGS: &str = "target/bench";

const READY_LIMIT: Duration = Duration::from_secs(60);

/// What a started server must be able to do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Time between a stream's tokens; `None`: as fast as it can.
    pub(crate) pace: Option<Duration>,
    /// Streams that run at once.
    pub(crate) running: usize,
    /// KV blocks of 16 tokens.
    pub(crate) blocks: usize,
}

/// One server and how to reach and watch it.
pub(crate) struct Target {
    /// Its name in the table.
    pub(crate) name: String,
    /// Where it listens.
    pub(crate) addr: SocketAddr,
    /// The processes whose CPU time and memory count.
    pub(crate) pids: Vec<u32>,
    /// The model's name in requests.
    pub(crate) model: String,
    /// Not started by this program, so it is given a shorter load.
    pub(crate) is_external: bool,
    /// Keeps a server that we started alive.
    _server: Option<Server>,
}

impl Target {
    /// Starts the bare server.
    ///
    /// # Errors
    /// It does not start.
    pub(crate) fn bare(shape: Shape, threads: Option<usize>, one_buffer: bool) -> io::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("bare").stdout(Stdio::piped());
        if let Some(pace) = shape.pace {
            command.args(["--pace-us", &pace.as_micros().to_string()]);
        }
        if let Some(threads) = threads {
            command.args(["--threads", &threads.to_string()]);
        }
        if one_buffer {
            command.arg("--one-buffer");
        }
        let mut server = Server::start(&mut command, &Path::new(LOGS).join("bare.log"))?;
        let mut line = String::new();
        if let Some(out) = server.child().stdout.take() {
            BufReader::new(out).read_line(&mut line)?;
        }
        let port = line.trim().parse::<u16>().map_err(|_| {
            io::Error::other(format!("the bare server said {line:?} instead of its port"))
        })?;
        let name = if one_buffer { "bare hyper, one buffer" } else { "bare hyper" };
        Ok(Self::started(name, port, server))
    }

    /// Starts `binary` and waits until it can serve.
    ///
    /// # Errors
    /// It does not start, or is not ready in time.
    pub(crate) fn cuelight(binary: &Path, shape: Shape) -> io::Result<Self> {
        let port = free_port()?;
        let step_us = shape.pace.unwrap_or_default().as_micros().to_string();
        let log = Path::new(LOGS).join("cuelight.log");
        let mut command = Command::new(binary);
        command.stdout(Stdio::null()).args(CUELIGHT_ARGS.iter().map(|argument| {
            argument
                .replace("{port}", &port.to_string())
                .replace("{step_us}", &step_us)
                .replace("{running}", &shape.running.to_string())
                .replace("{blocks}", &shape.blocks.to_string())
        }));
        let mut server = Server::start(&mut command, &log)
            .map_err(|error| io::Error::other(format!("{}: {error}", binary.display())))?;
        let start = Instant::now();
        while !is_ready(SocketAddr::from(([127, 0, 0, 1], port))) {
            let ended = server.child().try_wait()?;
            if ended.is_some() || start.elapsed() > READY_LIMIT {
                let why =
                    ended.map_or("not ready in time".to_string(), |status| status.to_string());
                return Err(io::Error::other(format!(
                    "{}: {why}; its log is {}",
                    binary.display(),
                    log.display()
                )));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(Self::started("cuelight", port, server))
    }

    /// A server that runs already.
    pub(crate) fn external(named: &NamedUrl, pids: Vec<u32>, model: String) -> Self {
        let (name, addr) = (named.name.clone(), named.addr);
        Self { name, addr, pids, model, is_external: true, _server: None }
    }

    fn started(name: &str, port: u16, mut server: Server) -> Self {
        Self {
            name: name.to_string(),
            addr: SocketAddr::from(([127, 0, 0, 1], port)),
            pids: vec![server.child().id()],
            model: MODEL.to_string(),
            is_external: false,
            _server: Some(server),
        }
    }
}

/// `NAME=http://ADDR:PORT`, loopback only: a load generator must not reach other machines.
#[derive(Clone, Debug)]
pub(crate) struct NamedUrl {
    name: String,
    addr: SocketAddr,
}

impl FromStr for NamedUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, url) = text.split_once('=').ok_or("must be NAME=http://ADDR:PORT")?;
        let addr = url.strip_prefix("http://").unwrap_or(url).trim_end_matches('/');
        let addr: SocketAddr =
            addr.parse().map_err(|_| format!("{addr} is not ADDR:PORT with a numeric address"))?;
        if addr.ip().is_loopback() {
            Ok(Self { name: name.to_string(), addr })
        } else {
            Err(format!("{addr} is not a loopback address"))
        }
    }
}

/// The default binary: the one that cargo built beside this benchmark.
pub(crate) fn cuelight_binary() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_cuelight"))
}

fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// `GET /health` answers 200.
fn is_ready(addr: SocketAddr) -> bool {
    let ask = || -> io::Result<bool> {
        let mut socket = TcpStream::connect(addr)?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        write!(socket, "GET /health HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\n\r\n")?;
        let mut status_line = [0; 12];
        socket.read_exact(&mut status_line)?;
        Ok(status_line.ends_with(b" 200"))
    };
    ask().unwrap_or(false)
}
