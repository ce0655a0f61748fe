// Stand-in: what a step makes of a sequence becomes responses.
#include "loop.h"

namespace cuelight::standin
{
void Loop::answer(Sequence& sequence)
{
    auto const& request = sequence.job->request;
    bool const prefill = request.getRequestType() == tle::RequestType::REQUEST_TYPE_CONTEXT_ONLY;
    bool const ended = prefill || sequence.finish != tle::FinishReason::kNOT_FINISHED;
    auto const news = sequence.outputLen() - sequence.sent;
    if (mSettings.strayEvery > 0 && mIteration % mSettings.strayEvery == 0)
    {
        mResponses.emplace_back(999'999'999, "stand-in: a response that nobody asked for");
    }
    if (!ended)
    {
        if (request.getStreaming() && news > 0)
        {
            mResponses.push_back(response(sequence, news, false));
        }
        return;
    }
    if (!prefill && request.getStreaming() && mSettings.zeroFinal != 0 && news > 0)
    {
        auto const finish = std::exchange(sequence.finish, tle::FinishReason::kNOT_FINISHED);
        mResponses.push_back(response(sequence, news, false));
        sequence.finish = finish;
    }
    end(sequence, sequence.finish);
}

// Its last response; its blocks are free, or wait to be pulled.
void Loop::end(Sequence& sequence, tle::FinishReason reason)
{
    sequence.finish = reason;
    bool const prefill = sequence.job->request.getRequestType() == tle::RequestType::REQUEST_TYPE_CONTEXT_ONLY;
    bool const offered = prefill && reason != tle::FinishReason::kCANCELLED && reason != tle::FinishReason::kTIMED_OUT;
    sequence.job->open -= sequence.job->open > 0 ? 1 : 0;
    mCompleted += sequence.job->open == 0 ? 1 : 0;
    mResponses.push_back(response(sequence, sequence.outputLen() - sequence.sent, true));
    if (!offered)
    {
        mPool.finish(sequence.lease, sequence.tokens, std::min(sequence.computed, sequence.tokens.size()));
    }
    sequence.stage = Stage::kDone;
}

tle::Response Loop::response(Sequence& sequence, std::size_t newTokens, bool ended)
{
    auto const& request = sequence.job->request;
    auto const output = request.getOutputConfig();
    tle::Result result;
    result.isFinal = ended && sequence.job->open == 0;
    result.isSequenceFinal = ended;
    result.sequenceIndex = sequence.index;
    result.finishReasons = {sequence.finish};
    result.decodingIter = sequence.iterations;
    result.avgDecodedTokensPerIter = sequence.iterations > 0
        ? static_cast<float>(sequence.outputLen()) / static_cast<float>(sequence.iterations)
        : 0.f;
    bool const whole = !request.getStreaming() || request.getReturnAllGeneratedTokens();
    auto from = sequence.tokens.size() - newTokens;
    if (whole)
    {
        from = output.excludeInputFromOutput || request.getStreaming() ? sequence.promptLen : 0;
    }
    result.outputTokenIds.emplace_back(
        sequence.tokens.begin() + static_cast<std::ptrdiff_t>(from), sequence.tokens.end());
    sequence.sent = sequence.outputLen();
    if (output.returnLogProbs)
    {
        result.logProbs = {sequence.logProbs};
        result.cumLogProbs = tle::VecLogProbs{sequence.cumLogProb};
    }
    if (output.returnGenerationLogits && !sequence.newLogits.empty())
    {
        auto const vocab = static_cast<std::int64_t>(mSettings.vocab);
        auto const rows = static_cast<std::int64_t>(sequence.newLogits.size()) / vocab;
        std::int64_t const shape[] = {rows, 1, vocab};
        result.generationLogits
            = tle::Tensor::of(sequence.newLogits.data(), tle::Shape(shape, 3)).copyToCpu();
        sequence.newLogits.clear();
    }
    if (output.returnPerfMetrics && ended)
    {
        auto& kv = sequence.metrics.kvCacheMetrics;
        kv.numReusedBlocks = static_cast<std::int32_t>(sequence.lease.reused);
        kv.numNewAllocatedBlocks = static_cast<std::int32_t>(sequence.lease.allocated);
        kv.numTotalAllocatedBlocks = kv.numReusedBlocks + kv.numNewAllocatedBlocks;
        kv.numMissedBlocks
            = static_cast<std::int32_t>(mPool.needed(sequence.promptLen)) - kv.numReusedBlocks;
        sequence.metrics.iter = static_cast<std::uint64_t>(mIteration);
        result.requestPerfMetrics = sequence.metrics;
    }
    if (ended)
    {
        describeHandoff(sequence, result);
    }
    return {sequence.job->id, std::move(result), request.getClientId()};
}

void Loop::describeHandoff(Sequence& sequence, tle::Result& result)
{
    auto const prefill = sequence.job->request.getRequestType() == tle::RequestType::REQUEST_TYPE_CONTEXT_ONLY;
    if (!prefill || sequence.finish == tle::FinishReason::kCANCELLED || sequence.finish == tle::FinishReason::kTIMED_OUT)
    {
        return;
    }
    Tokens const first(sequence.tokens.begin() + static_cast<std::ptrdiff_t>(sequence.promptLen), sequence.tokens.end());
    auto const state = mHandoffs.offer(sequence.job->id, std::move(sequence.lease));
    sequence.lease = Lease{};
    result.contextPhaseParams = tle::ContextPhaseParams(first, sequence.job->id, state, std::nullopt);
}
} // namespace cuelight::standin
