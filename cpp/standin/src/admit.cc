// Stand-in: which requests are let in, and what is wrong with the others.
#include "loop.h"

#include "check.h"

#include <algorithm>

namespace cuelight::standin
{
namespace
{
std::uint64_t rootOf(tle::Request const& request)
{
    auto const salt = request.getCacheSaltID().value_or(0);
    auto const adapter = request.getLoraConfig() ? request.getLoraConfig()->getTaskId() + 1 : 0;
    return extendHash(salt * 0x9e3779b97f4a7c15ULL, static_cast<std::int32_t>(adapter));
}
} // namespace

void Loop::admit()
{
    for (auto const& job : mInbox.late())
    {
        tle::Result result;
        result.isFinal = result.isSequenceFinal = true;
        result.outputTokenIds = {{}};
        result.finishReasons = {tle::FinishReason::kTIMED_OUT};
        mResponses.emplace_back(job->id, std::move(result), job->request.getClientId());
    }
    while (auto job = mInbox.next())
    {
        auto const sequences = job->childIds.size() + 1;
        if (job->refused)
        {
            refuse(*job, "Maximum queue size of " + std::to_string(mConfig.getMaxQueueSize().value_or(0))
                    + " has been reached, please try again later");
            continue;
        }
        mAdmitted++;
        auto why = objection(*job);
        if (!why && mSettings.requestErrorEvery > 0
            && mAdmitted % static_cast<std::uint64_t>(mSettings.requestErrorEvery) == 0)
        {
            why = "stand-in: refused on request";
        }
        if (why)
        {
            refuse(*job, "Encountered an error when fetching new request: " + *why);
            continue;
        }
        bool const alone = mActive.empty();
        if ((!alone && mActive.size() + sequences > mLimits.batch) || !start(job))
        {
            mAdmitted--;
            mInbox.putBack(std::move(job));
            return;
        }
    }
}

void Loop::refuse(Job const& job, std::string const& why)
{
    mResponses.emplace_back(job.id, why, job.request.getClientId());
}

std::size_t Loop::reserved() const
{
    std::size_t blocks = 0;
    for (auto const& sequence : mActive)
    {
        auto const most = mPool.needed(sequence->maxLen);
        blocks += most - std::min(most, sequence->lease.blocks.size());
    }
    return blocks;
}

// A request starts with all its sequences, or not at all yet.
bool Loop::start(std::shared_ptr<Job> const& job)
{
    auto const& request = job->request;
    auto const prompt = request.getInputTokenIds().size();
    auto const total = std::min(prompt + static_cast<std::size_t>(request.getMaxTokens()), mLimits.total);
    auto const sequences = job->childIds.size() + 1;
    bool const greedy
        = mConfig.getSchedulerConfig().getCapacitySchedulerPolicy() == tle::CapacitySchedulerPolicy::kMAX_UTILIZATION;
    auto const want = sequences * mPool.needed(greedy ? prompt + 1 : total);
    if (mPool.available() < want + (greedy ? 0 : reserved()))
    {
        return false;
    }
    makeSequences(job);
    mNew++;
    mQueueMs += std::chrono::duration<double, std::milli>(Clock::now() - job->arrival).count();
    return true;
}

void Loop::makeSequences(std::shared_ptr<Job> const& job)
{
    auto const& request = job->request;
    auto const& prompt = request.getInputTokenIds();
    auto const fetched = request.getRequestType() == tle::RequestType::REQUEST_TYPE_GENERATION_ONLY;
    job->rules = Rules(request, static_cast<std::size_t>(mSettings.vocab));
    job->open = job->childIds.size() + 1;
    for (std::size_t i = 0; i < job->childIds.size() + 1; i++)
    {
        auto sequence = std::make_unique<Sequence>();
        sequence->job = job;
        sequence->id = i == 0 ? job->id : job->childIds[i - 1];
        sequence->index = static_cast<std::int32_t>(i);
        sequence->tokens = prompt;
        sequence->promptLen = prompt.size();
        sequence->maxLen
            = std::min(prompt.size() + static_cast<std::size_t>(request.getMaxTokens()), mLimits.total);
        sequence->lease.root = rootOf(request);
        if (auto const lora = request.getLoraConfig())
        {
            sequence->lease.lora = lora->getTaskId();
            mAdapters.insert(lora->getTaskId());
        }
        sequence->metrics.timingMetrics.arrivalTime = job->arrival;
        if (fetched)
        {
            sequence->handoff = handoffOf(request.getContextPhaseParams()->getSerializedState());
        }
        mActive.push_back(std::move(sequence));
    }
}

std::optional<std::string> Loop::objection(Job const& job) const
{
    auto const& request = job.request;
    auto const prompt = request.getInputTokenIds().size();
    auto const number = [](std::size_t value) { return std::to_string(value); };
    if (prompt > mLimits.input)
    {
        return "Prompt length (" + number(prompt) + ") exceeds maximum input length (" + number(mLimits.input) + ").";
    }
    if (!mConfig.getEnableChunkedContext() && prompt > mLimits.tokens)
    {
        return "Prompt length (" + number(prompt) + ") exceeds the maximum number of tokens ("
            + number(mLimits.tokens) + ") without chunked context.";
    }
    auto const total = std::min(prompt + static_cast<std::size_t>(request.getMaxTokens()), mLimits.total);
    if ((job.childIds.size() + 1) * mPool.needed(total) > mPool.total())
    {
        return "Sequence of " + number(total) + " tokens does not fit into the KV cache of " + number(mPool.total())
            + " blocks.";
    }
    for (auto const token : request.getInputTokenIds())
    {
        if (token < 0 || token >= mSettings.vocab)
        {
            return "Token id " + std::to_string(token) + " is outside of the vocabulary.";
        }
    }
    auto why = objectionToParts(request);
    return why ? why : objectionToHandoff(request);
}

std::optional<std::string> Loop::objectionToParts(tle::Request const& request) const
{
    if (request.getSamplingConfig().getBeamWidth() > 1)
    {
        return "Request beam width is larger than the maximum (1).";
    }
    auto const output = request.getOutputConfig();
    if (output.returnContextLogits)
    {
        return "The engine was not built with gather_context_logits.";
    }
    if (output.returnGenerationLogits && !mConfig.getGatherGenerationLogits())
    {
        return "gatherGenerationLogits of the executor's configuration is needed for returnGenerationLogits.";
    }
    if (request.getGuidedDecodingParams())
    {
        auto const params = *request.getGuidedDecodingParams();
        if (!mConfig.getGuidedDecodingConfig())
        {
            return "Guided decoding is not configured for this executor.";
        }
        auto const guide = params.getGuide().value_or("");
        if (params.getGuideType() == tle::GuidedDecodingParams::GuideType::kJSON_SCHEMA && guide.substr(0, 1) != "{")
        {
            return "Invalid JSON schema: " + guide;
        }
    }
    if (auto const lora = request.getLoraConfig())
    {
        if (mSettings.lora == 0)
        {
            return "The engine was not built with LoRA.";
        }
        if (!lora->getWeights() && mAdapters.count(lora->getTaskId()) == 0)
        {
            return "LoRA task " + std::to_string(lora->getTaskId()) + " not found in cache. Please send LoRA weights.";
        }
    }
    if (auto const bias = request.getEmbeddingBias();
        bias
        && (bias->getSize() != static_cast<std::size_t>(mSettings.vocab)
            || bias->getDataType() != tle::DataType::kFP32))
    {
        return "The embedding bias must be FP32 of the shape [vocab_size].";
    }
    return std::nullopt;
}

std::optional<std::string> Loop::objectionToHandoff(tle::Request const& request) const
{
    if (request.getRequestType() == tle::RequestType::REQUEST_TYPE_CONTEXT_AND_GENERATION)
    {
        return std::nullopt;
    }
    auto const transceiver = mConfig.getCacheTransceiverConfig();
    if (!transceiver || !transceiver->getBackendType())
    {
        return "Context-only and generation-only requests need a cache transceiver.";
    }
    if (request.getRequestType() == tle::RequestType::REQUEST_TYPE_CONTEXT_ONLY)
    {
        return std::nullopt;
    }
    auto const params = request.getContextPhaseParams();
    if (!params || params->getState() == nullptr)
    {
        return "A generation-only request needs the state of its context phase.";
    }
    try
    {
        handoffOf(params->getSerializedState());
    }
    catch (std::exception const& error)
    {
        return error.what();
    }
    return std::nullopt;
}
} // namespace cuelight::standin
