//! The bridge to `cpp/bridge/bridge.h`: declarations only, no logic.
//!
//! Plain values cross; the one callback is [`LogitsHook`]. What the fields mean is told in
//! `cpp/shim/types.h`, which has the same ones, and what threads and errors do in `cpp/shim/engine.h`.
//! An exception's text is "CALL: WHAT"; the engine must then be considered lost.
#![allow(unsafe_code, unreachable_pub, missing_docs)] // the last two: cxx's own output

use super::hook::LogitsHook;

#[cxx::bridge(namespace = "cuelight::trtllm::ffi")]
mod bridge {
    #[derive(Clone, Copy, Debug, Default, PartialEq)]
    struct OptBool {
        some: bool,
        value: bool,
    }

    #[derive(Clone, Copy, Debug, Default, PartialEq)]
    struct OptI32 {
        some: bool,
        value: i32,
    }

    #[derive(Clone, Copy, Debug, Default, PartialEq)]
    struct OptU64 {
        some: bool,
        value: u64,
    }

    #[derive(Clone, Copy, Debug, Default, PartialEq)]
    struct OptF32 {
        some: bool,
        value: f32,
    }

    #[derive(Clone, Debug, Default, PartialEq)]
    struct OptStr {
        some: bool,
        value: String,
    }

    #[derive(Clone, Debug, Default, PartialEq)]
    struct Words {
        tokens: Vec<i32>,
        lengths: Vec<u32>,
    }

    #[derive(Clone, Debug, Default, PartialEq)]
    struct HostTensor {
        some: bool,
        dtype: String,
        shape: Vec<i64>,
        bytes: Vec<u8>,
    }

    #[derive(Clone, Debug, Default, PartialEq)]
    struct KvCacheOptions {
        enable_block_reuse: OptBool,
        enable_partial_reuse: OptBool,
        copy_on_partial_reuse: OptBool,
        max_tokens: OptI32,
        max_attention_window: Vec<i32>,
        sink_token_length: OptI32,
        free_gpu_memory_fraction: OptF32,
        host_cache_size: OptU64,
        secondary_offload_min_priority: OptI32,
        event_buffer_max_size: OptU64,
        use_uvm: OptBool,
        max_gpu_total_bytes: OptU64,
    }

    #[derive(Clone, Debug, Default, PartialEq)]
    struct TransceiverOptions {
        backend: OptStr,
        max_tokens_in_buffer: OptU64,
        transfer_timeout_ms: OptI32,
        sender_future_timeout_ms: OptI32,
        poll_interval_ms: OptI32,
    }

    #[derive(Clone, Debug, Default, PartialEq)]
    struct ParallelOptions {
        mode: OptStr,
        device_ids: Vec<i32>,
        participant_ids: Vec<i32>,
        worker_executable: OptStr,
        spawn_processes: OptBool,
        is_orchestrator: OptBool,
        num_nodes: OptI32,
    }

    #[derive(Clone, Debug, Default, PartialEq)]
    struct SpeculativeOptions {
        mode: OptStr,
        lookahead_window: OptI32,
        lookahead_ngram: OptI32,
        lookahead_verification: OptI32,
        medusa_choices: Words,
        eagle_choices: Words,
        eagle_greedy: OptBool,
        eagle_posterior_threshold: OptF32,
        eagle_dynamic_tree: OptBool,
        eagle_dynamic_tree_max_top_k: OptI32,
        draft_fast_logits: OptBool,
    }

    #[derive(Clone, Debug, Default, PartialEq)]
    struct GuidedOptions {
        backend: OptStr,
        vocabulary: Vec<String>,
        tokenizer: OptStr,
        stop_ids: Vec<i32>,
    }

    #[derive(Clone, Debug, Default, PartialEq)]
    struct LoraCacheOptions {
        optimal_adapter_size: OptI32,
        max_adapter_size: OptI32,
        device_cache_fraction: OptF32,
        host_cache_size: OptU64,
    }

    #[derive(Clone, Debug, Default, PartialEq)]
    struct EngineOptions {
        engine_dir: String,
        vocab_size: u32,
        bias_type: String,
        max_beam_width: OptI32,
        max_batch_size: OptI32,
        max_num_tokens: OptI32,
        max_queue_size: OptI32,
        enable_chunked_context: OptBool,
        normalize_log_probs: OptBool,
        iter_stats_max_iterations: OptI32,
        request_stats_max_iterations: OptI32,
        capacity_scheduler_policy: OptStr,
        context_chunking_policy: OptStr,
        dynamic_batch_size: OptBool,
        dynamic_num_tokens: OptBool,
        multi_block_mode: OptBool,
        context_fmha_fp32_acc: OptBool,
        cuda_graph_mode: OptBool,
        cuda_graph_cache_size: OptI32,
        gather_generation_logits: OptBool,
        use_gpu_direct_storage: OptBool,
        gpu_weights_percent: OptF32,
        recv_poll_period_ms: OptI32,
        max_seq_idle_microseconds: OptU64,
        prompt_table_offloading: OptBool,
        enable_trt_overlap: OptBool,
        fail_fast_on_attention_window_too_large: OptBool,
        kv: KvCacheOptions,
        transceiver: TransceiverOptions,
        parallel: ParallelOptions,
        speculative: SpeculativeOptions,
        guided: GuidedOptions,
        lora: LoraCacheOptions,
        processor_names: Vec<String>,
        processor_batched: bool,
        processor_replicate: OptBool,
    }

