//! Engines in processes of their own: `cuelight engine`, which only a node starts, and what it is told.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use bincode::{Decode, Encode};
use rustix::process::{Signal, kill_current_process_group, set_parent_process_death_signal};
use tokio::signal::unix::{SignalKind, signal};

use super::launch::{lost, make};
use super::{EXIT_CONFIG, EXIT_GAVE_UP};
use crate::actors::context::NodeContext;
use crate::config::{EngineKind, Log, Worker};
use crate::engine::blocks::HashKey;
use crate::engine::process::{Limits, Meeting, Remote, host};
use crate::engine::{Engine, EngineError};
use crate::ids::RankIndex;
use crate::telemetry;

/// The program of this process, also when another file has come in its place: both sides must be of one
/// build.
const PROGRAM: &str = "/proc/self/exe";
/// How much earlier than its `Worker` a [`Remote`] gives up loading: the worker would take this process
/// for stuck.
const EARLIER: Duration = Duration::from_secs(1);

/// What an engine is made of: all that its process has to know.
#[derive(Encode, Decode)]
struct Recipe {
    worker: Worker,
    rank: u16,
    hash_key: [u8; 32],
    log: Log,
    node: String,
}

/// Starts a process with a rank's engine.
pub(super) fn start(
    node: &NodeContext,
    worker: &Worker,
    rank: RankIndex,
    key: &HashKey,
) -> Result<Remote, EngineError> {
    let log = Log { otlp_endpoint: None, ..node.config.log.clone() };
    let name = format!("{} {}/{}", node.config.node.name, worker.served_name, rank.0);
    let recipe = Recipe { worker: worker.clone(), rank: rank.0, hash_key: key.0, log, node: name };
    let recipe = bincode::encode_to_vec(&recipe, bincode::config::standard()).map_err(lost)?;
    let limits = Limits {
        silence: worker.process_silence,
        step: worker.step_timeout,
        load: worker.load_timeout - EARLIER.min(worker.load_timeout / 8),
        stop: worker.process_stop,
    };
    let metrics = node.metrics.worker(&worker.served_name, rank);
    let count = move |is_start: bool| {
        metrics.engine_processes.inc_by(if is_start { 1 } else { -1 });
        metrics.engine_process_starts.inc_by(is_start.into());
    };
    let Some((launcher, words)) = worker.process_command.split_first() else {
        let mut program = Command::new(PROGRAM);
        program.arg("engine");
        return Remote::start(program, recipe, limits, Box::new(count));
    };
    let meeting = Meeting::new(&recipe).map_err(lost)?;
    // By its name: PROGRAM would be the launcher's.
    let program = std::env::current_exe().map_err(lost)?;
    let mut command = Command::new(launcher);
    command.args(words).arg(program).arg("engine").env(MEETING, meeting.folder());
    Remote::start_by(command, &meeting, recipe, limits, Box::new(count))
}

/// Names the folder of the [`Meeting`] to processes that a launcher has started.
const MEETING: &str = "CUELIGHT_ENGINE_DIR";
/// Where launchers say which of several processes one is, from 0.
const PLACES: [&str; 4] = ["OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID"];

fn place() -> u64 {
    let place = PLACES.iter().find_map(|name| std::env::var(name).ok()?.parse().ok());
    place.unwrap_or(0)
}

/// The life of a process that computes with the one that speaks to the node.
fn follow(folder: &Path) -> io::Result<Result<(), EngineError>> {
    let spec = Meeting::spec(folder)?;
    let read = bincode::decode_from_slice(&spec, bincode::config::standard());
    let (recipe, _): (Recipe, usize) = read.map_err(io::Error::other)?;
    let _logs = telemetry::init(&recipe.log, &recipe.node).map_err(io::Error::other)?;
    let followed = match recipe.worker.engine {
        EngineKind::Trtllm => super::trtllm::follow(&recipe.worker, RankIndex(recipe.rank)),
        EngineKind::Native | EngineKind::Sim => {
            Err(lost("this engine has one process; let worker.process_command start one"))
        }
    };
    Ok(followed.inspect_err(|error| tracing::error!(%error, "a process of an engine has ended")))
}

/// The life of such a process. Its standard input is the socket to the node.
pub fn run() -> ExitCode {
    match serve() {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(_)) => ExitCode::from(EXIT_GAVE_UP), // the node has been told, and says why
        Err(error) => {
            let what = "cuelight engine is started by a node with worker.process, by nobody else";
            eprintln!("cuelight: {what}: {error}");
            ExitCode::from(EXIT_CONFIG)
        }
    }
}

fn serve() -> io::Result<Result<(), EngineError>> {
    // Whatever becomes of the node, also when this process is in a step that never ends.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let meeting = std::env::var_os(MEETING).map(PathBuf::from);
    let socket = match &meeting {
        Some(folder) if place() == 0 => Some(Meeting::join(folder)?),
        Some(_) => None,
        None => Some(UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?)),
    };
    if let Some(socket) = &socket {
        socket.peer_addr()?; // standard input is a socket
    }
    let _ = std::fs::write("/proc/self/comm", "cuelight-engine"); // only a name
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let _entered = runtime.enter();
    // Whoever ends the node may signal all its processes: this one ends when the node has drained.
    let _signals = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let Some(socket) = socket else { return follow(&meeting.unwrap_or_default()) };
    let mut logs = None;
    let open = |recipe: &[u8]| -> Result<Box<dyn Engine>, EngineError> {
        let read = bincode::decode_from_slice(recipe, bincode::config::standard());
        let (recipe, _): (Recipe, usize) = read.map_err(lost)?;
        logs = Some(telemetry::init(&recipe.log, &recipe.node).map_err(lost)?);
        make(&recipe.worker, RankIndex(recipe.rank), &HashKey(recipe.hash_key))
    };
    // With all that it has started: it leads a group of its own.
    let orphaned = || {
        let _ = kill_current_process_group(Signal::KILL); // does not return
    };
    let end = host(socket, open, orphaned);
    drop(logs);
    Ok(end)
}
