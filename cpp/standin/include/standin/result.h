// Stand-in: responses and KV cache events of tensorrt_llm/executor/executor.h.
#pragma once

#include "standin/request.h"

#include <deque>
#include <variant>

namespace tensorrt_llm::batch_manager::kv_cache_manager
{
class BaseKVCacheManager;
} // namespace tensorrt_llm::batch_manager::kv_cache_manager

namespace tensorrt_llm::executor
{
struct AdditionalOutput
{
    std::string name;
    Tensor output;
};

struct Result
{
    bool isFinal = false;
    // Streaming: what is new; otherwise all, after the prompt unless that was excluded.
    BeamTokens outputTokenIds;
    std::optional<VecLogProbs> cumLogProbs;
    // Of all tokens so far, in every response.
    std::optional<std::vector<VecLogProbs>> logProbs;
    std::optional<Tensor> contextLogits;
    std::optional<Tensor> generationLogits;
    std::optional<Tensor> encoderOutput;
    std::vector<FinishReason> finishReasons;
    std::optional<ContextPhaseParams> contextPhaseParams;
    SizeType32 decodingIter{0};
    float avgDecodedTokensPerIter{0.0f};
    SizeType32 sequenceIndex{0};
    bool isSequenceFinal = false;
    std::optional<RequestPerfMetrics> requestPerfMetrics;
    std::vector<AdditionalOutput> additionalOutputs;
};

class Response
{
public:
    Response(IdType requestId, std::string errorMsg, std::optional<IdType> clientId = std::nullopt);
    Response(IdType requestId, Result result, std::optional<IdType> clientId = std::nullopt);

    [[nodiscard]] IdType getRequestId() const { return mRequestId; }
    [[nodiscard]] std::optional<IdType> getClientId() const { return mClientId; }
    [[nodiscard]] bool hasError() const { return std::holds_alternative<std::string>(mBody); }
    // Throws if there is no error.
    [[nodiscard]] std::string const& getErrorMsg() const;
    // Throws if there is an error.
    [[nodiscard]] Result const& getResult() const;

private:
    IdType mRequestId;
    std::optional<IdType> mClientId;
    std::variant<std::string, Result> mBody;
};

struct KVCacheCreatedData
{
    std::vector<SizeType32> numBlocksPerCacheLevel;
};

struct KVCacheStoredBlockData
{
    IdType blockHash;
    runtime::VecUniqueTokens tokens;
    std::optional<runtime::LoraTaskIdType> loraId;
    SizeType32 cacheLevel;
    SizeType32 priority;
};

struct KVCacheStoredData
{
    std::optional<IdType> parentHash;
    // The parent of each is the one before it.
    std::vector<KVCacheStoredBlockData> blocks;
};

struct KVCacheRemovedData
{
    std::vector<IdType> blockHashes;
};

template <typename T>
struct KVCacheEventDiff
{
    T oldValue;
    T newValue;
};

struct KVCacheUpdatedData
{
    IdType blockHash;
    std::optional<KVCacheEventDiff<SizeType32>> cacheLevel;
    std::optional<KVCacheEventDiff<SizeType32>> priority;
};

using KVCacheEventData = std::variant<KVCacheCreatedData, KVCacheStoredData, KVCacheRemovedData, KVCacheUpdatedData>;

struct KVCacheEvent
{
    IdType eventId;
    KVCacheEventData data;
    SizeType32 windowSize;
    std::optional<SizeType32> attentionDpRank;
};

class KVCacheEventManager
{
public:
    explicit KVCacheEventManager(std::shared_ptr<batch_manager::kv_cache_manager::BaseKVCacheManager> kvCacheManager);

    // Takes all there are; without a timeout it waits for some, or for the executor's end.
    std::deque<KVCacheEvent> getLatestEvents(std::optional<std::chrono::milliseconds> timeout = std::nullopt);

private:
    std::shared_ptr<batch_manager::kv_cache_manager::BaseKVCacheManager> mManager;
};
} // namespace tensorrt_llm::executor