    #[derive(Clone, Debug, Default, PartialEq)]
    struct SamplingOptions {
        beam_width: OptI32,
        num_return_sequences: OptI32,
        top_k: OptI32,
        top_p: OptF32,
        top_p_min: OptF32,
        top_p_reset_ids: OptI32,
        top_p_decay: OptF32,
        seed: OptU64,
        temperature: OptF32,
        min_tokens: OptI32,
        beam_search_diversity_rate: OptF32,
        repetition_penalty: OptF32,
        presence_penalty: OptF32,
        frequency_penalty: OptF32,
        prompt_ignore_length: OptI32,
        length_penalty: OptF32,
        early_stopping: OptI32,
        no_repeat_ngram_size: OptI32,
        min_p: OptF32,
    }

    /// What a prefill leaves for the decode; `some` is false for none.
    #[derive(Clone, Debug, Default, PartialEq)]
    struct Handoff {
        some: bool,
        context_request: u64,
        first_tokens: Vec<i32>,
        draft_tokens: Vec<i32>,
        has_state: bool,
        state: Vec<u8>,
        dp_rank: OptI32,
        endpoint: OptStr,
    }

    #[derive(Clone, Copy, Debug)]
    #[repr(u8)]
    enum Phase {
        Whole = 0,
        ContextOnly = 1,
        GenerationOnly = 2,
    }

    #[derive(Clone, Debug, PartialEq)]
    struct RequestOptions {
        tokens: Vec<i32>,
        max_tokens: i32,
        streaming: bool,
        sampling: SamplingOptions,
        end_id: OptI32,
        pad_id: OptI32,
        stop_words: Words,
        bad_words: Words,
        bias_ids: Vec<i32>,
        bias_values: Vec<f32>,
        return_log_probs: bool,
        return_generation_logits: bool,
        return_perf_metrics: bool,
        return_all_generated_tokens: bool,
        exclude_input: bool,
        priority: OptF32,
        client_id: OptU64,
        cache_salt: OptU64,
        disagg_request_id: OptU64,
        allotted_ms: OptU64,
        lora_id: OptU64,
        lora_weights: HostTensor,
        lora_config: HostTensor,
        guide_kind: OptStr,
        guide: OptStr,
        draft_tokens: Vec<i32>,
        draft_acceptance_threshold: OptF32,
        lookahead_window: OptI32,
        lookahead_ngram: OptI32,
        lookahead_verification: OptI32,
        processor: OptStr,
        own_processor: bool,
        phase: Phase,
        handoff: Handoff,
    }

    #[derive(Clone, Copy, Debug)]
    #[repr(u8)]
    enum Admission {
        Accepted = 0,
        QueueFull = 1,
        Invalid = 2,
        Stopped = 3,
        NotLeader = 4,
    }

    #[derive(Clone, Debug, PartialEq)]
    struct Admitted {
        status: Admission,
        request: u64,
        text: String,
    }

    #[derive(Clone, Copy, Debug)]
    #[repr(u8)]
    enum Finish {
        NotFinished = 0,
        EndId = 1,
        StopWords = 2,
        Length = 3,
        TimedOut = 4,
        Cancelled = 5,
        Unknown = 255,
    }

    #[derive(Clone, Copy, Debug)]
    #[repr(u8)]
    enum Fault {
        None = 0,
        Request = 1,
        Forward = 2,
        QueueFull = 3,
        LoraMissing = 4,
        Stale = 5,
        Other = 6,
    }

    #[derive(Clone, Copy, Debug, PartialEq)]
    struct Row {
        request: u64,
        has_client: bool,
        client: u64,
        sequence: i32,
        beam: i32,
        is_final: bool,
        is_sequence_final: bool,
        finish: Finish,
        fault: Fault,
        tokens_at: u32,
        tokens_len: u32,
        log_probs_at: u32,
        log_probs_len: u32,
        has_cum_log_prob: bool,
        cum_log_prob: f32,
        logits_at: u64,
        logits_rows: u32,
        decoding_iter: i32,
        error: i32,
        handoff: i32,
        metrics: i32,
    }

    #[derive(Clone, Copy, Debug, Default, PartialEq)]
    struct Metrics {
        scheduled_us: i64,
        first_token_us: i64,
        last_token_us: i64,
        kv_transfer_us: i64,
        kv_transfer_bytes: u64,
        total_blocks: i32,
        new_blocks: i32,
        reused_blocks: i32,
        missed_blocks: i32,
        draft_tokens: i32,
        accepted_draft_tokens: i32,
    }

    #[derive(Clone, Debug, Default, PartialEq)]
    struct Output {
        rows: Vec<Row>,
        tokens: Vec<i32>,
        log_probs: Vec<f32>,
        logits: Vec<f32>,
        logits_width: u32,
        errors: Vec<String>,
        handoffs: Vec<Handoff>,
        metrics: Vec<Metrics>,
    }

