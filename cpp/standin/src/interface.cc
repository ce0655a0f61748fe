// Stand-in: constructors and setters of the interface that check their values, its version, its plugins.
#include "check.h"
#include "settings.h"
#include "tensorrt_llm/executor/executor.h"
#include "tensorrt_llm/executor/version.h"

#include <atomic>

namespace
{
std::atomic<bool> pluginsReady{false};
} // namespace

extern "C" bool initTrtLlmPlugins(void*, char const*)
{
    pluginsReady = true;
    return true;
}

namespace cuelight::standin
{
// Engines need their plugins.
bool pluginsInitialized()
{
    return pluginsReady;
}
} // namespace cuelight::standin

namespace tensorrt_llm::executor
{
using cuelight::standin::check;

char const* version() noexcept
{
    static std::string const text = []() noexcept
    {
        try
        {
            auto const told = cuelight::standin::settingsFor({}).version;
            return told.empty() ? std::string(kTensorRtLlmVersion) : told;
        }
        catch (...)
        {
            return std::string(kTensorRtLlmVersion);
        }
    }();
    return text.c_str();
}

SamplingConfig::SamplingConfig(SizeType32 beamWidth)
    : mBeamWidth(beamWidth)
{
    setBeamWidth(beamWidth);
}

void SamplingConfig::setBeamWidth(SizeType32 beamWidth)
{
    check(beamWidth > 0, "beamWidth > 0");
    mBeamWidth = beamWidth;
}

void SamplingConfig::setTopK(std::optional<SizeType32> const& topK)
{
    check(!topK || *topK >= 0, "topK >= 0");
    mTopK = topK;
}

void SamplingConfig::setTopP(std::optional<FloatType> const& topP)
{
    check(!topP || (*topP > 0.f && *topP <= 1.f), "topP > 0 and topP <= 1");
    mTopP = topP;
}

void SamplingConfig::setTemperature(std::optional<FloatType> const& temperature)
{
    check(!temperature || *temperature > 0.f, "temperature > 0");
    mTemperature = temperature;
}

void SamplingConfig::setRepetitionPenalty(std::optional<FloatType> const& penalty)
{
    check(!penalty || *penalty > 0.f, "repetitionPenalty > 0");
    mRepetitionPenalty = penalty;
}

void SamplingConfig::setNumReturnSequences(std::optional<SizeType32> const& numReturnSequences)
{
    check(!numReturnSequences || *numReturnSequences > 0, "numReturnSequences > 0");
    mNumReturnSequences = numReturnSequences;
}

void SamplingConfig::setMinP(std::optional<FloatType> const& minP)
{
    check(!minP || (*minP >= 0.f && *minP <= 1.f), "minP >= 0 and minP <= 1");
    mMinP = minP;
}

LookaheadDecodingConfig::LookaheadDecodingConfig(
    SizeType32 windowSize, SizeType32 ngramSize, SizeType32 verificationSetSize)
    : mWindow(windowSize)
    , mNgram(ngramSize)
    , mVerification(verificationSetSize)
{
    check(isLegal(windowSize, ngramSize, verificationSetSize), "legal lookahead configuration");
}

bool LookaheadDecodingConfig::isLegal(SizeType32 windowSize, SizeType32 ngramSize, SizeType32 verification) noexcept
{
    bool const off = windowSize == 1 && ngramSize == 1 && verification == 0;
    return off || (windowSize > 0 && ngramSize > 1 && verification > 0);
}

EagleConfig::EagleConfig(std::optional<EagleChoices> eagleChoices, bool greedySampling,
    std::optional<float> posteriorThreshold, bool, std::optional<SizeType32>)
    : mChoices(std::move(eagleChoices))
    , mGreedy(greedySampling)
{
    check(!posteriorThreshold || (*posteriorThreshold >= 0.f && *posteriorThreshold < 1.f), "posteriorThreshold in [0, 1)");
}

ExternalDraftTokensConfig::ExternalDraftTokensConfig(VecTokens tokens, std::optional<Tensor>,
    std::optional<FloatType> const& acceptanceThreshold, std::optional<bool> const&)
    : mTokens(std::move(tokens))
{
    check(!mTokens.empty(), "draft tokens must not be empty");
    check(!acceptanceThreshold || (*acceptanceThreshold > 0.f && *acceptanceThreshold <= 1.f),
        "acceptanceThreshold > 0 and <= 1");
}

void DecodingConfig::setLookaheadDecodingConfig(LookaheadDecodingConfig const& config)
{
    mLookahead = config;
    setDecodingMode(DecodingMode::Lookahead());
}

void DecodingConfig::enableSeamlessLookaheadDecoding()
{
    setLookaheadDecodingConfig(LookaheadDecodingConfig(4, 3, 4));
}

PeftCacheConfig::PeftCacheConfig(SizeType32, SizeType32, SizeType32 optimalAdapterSize, SizeType32 maxAdapterSize,
    SizeType32, SizeType32, SizeType32, SizeType32, SizeType32, std::optional<float> const& deviceCachePercent,
    std::optional<size_t> const& hostCacheSize, std::optional<std::string> const&)
    : mOptimalAdapterSize(optimalAdapterSize)
    , mMaxAdapterSize(maxAdapterSize)
    , mDeviceCachePercent(deviceCachePercent)
    , mHostCacheSize(hostCacheSize)
{
}

void GuidedDecodingConfig::validate() const
{
    check(getEncodedVocab().has_value(), "Guided decoding is enabled with XGrammar, but EncodedVocab is not set");
}

LoraConfig::LoraConfig(IdType taskId, std::optional<Tensor> weights, std::optional<Tensor> config)
    : mTaskId(taskId)
    , mWeights(std::move(weights))
    , mConfig(std::move(config))
{
    check(mWeights.has_value() == mConfig.has_value(), "LoRA weights and config go together");
}

GuidedDecodingParams::GuidedDecodingParams(GuideType guideType, std::optional<std::string> guide)
    : mType(guideType)
    , mGuide(std::move(guide))
{
    check(mType == GuideType::kJSON || mGuide.has_value(), "The guide string must be provided unless using GuideType::kJSON");
}

ContextPhaseParams::ContextPhaseParams(
    VecTokens firstGenTokens, RequestIdType reqId, std::optional<VecTokens> draftTokens)
    : mFirstGenTokens(std::move(firstGenTokens))
    , mReqId(reqId)
    , mDraftTokens(std::move(draftTokens))
{
}

ContextPhaseParams::ContextPhaseParams(VecTokens firstGenTokens, RequestIdType reqId,
    std::vector<char> const& serializedState, std::optional<VecTokens> draftTokens)
    : mFirstGenTokens(std::move(firstGenTokens))
    , mReqId(reqId)
    , mState(std::make_shared<std::vector<char> const>(serializedState))
    , mDraftTokens(std::move(draftTokens))
{
    check(serializedState.size() > 8, "the state of the context phase is too short");
}

Request::Request(VecTokens inputTokenIds, SizeType32 maxTokens, bool streaming)
    : mInputTokenIds(std::move(inputTokenIds))
    , mMaxTokens(maxTokens)
    , mStreaming(streaming)
{
    check(!mInputTokenIds.empty(), "!mInputTokenIds.empty()");
    check(maxTokens > 0, "mMaxNewTokens > 0");
}

void Request::setPriority(PriorityType priority)
{
    check(priority >= 0.f && priority <= 1.f, "Request priority must be in range [0, 1]");
    mPriority = priority;
}

Response::Response(IdType requestId, std::string errorMsg, std::optional<IdType> clientId)
    : mRequestId(requestId)
    , mClientId(clientId)
    , mBody(std::move(errorMsg))
{
}

Response::Response(IdType requestId, Result result, std::optional<IdType> clientId)
    : mRequestId(requestId)
    , mClientId(clientId)
    , mBody(std::move(result))
{
}

std::string const& Response::getErrorMsg() const
{
    check(hasError(), "the response has no error");
    return std::get<std::string>(mBody);
}

Result const& Response::getResult() const
{
    check(!hasError(), "the response has an error");
    return std::get<Result>(mBody);
}
} // namespace tensorrt_llm::executor
