// Shim: the executor's configuration, by setters only where there are any.
#include "build.h"

#include "detect.h"

namespace cuelight::trtllm
{
void unavailable(char const* option)
{
    throw Unusable(std::string(option) + " does not exist in this release of TensorRT-LLM (" + tle::version()
        + "); leave it out, or build with a release that has it");
}

std::vector<std::vector<std::int32_t>> split(Words const& words, char const* what)
{
    std::vector<std::vector<std::int32_t>> lists;
    std::size_t at = 0;
    for (auto const length : words.lengths)
    {
        if (length > words.tokens.size() - at)
        {
            throw Unusable(std::string(what) + ": the lengths are more than the tokens");
        }
        auto const begin = words.tokens.begin() + static_cast<std::ptrdiff_t>(at);
        lists.emplace_back(begin, begin + static_cast<std::ptrdiff_t>(length));
        at += length;
    }
    if (at != words.tokens.size())
    {
        throw Unusable(std::string(what) + ": the lengths are less than the tokens");
    }
    return lists;
}

namespace
{
[[noreturn]] void unknown(char const* key, std::string const& value, char const* known)
{
    throw Unusable(std::string(key) + " = " + value + ": must be one of " + known);
}

template <class Policy>
Policy capacityPolicy(std::string const& name)
{
    if (name == "GUARANTEED_NO_EVICT")
    {
        return Policy::kGUARANTEED_NO_EVICT;
    }
    if (name == "MAX_UTILIZATION")
    {
        return Policy::kMAX_UTILIZATION;
    }
    if constexpr (HasStaticBatch<Policy>::value)
    {
        if (name == "STATIC_BATCH")
        {
            return Policy::kSTATIC_BATCH;
        }
    }
    unknown("capacity_scheduler_policy", name, "GUARANTEED_NO_EVICT, MAX_UTILIZATION, STATIC_BATCH");
}

tle::SchedulerConfig scheduler(EngineOptions const& options)
{
    auto policy = tle::CapacitySchedulerPolicy::kGUARANTEED_NO_EVICT;
    std::optional<tle::ContextChunkingPolicy> chunking;
    std::optional<tle::DynamicBatchConfig> dynamic;
    given(options.capacity_scheduler_policy,
        [&](auto const& name) { policy = capacityPolicy<tle::CapacitySchedulerPolicy>(name); });
    given(options.context_chunking_policy,
        [&](auto const& name)
        {
            if (name == "FIRST_COME_FIRST_SERVED")
            {
                chunking = tle::ContextChunkingPolicy::kFIRST_COME_FIRST_SERVED;
            }
            else if (name == "EQUAL_PROGRESS")
            {
                chunking = tle::ContextChunkingPolicy::kEQUAL_PROGRESS;
            }
            else
            {
                unknown("context_chunking_policy", name, "FIRST_COME_FIRST_SERVED, EQUAL_PROGRESS");
            }
        });
    if (options.dynamic_batch_size || options.dynamic_num_tokens)
    {
        dynamic = tle::DynamicBatchConfig(
            options.dynamic_batch_size.value_or(false), options.dynamic_num_tokens.value_or(false));
    }
    return tle::SchedulerConfig(policy, chunking, dynamic);
}

template <class Config>
Config kvCache(KvCacheOptions const& options)
{
    Config config;
    given(options.enable_block_reuse, [&](bool v) { config.setEnableBlockReuse(v); });
    given(options.enable_partial_reuse, [&](bool v) { config.setEnablePartialReuse(v); });
    given(options.copy_on_partial_reuse, [&](bool v) { config.setCopyOnPartialReuse(v); });
    given(options.max_tokens, [&](std::int32_t v) { config.setMaxTokens(v); });
    if (!options.max_attention_window.empty())
    {
        config.setMaxAttentionWindowVec(options.max_attention_window);
    }
    given(options.sink_token_length, [&](std::int32_t v) { config.setSinkTokenLength(v); });
    given(options.free_gpu_memory_fraction, [&](float v) { config.setFreeGpuMemoryFraction(v); });
    given(options.host_cache_size, [&](std::uint64_t v) { config.setHostCacheSize(static_cast<std::size_t>(v)); });
    given(options.secondary_offload_min_priority,
        [&](std::int32_t v) { config.setSecondaryOffloadMinPriority(v); });
    given(options.event_buffer_max_size,
        [&](std::uint64_t v) { config.setEventBufferMaxSize(static_cast<std::size_t>(v)); });
    if constexpr (HasUseUvm<Config>::value)
    {
        given(options.use_uvm, [&](bool v) { config.setUseUvm(v); });
    }
    else if (options.use_uvm)
    {
        unavailable("kv_cache_config.use_uvm");
    }
    if constexpr (HasMaxGpuTotalBytes<Config>::value)
    {
        given(options.max_gpu_total_bytes, [&](std::uint64_t v) { config.setMaxGpuTotalBytes(v); });
    }
    else if (options.max_gpu_total_bytes)
    {
        unavailable("kv_cache_config.max_gpu_total_bytes");
    }
    return config;
}

template <class Config, class Backend>
Backend transceiverBackend(std::string const& name)
{
    if (name == "DEFAULT")
    {
        return Backend::DEFAULT;
    }
    if (name == "MPI")
    {
        return Backend::MPI;
    }
    if (name == "UCX")
    {
        return Backend::UCX;
    }
    if (name == "NIXL")
    {
        return Backend::NIXL;
    }
    if constexpr (HasMooncake<Backend>::value)
    {
        if (name == "MOONCAKE")
        {
            return Backend::MOONCAKE;
        }
    }
    else if (name == "MOONCAKE")
    {
        unavailable("cache_transceiver_config.backend = MOONCAKE");
    }
    unknown("cache_transceiver_config.backend", name, "DEFAULT, MPI, UCX, NIXL, MOONCAKE");
}

template <class Config>
Config transceiver(TransceiverOptions const& options)
{
    Config config;
    config.setBackendType(transceiverBackend<Config, typename Config::BackendType>(*options.backend));
    given(options.max_tokens_in_buffer,
        [&](std::uint64_t v) { config.setMaxTokensInBuffer(static_cast<std::size_t>(v)); });
    if constexpr (HasTransferTimeout<Config>::value)
    {
        given(options.transfer_timeout_ms, [&](int v) { config.setKvTransferTimeoutMs(v); });
    }
    else if (options.transfer_timeout_ms)
    {
        unavailable("cache_transceiver_config.kv_transfer_timeout_ms");
    }
    if constexpr (HasSenderFutureTimeout<Config>::value)
    {
        given(options.sender_future_timeout_ms, [&](int v) { config.setKvTransferSenderFutureTimeoutMs(v); });
    }
    else if (options.sender_future_timeout_ms)
    {
        unavailable("cache_transceiver_config.kv_transfer_sender_future_timeout_ms");
    }
    if constexpr (HasPollInterval<Config>::value)
    {
        given(options.poll_interval_ms, [&](int v) { config.setKvTransferPollIntervalMs(v); });
    }
    else if (options.poll_interval_ms)
    {
        unavailable("cache_transceiver_config.kv_transfer_poll_interval_ms");
    }
    return config;
}

std::optional<tle::ParallelConfig> parallel(ParallelOptions const& options)
{
    if (!options.mode && options.device_ids.empty() && options.participant_ids.empty() && !options.num_nodes)
    {
        return std::nullopt;
    }
    tle::ParallelConfig config;
    auto const mode = options.mode.value_or("LEADER");
    if (mode != "LEADER" && mode != "ORCHESTRATOR")
    {
        unknown("communication_mode", mode, "LEADER, ORCHESTRATOR");
    }
    if (mode == "ORCHESTRATOR")
    {
        tle::OrchestratorConfig orchestrator;
        given(options.is_orchestrator, [&](bool v) { orchestrator.setIsOrchestrator(v); });
        given(options.worker_executable, [&](auto const& v) { orchestrator.setWorkerExecutablePath(v); });
        given(options.spawn_processes, [&](bool v) { orchestrator.setSpawnProcesses(v); });
        config.setCommunicationMode(tle::CommunicationMode::kORCHESTRATOR);
        config.setOrchestratorConfig(orchestrator);
    }
    if (!options.device_ids.empty())
    {
        config.setDeviceIds(options.device_ids);
    }
    if (!options.participant_ids.empty())
    {
        config.setParticipantIds(options.participant_ids);
    }
    given(options.num_nodes, [&](std::int32_t v) { config.setNumNodes(v); });
    return config;
}

tle::DecodingMode decodingMode(std::string const& name)
{
    using Mode = tle::DecodingMode;
    std::pair<char const*, Mode> const known[] = {{"auto", Mode::Auto()}, {"top_k", Mode::TopK()},
        {"top_p", Mode::TopP()}, {"top_k_top_p", Mode::TopKTopP()}, {"beam_search", Mode::BeamSearch()},
        {"medusa", Mode::Medusa()}, {"lookahead", Mode::Lookahead()},
        {"explicit_draft", Mode::ExplicitDraftTokens()}, {"external_draft", Mode::ExternalDraftTokens()},
        {"eagle", Mode::Eagle()}};
    for (auto const& [text, mode] : known)
    {
        if (name == text)
        {
            return mode;
        }
    }
    unknown("decoding mode", name,
        "auto, top_k, top_p, top_k_top_p, beam_search, medusa, lookahead, explicit_draft, external_draft, eagle");
}

std::optional<tle::DecodingConfig> decoding(SpeculativeOptions const& options)
{
    tle::DecodingConfig config;
    bool any = false;
    given(options.mode,
        [&](auto const& name)
        {
            config.setDecodingMode(decodingMode(name));
            any = true;
        });
    if (options.lookahead_window || options.lookahead_ngram || options.lookahead_verification)
    {
        if (!options.lookahead_window || !options.lookahead_ngram || !options.lookahead_verification)
        {
            throw Unusable("lookahead needs a window, an ngram and a verification set size");
        }
        config.setLookaheadDecodingConfig(tle::LookaheadDecodingConfig(
            *options.lookahead_window, *options.lookahead_ngram, *options.lookahead_verification));
        any = true;
    }
    if (!options.medusa_choices.lengths.empty())
    {
        config.setMedusaChoices(split(options.medusa_choices, "medusa_choices"));
        any = true;
    }
    bool const tree = !options.eagle_choices.lengths.empty();
    if (tree || options.eagle_greedy || options.eagle_posterior_threshold || options.eagle_dynamic_tree)
    {
        auto const choices = tree ? std::optional(split(options.eagle_choices, "eagle_choices")) : std::nullopt;
        config.setEagleConfig(tle::EagleConfig(choices, options.eagle_greedy.value_or(true),
            options.eagle_posterior_threshold, options.eagle_dynamic_tree.value_or(false),
            options.eagle_dynamic_tree_max_top_k));
        any = true;
    }
    return any ? std::optional(config) : std::nullopt;
}

tle::GuidedDecodingConfig guided(GuidedOptions const& options)
{
    using Config = tle::GuidedDecodingConfig;
    auto backend = Config::GuidedDecodingBackend::kXGRAMMAR;
    if (*options.backend == "LLGUIDANCE")
    {
        backend = Config::GuidedDecodingBackend::kLLGUIDANCE;
    }
    else if (*options.backend != "XGRAMMAR")
    {
        unknown("guided_decoding_backend", *options.backend, "XGRAMMAR, LLGUIDANCE");
    }
    Config config(backend);
    if (!options.vocabulary.empty())
    {
        config.setEncodedVocab(options.vocabulary);
    }
    given(options.tokenizer, [&](auto const& v) { config.setTokenizerStr(v); });
    if (!options.stop_ids.empty())
    {
        config.setStopTokenIds(options.stop_ids);
    }
    config.validate();
    return config;
}

std::optional<tle::PeftCacheConfig> loraCache(LoraCacheOptions const& options)
{
    if (!options.optimal_adapter_size && !options.max_adapter_size && !options.device_cache_fraction
        && !options.host_cache_size)
    {
        return std::nullopt;
    }
    std::optional<std::size_t> host;
    given(options.host_cache_size, [&](std::uint64_t v) { host = static_cast<std::size_t>(v); });
    // There are no setters; these positions are the same in all releases that have the class.
    return tle::PeftCacheConfig(0, 0, options.optimal_adapter_size.value_or(8), options.max_adapter_size.value_or(64),
        1, 1, 1, 24, 8, options.device_cache_fraction, host);
}

template <class Config>
void setRecent(Config& config, EngineOptions const& options)
{
    if constexpr (HasPromptTableOffloading<Config>::value)
    {
        given(options.prompt_table_offloading, [&](bool v) { config.setPromptTableOffloading(v); });
    }
    else if (options.prompt_table_offloading)
    {
        unavailable("prompt_table_offloading");
    }
    if constexpr (HasTrtOverlap<Config>::value)
    {
        given(options.enable_trt_overlap, [&](bool v) { config.setEnableTrtOverlap(v); });
    }
    else if (options.enable_trt_overlap)
    {
        unavailable("enable_trt_overlap");
    }
    if constexpr (HasFailFast<Config>::value)
    {
        given(options.fail_fast_on_attention_window_too_large,
            [&](bool v) { config.setFailFastOnAttentionWindowTooLarge(v); });
    }
    else if (options.fail_fast_on_attention_window_too_large)
    {
        unavailable("fail_fast_on_attention_window_too_large");
    }
}

tle::ExtendedRuntimePerfKnobConfig knobs(EngineOptions const& options)
{
    tle::ExtendedRuntimePerfKnobConfig config;
    given(options.multi_block_mode, [&](bool v) { config.setMultiBlockMode(v); });
    given(options.context_fmha_fp32_acc, [&](bool v) { config.setEnableContextFMHAFP32Acc(v); });
    given(options.cuda_graph_mode, [&](bool v) { config.setCudaGraphMode(v); });
    given(options.cuda_graph_cache_size, [&](std::int32_t v) { config.setCudaGraphCacheSize(v); });
    return config;
}

void setSimple(tle::ExecutorConfig& config, EngineOptions const& options)
{
    given(options.max_beam_width, [&](std::int32_t v) { config.setMaxBeamWidth(v); });
    given(options.max_batch_size, [&](std::int32_t v) { config.setMaxBatchSize(v); });
    given(options.max_num_tokens, [&](std::int32_t v) { config.setMaxNumTokens(v); });
    given(options.max_queue_size, [&](std::int32_t v) { config.setMaxQueueSize(v); });
    // Their defaults have changed between releases.
    config.setEnableChunkedContext(options.enable_chunked_context.value_or(true));
    config.setNormalizeLogProbs(options.normalize_log_probs.value_or(false));
    given(options.iter_stats_max_iterations, [&](std::int32_t v) { config.setIterStatsMaxIterations(v); });
    given(options.request_stats_max_iterations, [&](std::int32_t v) { config.setRequestStatsMaxIterations(v); });
    given(options.gather_generation_logits, [&](bool v) { config.setGatherGenerationLogits(v); });
    given(options.use_gpu_direct_storage, [&](bool v) { config.setUseGpuDirectStorage(v); });
    given(options.gpu_weights_percent, [&](float v) { config.setGpuWeightsPercent(v); });
    given(options.recv_poll_period_ms, [&](std::int32_t v) { config.setRecvPollPeriodMs(v); });
    given(options.max_seq_idle_microseconds, [&](std::uint64_t v) { config.setMaxSeqIdleMicroseconds(v); });
}
} // namespace

tle::ExecutorConfig buildConfig(
    EngineOptions const& options, std::optional<tle::LogitsPostProcessorConfig> const& logits)
{
    tle::ExecutorConfig config;
    setSimple(config, options);
    setRecent(config, options);
    config.setBatchingType(tle::BatchingType::kINFLIGHT);
    config.setSchedulerConfig(scheduler(options));
    config.setKvCacheConfig(kvCache<tle::KvCacheConfig>(options.kv));
    config.setExtendedRuntimePerfKnobConfig(knobs(options));
    given(parallel(options.parallel), [&](auto const& v) { config.setParallelConfig(v); });
    given(decoding(options.speculative), [&](auto const& v) { config.setDecodingConfig(v); });
    given(loraCache(options.lora), [&](auto const& v) { config.setPeftCacheConfig(v); });
    given(logits, [&](auto const& v) { config.setLogitsPostProcessorConfig(v); });
    given(options.speculative.draft_fast_logits,
        [&](bool v) { config.setSpecDecConfig(tle::SpeculativeDecodingConfig(v)); });
    if (options.guided.backend)
    {
        config.setGuidedDecodingConfig(guided(options.guided));
    }
    if (options.transceiver.backend)
    {
        config.setCacheTransceiverConfig(transceiver<tle::CacheTransceiverConfig>(options.transceiver));
    }
    return config;
}
} // namespace cuelight::trtllm
