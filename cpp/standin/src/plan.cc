// Stand-in: what is cancelled, what has been transferred, and what the next step computes.
#include "loop.h"

#include <algorithm>

namespace cuelight::standin
{
// What waits for its KV is not cancelled before that has come, which may be never.
void Loop::applyCancels()
{
    auto const ids = mInbox.cancelled();
    if (ids.empty())
    {
        return;
    }
    for (auto const& sequence : mActive)
    {
        if (ids.count(sequence->job->id) == 0 || sequence->stage == Stage::kTransfer || sequence->stage == Stage::kDone)
        {
            continue;
        }
        if (sequence->cancelAt < 0)
        {
            sequence->cancelAt = mIteration + mSettings.lateCancelSteps;
        }
        if (mIteration >= sequence->cancelAt)
        {
            end(*sequence, tle::FinishReason::kCANCELLED);
        }
    }
    sweep();
}

void Loop::applyDeadlines()
{
    auto const now = Clock::now();
    for (auto const& sequence : mActive)
    {
        auto const deadline = sequence->job->deadline;
        if (deadline && now > *deadline && sequence->stage != Stage::kDone)
        {
            end(*sequence, tle::FinishReason::kTIMED_OUT);
        }
    }
    sweep();
}

void Loop::advanceTransfers()
{
    auto const config = mConfig.getCacheTransceiverConfig();
    auto const timeout = config ? config->getKvTransferTimeoutMs() : std::nullopt;
    auto const buffer = config ? config->getMaxTokensInBuffer() : std::nullopt;
    auto const now = Clock::now();
    for (auto const& sequence : mActive)
    {
        auto& timing = sequence->metrics.timingMetrics;
        if (sequence->handoff.empty() || sequence->stage == Stage::kRunning || sequence->stage == Stage::kDone)
        {
            continue;
        }
        if (sequence->stage == Stage::kQueued && mPool.grow(sequence->lease, sequence->promptLen))
        {
            sequence->stage = Stage::kTransfer;
            timing.kvCacheTransferStart = now;
        }
        if (sequence->stage != Stage::kTransfer)
        {
            continue;
        }
        bool const tight = buffer && *buffer < sequence->promptLen && mSettings.smallBufferStalls != 0;
        if (!sequence->transferEnd && !tight && mSettings.transferStall == 0)
        {
            sequence->transferEnd = now + std::chrono::milliseconds(mSettings.transferMs);
        }
        bool const late = timeout && now - timing.kvCacheTransferStart > std::chrono::milliseconds(*timeout);
        bool const over = sequence->transferEnd && now >= *sequence->transferEnd;
        if (late || (over && (mSettings.transferError != 0 || !handoffAlive(sequence->handoff))))
        {
            mResponses.emplace_back(sequence->job->id, "Error in kv cache transfer for generation requests",
                sequence->job->request.getClientId());
            sequence->job->open = 0;
            sequence->stage = Stage::kDone;
            mPool.release(sequence->lease);
        }
        else if (over)
        {
            handoffDone(sequence->handoff);
            auto const first = sequence->job->request.getContextPhaseParams()->getFirstGenTokens();
            sequence->tokens.insert(sequence->tokens.end(), first.begin(), first.end());
            sequence->logProbs.resize(first.size(), 0.f);
            sequence->computed = sequence->promptLen;
            sequence->stage = Stage::kRunning;
            timing.kvCacheTransferEnd = now;
            timing.kvCacheSize = mPool.needed(sequence->promptLen) * static_cast<std::size_t>(mSettings.blockBytes);
            mPool.store(sequence->lease, sequence->tokens, sequence->promptLen);
        }
    }
}

// Those that decode come first, then prompts in the order of their admission.
void Loop::plan()
{
    auto budget = mLimits.tokens;
    for (bool const decode : {true, false})
    {
        for (std::size_t i = 0; i < mActive.size(); i++)
        {
            auto& sequence = *mActive[i];
            bool const decodes = sequence.stage == Stage::kRunning && sequence.computed + 1 == sequence.tokens.size();
            if (decode)
            {
                sequence.scheduledNow = sequence.pausedNow = false;
            }
            if (decodes != decode || budget == 0 || sequence.stage == Stage::kTransfer
                || sequence.stage == Stage::kDone || (sequence.stage == Stage::kQueued && !sequence.handoff.empty()
                                                         && sequence.tokens.size() == sequence.promptLen))
            {
                continue;
            }
            if (sequence.stage == Stage::kQueued)
            {
                auto const reused = mPool.reuse(sequence.lease, sequence.tokens, sequence.tokens.size() - 1);
                sequence.computed = reused;
                sequence.stage = Stage::kRunning;
                sequence.metrics.timingMetrics.firstScheduledTime = Clock::now();
                sequence.metrics.firstIter = static_cast<std::uint64_t>(mIteration + 1);
            }
            sequence.chunk = std::min(budget, sequence.tokens.size() - sequence.computed);
            auto const ahead = static_cast<std::size_t>(mSettings.tokensPerStep) - 1;
            auto const room = std::min(sequence.computed + sequence.chunk + ahead, sequence.maxLen);
            if (!makeRoom(sequence, room))
            {
                pause(sequence);
                continue;
            }
            sequence.scheduledNow = true;
            budget -= sequence.chunk;
        }
    }
}

// At the cost of those that were admitted last.
bool Loop::makeRoom(Sequence& sequence, std::size_t tokens)
{
    while (!mPool.grow(sequence.lease, tokens))
    {
        auto const victim = std::find_if(mActive.rbegin(), mActive.rend(),
            [&](auto const& other)
            { return other->stage == Stage::kRunning && !other->lease.blocks.empty() && !other->scheduledNow; });
        if (victim == mActive.rend() || victim->get() == &sequence)
        {
            return false;
        }
        pause(**victim);
    }
    return true;
}

void Loop::pause(Sequence& sequence)
{
    mPool.release(sequence.lease);
    sequence.stage = Stage::kQueued;
    sequence.computed = 0;
    sequence.scheduledNow = false;
    sequence.pausedNow = true;
}
} // namespace cuelight::standin
