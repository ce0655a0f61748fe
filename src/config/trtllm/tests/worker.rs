//! What `worker.trtllm` and the keys around it must say together.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use expect_test::expect;

use super::ENGINE;
use crate::config::read::values_of;
use crate::config::trtllm::{ParallelOptions, TrtllmSettings, settings};
use crate::config::{ConfigErrors, Problem};

/// What comes of these `--set`s, and what is wrong with them.
fn refused_of(sets: &[String]) -> (TrtllmSettings, Vec<Problem>) {
    let mut values = values_of(sets);
    let settings = settings(&mut values);
    (settings, values.problems)
}

/// A folder that goes with its owner.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A folder with an engine for four GPUs, and options.
fn folder(options: &str) -> (Folder, Vec<String>) {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let nth = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = format!("cuelight-trtllm-{}-{nth}", std::process::id());
    let dir = Folder(std::env::temp_dir().join(name));
    std::fs::create_dir_all(&dir.0).unwrap();
    std::fs::write(dir.0.join("config.json"), ENGINE).unwrap();
    std::fs::write(dir.0.join("o.yml"), options).unwrap();
    let path = dir.0.display();
    let sets = vec![
        "worker.engine=trtllm".to_owned(),
        format!("worker.trtllm.engine_dir={path}"),
        format!("worker.trtllm.options={path}/o.yml"),
    ];
    (dir, sets)
}

/// What is wrong with a worker, but for what a build without TensorRT-LLM says.
fn worker(options: &str, more: &[&str]) -> Result<TrtllmSettings, String> {
    let (dir, mut sets) = folder(options);
    sets.extend(more.iter().map(ToString::to_string));
    let (worker, problems) = refused_of(&sets);
    let told = |text: String| text.replace(&dir.0.display().to_string(), "DIR");
    let problems: Vec<_> = problems
        .into_iter()
        .filter(|p| !p.rule.starts_with("this program was built without"))
        .collect();
    if problems.is_empty() {
        return Ok(worker);
    }
    Err(told(ConfigErrors { file: Some(PathBuf::from("node.yaml")), problems }.to_string()))
}

const MPIRUN: &str = "worker.process_command=[mpirun, -n, 4, --allow-run-as-root]";

#[test]
fn ranks_get_their_gpus_in_order() {
    let devices = "worker.trtllm.devices=[0, 1, 2, 3, 7, 6, 5, 4]";
    let settings = worker("max_batch_size: 4", &["worker.dp_size=2", devices, MPIRUN]).unwrap();
    let second = settings.options_of(1);
    assert_eq!(second.parallel.device_ids, [7, 6, 5, 4]);
    assert_eq!(second.parallel.mode.as_deref(), Some("LEADER"));
    assert_eq!(second.max_batch_size, Some(4));
    assert_eq!(settings.options_of(0).parallel.device_ids, [0, 1, 2, 3]);
}

#[test]
fn an_orchestrator_is_told_its_worker() {
    let sets = ["worker.trtllm.mode=orchestrator", "worker.trtllm.worker_executable=Cargo.toml"];
    let parallel = worker("", &sets).unwrap().options_of(0).parallel;
    let expected = ParallelOptions {
        mode: Some("ORCHESTRATOR".into()),
        worker_executable: Some("Cargo.toml".into()),
        spawn_processes: Some(true),
        is_orchestrator: Some(true),
        ..ParallelOptions::default()
    };
    assert_eq!(parallel, expected);
}

