// Stand-in: what a request is made of in tensorrt_llm/executor/executor.h.
#pragma once

#include "standin/config.h"

namespace tensorrt_llm::executor
{
// Setters throw for values outside of what the sampler takes.
class SamplingConfig
{
public:
    explicit SamplingConfig(SizeType32 beamWidth = 1);

    [[nodiscard]] SizeType32 getBeamWidth() const { return mBeamWidth; }
    void setBeamWidth(SizeType32 beamWidth);
    [[nodiscard]] std::optional<SizeType32> getTopK() const { return mTopK; }
    void setTopK(std::optional<SizeType32> const& topK);
    [[nodiscard]] std::optional<FloatType> getTopP() const { return mTopP; }
    void setTopP(std::optional<FloatType> const& topP);
    [[nodiscard]] std::optional<FloatType> getTemperature() const { return mTemperature; }
    void setTemperature(std::optional<FloatType> const& temperature);
    [[nodiscard]] std::optional<FloatType> getRepetitionPenalty() const { return mRepetitionPenalty; }
    void setRepetitionPenalty(std::optional<FloatType> const& penalty);
    [[nodiscard]] std::optional<SizeType32> getNumReturnSequences() const { return mNumReturnSequences; }
    void setNumReturnSequences(std::optional<SizeType32> const& numReturnSequences);
    [[nodiscard]] std::optional<FloatType> getMinP() const { return mMinP; }
    void setMinP(std::optional<FloatType> const& minP);

private:
    SizeType32 mBeamWidth;
    std::optional<SizeType32> mTopK;
    std::optional<FloatType> mTopP;
    std::optional<FloatType> mTemperature;
    std::optional<FloatType> mRepetitionPenalty;
    std::optional<SizeType32> mNumReturnSequences;
    std::optional<FloatType> mMinP;

    STANDIN_OPTIONAL(FloatType, TopPMin)
    STANDIN_OPTIONAL(TokenIdType, TopPResetIds)
    STANDIN_OPTIONAL(FloatType, TopPDecay)
    STANDIN_OPTIONAL(RandomSeedType, Seed)
    STANDIN_OPTIONAL(SizeType32, MinTokens)
    STANDIN_OPTIONAL(FloatType, BeamSearchDiversityRate)
    STANDIN_OPTIONAL(FloatType, PresencePenalty)
    STANDIN_OPTIONAL(FloatType, FrequencyPenalty)
    STANDIN_OPTIONAL(SizeType32, PromptIgnoreLength)
    STANDIN_OPTIONAL(FloatType, LengthPenalty)
    STANDIN_OPTIONAL(SizeType32, EarlyStopping)
    STANDIN_OPTIONAL(SizeType32, NoRepeatNgramSize)
};

class OutputConfig
{
public:
    bool returnLogProbs = false;
    bool returnContextLogits = false;
    bool returnGenerationLogits = false;
    bool excludeInputFromOutput = false;
    bool returnEncoderOutput = false;
    bool returnPerfMetrics = false;
};

class LoraConfig
{
public:
    explicit LoraConfig(
        IdType taskId, std::optional<Tensor> weights = std::nullopt, std::optional<Tensor> config = std::nullopt);

    [[nodiscard]] IdType getTaskId() const { return mTaskId; }
    [[nodiscard]] std::optional<Tensor> getWeights() const { return mWeights; }
    [[nodiscard]] std::optional<Tensor> getConfig() const { return mConfig; }

private:
    IdType mTaskId;
    std::optional<Tensor> mWeights;
    std::optional<Tensor> mConfig;
};

class GuidedDecodingParams
{
public:
    enum class GuideType { kJSON = 0, kJSON_SCHEMA = 1, kREGEX = 2, kEBNF_GRAMMAR = 3, kSTRUCTURAL_TAG = 4 };

    explicit GuidedDecodingParams(GuideType guideType, std::optional<std::string> guide = std::nullopt);

    [[nodiscard]] GuideType getGuideType() const { return mType; }
    [[nodiscard]] std::optional<std::string> getGuide() const { return mGuide; }

private:
    GuideType mType;
    std::optional<std::string> mGuide;
};

// What a generation-only request needs of the context-only request before it. The state is opaque.
class ContextPhaseParams
{
public:
    using RequestIdType = std::uint64_t;

    ContextPhaseParams(VecTokens firstGenTokens, RequestIdType reqId, std::optional<VecTokens> draftTokens);
    ContextPhaseParams(VecTokens firstGenTokens, RequestIdType reqId, std::vector<char> const& serializedState,
        std::optional<VecTokens> draftTokens);

