//! Engines in processes of their own: `cuelight engine`, which only a node starts, and what it is told.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bincode::{Decode, Encode};
use rustix::process::{Signal, kill_current_process_group, set_parent_process_death_signal};
use tokio::signal::unix::{SignalKind, signal};

use super::launch::{lost, make};
use super::{EXIT_CONFIG, EXIT_GAVE_UP};
use crate::actors::context::NodeContext;
use crate::config::{EngineKind, Log, Worker};
use crate::engine::blocks::HashKey;
use crate::engine::process::{Limits, Meeting, Process, Remote, host};
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

/// The last process of each rank.
#[derive(Default)]
pub(super) struct Last(Mutex<HashMap<RankIndex, Arc<Process>>>);

impl Last {
    /// Waits until the rank's has ended, which has been told to: the next one needs what it holds, such as a GPU.
    fn has_ended(&self, rank: RankIndex, stop: Duration) {
        let last = self.lock().remove(&rank);
        if let Some(last) = last
            && last.end(stop).is_none()
        {
            last.kill();
            if last.end(stop).is_none() {
                tracing::warn!(
                    pid = last.pid(),
                    "an engine's process does not end; the next one is started beside it"
                );
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<RankIndex, Arc<Process>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts a process with a rank's engine, when the one before it has ended.
pub(super) fn start(
    node: &NodeContext,
    worker: &Worker,
    rank: RankIndex,
    key: &HashKey,
    last: &Last,
) -> Result<Remote, EngineError> {
    last.has_ended(rank, worker.process_stop);
    let remote = start_one(node, worker, rank, key)?;
    if let Some(process) = remote.process() {
        last.lock().insert(rank, process);
    }
    Ok(remote)
}

fn start_one(
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
        program.arg("engine").env_remove(MEETING);
        return Remote::start(program, recipe, limits, Box::new(count));
    };
    let meeting = Meeting::new(&recipe).map_err(lost)?;
    // PROGRAM would be the launcher's.
    let program = format!("/proc/{}/exe", std::process::id());
    let mut command = Command::new(launcher);
    command.args(words).arg(program).arg("engine");
    for place in PLACES {
        command.env_remove(place); // this process's, not its child's
    }
    command.env(MEETING, meeting.folder());
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
            let what = "cuelight engine is started by a node with worker.process, by nobody else, and finds it no more";
            eprintln!("cuelight: {what}: {error}");
            ExitCode::from(EXIT_CONFIG)
        }
    }
}

/// The socket that is our standard input; whatever this process starts does not inherit it.
fn own_socket() -> io::Result<UnixStream> {
    let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    socket.peer_addr()?; // it is one
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    Ok(socket)
}

fn serve() -> io::Result<Result<(), EngineError>> {
    // Whatever becomes of the node, also when this process is in a step that never ends.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let meeting = std::env::var_os(MEETING).map(PathBuf::from);
    let socket = match &meeting {
        Some(folder) if place() == 0 => Some(Meeting::join(folder)?),
        Some(_) => None,
        None => Some(own_socket()?),
    };
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
