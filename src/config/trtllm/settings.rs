//! `worker.trtllm:` and the rules between its keys and those of the worker.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bincode::{Decode, Encode};

use super::{Built, TrtllmOptions, check_buffer, read};
use crate::config::files;
use crate::config::read::Values;
use crate::router::Role;

const ENGINE: &str = "worker.engine";
const ENGINE_DIR: &str = "worker.trtllm.engine_dir";
const OPTIONS: &str = "worker.trtllm.options";
const MODE: &str = "worker.trtllm.mode";
const EXECUTABLE: &str = "worker.trtllm.worker_executable";
const DEVICES: &str = "worker.trtllm.devices";
const STEP: &str = "worker.step_timeout_s";
const TIMEOUT: &str = "worker.transfer.timeout_s";
/// How much sooner a transfer must be given up than a step counts as hung.
const NOTICE: Duration = Duration::from_millis(250);
const LORAS: &str = "worker.trtllm.loras";
const COMMAND: &str = "worker.process_command";
const PROCESSORS: &str = "worker.logits_processors";

/// `worker.trtllm:` what an engine `trtllm` is opened with.
#[derive(Clone, Debug, Default, PartialEq, Encode, Decode)]
#[non_exhaustive]
pub struct TrtllmSettings {
    /// `worker.trtllm.engine_dir`: what `trtllm-build` has written. Empty for other engines.
    pub engine_dir: PathBuf,
    /// `worker.trtllm.options`: TensorRT-LLM's own keys. Default: none of them.
    pub options: TrtllmOptions,
    /// `worker.trtllm.mode`. Default `leader`.
    pub mode: TrtllmMode,
    /// `worker.trtllm.worker_executable`: with mode `orchestrator`.
    pub worker_executable: Option<PathBuf>,
    /// `worker.trtllm.devices`: GPUs of all ranks' engines. Default: TensorRT-LLM's choice.
    pub devices: Vec<u16>,
    /// `worker.trtllm.loras`: adapters by name, and the folders of their weights. Default: none.
    pub loras: Vec<(String, PathBuf)>,
    /// What the engine was built with; `None` where there is none.
    pub built: Option<Built>,
}

/// How the processes of an engine with several GPUs come about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub enum TrtllmMode {
    /// All of them are started by MPI and run this program; the first one leads.
    #[default]
    Leader,
    /// One process runs this program; TensorRT-LLM starts its `executorWorker` for the others.
    Orchestrator,
}

impl TrtllmSettings {
    /// GPUs of one engine.
    pub fn world(&self) -> usize {
        self.built.as_ref().map_or(1, Built::world).max(1)
    }

    /// What the engine of this data-parallel rank is opened with: the options, and the GPUs from
    /// `rank * world()` on. In mode `leader` all of its processes are given the same.
    pub fn options_of(&self, rank: usize) -> TrtllmOptions {
        let world = self.world();
        let own = self.devices.iter().skip(rank * world).take(world);
        let mut options = self.options.clone();
        let parallel = &mut options.parallel;
        parallel.device_ids = own.map(|id| i32::from(*id)).collect();
        match self.mode {
            // One process on a GPU that TensorRT-LLM chooses needs no parallel configuration.
            TrtllmMode::Leader if world == 1 && parallel.device_ids.is_empty() => {}
            TrtllmMode::Leader => parallel.mode = Some("LEADER".into()),
            TrtllmMode::Orchestrator => {
                parallel.mode = Some("ORCHESTRATOR".into());
                parallel.is_orchestrator = Some(true);
                parallel.spawn_processes = Some(true);
                let path = self.worker_executable.as_ref();
                parallel.worker_executable = path.map(|path| path.display().to_string());
            }
        }
        options
    }
}

