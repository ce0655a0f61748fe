//! What TensorRT-LLM's C++ Executor is opened with, as plain values. What is absent is left to it.

use bincode::{Decode, Encode};

/// What an executor is opened with. The engine's folder, the vocabulary's size, the type of biases
/// and the logits processors are added by whoever opens it.
#[derive(Clone, Debug, Default, PartialEq, Encode, Decode)]
pub struct TrtllmOptions {
    /// `max_beam_width`.
    pub max_beam_width: Option<i32>,
    /// `max_batch_size`.
    pub max_batch_size: Option<i32>,
    /// `max_num_tokens`: in one step.
    pub max_num_tokens: Option<i32>,
    /// `max_queue_size`.
    pub max_queue_size: Option<i32>,
    /// `enable_chunked_prefill`.
    pub enable_chunked_context: Option<bool>,
    /// `normalize_log_probs`.
    pub normalize_log_probs: Option<bool>,
    /// `iter_stats_max_iterations`.
    pub iter_stats_max_iterations: Option<i32>,
    /// `request_stats_max_iterations`.
    pub request_stats_max_iterations: Option<i32>,
    /// `scheduler_config.capacity_scheduler_policy`, in upper case.
    pub capacity_scheduler_policy: Option<String>,
    /// `scheduler_config.context_chunking_policy`, in upper case.
    pub context_chunking_policy: Option<String>,
    /// `scheduler_config.dynamic_batch_config.enable_batch_size_tuning`.
    pub dynamic_batch_size: Option<bool>,
    /// `scheduler_config.dynamic_batch_config.enable_max_num_tokens_tuning`.
    pub dynamic_num_tokens: Option<bool>,
    /// `extended_runtime_perf_knob_config.multi_block_mode`.
    pub multi_block_mode: Option<bool>,
    /// `extended_runtime_perf_knob_config.enable_context_fmha_fp32_acc`.
    pub context_fmha_fp32_acc: Option<bool>,
    /// `extended_runtime_perf_knob_config.cuda_graph_mode`.
    pub cuda_graph_mode: Option<bool>,
    /// `extended_runtime_perf_knob_config.cuda_graph_cache_size`.
    pub cuda_graph_cache_size: Option<i32>,
    /// `gather_generation_logits`.
    pub gather_generation_logits: Option<bool>,
    /// `use_gpu_direct_storage`.
    pub use_gpu_direct_storage: Option<bool>,
    /// `gpu_weights_percent`: a share up to 1.
    pub gpu_weights_percent: Option<f32>,
    /// `recv_poll_period_ms`.
    pub recv_poll_period_ms: Option<i32>,
    /// `max_seq_idle_microseconds`.
    pub max_seq_idle_microseconds: Option<u64>,
    /// `prompt_table_offloading`.
    pub prompt_table_offloading: Option<bool>,
    /// `enable_trt_overlap`.
    pub enable_trt_overlap: Option<bool>,
    /// `fail_fast_on_attention_window_too_large`.
    pub fail_fast_on_attention_window_too_large: Option<bool>,
    /// `kv_cache_config`.
    pub kv: KvCacheOptions,
    /// `cache_transceiver_config`.
    pub transceiver: TransceiverOptions,
    /// From `worker.trtllm`, not from TensorRT-LLM's file.
    pub parallel: ParallelOptions,
    /// `speculative_config`.
    pub speculative: SpeculativeOptions,
    /// `guided_decoding_backend`.
    pub guided: GuidedOptions,
    /// `peft_cache_config`.
    pub lora: LoraCacheOptions,
}

/// `kv_cache_config`: the KV cache.
#[derive(Clone, Debug, Default, PartialEq, Encode, Decode)]
pub struct KvCacheOptions {
    /// `enable_block_reuse`.
    pub enable_block_reuse: Option<bool>,
    /// `enable_partial_reuse`.
    pub enable_partial_reuse: Option<bool>,
    /// `copy_on_partial_reuse`.
    pub copy_on_partial_reuse: Option<bool>,
    /// `max_tokens`.
    pub max_tokens: Option<i32>,
    /// `max_attention_window`, by layer and repeated; empty: the whole context.
    pub max_attention_window: Vec<i32>,
    /// `sink_token_length`.
    pub sink_token_length: Option<i32>,
    /// `free_gpu_memory_fraction`: of what is free when the weights are loaded.
    pub free_gpu_memory_fraction: Option<f32>,
    /// `host_cache_size` in bytes.
    pub host_cache_size: Option<u64>,
    /// `secondary_offload_min_priority`.
    pub secondary_offload_min_priority: Option<i32>,
    /// `event_buffer_max_size`.
    pub event_buffer_max_size: Option<u64>,
    /// `use_uvm`.
    pub use_uvm: Option<bool>,
    /// `max_gpu_total_bytes`.
    pub max_gpu_total_bytes: Option<u64>,
}

