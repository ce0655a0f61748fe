// Stand-in for tensorrt_llm/executor/types.h: the plain types of the executor interface.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace tensorrt_llm::runtime
{
class CudaStream;
using SizeType32 = std::int32_t;
using LoraTaskIdType = std::uint64_t;

struct UniqueToken
{
    std::int32_t tokenId;
    std::uint64_t tokenExtraId;
};

using VecUniqueTokens = std::vector<UniqueToken>;
} // namespace tensorrt_llm::runtime

namespace tensorrt_llm::executor
{
class Tensor;

using SizeType32 = std::int32_t;
using SizeType64 = std::int64_t;
using FloatType = float;
using TokenIdType = std::int32_t;
using IdType = std::uint64_t;
using IterationType = std::uint64_t;
using RandomSeedType = std::uint64_t;
using CacheSaltIDType = std::uint64_t;
using PriorityType = float;
using MillisecondsType = std::chrono::milliseconds;
using VecTokens = std::vector<TokenIdType>;
using BeamTokens = std::vector<VecTokens>;
using VecTokenExtraIds = std::vector<IdType>;
using VecLogProbs = std::vector<FloatType>;
using MedusaChoices = std::vector<std::vector<SizeType32>>;
using EagleChoices = std::vector<std::vector<SizeType32>>;
using StreamPtr = std::shared_ptr<runtime::CudaStream>;
using LogitsPostProcessor
    = std::function<void(IdType, Tensor&, BeamTokens const&, StreamPtr const&, std::optional<IdType>)>;
using LogitsPostProcessorMap = std::unordered_map<std::string, LogitsPostProcessor>;
using LogitsPostProcessorBatched = std::function<void(std::vector<IdType> const&, std::vector<Tensor>&,
    std::vector<std::reference_wrapper<BeamTokens const>> const&, StreamPtr const&,
    std::vector<std::optional<IdType>> const&)>;

enum class DataType { kBOOL, kUINT8, kINT8, kINT32, kINT64, kBF16, kFP8, kFP16, kFP32, kUNKNOWN };
enum class MemoryType { kCPU, kCPU_PINNED, kCPU_PINNEDPOOL, kGPU, kUVM, kUNKNOWN };
enum class ModelType { kDECODER_ONLY = 0, kENCODER_ONLY = 1, kENCODER_DECODER = 2 };
enum class BatchingType { kSTATIC = 0, kINFLIGHT = 1 };
enum class CapacitySchedulerPolicy { kMAX_UTILIZATION = 0, kGUARANTEED_NO_EVICT = 1, kSTATIC_BATCH = 2 };
enum class ContextChunkingPolicy { kFIRST_COME_FIRST_SERVED = 0, kEQUAL_PROGRESS = 1 };
enum class CommunicationType { kMPI = 0 };
enum class CommunicationMode { kLEADER, kORCHESTRATOR };
enum class KvCacheTransferMode { DRAM = 0, GDS = 1, POSIX_DEBUG_FALLBACK = 2 };

enum class RequestType
{
    REQUEST_TYPE_CONTEXT_AND_GENERATION = 0,
    REQUEST_TYPE_CONTEXT_ONLY = 1,
    REQUEST_TYPE_GENERATION_ONLY = 2
};

enum class FinishReason
{
    kNOT_FINISHED = 0,
    kEND_ID = 1,
    kSTOP_WORDS = 2,
    kLENGTH = 3,
    kTIMED_OUT = 4,
    kCANCELLED = 5
};

enum class RequestStage
{
    kQUEUED,
    kENCODER_IN_PROGRESS,
    kCONTEXT_IN_PROGRESS,
    kGENERATION_IN_PROGRESS,
    kGENERATION_COMPLETE
};

// Blocks are counted over the pool, `alloc…`, `reused` and `missed` since the engine started.
struct KvCacheStats
{
    SizeType32 maxNumBlocks;
    SizeType32 freeNumBlocks;
    SizeType32 usedNumBlocks;
    SizeType32 tokensPerBlock;
    SizeType32 allocTotalBlocks;
    SizeType32 allocNewBlocks;
    SizeType32 reusedBlocks;
    SizeType32 missedBlocks;
    float cacheHitRate;
};

struct StaticBatchingStats
{
    SizeType32 numScheduledRequests;
    SizeType32 numContextRequests;
    SizeType32 numCtxTokens;
    SizeType32 numGenTokens;
    SizeType32 emptyGenSlots;
};

struct InflightBatchingStats
{
    SizeType32 numScheduledRequests;
    SizeType32 numContextRequests;
    SizeType32 numGenRequests;
    SizeType32 numPausedRequests;
    SizeType32 numCtxTokens;
    SizeType32 microBatchId;
    float avgNumDecodedTokensPerIter;
};

struct SpecDecodingStats
{
    SizeType64 numDraftTokens;
    SizeType64 numAcceptedTokens;
    SizeType64 numRequestsWithDraftTokens;
    double acceptanceLength;
    double iterLatencyMS;
    double draftOverhead;
};

struct IterationStats
{
    std::string timestamp;
    IterationType iter;
    double iterLatencyMS;
    double newActiveRequestsQueueLatencyMS;
    SizeType32 numNewActiveRequests;
    SizeType32 numActiveRequests;
    SizeType32 numQueuedRequests;
    SizeType32 numCompletedRequests;
    SizeType32 maxNumActiveRequests;
    SizeType32 maxBatchSizeStatic;
    SizeType32 maxBatchSizeTunerRecommended;
    SizeType32 maxBatchSizeRuntime;
    SizeType32 maxNumTokensStatic;
    SizeType32 maxNumTokensTunerRecommended;
    SizeType32 maxNumTokensRuntime;
    size_t gpuMemUsage;
    size_t cpuMemUsage;
    size_t pinnedMemUsage;
    std::optional<KvCacheStats> kvCacheStats;
    std::optional<KvCacheStats> crossKvCacheStats;
    std::optional<StaticBatchingStats> staticBatchingStats;
    std::optional<InflightBatchingStats> inflightBatchingStats;
    std::optional<SpecDecodingStats> specDecodingStats;
};

struct DisServingRequestStats
{
    double kvCacheTransferMS;
    size_t kvCacheSize;
};

struct RequestStats
{
    IdType id;
    RequestStage stage;
    SizeType32 contextPrefillPosition;
    SizeType32 numGeneratedTokens;
    float avgNumDecodedTokensPerIter;
    bool scheduled;
    bool paused;
    std::optional<DisServingRequestStats> disServingStats;
    SizeType32 allocTotalBlocksPerRequest;
    SizeType32 allocNewBlocksPerRequest;
    SizeType32 reusedBlocksPerRequest;
    SizeType32 missedBlocksPerRequest;
    FloatType kvCacheHitRatePerRequest;
};

struct RequestStatsPerIteration
{
    IterationType iter;
    std::vector<RequestStats> requestStats;
};

struct RequestPerfMetrics
{
    using TimePoint = std::chrono::time_point<std::chrono::steady_clock>;