/// Builds what the values say, and complains about what they must not say together.
pub(in crate::config) fn settings(values: &mut Values) -> TrtllmSettings {
    let is_trtllm = values.text(ENGINE).as_deref() == Some("trtllm");
    let engine_dir = values.text(ENGINE_DIR).map(PathBuf::from);
    let built = engine_dir.as_deref().and_then(|dir| built(values, dir, is_trtllm));
    let settings = TrtllmSettings {
        options: options(values, built.as_ref()),
        engine_dir: engine_dir.unwrap_or_default(),
        mode: match values.text(MODE).as_deref() {
            Some("orchestrator") => TrtllmMode::Orchestrator,
            _ => TrtllmMode::Leader,
        },
        worker_executable: values.text(EXECUTABLE).map(PathBuf::from),
        devices: values.list(DEVICES).iter().filter_map(|text| text.parse().ok()).collect(),
        loras: loras(values),
        built,
    };
    if is_trtllm {
        engine_rules(values, &settings);
        process_rules(values, &settings);
        device_rules(values, &settings);
        transfer_rules(values, &settings);
    }
    settings
}

fn built(values: &mut Values, dir: &Path, is_trtllm: bool) -> Option<Built> {
    match Built::read(dir) {
        Ok(built) => Some(built),
        Err(_) if !is_trtllm => None,
        Err(rule) => {
            values.complain(ENGINE_DIR, rule);
            None
        }
    }
}

fn loras(values: &mut Values) -> Vec<(String, PathBuf)> {
    let mut all: Vec<(String, PathBuf)> = Vec::new();
    for text in values.list(LORAS) {
        let Some((name, folder)) = text.split_once('=') else { continue };
        let files = ["model.lora_weights.npy", "model.lora_config.npy"];
        let lacks = files.iter().find(|file| !Path::new(folder).join(file).is_file());
        if let Some(file) = lacks {
            let rule =
                format!("{folder} has no {file}; write it with TensorRT-LLM's hf_lora_convert.py");
            values.complain(LORAS, rule);
        } else if all.iter().any(|(known, _)| known == name) {
            values.complain(
                LORAS,
                format!("names {name} twice; give each adapter a name of its own"),
            );
        } else {
            all.push((name.to_owned(), PathBuf::from(folder)));
        }
    }
    all
}

fn options(values: &mut Values, built: Option<&Built>) -> TrtllmOptions {
    let Some(path) = values.text(OPTIONS).map(PathBuf::from) else { return Default::default() };
    let text = match files::text(&path) {
        Ok(text) => text,
        Err(rule) => {
            values.complain(OPTIONS, rule);
            return TrtllmOptions::default();
        }
    };
    read(&text, &path, built).unwrap_or_else(|errors| {
        for problem in errors.problems {
            values.complain(OPTIONS, problem.to_string());
        }
        TrtllmOptions::default()
    })
}

fn engine_rules(values: &mut Values, settings: &TrtllmSettings) {
    if !cfg!(feature = "trtllm-bridge") {
        let rule = "this program was built without TensorRT-LLM; build it with --features trtllm \
                    (docs/tensorrt-llm.md)";
        values.complain(ENGINE, rule);
    }
    if settings.engine_dir.as_os_str().is_empty() && !values.is_broken(ENGINE_DIR) {
        let rule = format!("needs {ENGINE_DIR}; name the folder that trtllm-build has written");
        values.complain(ENGINE, rule);
    }
}

/// Whether the processes of an engine are started as its mode wants.
fn process_rules(values: &mut Values, settings: &TrtllmSettings) {
    let (world, command) = (settings.world(), values.list(COMMAND));
    match (settings.mode, &settings.worker_executable) {
        (TrtllmMode::Leader, Some(_)) => {
            values.complain(
                EXECUTABLE,
                format!("is for {MODE} orchestrator; remove it, or say that"),
            );
        }
        (TrtllmMode::Orchestrator, None) if !values.is_broken(EXECUTABLE) => {
            let rule = format!("needs {EXECUTABLE}; name TensorRT-LLM's bin/executorWorker");
            values.complain(MODE, rule);
        }
        (TrtllmMode::Orchestrator, Some(path)) if !path.is_file() => {
            values.complain(EXECUTABLE, "is no file; name TensorRT-LLM's bin/executorWorker");
        }
        _ => {}
    }
    let processes = if settings.mode == TrtllmMode::Leader { world } else { 1 };
    if processes > 1 && command.is_empty() && !values.is_broken(COMMAND) {
        let rule = format!(
            "the engine was built for {world} GPUs, and in mode leader each has a process: needs \
             {COMMAND}, such as [mpirun, -n, \"{world}\", --allow-run-as-root]"
        );
        values.complain(ENGINE_DIR, rule);
    }
    if let Some(started) = started(&command)
        && started != processes
        && settings.built.is_some()
    {
        let rule = format!(
            "starts {started} processes where an engine needs {processes}; say -n {processes}"
        );
        values.complain(COMMAND, rule);
    }
    if settings.mode == TrtllmMode::Orchestrator && !values.list(PROCESSORS).is_empty() {
        let rule = format!(
            "cannot be used with {MODE} orchestrator, whose engine computes in other processes; \
                            remove them, or use mode leader"
        );
        values.complain(PROCESSORS, rule);
    }
}

