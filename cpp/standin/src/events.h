// Stand-in: the numbered log of what a block pool stored and removed.
#pragma once

#include "tensorrt_llm/executor/executor.h"

#include <condition_variable>
#include <mutex>

// The interface knows the owner of KV events under this name.
class tensorrt_llm::batch_manager::kv_cache_manager::BaseKVCacheManager
{
public:
    // Keeps the last `limit` events. The event of every `gapEvery`th number is lost, 0 for none.
    BaseKVCacheManager(std::size_t limit, std::int64_t gapEvery);

    void add(executor::KVCacheEventData data, std::int32_t window);
    std::deque<executor::KVCacheEvent> take(std::optional<std::chrono::milliseconds> timeout);
    // Nobody waits any more.
    void close();

private:
    std::size_t const mLimit;
    std::uint64_t const mGapEvery;
    std::mutex mMutex;
    std::condition_variable mChanged;
    std::deque<executor::KVCacheEvent> mEvents;
    std::uint64_t mNext = 0;
    bool mClosed = false;
};

namespace cuelight::standin
{
using EventLog = tensorrt_llm::batch_manager::kv_cache_manager::BaseKVCacheManager;
} // namespace cuelight::standin
