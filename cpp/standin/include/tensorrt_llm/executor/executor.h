// Stand-in for tensorrt_llm/executor/executor.h: the part of the interface that Cuelight's shim uses.
//
// Names and signatures are the interface's; the implementation is this project's own and serves tests.
#pragma once

#include "standin/result.h"

#include <filesystem>

namespace tensorrt_llm::executor
{
char const* version() noexcept;

// All methods may be called from several threads; see Cuelight's docs/tensorrt-llm.md for what they do.
class Executor
{
public:
    Executor(std::filesystem::path const& modelPath, ModelType modelType, ExecutorConfig const& executorConfig);
    ~Executor();
    Executor(Executor const&) = delete;
    Executor& operator=(Executor const&) = delete;
    Executor(Executor&&) noexcept;
    Executor& operator=(Executor&&) noexcept;

    [[nodiscard]] IdType enqueueRequest(Request const& request);
    [[nodiscard]] std::vector<IdType> enqueueRequests(std::vector<Request> const& requests);
    [[nodiscard]] std::vector<Response> awaitResponses(
        std::optional<std::chrono::milliseconds> const& timeout = std::nullopt);
    [[nodiscard]] std::vector<Response> awaitResponses(
        IdType const& requestId, std::optional<std::chrono::milliseconds> const& timeout = std::nullopt);
    [[nodiscard]] std::vector<std::vector<Response>> awaitResponses(
        std::vector<IdType> const& requestIds, std::optional<std::chrono::milliseconds> const& timeout = std::nullopt);
    [[nodiscard]] SizeType32 getNumResponsesReady(std::optional<IdType> const& requestId = std::nullopt) const;
    void cancelRequest(IdType requestId);
    void shutdown();
    std::deque<IterationStats> getLatestIterationStats();
    std::deque<RequestStatsPerIteration> getLatestRequestStats();
    std::deque<DebugTensorsPerIteration> getLatestDebugTensors();
    [[nodiscard]] bool canEnqueueRequests() const;
    [[nodiscard]] bool isParticipant() const;
    std::optional<std::shared_ptr<KVCacheEventManager>> getKVCacheEventManager() const;

private:
    class Impl;
    std::unique_ptr<Impl> mImpl;
};
} // namespace tensorrt_llm::executor
