//! TensorRT-LLM's keys and values that mean nothing to an engine of the C++ Executor, and why.

/// Why a key or a value is refused.
#[derive(Clone, Copy)]
pub(super) enum Why {
    /// Only the PyTorch backend knows it.
    PyTorch,
    /// It is in the engine already.
    Built,
    /// Something else, with the way out.
    Else(&'static str),
}

impl Why {
    /// What to say about a key.
    pub(super) fn of_key(self) -> String {
        match self {
            Self::PyTorch => "exists only in TensorRT-LLM's PyTorch backend; this engine drives \
                 the C++ Executor: remove it"
                .into(),
            Self::Built => {
                "is decided by trtllm-build; build the engine with it, and remove it here".into()
            }
            Self::Else(rule) => rule.into(),
        }
    }

    /// What to say about one value of a key; `others` are those that it may have.
    pub(super) fn of_value(self, value: &str, others: &str) -> String {
        match self {
            Self::PyTorch => format!(
                "{value} exists only in TensorRT-LLM's PyTorch backend; this engine drives the \
                 C++ Executor: choose {others}, or remove it"
            ),
            Self::Built => {
                format!(
                    "{value} is decided by trtllm-build; build the engine with it, and remove it here"
                )
            }
            Self::Else(rule) => rule.into(),
        }
    }
}

/// Keys, or whole sections, by reason.
pub(super) const KEYS: &[(Why, &[&str])] = &[
    (
        Why::PyTorch,
        &[
            "enable_attention_dp",
            "attention_dp_config",
            "enable_lm_head_tp_in_adp",
            "moe_config",
            "cuda_graph_config",
            "disable_overlap_scheduler",
            "attn_backend",
            "torch_compile_config",
            "stream_interval",
            "nvfp4_gemm_config",
            "sampler_type",
            "sampler_force_async_worker",
            "enable_iter_perf_stats",
            "enable_iter_req_stats",
            "print_iter_log",
            "batch_wait_timeout_ms",
            "batch_wait_timeout_iters",
            "batch_wait_max_tokens_ratio",
            "enable_autotuner",
            "enable_layerwise_nvtx_marker",
            "enable_min_latency",
            "force_dynamic_quantization",
            "allreduce_strategy",
            "checkpoint_loader",
            "checkpoint_format",
            "kv_connector_config",
            "mm_encoder_only",
            "ray_worker_extension_cls",
            "ray_placement_config",
            "orchestrator_type",
            "enable_sleep",
            "use_cute_dsl_blockscaling_mm",
            "use_cute_dsl_blockscaling_bmm",
            "disable_flashinfer_sampling",
            "max_stats_len",
            "layer_wise_benchmarks_config",
            "garbage_collection_gen0_threshold",
            "sparse_attention_config",
            "cp_config",
            "model_kwargs",
            "perf_metrics_max_requests",
            "use_torch_sampler",
            "enable_trtllm_sampler",
            "pytorch_backend_config",
            "autotuner_enabled",
            "use_cuda_graph",
            "cuda_graph_batch_sizes",
            "cuda_graph_padding_enabled",
            "moe_backend",
            "moe_load_balancer",
            "kv_cache_dtype",
            "kv_cache_config.attention_dp_events_gather_period_ms",
            "kv_cache_config.mamba_ssm_cache_dtype",
            "kv_cache_config.use_kv_cache_manager_v2",
            "kv_cache_config.max_util_for_resume",
            "scheduler_config.waiting_queue_policy",
            "cache_transceiver_config.kv_cache_bounce_size_mb",
            "cache_transceiver_config.enable_pipelined_transfer",
            "speculative_config.max_concurrency",
            "speculative_config.draft_len_schedule",
            "speculative_config.acceptance_window",
            "speculative_config.acceptance_length_threshold",
            "speculative_config.allow_advanced_sampling",
            "speculative_config.load_format",
            "speculative_config.eagle3_one_model",
            "speculative_config.eagle3_layers_to_capture",
            "speculative_config.eagle3_model_arch",
            "speculative_config.max_total_draft_tokens",
            "speculative_config.max_matching_ngram_size",
            "speculative_config.is_keep_all",
            "speculative_config.is_use_oldest",
            "speculative_config.is_public_pool",
            "speculative_config.num_nextn_predict_layers",
            "speculative_config.use_relaxed_acceptance_for_thinking",
            "speculative_config.relaxed_topk",
            "speculative_config.relaxed_delta",
            "speculative_config.use_mtp_vanilla",
            "speculative_config.mtp_eagle_one_model",
            "speculative_config.begin_thinking_phase_token",
            "speculative_config.end_thinking_phase_token",
            "speculative_config.mask_token_id",
            "speculative_config.drafter",
            "speculative_config.resource_manager",
            "speculative_config.output_directory",
            "speculative_config.write_interval",
            "speculative_config.file_prefix",
        ],
    ),
    (
        Why::Built,
        &[
            "moe_expert_parallel_size",
            "moe_tensor_parallel_size",
            "moe_cluster_parallel_size",
            "pp_partition",
            "build_config",
            "quant_config",
            "calib_config",
            "embedding_parallel_mode",
            "fast_build",
            "enable_build_cache",
            "enable_prompt_adapter",
            "max_prompt_adapter_token",
            "load_format",
            "enable_lora",
            "lora_config",
            "speculative_config.speculative_model",
            "speculative_config.speculative_model_dir",
            "speculative_config.num_medusa_heads",
            "speculative_config.num_eagle_layers",
            "speculative_config.max_non_leaves_per_layer",
        ],
    ),
    (
        Why::Else("is for encoder-decoder models, which are not served here; remove it"),
        &["kv_cache_config.cross_kv_cache_fraction"],
    ),
    (
        Why::Else(
            "is gone from the C++ Executor, which always brings blocks back from the host; remove it",
        ),
        &["kv_cache_config.onboard_blocks"],
    ),
    (
        Why::Else("is left at TensorRT-LLM's own value by this engine; remove it"),
        &[
            "scheduler_config.dynamic_batch_config.dynamic_batch_moving_average_window",
            "peft_cache_config.num_host_module_layer",
            "peft_cache_config.num_device_module_layer",
            "peft_cache_config.num_put_workers",
            "peft_cache_config.num_ensure_workers",
            "peft_cache_config.num_copy_streams",
            "peft_cache_config.max_pages_per_block_host",
            "peft_cache_config.max_pages_per_block_device",
            "peft_cache_config.lora_prefetch_dir",
        ],
    ),
    (Why::Else("is given as worker.trtllm.engine_dir; remove it"), &["model"]),
    (
        Why::Else("is that of worker.model; remove it"),
        &[
            "tokenizer",
            "tokenizer_mode",
            "tokenizer_revision",
            "custom_tokenizer",
            "skip_tokenizer_init",
            "postprocess_tokenizer_dir",
            "trust_remote_code",
            "revision",
        ],
    ),
    (
        Why::Else("is done by this program's own front end, not by TensorRT-LLM's; remove it"),
        &[
            "num_postprocess_workers",
            "reasoning_parser",
            "return_perf_metrics",
            "batched_logits_processor",
        ],
    ),
    (Why::Else("is log.otlp_endpoint of the node; remove it"), &["otlp_traces_endpoint"]),
    (Why::Else("is frontend.http of the node; remove it"), &["host", "hostname", "port"]),
    (
        Why::Else("is not for a file: set variables before the program starts; remove it"),
        &["env_overrides"],
    ),
    (
        Why::Else("follows from worker.trtllm.devices and the machine; remove it"),
        &["gpus_per_node", "mpi_session"],
    ),
    (Why::Else("is outdated; use speculative_config"), &["decoding_config"]),
    (Why::Else("is only about building; remove it"), &["workspace", "enable_tqdm"]),
    (Why::Else("is called enable_chunked_prefill; rename it"), &["enable_chunked_context"]),
];

/// Values of keys that have others.
pub(super) const VALUES: &[(&str, Why, &[&str])] = &[
    (
        "speculative_config.decoding_type",
        Why::PyTorch,
        &[
            "MTP",
            "NGram",
            "Eagle3",
            "PARD",
            "DFlash",
            "SaveState",
            "User_Provided",
            "AUTO",
            "MTP_Eagle",
        ],
    ),
    (
        "speculative_config.decoding_type",
        Why::Else(
            "Draft_Target, where TensorRT-LLM runs the draft model itself, exists only in its PyTorch \
             backend; for an engine built with draft_tokens_external, say that",
        ),
        &["Draft_Target", "DraftTarget"],
    ),
    ("guided_decoding_backend", Why::PyTorch, &["llguidance", "LLGUIDANCE"]),
    ("cache_transceiver_config.transceiver_runtime", Why::PyTorch, &["PYTHON"]),
    ("backend", Why::PyTorch, &["pytorch", "_autodeploy", "autodeploy"]),
    (
        "batching_type",
        Why::Else("STATIC is refused by the C++ Executor itself; remove it, or say INFLIGHT"),
        &["STATIC"],
    ),
    (
        "cache_transceiver_config.backend",
        Why::Else(
            "MPI needs prefill and decode in one MPI job, and here each engine is one of its own; \
             choose UCX or NIXL",
        ),
        &["MPI"],
    ),
    ("kv_cache_config.dtype", Why::Built, &["fp8", "nvfp4", "float16", "bfloat16", "int8"]),
];

/// Why this key, or a section that it is in, is refused.
pub(super) fn key(name: &str) -> Option<Why> {
    let found = KEYS.iter().find(|(_, names)| names.contains(&name));
    found.map(|(why, _)| *why)
}

/// Why this value of a key is refused, if it is a known one.
pub(super) fn value(name: &str, value: &str) -> Option<Why> {
    let mut of_key = VALUES.iter().filter(|(key, ..)| *key == name);
    of_key.find(|(_, _, values)| values.contains(&value)).map(|(_, why, _)| *why)
}
