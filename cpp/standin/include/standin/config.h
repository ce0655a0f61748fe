// Stand-in: the configuration classes of tensorrt_llm/executor/executor.h, with their setters only.
#pragma once

#include "standin/fields.h"
#include "standin/speculative.h"
#include "tensorrt_llm/executor/tensor.h"

#include <list>
#include <utility>

namespace tensorrt_llm::mpi
{
class MpiComm;
} // namespace tensorrt_llm::mpi

namespace tensorrt_llm::executor
{
class DynamicBatchConfig
{
public:
    static SizeType32 const kDefaultDynamicBatchMovingAverageWindow = 128;

    explicit DynamicBatchConfig(bool enableBatchSizeTuning = false, bool enableMaxNumTokensTuning = false)
        : mBatchSize(enableBatchSizeTuning)
        , mMaxNumTokens(enableMaxNumTokensTuning)
    {
    }
    [[nodiscard]] bool getEnableBatchSizeTuning() const { return mBatchSize; }
    [[nodiscard]] bool getEnableMaxNumTokensTuning() const { return mMaxNumTokens; }

private:
    bool mBatchSize;
    bool mMaxNumTokens;
};

class SchedulerConfig
{
public:
    explicit SchedulerConfig(
        CapacitySchedulerPolicy capacitySchedulerPolicy = CapacitySchedulerPolicy::kGUARANTEED_NO_EVICT,
        std::optional<ContextChunkingPolicy> contextChunkingPolicy = std::nullopt,
        std::optional<DynamicBatchConfig> dynamicBatchConfig = std::nullopt)
        : mPolicy(capacitySchedulerPolicy)
        , mChunking(contextChunkingPolicy)
        , mDynamic(dynamicBatchConfig)
    {
    }
    [[nodiscard]] CapacitySchedulerPolicy getCapacitySchedulerPolicy() const { return mPolicy; }
    [[nodiscard]] std::optional<ContextChunkingPolicy> getContextChunkingPolicy() const { return mChunking; }
    [[nodiscard]] std::optional<DynamicBatchConfig> getDynamicBatchConfig() const { return mDynamic; }

private:
    CapacitySchedulerPolicy mPolicy;
    std::optional<ContextChunkingPolicy> mChunking;
    std::optional<DynamicBatchConfig> mDynamic;
};

using RetentionPriority = SizeType32;

class KvCacheConfig
{
    STANDIN_VALUE(bool, EnableBlockReuse, true)
    STANDIN_VALUE(bool, EnablePartialReuse, true)
    STANDIN_VALUE(bool, CopyOnPartialReuse, true)
    STANDIN_VALUE(std::optional<SizeType32>, MaxTokens, std::nullopt)
    STANDIN_MAYBE(std::vector<SizeType32>, MaxAttentionWindowVec)
    STANDIN_MAYBE(SizeType32, SinkTokenLength)
    STANDIN_MAYBE(FloatType, FreeGpuMemoryFraction)
    STANDIN_MAYBE(FloatType, CrossKvCacheFraction)
    STANDIN_MAYBE(size_t, HostCacheSize)
    STANDIN_VALUE(std::optional<RetentionPriority>, SecondaryOffloadMinPriority, std::nullopt)
    STANDIN_VALUE(size_t, EventBufferMaxSize, 0)
    STANDIN_VALUE(bool, UseUvm, false)
    STANDIN_VALUE(SizeType32, AttentionDpEventsGatherPeriodMs, 5)
    STANDIN_VALUE(uint64_t, MaxGpuTotalBytes, 0)
};

class ExtendedRuntimePerfKnobConfig
{
    STANDIN_VALUE(bool, MultiBlockMode, true)
    STANDIN_VALUE(bool, EnableContextFMHAFP32Acc, false)
    STANDIN_VALUE(bool, CudaGraphMode, false)
    STANDIN_VALUE(SizeType32, CudaGraphCacheSize, 0)
};

class OrchestratorConfig
{
    STANDIN_VALUE(bool, IsOrchestrator, true)
    STANDIN_VALUE(std::string, WorkerExecutablePath, "")
    STANDIN_VALUE(std::shared_ptr<mpi::MpiComm>, OrchLeaderComm, nullptr)
    STANDIN_VALUE(bool, SpawnProcesses, true)
};

class ParallelConfig
{
    STANDIN_VALUE(CommunicationType, CommunicationType, CommunicationType::kMPI)
    STANDIN_VALUE(CommunicationMode, CommunicationMode, CommunicationMode::kLEADER)
    STANDIN_MAYBE(std::vector<SizeType32>, DeviceIds)
    STANDIN_MAYBE(std::vector<SizeType32>, ParticipantIds)
    STANDIN_MAYBE(OrchestratorConfig, OrchestratorConfig)
    STANDIN_MAYBE(SizeType32, NumNodes)
};

class PeftCacheConfig
{
public:
    explicit PeftCacheConfig(SizeType32 numHostModuleLayer = 0, SizeType32 numDeviceModuleLayer = 0,
        SizeType32 optimalAdapterSize = 8, SizeType32 maxAdapterSize = 64, SizeType32 numPutWorkers = 1,
        SizeType32 numEnsureWorkers = 1, SizeType32 numCopyStreams = 1, SizeType32 maxPagesPerBlockHost = 24,
        SizeType32 maxPagesPerBlockDevice = 8, std::optional<float> const& deviceCachePercent = std::nullopt,
        std::optional<size_t> const& hostCacheSize = std::nullopt,
        std::optional<std::string> const& loraPrefetchDir = std::nullopt);