    #[derive(Clone, Copy, Debug)]
    #[repr(u8)]
    enum KvEventKind {
        Created = 0,
        Stored = 1,
        Removed = 2,
        Updated = 3,
    }

    #[derive(Clone, Copy, Debug, PartialEq)]
    struct KvEventRow {
        id: u64,
        kind: KvEventKind,
        window: i32,
        dp_rank: i32,
        has_parent: bool,
        parent: u64,
        blocks_at: u32,
        blocks_len: u32,
        old_level: i32,
        new_level: i32,
        old_priority: i32,
        new_priority: i32,
    }

    #[derive(Clone, Copy, Debug, Default, PartialEq)]
    struct KvBlockRow {
        hash: u64,
        tokens_at: u32,
        tokens_len: u32,
        has_lora: bool,
        lora: u64,
        level: i32,
        priority: i32,
        images: u32,
    }

    #[derive(Clone, Debug, Default, PartialEq)]
    struct KvEvents {
        rows: Vec<KvEventRow>,
        blocks: Vec<KvBlockRow>,
        tokens: Vec<i32>,
        token_extra_ids: Vec<u64>,
        hashes: Vec<u64>,
        counts: Vec<i32>,
    }

    #[derive(Clone, Copy, Debug, Default, PartialEq)]
    struct Iteration {
        iter: u64,
        latency_ms: f64,
        queue_ms: f64,
        active: i32,
        queued: i32,
        completed: i32,
        max_active: i32,
        scheduled: i32,
        context_requests: i32,
        generation_requests: i32,
        paused: i32,
        context_tokens: i32,
        tokens_per_iteration: f32,
        gpu_bytes: u64,
        cpu_bytes: u64,
        pinned_bytes: u64,
        has_kv: bool,
        kv_blocks: i32,
        kv_free: i32,
        kv_used: i32,
        kv_block_tokens: i32,
        kv_allocated_total: i32,
        kv_reused_total: i32,
        kv_missed_total: i32,
        has_draft: bool,
        draft_tokens: i64,
        draft_accepted: i64,
    }

    #[derive(Clone, Copy, Debug, Default, PartialEq)]
    struct RequestState {
        iter: u64,
        request: u64,
        stage: u8,
        scheduled: bool,
        paused: bool,
        prefilled: i32,
        generated: i32,
        kv_transfer_ms: f64,
    }

    #[derive(Clone, Debug, Default, PartialEq)]
    struct Capabilities {
        standin: bool,
        prompt_ignore_length: bool,
        mooncake: bool,
        transfer_timeout: bool,
        sender_future_timeout: bool,
        poll_interval: bool,
        context_dp_rank: bool,
        disagg_request_id: bool,
        cache_salt: bool,
        max_gpu_total_bytes: bool,
        missed_blocks: bool,
        headers: String,
        library: String,
    }

    /// Whose logits these are.
    #[derive(Clone, Copy, Debug, Default, PartialEq)]
    struct LogitsOf {
        sequence: u64,
        has_client: bool,
        client: u64,
        beam: i32,
    }

    extern "Rust" {
        type LogitsHook;
        fn row(
            self: &LogitsHook,
            processor: &str,
            of: LogitsOf,
            tokens: &[i32],
            logits: &mut [f32],
        );
    }

    unsafe extern "C++" {
        include!("cpp/bridge/bridge.h");

        type Engine;

        /// Of this build, and of the library that it found.
        fn capabilities() -> Capabilities;
        /// Loads the model; blocks until that is done on all ranks.
        fn open(
            options: &EngineOptions,
            hook: Box<LogitsHook>,
            use_hook: bool,
        ) -> Result<UniquePtr<Engine>>;
        fn enqueue(self: &Engine, options: &RequestOptions) -> Result<Admitted>;
        fn poll(self: &Engine, timeout_ms: u64, out: &mut Output) -> Result<()>;
        fn responses_ready(self: &Engine) -> Result<i32>;
        fn cancel(self: &Engine, request: u64) -> Result<()>;
        fn kv_events(self: &Engine, timeout_ms: u64, out: &mut KvEvents) -> Result<bool>;
        fn iterations(self: &Engine, out: &mut Vec<Iteration>) -> Result<()>;
        fn request_states(self: &Engine, out: &mut Vec<RequestState>) -> Result<()>;
        fn can_enqueue(self: &Engine) -> Result<bool>;
        fn is_participant(self: &Engine) -> Result<bool>;
        fn shutdown(self: &Engine) -> Result<()>;
    }
}

pub use bridge::*;

// SAFETY: an Engine keeps nothing that belongs to a thread (cpp/shim/engine.h, "Threads"); its executor
// sets the device in its own thread.
unsafe impl Send for Engine {}

// SAFETY: all methods of the executor that the bridge declares may run at once (the same place); that
// responses, events and statistics each have one taker is a matter of sense, not of memory.
unsafe impl Sync for Engine {}