#[test]
fn a_worker_says_what_its_engines_need() {
    let cases: &[(&str, &[&str])] = &[
        ("", &[]),
        ("", &["worker.process_command=[mpirun, -n, 2]"]),
        ("", &[MPIRUN, "worker.dp_size=2"]),
        ("", &[MPIRUN, "worker.trtllm.devices=[0, 1]"]),
        ("", &[MPIRUN, "worker.trtllm.devices=[0, 1, 2, 1]"]),
        ("", &[MPIRUN, "worker.trtllm.devices=[0, x]"]),
        ("", &[MPIRUN, "worker.trtllm.worker_executable=Cargo.toml"]),
        ("", &["worker.trtllm.mode=orchestrator", "worker.logits_processors=[forced_text]"]),
        ("", &["worker.trtllm.mode=orchestrator", "worker.trtllm.worker_executable=/none"]),
        ("", &[MPIRUN, "worker.role=prefill"]),
        ("cache_transceiver_config: {backend: UCX}", &[MPIRUN, "worker.role=decode"]),
        (
            "cache_transceiver_config: {backend: UCX, max_tokens_in_buffer: 1000}",
            &[MPIRUN, "worker.role=decode", "worker.max_context=1500"],
        ),
        (
            "cache_transceiver_config: {backend: UCX, max_tokens_in_buffer: 2048}",
            &[MPIRUN, "worker.role=decode", "worker.step_timeout_s=10.2"],
        ),
        ("max_batch: 1\nenable_attention_dp: true\n", &[MPIRUN]),
    ];
    let mut text = String::new();
    for (options, sets) in cases {
        let errors = worker(options, sets).unwrap_err();
        let (_, problems) = errors.split_once('\n').unwrap();
        text += &format!("{options} {sets:?}\n{problems}\n");
    }
    expect![[r#"
         []
          --set: worker.trtllm.engine_dir = DIR: the engine was built for 4 GPUs, and in mode leader each has a process: needs worker.process_command, such as [mpirun, -n, "4", --allow-run-as-root]
         ["worker.process_command=[mpirun, -n, 2]"]
          --set: worker.process_command: starts 2 processes where an engine needs 4; say -n 4
         ["worker.process_command=[mpirun, -n, 4, --allow-run-as-root]", "worker.dp_size=2"]
          --set: worker.dp_size = 2: needs worker.trtllm.devices: 8 GPUs, 4 for each of 2 ranks; without it all ranks would take the same ones
         ["worker.process_command=[mpirun, -n, 4, --allow-run-as-root]", "worker.trtllm.devices=[0, 1]"]
          --set: worker.trtllm.devices: lists 2 GPUs, but worker.dp_size is 1 and each engine was built for 4: list 4; rank i gets those from i * 4 on
         ["worker.process_command=[mpirun, -n, 4, --allow-run-as-root]", "worker.trtllm.devices=[0, 1, 2, 1]"]
          --set: worker.trtllm.devices: gives rank 0 GPU 1 twice; give each GPU once
         ["worker.process_command=[mpirun, -n, 4, --allow-run-as-root]", "worker.trtllm.devices=[0, x]"]
          --set: worker.trtllm.devices[1] = x: must be numbers of GPUs such as [0, 1]
         ["worker.process_command=[mpirun, -n, 4, --allow-run-as-root]", "worker.trtllm.worker_executable=Cargo.toml"]
          --set: worker.trtllm.worker_executable = Cargo.toml: is for worker.trtllm.mode orchestrator; remove it, or say that
         ["worker.trtllm.mode=orchestrator", "worker.logits_processors=[forced_text]"]
          --set: worker.trtllm.mode = orchestrator: needs worker.trtllm.worker_executable; name TensorRT-LLM's bin/executorWorker
          --set: worker.logits_processors: cannot be used with worker.trtllm.mode orchestrator, whose engine computes in other processes; remove them, or use mode leader
         ["worker.trtllm.mode=orchestrator", "worker.trtllm.worker_executable=/none"]
          --set: worker.trtllm.worker_executable = /none: is no file; name TensorRT-LLM's bin/executorWorker
         ["worker.process_command=[mpirun, -n, 4, --allow-run-as-root]", "worker.role=prefill"]
          --set: worker.role = prefill: needs worker.trtllm.options with cache_transceiver_config (backend and max_tokens_in_buffer), by which KV moves between engines
        cache_transceiver_config: {backend: UCX} ["worker.process_command=[mpirun, -n, 4, --allow-run-as-root]", "worker.role=decode"]
          --set: worker.trtllm.options = DIR/o.yml: cache_transceiver_config.max_tokens_in_buffer is not set: prompts have up to 2048 tokens, and a longer one than the buffer may never arrive; set it to 2048 or more, or lower worker.max_context
        cache_transceiver_config: {backend: UCX, max_tokens_in_buffer: 1000} ["worker.process_command=[mpirun, -n, 4, --allow-run-as-root]", "worker.role=decode", "worker.max_context=1500"]
          --set: worker.trtllm.options = DIR/o.yml: cache_transceiver_config.max_tokens_in_buffer = 1000 is too small: prompts have up to 1500 tokens, and a longer one than the buffer may never arrive; set it to 1500 or more, or lower worker.max_context
        cache_transceiver_config: {backend: UCX, max_tokens_in_buffer: 2048} ["worker.process_command=[mpirun, -n, 4, --allow-run-as-root]", "worker.role=decode", "worker.step_timeout_s=10.2"]
          default: worker.transfer.timeout_s: must be less than worker.step_timeout_s (10.2 s) by 0.25 s: an engine that waits for another one would be taken for one that hangs
        max_batch: 1
        enable_attention_dp: true
         ["worker.process_command=[mpirun, -n, 4, --allow-run-as-root]"]
          --set: worker.trtllm.options = DIR/o.yml: line 1: max_batch: unknown key; docs/tensorrt-llm.md lists all that are known
          --set: worker.trtllm.options = DIR/o.yml: line 2: enable_attention_dp = true: exists only in TensorRT-LLM's PyTorch backend; this engine drives the C++ Executor: remove it
    "#]].assert_eq(&text);
    let fits = "cache_transceiver_config: {backend: UCX, max_tokens_in_buffer: 2048}";
    worker(fits, &[MPIRUN, "worker.role=decode"]).unwrap();
}

#[test]
fn an_engine_must_be_named_and_be_in_the_program() {
    let (_, problems) = refused_of(&["worker.engine=trtllm".to_owned()]);
    let rules: Vec<_> = problems.iter().map(|problem| problem.rule.as_str()).collect();
    let named = "needs worker.trtllm.engine_dir; name the folder that trtllm-build has written";
    let built = "this program was built without TensorRT-LLM; build it with --features trtllm (docs/tensorrt-llm.md)";
    let expected = if cfg!(feature = "trtllm-bridge") { vec![named] } else { vec![built, named] };
    assert_eq!(rules, expected);
}
