// Stand-in: the loop, its waiting, and its large misbehaviour.
#include "loop.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <thread>

namespace cuelight::standin
{
namespace
{
Limits limitsFor(Settings const& settings, tle::ExecutorConfig const& config)
{
    auto const total = static_cast<std::size_t>(settings.maxSeqLen);
    auto const input = settings.maxInputLen > 0 ? static_cast<std::size_t>(settings.maxInputLen) : total - 1;
    auto const batch = std::min<std::int64_t>(
        config.getMaxBatchSize().value_or(static_cast<std::int32_t>(settings.maxBatchSize)), settings.maxBatchSize);
    auto const tokens = config.getMaxNumTokens().value_or(static_cast<std::int32_t>(settings.maxNumTokens));
    return {static_cast<std::size_t>(std::max<std::int64_t>(batch, 1)),
        static_cast<std::size_t>(std::max(tokens, 1)), std::min(input, total - 1), total};
}

std::uint64_t nextNumber()
{
    static std::atomic<std::uint64_t> count{0};
    return count++;
}
} // namespace

Loop::Loop(std::filesystem::path const& model, tle::ExecutorConfig const& config, Inbox& inbox, Outbox& outbox,
    std::shared_ptr<EventLog> events)
    : iterationStats(config.getIterStatsMaxIterations())
    , requestStats(config.getRequestStatsMaxIterations())
    , mModel(model)
    , mConfig(config)
    , mInbox(inbox)
    , mOutbox(outbox)
    , mSettings(settingsFor(model))
    , mSource(currentSource())
    , mNumber(nextNumber())
    , mLimits(limitsFor(mSettings, config))
    , mPool(mSettings, config.getKvCacheConfig(), std::move(events))
{
}

void Loop::run()
{
    for (;;)
    {
        idle();
        refresh();
        if (mActive.empty() && mInbox.waiting() == 0 && mInbox.stopped())
        {
            return;
        }
        if (mActive.empty() && mInbox.waiting() == 0)
        {
            if (mSettings.reapIdle != 0)
            {
                mHandoffs.reap(mPool, std::nullopt);
            }
            continue;
        }
        step();
    }
}

// Without work it sleeps, and then it does not even notice that KV has been pulled.
void Loop::idle()
{
    if (mActive.empty() && mInbox.waiting() == 0 && !mInbox.stopped())
    {
        auto const poll = mSettings.reapIdle != 0 && !mHandoffs.empty();
        mInbox.wait(poll ? std::optional(std::chrono::milliseconds(5)) : std::nullopt);
        return;
    }
    if (mStuck)
    {
        mInbox.wait(std::chrono::milliseconds(1));
    }
}

void Loop::refresh()
{
    if (auto const age = settingsAge(); age != mSettingsAge)
    {
        mSettingsAge = age;
        try
        {
            mSettings = settingsFor(mModel);
        }
        catch (std::exception const&)
        {
            return; // standin.conf was broken after the start: what it said then goes on
        }
    }
}

void Loop::step()
{
    auto const began = Clock::now();
    mQueueMs = 0;
    mNew = mCompleted = mContext = mContextTokens = mGeneration = mProduced = 0;
    mHandoffs.reap(mPool, [&]() -> std::optional<std::chrono::milliseconds> {
        auto const transceiver = mConfig.getCacheTransceiverConfig();
        auto const timeout = transceiver ? transceiver->getKvTransferTimeoutMs() : std::nullopt;
        return timeout ? std::optional(std::chrono::milliseconds(*timeout)) : std::nullopt;
    }());
    applyCancels();
    admit();
    applyDeadlines();
    advanceTransfers();
    plan();
    auto const scheduled = [](auto const& sequence) { return sequence->scheduledNow; };
    mStuck = std::none_of(mActive.begin(), mActive.end(), scheduled);
    if (!mStuck)
    {
        mIteration++;
        misbehave();
        try
        {
            compute();
        }
        catch (std::exception const& error)
        {
            failAll(error.what());
        }
        catch (...)
        {
            failAll("unknown error");
        }
        report(began);
    }
    sweep();
    mOutbox.add(std::exchange(mResponses, {}));
}

void Loop::misbehave()
{
    auto const due = [this](std::int64_t at) { return at > 0 && mIteration >= at; };
    if (due(mSettings.abortAt))
    {
        std::abort();
    }
    if (due(mSettings.exitAt))
    {
        std::_Exit(255);
    }
    if (due(mSettings.wedgeAt))
    {
        wedge();
    }
    auto const pace = mSettings.stepUs + mSettings.stepUsPerToken * (mContextTokens + mGeneration);
    if (pace > 0)
    {
        std::this_thread::sleep_for(std::chrono::microseconds(pace));
    }
}

// An error of the forward pass reaches everybody in the batch; the executor goes on.
void Loop::failAll(std::string const& what)
{
    for (auto const& sequence : mActive)
    {
        auto& job = *sequence->job;
        sequence->stage = Stage::kDone;
        mPool.release(sequence->lease);
        if (job.open > 0)
        {
            job.open = 0;
            mResponses.emplace_back(
                job.id, "Encountered an error in forwardAsync function: " + what, job.request.getClientId());
        }
    }
}

// Executors count their requests each for itself.
std::uint64_t Loop::sourceId(Sequence const& sequence) const
{
    return (mNumber << 40) | sequence.id;
}

void Loop::sweep()
{
    auto const over = std::stable_partition(
        mActive.begin(), mActive.end(), [](auto const& sequence) { return sequence->stage != Stage::kDone; });
    for (auto at = over; at != mActive.end(); at++)
    {
        if (mSource.forget != nullptr && (*at)->told > 0)
        {
            mSource.forget(mSource.user, mModel.c_str(), sourceId(**at));
        }
        if ((*at)->job->open == 0)
        {
            mInbox.forget((*at)->job->id);
        }
    }
    mActive.erase(over, mActive.end());
}
} // namespace cuelight::standin
