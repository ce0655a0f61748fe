//! The keys of `worker:` but for its role and its transfers.

use super::{CORES, DAY_S, MIB};
use crate::config::schema::Preset::{Is, Words};
use crate::config::schema::TimeUnit::Millis;
use crate::config::schema::{
    ADAPTER, GPU, Key, Kind, PROCESSOR, WORD, micros, seconds, whole, worker,
};

pub(super) const KEYS: &[Key] = &[
    Key::new(
        "worker.model",
        Kind::Path,
        Words("the shipped `models/cuelight-tiny`"),
        "directory of a Hugging Face checkpoint",
    ),
    Key::new(
        "worker.served_name",
        Kind::Text,
        Words("the directory's name"),
        "the name that clients ask for",
    ),
    Key::new(
        "worker.engine",
        Kind::Choice(&["native", "sim", "trtllm"]),
        Is("native"),
        "`native` computes on the CPU; `sim` invents tokens with the timing of `worker.sim`; `trtllm` is TensorRT-LLM, in builds \
         that have it (docs/tensorrt-llm.md)",
    ),
    Key::new(
        "worker.dp_size",
        whole(1, 1024),
        Is("1"),
        "data-parallel ranks: engines with a KV pool, a queue and failures of their own",
    ),
    Key::new("worker.threads", whole(1, 1024), Words(CORES), "threads that compute, for all ranks")
        .advice("leave it out to follow the number of cores")
        .metric("process_threads")
        .limit(|c| worker(c, |w| w.threads as f64)),
    Key::new(
        "worker.precision",
        Kind::Choice(&["weights", "f32"]),
        Is("weights"),
        "what numbers matrix products multiply: the weights' own (BF16 where they are BF16), or F32",
    ),
    Key::new(
        "worker.block_tokens",
        Kind::Whole { min: 16, max: 1024, step: 16 },
        Is("16"),
        "tokens in a KV block",
    )
    .advice("16 suits most models"),
    Key::new(
        "worker.kv_blocks",
        whole(1, u32::MAX as u64),
        Words("as many as fit into `worker.kv_memory_mib`"),
        "KV blocks in the pool; not together with `worker.kv_memory_mib`",
    )
    .metric("cuelight_kv_blocks_used")
    .limit(|c| c.worker.as_ref()?.kv_blocks.map(f64::from)),
    Key::new("worker.kv_memory_mib", whole(1, 64 * MIB), Is("1024"), "memory of the KV pool in MiB")
        .metric("cuelight_kv_blocks_used")
        .limit(|c| {
            let worker = c.worker.as_ref().filter(|w| w.kv_blocks.is_none())?;
            Some((worker.kv_memory_bytes / MIB) as f64)
        }),
    Key::new(
        "worker.max_context",
        whole(1, 1 << 30),
        Words("the model's own"),
        "cap on the model's context in tokens",
    )
    .metric("cuelight_request_prompt_tokens")
    .limit(|c| c.worker.as_ref()?.max_context.map(|tokens| tokens as f64)),
    Key::new("worker.max_running", whole(1, 65_536), Is("256"), "legs in one step")
        .metric("cuelight_running")
        .limit(|c| worker(c, |w| w.max_running as f64)),
    Key::new(
        "worker.max_waiting",
        whole(1, 1_000_000),
        Is("4096"),
        "legs in a rank's queue; one more is refused",
    )
    .metric("cuelight_waiting")
    .limit(|c| worker(c, |w| w.max_waiting as f64)),
    Key::new(
        "worker.max_batch_tokens",
        whole(1, MIB),
        Is("512"),
        "prompt and output tokens in one step; at least `worker.max_running`",
    )
    .metric("cuelight_step_tokens")
    .limit(|c| worker(c, |w| w.max_batch_tokens as f64)),
    Key::new(
        "worker.prefix_cache",
        Kind::Switch,
        Is("true"),
        "whether KV blocks are found again by the tokens they hold",
    ),
    Key::new(
        "worker.logits_processors",
        Kind::List(PROCESSOR),
        Words("none"),
        "logits processors that are on for every request (engine `native`), as NAME or NAME={…} with its \
         arguments; all workers of a model need the same; the environment's CUELIGHT_TEST_LOGITS_PROCESSOR=1 adds `forced_text`",
    ),
    Key::new(
        "worker.kv_events",
        Kind::Switch,
        Is("true"),
        "whether front ends are told which KV blocks are cached; without it they guess",
    ),
    Key::new(
        "worker.kv_event_buffer",
        whole(1, 1 << 30),
        Is("65536"),
        "changes of the prefix cache that wait for one front end; with more it is sent the whole cache",
    )
    .metric("cuelight_kv_snapshots_total")
    .limit(|c| worker(c, |w| w.kv_event_buffer as f64)),
    Key::new(
        "worker.report_ms",
        Kind::Time { unit: Millis, min: 1.0, max: 60_000.0 },
        Is("50"),
        "how often front ends that have nothing running hear of a load that changes",
    ),
    Key::new(
        "worker.stream_frames",
        whole(1, 4096),
        Is("16"),
        "step frames of each rank that a token stream may hold before the next ones are merged",
    )
    .metric("cuelight_stream_full_total")
    .limit(|c| worker(c, |w| w.stream_frames as f64)),
    Key::new(
        "worker.step_timeout_s",
        seconds(0.01, DAY_S),
        Is("60"),
        "a step that takes longer loses the worker",
    )
    .metric("cuelight_step_seconds")
    .limit(|c| worker(c, |w| w.step_timeout.as_secs_f64())),
    Key::new(
        "worker.load_timeout_s",
        seconds(0.01, 7.0 * DAY_S),
        Is("1800"),
        "loading that takes longer loses the worker",
    )
    .metric("cuelight_load_seconds")
    .limit(|c| worker(c, |w| w.load_timeout.as_secs_f64())),
    Key::new(
        "worker.max_hung_engines",
        whole(0, 1000),
        Is("1"),
        "engines that stand still and are left behind in a process that also has a front end; with \
         one more it ends. A process without a front end is replaced at once",
    )
    .metric("cuelight_hung_engines")
    .limit(|c| worker(c, |w| w.max_hung_engines as f64)),
    Key::new(
        "worker.process_command",
        Kind::List(WORD),
        Words("none"),
        "words before the program where an engine is started in a process of its own, such as [mpirun, -n, \"2\"]",
    ),
    Key::new(
        "worker.trtllm.engine_dir",
        Kind::Path,
        Words("none"),
        "folder that `trtllm-build` has written; `worker.model` names the checkpoint with its tokenizer",
    ),
    Key::new(
        "worker.trtllm.options",
        Kind::Path,
        Words("none: TensorRT-LLM's own values"),
        "YAML file with TensorRT-LLM's own keys, such as `kv_cache_config`: docs/tensorrt-llm.md",
    ),
    Key::new(
        "worker.trtllm.mode",
        Kind::Choice(&["leader", "orchestrator"]),
        Is("leader"),
        "`leader`: MPI starts a process for each GPU (`worker.process_command`); `orchestrator`: TensorRT-LLM starts its own",
    ),
    Key::new(
        "worker.trtllm.worker_executable",
        Kind::Path,
        Words("none"),
        "TensorRT-LLM's `bin/executorWorker`, for mode `orchestrator`",
    ),
    Key::new(
        "worker.trtllm.devices",
        Kind::List(GPU),
        Words("TensorRT-LLM's choice; needed if `worker.dp_size` is more than 1"),
        "GPUs of all engines: with N for each (tensor times pipeline times context parallel), rank i gets those from i·N on",
    ),
    Key::new(
        "worker.trtllm.loras",
        Kind::List(ADAPTER),
        Words("none"),
        "adapters (LoRA) that requests may name in `lora`, as NAME=FOLDER, with what TensorRT-LLM's hf_lora_convert.py has \
         written; all workers of a model need the same",
    ),
    Key::new(
        "worker.process",
        Kind::Switch,
        Is("false"),
        "whether the engine of each rank is a process of its own, so that its end is not the node's: \
         docs/engine-processes.md; needs `worker.role` aggregated",
    ),
    Key::new(
        "worker.process_silence_s",
        seconds(0.1, DAY_S),
        Is("10"),
        "an engine's process that says nothing for this long is killed and replaced",
    )
    .metric("cuelight_engine_failures_total")
    .limit(|c| worker(c, |w| w.process_silence.as_secs_f64())),
    Key::new(
        "worker.process_stop_s",
        seconds(0.0, DAY_S),
        Is("5"),
        "how long an engine's process may take to end before it is killed",
    )
    .metric("cuelight_engine_processes")
    .limit(|c| worker(c, |w| w.process_stop.as_secs_f64())),
    Key::new("worker.sim.step_us", micros(1e9), Is("0"), "time of every step of `sim`"),
    Key::new("worker.sim.prefill_us_per_token", micros(1e9), Is("0"), "and for each prompt token"),
    Key::new("worker.sim.decode_us_per_leg", micros(1e9), Is("0"), "and for each decoding leg"),
    Key::new(
        "worker.sim.prefill_ns_per_pair",
        Kind::Decimal { min: 0.0, max: 1e9 },
        Is("0.0"),
        "and nanoseconds for each pair of a prompt token and itself or one before it (attention)",
    ),
    Key::new(
        "worker.sim.decode_ns_per_pair",
        Kind::Decimal { min: 0.0, max: 1e9 },
        Is("0.0"),
        "and nanoseconds for the square of the number of decoding legs",
    ),
    Key::new(
        "worker.sim.decode_ns_per_context_token",
        Kind::Decimal { min: 0.0, max: 1e9 },
        Is("0.0"),
        "and nanoseconds for each token that a decoding leg looks back at",
    ),
    Key::new(
        "worker.sim.table",
        Kind::Path,
        Words("none"),
        "a JSON file with times of a real engine's steps, instead of all these: docs/sim.md",
    ),
    Key::new(
        "worker.sim.host_blocks",
        whole(0, 1 << 24),
        Is("0"),
        "KV blocks of a host tier, where the pool's cached blocks go when it needs room",
    )
    .metric("cuelight_kv_blocks_in_host")
    .limit(|c| worker(c, |w| w.sim.host_blocks.into())),
    Key::new(
        "worker.sim.load_us_per_block",
        micros(1e9),
        Is("0"),
        "and for each block that comes back from there",
    ),
    Key::new(
        "worker.sim.speedup",
        Kind::Decimal { min: 1e-6, max: 1e9 },
        Is("1.0"),
        "divides all these times",
    ),
    Key::new("worker.sim.seed", whole(0, u64::MAX), Is("0"), "seed of the invented tokens"),
    Key::new(
        "worker.sim.attend",
        Kind::Switch,
        Is("false"),
        "whether each token follows from all KV blocks before it, as with attention, or from the last",
    ),
];
