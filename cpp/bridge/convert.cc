// Bridge: options of ffi.rs to the shim's, field by field.
#include "convert.h"

namespace cuelight::trtllm::ffi
{
namespace
{
trtllm::Words words(Words const& from)
{
    return {list(from.tokens), list(from.lengths)};
}

std::optional<trtllm::HostTensor> tensor(HostTensor const& from)
{
    if (!from.some)
    {
        return std::nullopt;
    }
    return trtllm::HostTensor{std::string(from.dtype), list(from.shape), list(from.bytes)};
}

trtllm::KvCacheOptions kvCache(KvCacheOptions const& from)
{
    trtllm::KvCacheOptions to;
    to.enable_block_reuse = maybe(from.enable_block_reuse);
    to.enable_partial_reuse = maybe(from.enable_partial_reuse);
    to.copy_on_partial_reuse = maybe(from.copy_on_partial_reuse);
    to.max_tokens = maybe(from.max_tokens);
    to.max_attention_window = list(from.max_attention_window);
    to.sink_token_length = maybe(from.sink_token_length);
    to.free_gpu_memory_fraction = maybe(from.free_gpu_memory_fraction);
    to.host_cache_size = maybe(from.host_cache_size);
    to.secondary_offload_min_priority = maybe(from.secondary_offload_min_priority);
    to.event_buffer_max_size = maybe(from.event_buffer_max_size);
    to.use_uvm = maybe(from.use_uvm);
    to.max_gpu_total_bytes = maybe(from.max_gpu_total_bytes);
    return to;
}

trtllm::TransceiverOptions transceiver(TransceiverOptions const& from)
{
    trtllm::TransceiverOptions to;
    to.backend = maybe(from.backend);
    to.max_tokens_in_buffer = maybe(from.max_tokens_in_buffer);
    to.transfer_timeout_ms = maybe(from.transfer_timeout_ms);
    to.sender_future_timeout_ms = maybe(from.sender_future_timeout_ms);
    to.poll_interval_ms = maybe(from.poll_interval_ms);
    return to;
}

trtllm::ParallelOptions parallel(ParallelOptions const& from)
{
    trtllm::ParallelOptions to;
    to.mode = maybe(from.mode);
    to.device_ids = list(from.device_ids);
    to.participant_ids = list(from.participant_ids);
    to.worker_executable = maybe(from.worker_executable);
    to.spawn_processes = maybe(from.spawn_processes);
    to.is_orchestrator = maybe(from.is_orchestrator);
    to.num_nodes = maybe(from.num_nodes);
    return to;
}

trtllm::SpeculativeOptions speculative(SpeculativeOptions const& from)
{
    trtllm::SpeculativeOptions to;
    to.mode = maybe(from.mode);
    to.lookahead_window = maybe(from.lookahead_window);
    to.lookahead_ngram = maybe(from.lookahead_ngram);
    to.lookahead_verification = maybe(from.lookahead_verification);
    to.medusa_choices = words(from.medusa_choices);
    to.eagle_choices = words(from.eagle_choices);
    to.eagle_greedy = maybe(from.eagle_greedy);
    to.eagle_posterior_threshold = maybe(from.eagle_posterior_threshold);
    to.eagle_dynamic_tree = maybe(from.eagle_dynamic_tree);
    to.eagle_dynamic_tree_max_top_k = maybe(from.eagle_dynamic_tree_max_top_k);
    to.draft_fast_logits = maybe(from.draft_fast_logits);
    return to;
}

trtllm::SamplingOptions sampling(SamplingOptions const& from)
{
    trtllm::SamplingOptions to;
    to.beam_width = maybe(from.beam_width);
    to.num_return_sequences = maybe(from.num_return_sequences);
    to.top_k = maybe(from.top_k);
    to.top_p = maybe(from.top_p);
    to.top_p_min = maybe(from.top_p_min);
    to.top_p_reset_ids = maybe(from.top_p_reset_ids);
    to.top_p_decay = maybe(from.top_p_decay);
    to.seed = maybe(from.seed);
    to.temperature = maybe(from.temperature);
    to.min_tokens = maybe(from.min_tokens);
    to.beam_search_diversity_rate = maybe(from.beam_search_diversity_rate);
    to.repetition_penalty = maybe(from.repetition_penalty);
    to.presence_penalty = maybe(from.presence_penalty);
    to.frequency_penalty = maybe(from.frequency_penalty);
    to.prompt_ignore_length = maybe(from.prompt_ignore_length);
    to.length_penalty = maybe(from.length_penalty);
    to.early_stopping = maybe(from.early_stopping);
    to.no_repeat_ngram_size = maybe(from.no_repeat_ngram_size);
    to.min_p = maybe(from.min_p);
    return to;
}

std::optional<trtllm::Handoff> handoff(Handoff const& from)
{
    if (!from.some)
    {
        return std::nullopt;
    }
    trtllm::Handoff to;
    to.context_request = from.context_request;
    to.first_tokens = list(from.first_tokens);
    to.draft_tokens = list(from.draft_tokens);
    to.has_state = from.has_state;
    to.state = list(from.state);
    to.dp_rank = maybe(from.dp_rank);
    to.endpoint = maybe(from.endpoint);
    return to;
}

void executorParts(EngineOptions const& from, trtllm::EngineOptions& to)
{
    to.max_beam_width = maybe(from.max_beam_width);
    to.max_batch_size = maybe(from.max_batch_size);
    to.max_num_tokens = maybe(from.max_num_tokens);
    to.max_queue_size = maybe(from.max_queue_size);
    to.enable_chunked_context = maybe(from.enable_chunked_context);
    to.normalize_log_probs = maybe(from.normalize_log_probs);
    to.iter_stats_max_iterations = maybe(from.iter_stats_max_iterations);
    to.request_stats_max_iterations = maybe(from.request_stats_max_iterations);
    to.capacity_scheduler_policy = maybe(from.capacity_scheduler_policy);
    to.context_chunking_policy = maybe(from.context_chunking_policy);
    to.dynamic_batch_size = maybe(from.dynamic_batch_size);
    to.dynamic_num_tokens = maybe(from.dynamic_num_tokens);
    to.multi_block_mode = maybe(from.multi_block_mode);
    to.context_fmha_fp32_acc = maybe(from.context_fmha_fp32_acc);
    to.cuda_graph_mode = maybe(from.cuda_graph_mode);
    to.cuda_graph_cache_size = maybe(from.cuda_graph_cache_size);
    to.gather_generation_logits = maybe(from.gather_generation_logits);
    to.use_gpu_direct_storage = maybe(from.use_gpu_direct_storage);
    to.gpu_weights_percent = maybe(from.gpu_weights_percent);
    to.recv_poll_period_ms = maybe(from.recv_poll_period_ms);
    to.max_seq_idle_microseconds = maybe(from.max_seq_idle_microseconds);
    to.prompt_table_offloading = maybe(from.prompt_table_offloading);
    to.enable_trt_overlap = maybe(from.enable_trt_overlap);
    to.fail_fast_on_attention_window_too_large = maybe(from.fail_fast_on_attention_window_too_large);
}

void requestParts(RequestOptions const& from, trtllm::RequestOptions& to)
{
    to.priority = maybe(from.priority);
    to.client_id = maybe(from.client_id);
    to.cache_salt = maybe(from.cache_salt);
    to.disagg_request_id = maybe(from.disagg_request_id);
    to.allotted_ms = maybe(from.allotted_ms);
    to.lora_id = maybe(from.lora_id);
    to.lora_weights = tensor(from.lora_weights);
    to.lora_config = tensor(from.lora_config);
    to.guide_kind = maybe(from.guide_kind);
    to.guide = maybe(from.guide);
    to.draft_tokens = list(from.draft_tokens);
    to.draft_acceptance_threshold = maybe(from.draft_acceptance_threshold);
    to.lookahead_window = maybe(from.lookahead_window);
    to.lookahead_ngram = maybe(from.lookahead_ngram);
    to.lookahead_verification = maybe(from.lookahead_verification);
    to.processor = maybe(from.processor);
    to.own_processor = from.own_processor;
    to.phase = static_cast<trtllm::Phase>(from.phase);
    to.handoff = handoff(from.handoff);
}
} // namespace

trtllm::EngineOptions shimOptions(EngineOptions const& from)
{
    trtllm::EngineOptions to;
    to.engine_dir = std::string(from.engine_dir);
    to.vocab_size = from.vocab_size;
    if (!from.bias_type.empty())
    {
        to.bias_type = std::string(from.bias_type);
    }
    executorParts(from, to);
    to.kv = kvCache(from.kv);
    to.transceiver = transceiver(from.transceiver);
    to.parallel = parallel(from.parallel);
    to.speculative = speculative(from.speculative);
    to.guided = {maybe(from.guided.backend), texts(from.guided.vocabulary), maybe(from.guided.tokenizer),
        list(from.guided.stop_ids)};
    to.lora = {maybe(from.lora.optimal_adapter_size), maybe(from.lora.max_adapter_size),
        maybe(from.lora.device_cache_fraction), maybe(from.lora.host_cache_size)};
    to.processor_names = texts(from.processor_names);
    to.processor_batched = from.processor_batched;
    to.processor_replicate = maybe(from.processor_replicate);
    return to;
}

trtllm::RequestOptions shimRequest(RequestOptions const& from)
{
    trtllm::RequestOptions to;
    to.tokens = list(from.tokens);
    to.max_tokens = from.max_tokens;
    to.streaming = from.streaming;
    to.sampling = sampling(from.sampling);
    to.end_id = maybe(from.end_id);
    to.pad_id = maybe(from.pad_id);
    to.stop_words = words(from.stop_words);
    to.bad_words = words(from.bad_words);
    to.bias_ids = list(from.bias_ids);
    to.bias_values = list(from.bias_values);
    to.return_log_probs = from.return_log_probs;
    to.return_generation_logits = from.return_generation_logits;
    to.return_perf_metrics = from.return_perf_metrics;
    to.return_all_generated_tokens = from.return_all_generated_tokens;
    to.exclude_input = from.exclude_input;
    requestParts(from, to);
    return to;
}
} // namespace cuelight::trtllm::ffi
