// Stand-in: the Executor's methods, over the inbox, the loop's thread and the outbox.
#include "loop.h"

#include "check.h"

#include <thread>

namespace cuelight::standin
{
bool pluginsInitialized();
} // namespace cuelight::standin

namespace tensorrt_llm::executor
{
using cuelight::standin::check;
using cuelight::standin::maybeThrow;
using cuelight::standin::settingsFor;

namespace
{
bool isOrchestrator(ExecutorConfig const& config)
{
    auto const parallel = config.getParallelConfig();
    return parallel && parallel->getCommunicationMode() == CommunicationMode::kORCHESTRATOR;
}

void checkConfig(std::filesystem::path const& model, ModelType type, ExecutorConfig const& config)
{
    auto const settings = settingsFor(model);
    std::this_thread::sleep_for(std::chrono::milliseconds(settings.openMs));
    maybeThrow(settings, "open");
    check(settings.openError.empty(), settings.openError);
    check(cuelight::standin::pluginsInitialized(), "the plugins of TensorRT-LLM are not initialized");
    check(std::filesystem::exists(model), "File does not exist: " + (model / "config.json").string());
    check(type == ModelType::kDECODER_ONLY, "stand-in: only decoder-only models");
    check(config.getBatchingType() == BatchingType::kINFLIGHT, "BatchingType::kSTATIC is deprecated");
    check(!isOrchestrator(config) || !config.getLogitsPostProcessorConfig(),
        "Serialization of executorConfig with logitsPostProcessor is currently not supported");
    if (auto const guided = config.getGuidedDecodingConfig())
    {
        guided->validate();
    }
}
} // namespace

class Executor::Impl
{
public:
    Impl(std::filesystem::path const& model, ExecutorConfig const& config)
        : mModel(model)
        , mConfig(config)
        , mAge(cuelight::standin::settingsAge())
        , mSettings(settingsFor(model))
        , mInbox(config.getMaxQueueSize(), isOrchestrator(config))
        , mEvents(std::make_shared<cuelight::standin::EventLog>(
              config.getKvCacheConfig().getEventBufferMaxSize(), settingsFor(model).kvGapEvery))
        , mLoop(model, config, mInbox, mOutbox, mEvents)
        , mThread([this] { mLoop.run(); })
    {
    }

    ~Impl() { shutdown(); }

    std::vector<IdType> enqueue(std::vector<Request> const& requests)
    {
        auto const settings = now();
        maybeThrow(settings, "enqueue");
        for (auto const& request : requests)
        {
            checkProcessor(request);
        }
        auto ids = mInbox.add(requests, settings);
        if (settings.enqueueUs > 0)
        {
            std::this_thread::sleep_for(std::chrono::microseconds(settings.enqueueUs));
        }
        return ids;
    }

    // Waits until all that was enqueued has ended, however long that takes.
    void shutdown()
    {
        std::lock_guard const lock(mShutdown);
        mInbox.stop();
        if (mThread.joinable())
        {
            mThread.join();
        }
        mOutbox.close();
        mEvents->close();
    }

    void maybe(char const* call) const
    {
        if (cuelight::standin::settingsAge() != mAge || !mSettings.throwIn.empty())
        {
            maybeThrow(settingsFor(mModel), call);
        }
    }

    std::filesystem::path const mModel;
    ExecutorConfig const mConfig;
    std::uint64_t const mAge;
    cuelight::standin::Settings const mSettings; // as of that age
    cuelight::standin::Inbox mInbox;
    cuelight::standin::Outbox mOutbox;
    std::shared_ptr<cuelight::standin::EventLog> mEvents;
    cuelight::standin::Loop mLoop;

private:
    void checkProcessor(Request const& request) const
    {
        auto const name = request.getLogitsPostProcessorName();
        if (!name)
        {
            return;
        }
        auto const config = mConfig.getLogitsPostProcessorConfig();
        bool const batched = *name == Request::kBatchedPostProcessorName;
        bool known = config && batched && config->getProcessorBatched();
        if (config && config->getProcessorMap() && !batched)
        {
            known = config->getProcessorMap()->count(*name) > 0;
        }
        check(known, "LogitsPostProcessor " + *name + " not found");
    }

    [[nodiscard]] cuelight::standin::Settings now() const
    {
        return cuelight::standin::settingsAge() == mAge ? mSettings : settingsFor(mModel);
    }

    std::mutex mShutdown;
    std::thread mThread;
};

Executor::Executor(
    std::filesystem::path const& modelPath, ModelType modelType, ExecutorConfig const& executorConfig)
{
    checkConfig(modelPath, modelType, executorConfig);
    mImpl = std::make_unique<Impl>(modelPath, executorConfig);
}

Executor::~Executor() = default;
Executor::Executor(Executor&&) noexcept = default;
Executor& Executor::operator=(Executor&&) noexcept = default;

IdType Executor::enqueueRequest(Request const& request)
{
    return mImpl->enqueue({request}).front();
}

std::vector<IdType> Executor::enqueueRequests(std::vector<Request> const& requests)
{
    return mImpl->enqueue(requests);
}

std::vector<Response> Executor::awaitResponses(std::optional<std::chrono::milliseconds> const& timeout)
{
    mImpl->maybe("await");
    return mImpl->mOutbox.take(timeout);
}

std::vector<Response> Executor::awaitResponses(
    IdType const& requestId, std::optional<std::chrono::milliseconds> const& timeout)
{
    mImpl->maybe("await");
    return mImpl->mOutbox.take(requestId, timeout);
}

// One after the other, as the original does.
std::vector<std::vector<Response>> Executor::awaitResponses(
    std::vector<IdType> const& requestIds, std::optional<std::chrono::milliseconds> const& timeout)
{
    std::vector<std::vector<Response>> all;
    for (auto const id : requestIds)
    {
        all.push_back(awaitResponses(id, timeout));
    }
    return all;
}

SizeType32 Executor::getNumResponsesReady(std::optional<IdType> const& requestId) const
{
    return mImpl->mOutbox.ready(requestId);
}

void Executor::cancelRequest(IdType requestId)
{
    mImpl->maybe("cancel");
    mImpl->mInbox.cancel(requestId);
}

void Executor::shutdown()
{
    mImpl->maybe("shutdown");
    mImpl->shutdown();
}

std::deque<IterationStats> Executor::getLatestIterationStats()
{
    mImpl->maybe("stats");
    return mImpl->mLoop.iterationStats.take();
}

std::deque<RequestStatsPerIteration> Executor::getLatestRequestStats()
{
    mImpl->maybe("stats");
    return mImpl->mLoop.requestStats.take();
}

std::deque<DebugTensorsPerIteration> Executor::getLatestDebugTensors()
{
    return {};
}

bool Executor::canEnqueueRequests() const
{
    return true;
}

bool Executor::isParticipant() const
{
    return true;
}

std::optional<std::shared_ptr<KVCacheEventManager>> Executor::getKVCacheEventManager() const
{
    if (isOrchestrator(mImpl->mConfig))
    {
        return std::nullopt;
    }
    return std::make_shared<KVCacheEventManager>(mImpl->mEvents);
}
} // namespace tensorrt_llm::executor
