// Shim: the Engine's methods, each a call of the executor with its exceptions named.
#include "engine.h"

#include "build.h"
#include "detect.h"
#include "stream.h"

#include "tensorrt_llm/executor/version.h"

#include <cstring>

// Declared here, since its own header needs TensorRT's. Returns false if the plugins cannot be registered.
extern "C" bool initTrtLlmPlugins(void* logger, char const* libNamespace);

namespace cuelight::trtllm
{
namespace
{
// Once in a process, before its first executor.
void initPlugins()
{
    static bool const done = initTrtLlmPlugins(nullptr, "tensorrt_llm");
    if (!done)
    {
        throw CallError("initTrtLlmPlugins", "the plugins of TensorRT-LLM could not be registered");
    }
}

bool contains(std::string const& text, char const* part)
{
    return text.find(part) != std::string::npos;
}

std::optional<tle::LogitsPostProcessorConfig> processors(
    EngineOptions const& options, std::shared_ptr<LogitsBridge> const& bridge)
{
    bool const named = !options.processor_names.empty() || options.processor_batched;
    if (!named && !options.processor_replicate)
    {
        return std::nullopt;
    }
    if (named && !bridge)
    {
        throw Unusable("logits post-processors need a hook");
    }
    tle::LogitsPostProcessorConfig config;
    tle::LogitsPostProcessorMap map;
    for (auto const& name : options.processor_names)
    {
        map[name] = bridge->processor(name);
    }
    if (!map.empty())
    {
        config.setProcessorMap(map);
    }
    if (options.processor_batched)
    {
        config.setProcessorBatched(bridge->batched());
    }
    given(options.processor_replicate, [&](bool v) { config.setReplicate(v); });
    return config;
}

// Expected outcomes of enqueueRequest are known by their texts only.
Admitted refusal(std::string const& text)
{
    auto status = Admission::Accepted;
    if (contains(text, "Maximum queue size"))
    {
        status = Admission::QueueFull;
    }
    else if (contains(text, "Shutdown called"))
    {
        status = Admission::Stopped;
    }
    else if (contains(text, "only be called by") || contains(text, "leader") || contains(text, "orchestrator"))
    {
        status = Admission::NotLeader;
    }
    else if (contains(text, "ogits") && contains(text, "ost"))
    {
        status = Admission::Invalid; // a post-processor that does not exist
    }
    return {status, 0, text};
}

template <class Config, class Params, class Sampling, class Request, class Kv, class Stats, class Backend>
Capabilities detected()
{
    Capabilities found;
    found.prompt_ignore_length = HasPromptIgnoreLength<Sampling>::value;
    found.mooncake = HasMooncake<Backend>::value;
    found.transfer_timeout = HasTransferTimeout<Config>::value;
    found.sender_future_timeout = HasSenderFutureTimeout<Config>::value;
    found.poll_interval = HasPollInterval<Config>::value;
    found.context_dp_rank = HasCtxDpRank<Params>::value;
    found.disagg_request_id = HasDisaggRequestId<Request>::value;
    found.cache_salt = HasCacheSalt<Request>::value || HasCacheSaltText<Request>::value;
    found.max_gpu_total_bytes = HasMaxGpuTotalBytes<Kv>::value;
    found.missed_blocks = HasMissedBlocks<Stats>::value;
    return found;
}
} // namespace

Capabilities capabilities()
{
    auto found = detected<tle::CacheTransceiverConfig, tle::ContextPhaseParams, tle::SamplingConfig, tle::Request,
        tle::KvCacheConfig, tle::KvCacheStats, tle::CacheTransceiverConfig::BackendType>();
    found.standin = isStandin();
    found.headers = tle::kTensorRtLlmVersion;
    found.library = tle::version();
    return found;
}

void check_versions()
{
    std::string const library = tle::version();
    if (library != tle::kTensorRtLlmVersion)
    {
        throw CallError("version", "the library is TensorRT-LLM " + library + ", but this program was built with the headers of "
                + tle::kTensorRtLlmVersion + "; build it with the headers of the installed release (TRTLLM_ROOT)");
    }
}

std::unique_ptr<Engine> Engine::open(EngineOptions const& options, std::shared_ptr<LogitsHook> hook)
{
    check_versions();
    named("initTrtLlmPlugins", [] { initPlugins(); });
    return std::unique_ptr<Engine>(new Engine(options, std::move(hook)));
}

Engine::Engine(EngineOptions const& options, std::shared_ptr<LogitsHook> hook)
    : mContext{options.vocab_size, options.bias_type, nullptr}
    , mEvents(options.kv.event_buffer_max_size.value_or(0) > 0)
{
    auto const bridge = hook ? std::make_shared<LogitsBridge>(std::move(hook)) : nullptr;
    if (bridge)
    {
        mContext.own = bridge->processor(tle::Request::kDynamicPostProcessorNamePrefix);
    }
    std::optional<tle::ExecutorConfig> config;
    try
    {
        dataType(options.bias_type);
        config = buildConfig(options, processors(options, bridge));
    }
    catch (std::exception const& error)
    {
        throw Unusable(error.what());
    }
    named("Executor",
        [&]
        {
            mExecutor = std::make_unique<tle::Executor>(
                std::filesystem::path(options.engine_dir), tle::ModelType::kDECODER_ONLY, *config);
        });
    if (mEvents)
    {
        auto const manager = named("Executor.getKVCacheEventManager", [&] { return mExecutor->getKVCacheEventManager(); });
        mEventManager = manager.value_or(nullptr);
    }
}

Engine::~Engine() = default;

Admitted Engine::enqueue(RequestOptions const& options)
{
    std::optional<tle::Request> request;
    try
    {
        request = buildRequest(options, mContext);
    }
    catch (std::bad_alloc const&)
    {
        if (options.handoff) // its state is read here; a length in it that makes no sense asks for too much
        {
            return {Admission::Invalid, 0, "the state of the context phase cannot be read"};
        }
        throw CallError("Request", "out of memory");
    }
    catch (std::exception const& error)
    {
        return {Admission::Invalid, 0, error.what()};
    }
    catch (...)
    {
        throw CallError("Request", "threw something that is not a std::exception");
    }
    return named("Executor.enqueueRequest",
        [&]() -> Admitted
        {
            try
            {
                return {Admission::Accepted, mExecutor->enqueueRequest(*request), {}};
            }
            catch (std::exception const& error)
            {
                auto refused = refusal(error.what());
                if (refused.status == Admission::Accepted)
                {
                    throw;
                }
                return refused;
            }
        });
}

void Engine::poll(std::chrono::milliseconds timeout, Output& output)
{
    output.clear();
    auto const responses = named("Executor.awaitResponses", [&] { return mExecutor->awaitResponses(timeout); });
    named("Response", [&] { flatten(responses, output); });
}

std::int32_t Engine::responses_ready() const
{
    return named("Executor.getNumResponsesReady", [&] { return mExecutor->getNumResponsesReady(); });
}

void Engine::cancel(std::uint64_t request)
{
    named("Executor.cancelRequest", [&] { mExecutor->cancelRequest(request); });
}

bool Engine::kv_events(std::chrono::milliseconds timeout, KvEvents& events)
{
    events.clear();
    if (!mEventManager)
    {
        return false;
    }
    auto const latest = named("KVCacheEventManager.getLatestEvents", [&] { return mEventManager->getLatestEvents(timeout); });
    named("KVCacheEvent", [&] { flatten(latest, events); });
    return true;
}

void Engine::iterations(std::vector<Iteration>& out)
{
    named("Executor.getLatestIterationStats", [&] { flatten(mExecutor->getLatestIterationStats(), out); });
}

void Engine::request_states(std::vector<RequestState>& out)
{
    named("Executor.getLatestRequestStats", [&] { flatten(mExecutor->getLatestRequestStats(), out); });
}

bool Engine::can_enqueue() const
{
    return named("Executor.canEnqueueRequests", [&] { return mExecutor->canEnqueueRequests(); });
}

bool Engine::is_participant() const
{
    return named("Executor.isParticipant", [&] { return mExecutor->isParticipant(); });
}

void Engine::shutdown()
{
    named("Executor.shutdown", [&] { mExecutor->shutdown(); });
}
} // namespace cuelight::trtllm