/// `cache_transceiver_config`: KV between prefill and decode.
#[derive(Clone, Debug, Default, PartialEq, Encode, Decode)]
pub struct TransceiverOptions {
    /// `backend`, in upper case; without it there is no transceiver.
    pub backend: Option<String>,
    /// `max_tokens_in_buffer`.
    pub max_tokens_in_buffer: Option<u64>,
    /// `kv_transfer_timeout_ms`.
    pub transfer_timeout_ms: Option<i32>,
    /// `kv_transfer_sender_future_timeout_ms`.
    pub sender_future_timeout_ms: Option<i32>,
    /// `kv_transfer_poll_interval_ms`.
    pub poll_interval_ms: Option<i32>,
}

/// Which GPUs and processes an engine has.
#[derive(Clone, Debug, Default, PartialEq, Encode, Decode)]
pub struct ParallelOptions {
    /// `LEADER` or `ORCHESTRATOR`.
    pub mode: Option<String>,
    /// GPUs, by rank of the engine; empty: TensorRT-LLM's choice.
    pub device_ids: Vec<i32>,
    /// MPI ranks that take part; empty: all.
    pub participant_ids: Vec<i32>,
    /// Path of `executorWorker`.
    pub worker_executable: Option<String>,
    /// Whether the orchestrator starts its workers.
    pub spawn_processes: Option<bool>,
    /// Whether this process is the orchestrator.
    pub is_orchestrator: Option<bool>,
    /// Hosts.
    pub num_nodes: Option<i32>,
}

/// `speculative_config`.
#[derive(Clone, Debug, Default, PartialEq, Encode, Decode)]
pub struct SpeculativeOptions {
    /// `lookahead`, `medusa`, `eagle`, `external_draft` or `explicit_draft`.
    pub mode: Option<String>,
    /// `max_window_size`.
    pub lookahead_window: Option<i32>,
    /// `max_ngram_size`.
    pub lookahead_ngram: Option<i32>,
    /// `max_verification_set_size`.
    pub lookahead_verification: Option<i32>,
    /// `medusa_choices`: paths in the tree of drafts.
    pub medusa_choices: Vec<Vec<i32>>,
    /// `eagle_choices`: likewise.
    pub eagle_choices: Vec<Vec<i32>>,
    /// `greedy_sampling`.
    pub eagle_greedy: Option<bool>,
    /// `posterior_threshold`.
    pub eagle_posterior_threshold: Option<f32>,
    /// `use_dynamic_tree`.
    pub eagle_dynamic_tree: Option<bool>,
    /// `dynamic_tree_max_topK`.
    pub eagle_dynamic_tree_max_top_k: Option<i32>,
    /// `fast_logits`.
    pub draft_fast_logits: Option<bool>,
}

/// Guided decoding. All but the back end is made of the model's tokenizer.
#[derive(Clone, Debug, Default, PartialEq, Encode, Decode)]
pub struct GuidedOptions {
    /// `XGRAMMAR`; without it there is none.
    pub backend: Option<String>,
    /// Tokens as encoded text, by id.
    pub vocabulary: Vec<String>,
    /// `tokenizer.json`.
    pub tokenizer: Option<String>,
    /// Ids that end the output.
    pub stop_ids: Vec<i32>,
}

/// `peft_cache_config`: room for LoRA weights.
#[derive(Clone, Debug, Default, PartialEq, Encode, Decode)]
pub struct LoraCacheOptions {
    /// `optimal_adapter_size`.
    pub optimal_adapter_size: Option<i32>,
    /// `max_adapter_size`.
    pub max_adapter_size: Option<i32>,
    /// `device_cache_percent`: a share up to 1.
    pub device_cache_fraction: Option<f32>,
    /// `host_cache_size` in bytes.
    pub host_cache_size: Option<u64>,
}
