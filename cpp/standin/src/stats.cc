// Stand-in: what a step leaves in the statistics.
#include "loop.h"

#include <ctime>

namespace cuelight::standin
{
namespace
{
std::string now()
{
    char text[32];
    auto const seconds = std::time(nullptr);
    std::tm parts{};
    gmtime_r(&seconds, &parts);
    std::strftime(text, sizeof text, "%m-%d-%Y %H:%M:%S", &parts);
    return text;
}

tle::RequestStage stageOf(Sequence const& sequence)
{
    switch (sequence.stage)
    {
    case Stage::kQueued: return tle::RequestStage::kQUEUED;
    case Stage::kTransfer: return tle::RequestStage::kCONTEXT_IN_PROGRESS;
    case Stage::kRunning: break;
    case Stage::kDone: return tle::RequestStage::kGENERATION_COMPLETE;
    }
    return sequence.computed < sequence.promptLen ? tle::RequestStage::kCONTEXT_IN_PROGRESS
                                                  : tle::RequestStage::kGENERATION_IN_PROGRESS;
}
} // namespace

void Loop::report(Clock::time_point began)
{
    if (!iterationStats.wanted() && !requestStats.wanted())
    {
        return;
    }
    reportRequests();
    tle::IterationStats stats{};
    stats.timestamp = now();
    stats.iter = static_cast<tle::IterationType>(mIteration);
    stats.iterLatencyMS = std::chrono::duration<double, std::milli>(Clock::now() - began).count();
    stats.newActiveRequestsQueueLatencyMS = mQueueMs;
    stats.numNewActiveRequests = mNew;
    stats.numQueuedRequests = static_cast<std::int32_t>(mInbox.waiting());
    stats.numCompletedRequests = mCompleted;
    stats.maxNumActiveRequests = static_cast<std::int32_t>(mLimits.batch);
    stats.maxBatchSizeStatic = stats.maxBatchSizeRuntime = static_cast<std::int32_t>(mLimits.batch);
    stats.maxNumTokensStatic = stats.maxNumTokensRuntime = static_cast<std::int32_t>(mLimits.tokens);
    tle::InflightBatchingStats inflight{};
    for (auto const& sequence : mActive)
    {
        stats.numActiveRequests += sequence->stage == Stage::kDone ? 0 : 1;
        inflight.numPausedRequests += sequence->pausedNow ? 1 : 0;
    }
    inflight.numContextRequests = mContext;
    inflight.numGenRequests = mGeneration;
    inflight.numScheduledRequests = mContext + mGeneration;
    inflight.numCtxTokens = mContextTokens;
    inflight.avgNumDecodedTokensPerIter
        = mGeneration > 0 ? static_cast<float>(mProduced) / static_cast<float>(mGeneration + mContext) : 0.f;
    stats.inflightBatchingStats = inflight;
    stats.kvCacheStats.emplace();
    mPool.fill(*stats.kvCacheStats);
    if (mSettings.tokensPerStep > 1 && mGeneration > 0)
    {
        tle::SpecDecodingStats speculative{};
        speculative.numDraftTokens = mGeneration * (mSettings.tokensPerStep - 1);
        speculative.numAcceptedTokens = std::max(mProduced - mGeneration, 0);
        speculative.numRequestsWithDraftTokens = mGeneration;
        speculative.acceptanceLength = static_cast<double>(mProduced) / mGeneration;
        stats.specDecodingStats = speculative;
    }
    iterationStats.add(std::move(stats));
}

void Loop::reportRequests()
{
    if (!requestStats.wanted())
    {
        return;
    }
    tle::RequestStatsPerIteration all;
    all.iter = static_cast<tle::IterationType>(mIteration);
    for (auto const& sequence : mActive)
    {
        tle::RequestStats stats{};
        stats.id = sequence->id;
        stats.stage = stageOf(*sequence);
        stats.contextPrefillPosition = static_cast<std::int32_t>(std::min(sequence->computed, sequence->promptLen));
        stats.numGeneratedTokens = static_cast<std::int32_t>(sequence->outputLen());
        stats.avgNumDecodedTokensPerIter = sequence->iterations > 0
            ? static_cast<float>(sequence->outputLen()) / static_cast<float>(sequence->iterations)
            : 0.f;
        stats.scheduled = sequence->scheduledNow;
        stats.paused = sequence->pausedNow;
        stats.allocNewBlocksPerRequest = static_cast<std::int32_t>(sequence->lease.allocated);
        stats.reusedBlocksPerRequest = static_cast<std::int32_t>(sequence->lease.reused);
        stats.allocTotalBlocksPerRequest = stats.allocNewBlocksPerRequest + stats.reusedBlocksPerRequest;
        all.requestStats.push_back(stats);
    }
    requestStats.add(std::move(all));
}
} // namespace cuelight::standin