    [[nodiscard]] VecTokens const& getFirstGenTokens() const& noexcept { return mFirstGenTokens; }
    [[nodiscard]] std::optional<VecTokens> const& getDraftTokens() const& noexcept { return mDraftTokens; }
    [[nodiscard]] RequestIdType getReqId() const noexcept { return mReqId; }
    [[nodiscard]] void const* getState() const noexcept { return mState.get(); }
    // Must not be called without a state, exactly like the original.
    [[nodiscard]] std::vector<char> getSerializedState() const noexcept { return *mState; }
    [[nodiscard]] std::optional<SizeType32> getCtxDpRank() const noexcept { return mCtxDpRank; }
    void setCtxDpRank(std::optional<SizeType32> const& rank) noexcept { mCtxDpRank = rank; }
    [[nodiscard]] std::optional<std::string> const& getDisaggInfoEndpoint() const noexcept { return mEndpoint; }
    void setDisaggInfoEndpoint(std::optional<std::string> const& endpoint) noexcept { mEndpoint = endpoint; }

private:
    VecTokens mFirstGenTokens;
    RequestIdType mReqId;
    std::shared_ptr<std::vector<char> const> mState;
    std::optional<VecTokens> mDraftTokens;
    std::optional<SizeType32> mCtxDpRank;
    std::optional<std::string> mEndpoint;
};

class Request
{
public:
    static constexpr PriorityType kDefaultPriority = 0.5;
    static auto constexpr kBatchedPostProcessorName = "batched";
    static auto constexpr kDynamicPostProcessorNamePrefix = "dynamic";

    // Throws for an empty prompt and for maxTokens below 1.
    Request(VecTokens inputTokenIds, SizeType32 maxTokens, bool streaming = false);

    [[nodiscard]] VecTokens const& getInputTokenIds() const { return mInputTokenIds; }
    [[nodiscard]] SizeType32 getMaxTokens() const { return mMaxTokens; }
    [[nodiscard]] PriorityType getPriority() const { return mPriority; }
    // Throws outside of [0, 1].
    void setPriority(PriorityType priority);
    void setRequestType(RequestType const& requestType) { mRequestType = requestType; }
    [[nodiscard]] RequestType getRequestType() const { return mRequestType; }
    void setLogitsPostProcessor(std::optional<LogitsPostProcessor> const& processor) { mProcessor = processor; }
    [[nodiscard]] std::optional<LogitsPostProcessor> const& getLogitsPostProcessor() const { return mProcessor; }

private:
    VecTokens mInputTokenIds;
    SizeType32 mMaxTokens;
    PriorityType mPriority = kDefaultPriority;
    RequestType mRequestType = RequestType::REQUEST_TYPE_CONTEXT_AND_GENERATION;
    std::optional<LogitsPostProcessor> mProcessor;

    STANDIN_VALUE(bool, Streaming, false)
    STANDIN_VALUE(SamplingConfig, SamplingConfig, SamplingConfig())
    STANDIN_VALUE(OutputConfig, OutputConfig, OutputConfig())
    STANDIN_MAYBE(SizeType32, EndId)
    STANDIN_MAYBE(SizeType32, PadId)
    STANDIN_MAYBE(std::list<VecTokens>, BadWords)
    STANDIN_MAYBE(std::list<VecTokens>, StopWords)
    STANDIN_MAYBE(Tensor, EmbeddingBias)
    STANDIN_MAYBE(ExternalDraftTokensConfig, ExternalDraftTokensConfig)
    STANDIN_MAYBE(LoraConfig, LoraConfig)
    STANDIN_MAYBE(LookaheadDecodingConfig, LookaheadConfig)
    STANDIN_MAYBE(std::string, LogitsPostProcessorName)
    STANDIN_MAYBE(IdType, ClientId)
    STANDIN_VALUE(bool, ReturnAllGeneratedTokens, false)
    STANDIN_MAYBE(ContextPhaseParams, ContextPhaseParams)
    STANDIN_MAYBE(GuidedDecodingParams, GuidedDecodingParams)
    STANDIN_MAYBE(MillisecondsType, AllottedTimeMs)
    STANDIN_MAYBE(CacheSaltIDType, CacheSaltID)
    STANDIN_MAYBE(IdType, DisaggRequestId)
};
} // namespace tensorrt_llm::executor
