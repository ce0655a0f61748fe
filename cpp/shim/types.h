// Shim: what goes into the engine and what comes out of it, as plain values.
//
// Everything optional that is absent is left to TensorRT-LLM's own default. Offsets count elements of the vectors of
// the same `Output`, `KvEvents` or `Statistics`; nothing refers to memory of the executor.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace cuelight::trtllm
{
template <class T>
using Maybe = std::optional<T>;

// Lists of tokens, one after the other.
struct Words
{
    std::vector<std::int32_t> tokens;
    std::vector<std::uint32_t> lengths;
};

// A tensor in host memory, row-major. `type` is a name such as "float16" or "int32".
struct HostTensor
{
    std::string type;
    std::vector<std::int64_t> shape;
    std::vector<std::uint8_t> bytes;
};

struct KvCacheOptions
{
    Maybe<bool> enable_block_reuse;
    Maybe<bool> enable_partial_reuse;
    Maybe<bool> copy_on_partial_reuse;
    Maybe<std::int32_t> max_tokens;
    std::vector<std::int32_t> max_attention_window; // empty: not set
    Maybe<std::int32_t> sink_token_length;
    Maybe<float> free_gpu_memory_fraction;
    Maybe<std::uint64_t> host_cache_size; // bytes
    Maybe<std::int32_t> secondary_offload_min_priority;
    Maybe<std::uint64_t> event_buffer_max_size;
    Maybe<bool> use_uvm;
    Maybe<std::uint64_t> max_gpu_total_bytes;
};

struct TransceiverOptions
{
    Maybe<std::string> backend; // DEFAULT, MPI, UCX, NIXL, MOONCAKE; without it there is no transceiver
    Maybe<std::uint64_t> max_tokens_in_buffer;
    Maybe<std::int32_t> transfer_timeout_ms;
    Maybe<std::int32_t> sender_future_timeout_ms;
    Maybe<std::int32_t> poll_interval_ms;
};

struct ParallelOptions
{
    Maybe<std::string> mode; // LEADER, ORCHESTRATOR
    std::vector<std::int32_t> device_ids;
    std::vector<std::int32_t> participant_ids;
    Maybe<std::string> worker_executable;
    Maybe<bool> spawn_processes;
    Maybe<bool> is_orchestrator;
    Maybe<std::int32_t> num_nodes;
};

struct SpeculativeOptions
{
    Maybe<std::string> mode; // auto, top_k, top_p, top_k_top_p, medusa, lookahead, explicit_draft, external_draft, eagle
    Maybe<std::int32_t> lookahead_window; // all three or none
    Maybe<std::int32_t> lookahead_ngram;
    Maybe<std::int32_t> lookahead_verification;
    Words medusa_choices;
    Words eagle_choices;
    Maybe<bool> eagle_greedy; // one of the eagle options makes an Eagle configuration
    Maybe<float> eagle_posterior_threshold;
    Maybe<bool> eagle_dynamic_tree;
    Maybe<std::int32_t> eagle_dynamic_tree_max_top_k;
    Maybe<bool> draft_fast_logits;
};

struct GuidedOptions
{
    Maybe<std::string> backend; // XGRAMMAR, LLGUIDANCE; without it there is no guided decoding
    std::vector<std::string> vocabulary; // by token id
    Maybe<std::string> tokenizer;
    std::vector<std::int32_t> stop_ids;
};

struct LoraCacheOptions
{
    Maybe<std::int32_t> optimal_adapter_size;
    Maybe<std::int32_t> max_adapter_size;
    Maybe<float> device_cache_fraction;
    Maybe<std::uint64_t> host_cache_size; // bytes
};

struct EngineOptions
{
    std::string engine_dir;
    std::uint32_t vocab_size = 0; // rows of the logits; needed for requests with a bias
    std::string bias_type = "float32"; // or float16, bfloat16: what the engine's logits are
    Maybe<std::int32_t> max_beam_width;
    Maybe<std::int32_t> max_batch_size;
    Maybe<std::int32_t> max_num_tokens;
    Maybe<std::int32_t> max_queue_size;
    Maybe<bool> enable_chunked_context;
    Maybe<bool> normalize_log_probs;
    Maybe<std::int32_t> iter_stats_max_iterations;
    Maybe<std::int32_t> request_stats_max_iterations;
    Maybe<std::string> capacity_scheduler_policy; // GUARANTEED_NO_EVICT, MAX_UTILIZATION, STATIC_BATCH
    Maybe<std::string> context_chunking_policy;   // FIRST_COME_FIRST_SERVED, EQUAL_PROGRESS
    Maybe<bool> dynamic_batch_size;
    Maybe<bool> dynamic_num_tokens;
    Maybe<bool> multi_block_mode;
    Maybe<bool> context_fmha_fp32_acc;
    Maybe<bool> cuda_graph_mode;
    Maybe<std::int32_t> cuda_graph_cache_size;
    Maybe<bool> gather_generation_logits;
    Maybe<bool> use_gpu_direct_storage;
    Maybe<float> gpu_weights_percent; // 0 to 1
    Maybe<std::int32_t> recv_poll_period_ms;
    Maybe<std::uint64_t> max_seq_idle_microseconds;
    Maybe<bool> prompt_table_offloading;
    Maybe<bool> enable_trt_overlap;
    Maybe<bool> fail_fast_on_attention_window_too_large;
    KvCacheOptions kv;
    TransceiverOptions transceiver;
    ParallelOptions parallel;
    SpeculativeOptions speculative;
    GuidedOptions guided;
    LoraCacheOptions lora;
    std::vector<std::string> processor_names; // logits post-processors that requests may name
    bool processor_batched = false;           // the one named "batched"
    Maybe<bool> processor_replicate;
};

struct SamplingOptions
{
    Maybe<std::int32_t> beam_width;
    Maybe<std::int32_t> num_return_sequences;
    Maybe<std::int32_t> top_k;
    Maybe<float> top_p;
    Maybe<float> top_p_min;
    Maybe<std::int32_t> top_p_reset_ids;
    Maybe<float> top_p_decay;
    Maybe<std::uint64_t> seed;
    Maybe<float> temperature;
    Maybe<std::int32_t> min_tokens;
    Maybe<float> beam_search_diversity_rate;
    Maybe<float> repetition_penalty;
    Maybe<float> presence_penalty;
    Maybe<float> frequency_penalty;
    Maybe<std::int32_t> prompt_ignore_length;
    Maybe<float> length_penalty;
    Maybe<std::int32_t> early_stopping;
    Maybe<std::int32_t> no_repeat_ngram_size;
    Maybe<float> min_p;
};

// What a prefill leaves for the decode. `state` is opaque and of use only to the same build.
struct Handoff
{
    std::uint64_t context_request = 0;
    std::vector<std::int32_t> first_tokens;
    std::vector<std::int32_t> draft_tokens;
    bool has_state = false;
    std::vector<std::uint8_t> state;
    Maybe<std::int32_t> dp_rank;
    Maybe<std::string> endpoint;
};

enum class Phase : std::uint8_t
{
    Whole = 0,
    ContextOnly = 1,
    GenerationOnly = 2
};

struct RequestOptions
{
    std::vector<std::int32_t> tokens; // the prompt
    std::int32_t max_tokens = 0;
    bool streaming = true;
    SamplingOptions sampling;
    Maybe<std::int32_t> end_id; // absent: no end-of-sequence
    Maybe<std::int32_t> pad_id;
    Words stop_words;
    Words bad_words;
    std::vector<std::int32_t> bias_ids;
    std::vector<float> bias_values;
    bool return_log_probs = false;
    bool return_generation_logits = false;
    bool return_perf_metrics = false;
    bool return_all_generated_tokens = false;
    bool exclude_input = true;
    Maybe<float> priority; // 0 to 1
    Maybe<std::uint64_t> client_id;
    Maybe<std::uint64_t> cache_salt;
    Maybe<std::uint64_t> disagg_request_id;
    Maybe<std::uint64_t> allotted_ms;
    Maybe<std::uint64_t> lora_id;
    Maybe<HostTensor> lora_weights;
    Maybe<HostTensor> lora_config;
    Maybe<std::string> guide_kind; // JSON, JSON_SCHEMA, REGEX, EBNF_GRAMMAR, STRUCTURAL_TAG
    Maybe<std::string> guide;
    std::vector<std::int32_t> draft_tokens;
    Maybe<float> draft_acceptance_threshold;
    Maybe<std::int32_t> lookahead_window; // all three or none
    Maybe<std::int32_t> lookahead_ngram;
    Maybe<std::int32_t> lookahead_verification;
    Maybe<std::string> processor; // one of the engine's names, or "batched"
    bool own_processor = false;   // instead: the hook is called for this request, with the name "dynamic"
    Phase phase = Phase::Whole;
    Maybe<Handoff> handoff; // of GenerationOnly
};

enum class Admission : std::uint8_t
{
    Accepted = 0,
    QueueFull = 1, // try again later
    Invalid = 2,   // the request's own fault
    Stopped = 3,   // after shutdown
    NotLeader = 4  // this process may not enqueue
};

struct Admitted
{
    Admission status = Admission::Accepted;
    std::uint64_t request = 0; // of Accepted
    std::string text;          // of the others
};

enum class Finish : std::uint8_t
{
    NotFinished = 0,
    EndId = 1,
    StopWords = 2,
    Length = 3,
    TimedOut = 4,
    Cancelled = 5,
    Unknown = 255
};

enum class Fault : std::uint8_t
{
    None = 0,
    Request = 1,     // this request was refused
    Forward = 2,     // the step failed, and everybody in it
    QueueFull = 3,   // only from an orchestrator
    LoraMissing = 4, // send the weights again
    Stale = 5,       // about a request that has ended: ignore it
    Other = 6
};

// One beam of one response. Tokens are the new ones (all of them unless streaming).
struct Row
{
    std::uint64_t request = 0;
    bool has_client = false;
    std::uint64_t client = 0;
    std::int32_t sequence = 0;
    std::int32_t beam = 0;
    bool is_final = false;          // the request's last
    bool is_sequence_final = false; // the sequence's last
    Finish finish = Finish::NotFinished;
    Fault fault = Fault::None;
    std::uint32_t tokens_at = 0;
    std::uint32_t tokens_len = 0;
    std::uint32_t log_probs_at = 0; // of the last `log_probs_len` of these tokens
    std::uint32_t log_probs_len = 0;
    bool has_cum_log_prob = false;
    float cum_log_prob = 0.f;
    std::uint64_t logits_at = 0;
    std::uint32_t logits_rows = 0; // each of `Output::logits_width`
    std::int32_t decoding_iter = 0;
    std::int32_t error = -1; // index into the texts, handoffs and metrics; -1 for none
    std::int32_t handoff = -1;
    std::int32_t metrics = -1;
};

// Times in microseconds since the request arrived; 0 if it did not happen.
struct Metrics
{
    std::int64_t scheduled_us = 0;
    std::int64_t first_token_us = 0;
    std::int64_t last_token_us = 0;
    std::int64_t kv_transfer_us = 0; // its duration
    std::uint64_t kv_transfer_bytes = 0;
    std::int32_t total_blocks = 0;
    std::int32_t new_blocks = 0;
    std::int32_t reused_blocks = 0;
    std::int32_t missed_blocks = 0;
    std::int32_t draft_tokens = 0;
    std::int32_t accepted_draft_tokens = 0;
};

struct Output
{
    std::vector<Row> rows;
    std::vector<std::int32_t> tokens;
    std::vector<float> log_probs;
    std::vector<float> logits;
    std::uint32_t logits_width = 0;
    std::vector<std::string> errors;
    std::vector<Handoff> handoffs;
    std::vector<Metrics> metrics;

    // Keeps the allocations.
    void clear();
};

enum class KvEventKind : std::uint8_t
{
    Created = 0,
    Stored = 1,
    Removed = 2,
    Updated = 3
};

struct KvEventRow
{
    std::uint64_t id = 0; // without gaps per dp_rank, unless events were lost
    KvEventKind kind = KvEventKind::Created;
    std::int32_t window = 0;
    std::int32_t dp_rank = -1; // -1: none
    bool has_parent = false;
    std::uint64_t parent = 0;
    std::uint32_t blocks_at = 0; // Stored: into blocks; Removed and Updated: into hashes; Created: into counts
    std::uint32_t blocks_len = 0;
    std::int32_t old_level = -1; // Updated; -1: unchanged
    std::int32_t new_level = -1;
    std::int32_t old_priority = -1;
    std::int32_t new_priority = -1;
};

struct KvBlockRow
{
    std::uint64_t hash = 0; // opaque
    std::uint32_t tokens_at = 0;
    std::uint32_t tokens_len = 0; // fewer than a block has if it is not full
    bool has_lora = false;
    std::uint64_t lora = 0;
    std::int32_t level = 0; // 0 device, 1 host
    std::int32_t priority = 0;
    std::uint32_t images = 0; // multimodal keys; their content is not told
};

struct KvEvents
{
    std::vector<KvEventRow> rows;
    std::vector<KvBlockRow> blocks;
    std::vector<std::int32_t> tokens;
    std::vector<std::uint64_t> token_extra_ids; // one for each token
    std::vector<std::uint64_t> hashes;
    std::vector<std::int32_t> counts; // blocks by cache level

    void clear();
};

// One step. Counts of KV blocks since the engine started are named `…_total`.
struct Iteration
{
    std::uint64_t iter = 0;
    double latency_ms = 0;
    double queue_ms = 0; // waited by those that became active in this step, summed
    std::int32_t active = 0;
    std::int32_t queued = 0;
    std::int32_t completed = 0;
    std::int32_t max_active = 0;
    std::int32_t scheduled = 0;
    std::int32_t context_requests = 0;
    std::int32_t generation_requests = 0;
    std::int32_t paused = 0;
    std::int32_t context_tokens = 0;
    float tokens_per_iteration = 0;
    std::uint64_t gpu_bytes = 0;
    std::uint64_t cpu_bytes = 0;
    std::uint64_t pinned_bytes = 0;
    bool has_kv = false;
    std::int32_t kv_blocks = 0;
    std::int32_t kv_free = 0;
    std::int32_t kv_used = 0;
    std::int32_t kv_block_tokens = 0;
    std::int32_t kv_allocated_total = 0;
    std::int32_t kv_reused_total = 0;
    std::int32_t kv_missed_total = 0;
    bool has_draft = false;
    std::int64_t draft_tokens = 0;
    std::int64_t draft_accepted = 0;
};

struct RequestState
{
    std::uint64_t iter = 0;
    std::uint64_t request = 0;
    std::uint8_t stage = 0; // 0 queued, 1 encoder, 2 context, 3 generation, 4 complete
    bool scheduled = false;
    bool paused = false;
    std::int32_t prefilled = 0; // tokens
    std::int32_t generated = 0;
    double kv_transfer_ms = 0;
};

// What this release of TensorRT-LLM can do and another cannot; options of the rest are refused.
struct Capabilities
{
    bool standin = false;
    bool prompt_ignore_length = false;
    bool mooncake = false;
    bool transfer_timeout = false;
    bool sender_future_timeout = false;
    bool poll_interval = false;
    bool context_dp_rank = false;
    bool disagg_request_id = false;
    bool cache_salt = false;
    bool max_gpu_total_bytes = false;
    bool missed_blocks = false;
    std::string headers; // versions
    std::string library;
};
} // namespace cuelight::trtllm