    [[nodiscard]] SizeType32 getOptimalAdapterSize() const { return mOptimalAdapterSize; }
    [[nodiscard]] SizeType32 getMaxAdapterSize() const { return mMaxAdapterSize; }
    [[nodiscard]] std::optional<float> getDeviceCachePercent() const { return mDeviceCachePercent; }
    [[nodiscard]] std::optional<size_t> getHostCacheSize() const { return mHostCacheSize; }

private:
    SizeType32 mOptimalAdapterSize;
    SizeType32 mMaxAdapterSize;
    std::optional<float> mDeviceCachePercent;
    std::optional<size_t> mHostCacheSize;
};

class GuidedDecodingConfig
{
public:
    enum class GuidedDecodingBackend { kXGRAMMAR = 0, kLLGUIDANCE = 1 };

    explicit GuidedDecodingConfig(GuidedDecodingBackend backend)
        : mBackend(backend)
    {
    }
    [[nodiscard]] GuidedDecodingBackend getBackend() const { return mBackend; }
    // Throws unless there is a vocabulary.
    void validate() const;

private:
    GuidedDecodingBackend mBackend;
    STANDIN_MAYBE(std::vector<std::string>, EncodedVocab)
    STANDIN_MAYBE(std::string, TokenizerStr)
    STANDIN_MAYBE(std::vector<TokenIdType>, StopTokenIds)
};

class LogitsPostProcessorConfig
{
    STANDIN_MAYBE(LogitsPostProcessorMap, ProcessorMap)
    STANDIN_MAYBE(LogitsPostProcessorBatched, ProcessorBatched)
    STANDIN_VALUE(bool, Replicate, true)
};

class CacheTransceiverConfig
{
public:
    enum class BackendType : std::uint8_t { DEFAULT = 0, MPI = 1, UCX = 2, NIXL = 3, MOONCAKE = 4 };

    STANDIN_OPTIONAL(BackendType, BackendType)
    STANDIN_OPTIONAL(size_t, MaxTokensInBuffer)
    STANDIN_OPTIONAL(int, KvTransferTimeoutMs)
    STANDIN_OPTIONAL(int, KvTransferSenderFutureTimeoutMs)
    STANDIN_OPTIONAL(int, KvTransferPollIntervalMs)
};

class ExecutorConfig
{
public:
    static constexpr uint64_t kDefaultMaxSeqIdleMicroseconds = 180'000'000;

    STANDIN_VALUE(SizeType32, MaxBeamWidth, 1)
    STANDIN_VALUE(SchedulerConfig, SchedulerConfig, SchedulerConfig())
    STANDIN_VALUE(KvCacheConfig, KvCacheConfig, KvCacheConfig())
    STANDIN_VALUE(bool, EnableChunkedContext, true)
    STANDIN_VALUE(bool, NormalizeLogProbs, false)
    STANDIN_VALUE(SizeType32, IterStatsMaxIterations, 1000)
    STANDIN_VALUE(SizeType32, RequestStatsMaxIterations, 0)
    STANDIN_VALUE(BatchingType, BatchingType, BatchingType::kINFLIGHT)
    STANDIN_MAYBE(SizeType32, MaxBatchSize)
    STANDIN_MAYBE(SizeType32, MaxNumTokens)
    STANDIN_MAYBE(ParallelConfig, ParallelConfig)
    STANDIN_MAYBE(PeftCacheConfig, PeftCacheConfig)
    STANDIN_MAYBE(LogitsPostProcessorConfig, LogitsPostProcessorConfig)
    STANDIN_MAYBE(DecodingConfig, DecodingConfig)
    STANDIN_VALUE(bool, UseGpuDirectStorage, false)
    STANDIN_VALUE(float, GpuWeightsPercent, 1)
    STANDIN_OPTIONAL(SizeType32, MaxQueueSize)
    STANDIN_VALUE(ExtendedRuntimePerfKnobConfig, ExtendedRuntimePerfKnobConfig, ExtendedRuntimePerfKnobConfig())
    STANDIN_VALUE(SizeType32, RecvPollPeriodMs, 0)
    STANDIN_VALUE(uint64_t, MaxSeqIdleMicroseconds, kDefaultMaxSeqIdleMicroseconds)
    STANDIN_MAYBE(SpeculativeDecodingConfig, SpecDecConfig)
    STANDIN_MAYBE(GuidedDecodingConfig, GuidedDecodingConfig)
    STANDIN_MAYBE(CacheTransceiverConfig, CacheTransceiverConfig)
    STANDIN_VALUE(bool, GatherGenerationLogits, false)
    STANDIN_VALUE(bool, PromptTableOffloading, false)
    STANDIN_VALUE(bool, EnableTrtOverlap, false)
    STANDIN_VALUE(bool, FailFastOnAttentionWindowTooLarge, false)
};
} // namespace tensorrt_llm::executor
