// Stand-in: the speculative-decoding configuration of tensorrt_llm/executor/executor.h.
#pragma once

#include "standin/fields.h"
#include "tensorrt_llm/executor/tensor.h"

#include <utility>

namespace tensorrt_llm::executor
{
struct LookaheadDecodingConfig
{
    static constexpr SizeType32 kDefaultLookaheadDecodingWindow = 4;
    static constexpr SizeType32 kDefaultLookaheadDecodingNgram = 3;
    static constexpr SizeType32 kDefaultLookaheadDecodingVerificationSet = 4;

    // Throws if the three do not go together.
    LookaheadDecodingConfig(SizeType32 windowSize, SizeType32 ngramSize, SizeType32 verificationSetSize);

    [[nodiscard]] SizeType32 getWindowSize() const { return mWindow; }
    [[nodiscard]] SizeType32 getNgramSize() const { return mNgram; }
    [[nodiscard]] SizeType32 getVerificationSetSize() const { return mVerification; }
    static bool isLegal(SizeType32 windowSize, SizeType32 ngramSize, SizeType32 verificationSetSize) noexcept;

private:
    SizeType32 mWindow;
    SizeType32 mNgram;
    SizeType32 mVerification;
};

struct EagleConfig
{
    explicit EagleConfig(std::optional<EagleChoices> eagleChoices = std::nullopt, bool greedySampling = true,
        std::optional<float> posteriorThreshold = std::nullopt, bool useDynamicTree = false,
        std::optional<SizeType32> dynamicTreeMaxTopK = std::nullopt);

    [[nodiscard]] std::optional<EagleChoices> getEagleChoices() const { return mChoices; }
    [[nodiscard]] bool isGreedySampling() const { return mGreedy; }

private:
    std::optional<EagleChoices> mChoices;
    bool mGreedy;
};

class ExternalDraftTokensConfig
{
public:
    explicit ExternalDraftTokensConfig(VecTokens tokens, std::optional<Tensor> logits = std::nullopt,
        std::optional<FloatType> const& acceptanceThreshold = std::nullopt,
        std::optional<bool> const& fastLogits = std::nullopt);

    [[nodiscard]] VecTokens getTokens() const { return mTokens; }

private:
    VecTokens mTokens;
};

class SpeculativeDecodingConfig
{
public:
    explicit SpeculativeDecodingConfig(bool fastLogits = false)
        : fastLogits(fastLogits)
    {
    }
    bool fastLogits;
};

class DecodingConfig
{
public:
    void setLookaheadDecodingConfig(LookaheadDecodingConfig const& config);
    void enableSeamlessLookaheadDecoding();
    [[nodiscard]] std::optional<LookaheadDecodingConfig> getLookaheadDecodingConfig() const { return mLookahead; }

    STANDIN_MAYBE(DecodingMode, DecodingMode)
    STANDIN_MAYBE(MedusaChoices, MedusaChoices)
    STANDIN_MAYBE(EagleConfig, EagleConfig)

private:
    std::optional<LookaheadDecodingConfig> mLookahead;
};
} // namespace tensorrt_llm::executor