    struct TimingMetrics
    {
        TimePoint arrivalTime;
        TimePoint firstScheduledTime;
        TimePoint firstTokenTime;
        TimePoint lastTokenTime;
        TimePoint kvCacheTransferStart;
        TimePoint kvCacheTransferEnd;
        mutable size_t kvCacheSize = 0;
    };

    struct KvCacheMetrics
    {
        SizeType32 numTotalAllocatedBlocks{0};
        SizeType32 numNewAllocatedBlocks{0};
        SizeType32 numReusedBlocks{0};
        SizeType32 numMissedBlocks{0};
        FloatType kvCacheHitRate{0.f};
    };

    struct SpeculativeDecodingMetrics
    {
        FloatType acceptanceRate{0.f};
        SizeType32 totalAcceptedDraftTokens{0};
        SizeType32 totalDraftTokens{0};
    };

    TimingMetrics timingMetrics;
    KvCacheMetrics kvCacheMetrics;
    SpeculativeDecodingMetrics speculativeDecoding;
    std::optional<IterationType> firstIter;
    std::optional<IterationType> lastIter;
    std::optional<IterationType> iter;
};

// Which tokens a decoder chooses from; the stand-in only keeps what was asked for.
class DecodingMode
{
public:
    using UnderlyingType = uint32_t;

    static auto constexpr Auto() { return DecodingMode{0}; }
    static auto constexpr TopK() { return DecodingMode{1}; }
    static auto constexpr TopP() { return DecodingMode{2}; }
    static auto constexpr TopKTopP() { return DecodingMode{3}; }
    static auto constexpr BeamSearch() { return DecodingMode{4}; }
    static auto constexpr Medusa() { return DecodingMode{5}; }
    static auto constexpr Lookahead() { return DecodingMode{6}; }
    static auto constexpr ExplicitDraftTokens() { return DecodingMode{7}; }
    static auto constexpr ExternalDraftTokens() { return DecodingMode{8}; }
    static auto constexpr Eagle() { return DecodingMode{9}; }

    explicit constexpr DecodingMode(UnderlyingType state)
        : mState(state)
    {
    }

    bool operator==(DecodingMode const& other) const { return mState == other.mState; }
    [[nodiscard]] constexpr UnderlyingType getState() const { return mState; }

private:
    UnderlyingType mState;
};
} // namespace tensorrt_llm::executor
