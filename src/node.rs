//! One node of Cuelight: builds what the config asks for, runs it, drains it on SIGTERM.

mod engine;
pub mod launch;
mod meeting;
mod replace;
mod trtllm;

use std::io;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpSocket;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tracing::{error, info, warn};

use crate::actors::context::NodeContext;
use crate::actors::handle::{FrontendHandle, Shared};
use crate::actors::root;
use crate::config::{Config, Frontend};
use crate::engine::native::LoadError;
use crate::http::{self, ServeError};
use crate::ids::RankIndex;
use crate::task::Task;
use crate::telemetry;
use crate::text::TextError;
pub use engine::run as run_engine;
use launch::Tree;

/// Bad usage or configuration (`EX_USAGE`).
pub const EXIT_CONFIG: u8 = 64;
/// The supervision tree gave up (`EX_SOFTWARE`).
pub const EXIT_GAVE_UP: u8 = 70;

/// How often the drain looks whether it is done.
const DRAIN_LOOK: Duration = Duration::from_millis(10);

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The address cannot be listened on.
    #[error(
        "frontend.http = {address}: cannot listen: {source}; choose another with --set frontend.http=ADDR:PORT"
    )]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The address for other nodes cannot be listened on.
    #[error(
        "cluster.listen = {address}: cannot listen: {source}; choose another with --set cluster.listen=ADDR:PORT"
    )]
    ClusterListen {
        /// The address.
        address: std::net::SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The address for operators cannot be listened on.
    #[error(
        "node.admin = {address}: cannot listen: {source}; choose another with --set node.admin=ADDR:PORT"
    )]
    AdminListen {
        /// The address.
        address: std::net::SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file of `cluster.tls` cannot be used.
    #[error("cluster.tls: {0}")]
    ClusterTls(String),
    /// The checkpoint cannot be run.
    #[error("worker.model = {}: {source}", dir.display())]
    Model {
        /// The directory.
        dir: PathBuf,
        /// Why.
        #[source]
        source: Box<LoadError>,
    },
    /// The tokenizer or chat template cannot be used.
    #[error("worker.model = {}: {source}", dir.display())]
    Text {
        /// The directory.
        dir: PathBuf,
        /// Why.
        #[source]
        source: Box<TextError>,
    },
    /// Certificate or key cannot be used.
    #[error(transparent)]
    Http(#[from] ServeError),
    /// Logs or traces cannot be set up.
    #[error(transparent)]
    Telemetry(#[from] telemetry::TelemetryError),
    /// The runtime cannot be built.
    #[error("the system refused what the node needs to start: {0}")]
    System(#[from] io::Error),
    /// The root actor did not start.
    #[error("the supervision tree did not start: {0}")]
    Tree(String),
}

/// Runs a node until it is told to stop, and says how it ended.
pub fn run(config: Config) -> ExitCode {
    replace::reap();
    let supervision = config.supervision.clone();
    match start(config) {
        Ok(Ended::With(code)) => ExitCode::from(code),
        Ok(Ended::Spoilt) => {
            let error = replace::replace(&supervision);
            eprintln!("cuelight: {error}");
            ExitCode::from(EXIT_GAVE_UP)
        }
        Err(error) => {
            eprintln!("cuelight: {error}");
            ExitCode::from(EXIT_CONFIG)
        }
    }
}

fn start(config: Config) -> Result<Ended, StartError> {
    let began = Instant::now();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(config.node.runtime_threads)
        .enable_all()
        .build()?;
    let ended = runtime.block_on(async {
        let _telemetry = telemetry::init(&config.log, &config.node.name)?;
        let listener = config.frontend.as_ref().map(listen).transpose()?;
        let admin = config.node.admin.map(listen_admin).transpose()?;
        let tree = Tree::start(config).await?;
        Node { tree, listener, admin }.run(began).await
    });
    runtime.shutdown_background(); // a thread that hangs must not hold up the end
    ended
}

/// How a node's life ended.
enum Ended {
    /// With this exit code.
    With(u8),
    /// An engine hangs, and nothing but the end of this process frees what it holds.
    Spoilt,
}

/// Listens with a backlog that holds a burst of clients: one over it waits a second to try again.
fn listen(frontend: &Frontend) -> Result<TcpListener, StartError> {
    let address = frontend.http;
    let open = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(frontend.backlog)?.into_std()
    };
    open().map_err(|source| StartError::Listen { address, source })
}

fn listen_admin(address: std::net::SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).map_err(|source| StartError::AdminListen { address, source })
}

/// What ends a running node.
enum End {
    Signal(&'static str),
    TreeGaveUp,
    Http(Result<(), ServeError>),
}

struct Node {
    tree: Tree,
    listener: Option<TcpListener>,
    admin: Option<TcpListener>,
}

impl Node {
    async fn run(mut self, began: Instant) -> Result<Ended, StartError> {
        let (mut terminate, mut interrupt) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let (stop_http, stopping) = watch::channel(false);
        let mut server = self.serve(stopping);
        let _admin = self.serve_admin();
        let ready = Task::spawn(say_when_ready(self.tree.frontend.clone(), began));

        let end = tokio::select! {
            _ = terminate.recv() => End::Signal("SIGTERM"),
            _ = interrupt.recv() => End::Signal("SIGINT"),
            _ = &mut self.tree.ended => End::TreeGaveUp,
            ended = &mut server => End::Http(ended.map_err(io::Error::from)?),
        };
        drop(ready);
        let limit = self.tree.node.config.node.stop_timeout;
        match end {
            End::Signal(name) => {
                info!(signal = name, "draining; a second signal ends at once");
                let at_once = tokio::select! {
                    () = self.drain(&stop_http, &mut server) => false,
                    _ = terminate.recv() => true,
                    _ = interrupt.recv() => true,
                };
                if at_once {
                    warn!("ended by a second signal");
                } else {
                    info!("drained");
                }
                self.tree.root.stop(None);
                let _ = tokio::time::timeout(limit, &mut self.tree.ended).await;
                if !at_once {
                    engines_end(&self.tree.node).await;
                }
                Ok(Ended::With(0))
            }
            End::TreeGaveUp => {
                error!("the supervision tree gave up; see the errors above");
                let _ = stop_http.send(true);
                let node = &self.tree.node;
                if node.config.frontend.is_some() {
                    let _ = tokio::time::timeout(limit, server).await;
                }
                let spoilt = node.is_spoilt() && node.config.frontend.is_none();
                Ok(if spoilt { Ended::Spoilt } else { Ended::With(EXIT_GAVE_UP) })
            }
            End::Http(ended) => {
                ended?;
                error!("the HTTP server ended");
                Ok(Ended::With(EXIT_GAVE_UP))
            }
        }
    }

    /// The HTTP server's life; one without end on a node without a front end.
    fn serve(&mut self, stopping: watch::Receiver<bool>) -> JoinHandle<Result<(), ServeError>> {
        let (Some(listener), Some(shared)) = (self.listener.take(), &self.tree.frontend) else {
            return tokio::spawn(std::future::pending());
        };
        let handle = FrontendHandle::new(shared.clone());
        let config = shared.frontend_config();
        let faults = self.tree.node.config.faults.enabled;
        tokio::spawn(async move { http::serve(listener, handle, &config, faults, stopping).await })
    }

    /// The life of the operators' server, where there is one.
    fn serve_admin(&mut self) -> Option<Task> {
        let listener = self.admin.take()?;
        let (node, frontend) = (self.tree.node.clone(), self.tree.frontend.clone());
        Some(Task::spawn(async move {
            let frontend = frontend.map(FrontendHandle::new);
            if let Err(error) = http::admin::serve(listener, node, frontend).await {
                error!(%error, "node.admin cannot be served");
            }
        }))
    }

    /// Requests that clients wait for, and legs of other nodes' requests.
    fn busy(&self) -> usize {
        let requests = self.tree.frontend.as_ref().map_or(0, |shared| shared.active());
        let census = self.tree.node.board.census();
        requests + census.get("Sequence").copied().unwrap_or(0)
    }

    /// Lets running requests finish within `node.drain_timeout_s`, then ends the rest with an error.
    async fn drain(
        &self,
        stop_http: &watch::Sender<bool>,
        server: &mut JoinHandle<Result<(), ServeError>>,
    ) {
        self.tree.node.drain();
        let (leaving, left) = oneshot::channel();
        let _ = self.tree.root.cast(root::Msg::Drain(leaving)); // gone: its requests have ended
        let none_left = async {
            while self.busy() > 0 {
                tokio::time::sleep(DRAIN_LOOK).await;
            }
        };
        let limit = self.tree.node.config.node.drain_timeout;
        if tokio::time::timeout(limit, none_left).await.is_err() {
            warn!(left = self.busy(), ?limit, "drain time is over (node.drain_timeout_s)");
            let _ = self.tree.root.cast(root::Msg::CutOff); // gone: its requests have ended
        }
        let _ = stop_http.send(true);
        let by = tokio::time::Instant::now() + self.tree.node.config.node.stop_timeout;
        if self.tree.frontend.is_some() {
            let _ = tokio::time::timeout_at(by, server).await;
        }
        let _ = tokio::time::timeout_at(by, left).await; // then the entry lapses by itself
    }
}

/// Waits for engines in processes of their own, which were told to end with the tree.
async fn engines_end(node: &NodeContext) {
    let Some(worker) = node.config.worker.as_ref().filter(|worker| worker.process) else { return };
    let ranks: Vec<_> = (0..worker.dp_size).map(RankIndex).collect();
    let of =
        |rank: &RankIndex| node.metrics.worker(&worker.served_name, *rank).engine_processes.get();
    let none_left = async {
        while ranks.iter().map(of).sum::<i64>() > 0 {
            tokio::time::sleep(DRAIN_LOOK).await;
        }
    };
    // They are killed when the first of the two is over.
    let limit = worker.process_stop * 2;
    if tokio::time::timeout(limit, none_left).await.is_err() {
        warn!(?limit, "an engine's process does not end; the system ends it with this one");
    }
}

async fn say_when_ready(shared: Option<Arc<Shared>>, began: Instant) {
    let Some(shared) = shared else { return };
    let mut view = shared.view.subscribe();
    let all_linked = |view: &Arc<crate::actors::models::View>| {
        view.models.iter().all(|model| model.readiness().reason.is_none())
    };
    if view.wait_for(all_linked).await.is_ok() {
        let http = shared.frontend_config().http;
        info!(%http, after_ms = began.elapsed().as_millis() as u64, "ready");
    }
}