/// The number after `-n` or `-np` in a command that starts processes side by side.
fn started(command: &[String]) -> Option<usize> {
    let by = Path::new(command.first()?).file_name()?.to_str()?;
    if !["mpirun", "mpiexec", "orterun", "prun", "srun"].contains(&by) {
        return None;
    }
    let at = command.iter().position(|word| word == "-n" || word == "-np")?;
    command.get(at + 1)?.parse().ok()
}

/// Whether each engine has its GPUs.
fn device_rules(values: &mut Values, settings: &TrtllmSettings) {
    let (ranks, world) = (values.size("worker.dp_size"), settings.world());
    // How many GPUs an engine needs is only known of one that can be read.
    if settings.built.is_none() || values.is_broken(DEVICES) {
        return;
    }
    let devices = &settings.devices;
    if devices.is_empty() {
        if ranks > 1 {
            let rule = format!(
                "needs {DEVICES}: {} GPUs, {world} for each of {ranks} ranks; without it all ranks would \
                 take the same ones",
                ranks * world
            );
            values.complain("worker.dp_size", rule);
        }
        return;
    }
    if devices.len() != ranks * world {
        let rule = format!(
            "lists {} GPUs, but worker.dp_size is {ranks} and each engine was built for {world}: list {}; rank i \
             gets those from i * {world} on",
            devices.len(),
            ranks * world
        );
        return values.complain(DEVICES, rule);
    }
    for (rank, own) in devices.chunks(world).enumerate() {
        let twice = own.iter().enumerate().find(|(at, id)| own[..*at].contains(id));
        if let Some((_, id)) = twice {
            values
                .complain(DEVICES, format!("gives rank {rank} GPU {id} twice; give each GPU once"));
        }
    }
}

/// What disaggregation needs.
fn transfer_rules(values: &mut Values, settings: &TrtllmSettings) {
    let role = values.text("worker.role").and_then(|name| Role::named(&name)).unwrap_or_default();
    if role == Role::default() || values.problems_of(OPTIONS) {
        return;
    }
    if settings.options.transceiver.backend.is_none() {
        let rule = format!(
            "needs {OPTIONS} with cache_transceiver_config (backend and max_tokens_in_buffer), by which KV \
             moves between engines"
        );
        return values.complain("worker.role", rule);
    }
    // A decode whose prompt does not come must notice that before it counts as hung.
    if values.time(TIMEOUT) + NOTICE > values.time(STEP)
        && !values.is_broken(TIMEOUT)
        && !values.is_broken(STEP)
    {
        let rule = format!(
            "must be less than {STEP} ({} s) by {} s: an engine that waits for another one would be taken for one \
             that hangs",
            values.time(STEP).as_secs_f64(),
            NOTICE.as_secs_f64()
        );
        values.complain(TIMEOUT, rule);
    }
    let known = settings.built.as_ref().map(|built| built.max_seq_len);
    let cap = values.maybe_size("worker.max_context");
    let Some(longest) = known.into_iter().chain(cap).min() else { return };
    if let Err(rule) = check_buffer(&settings.options, longest) {
        values.complain(OPTIONS, rule);
    }
}
