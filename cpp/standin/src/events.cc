// Stand-in: the log of KV events and what takes from it.
#include "events.h"

#include "settings.h"

namespace tensorrt_llm::batch_manager::kv_cache_manager
{
BaseKVCacheManager::BaseKVCacheManager(std::size_t limit, std::int64_t gapEvery)
    : mLimit(limit)
    , mGapEvery(static_cast<std::uint64_t>(gapEvery))
{
}

void BaseKVCacheManager::add(executor::KVCacheEventData data, std::int32_t window)
{
    if (mLimit == 0)
    {
        return;
    }
    std::lock_guard const lock(mMutex);
    auto const id = mNext++;
    if (mGapEvery > 0 && (id + 1) % mGapEvery == 0)
    {
        return;
    }
    if (mEvents.size() == mLimit)
    {
        mEvents.pop_front();
    }
    mEvents.push_back({id, std::move(data), window, std::nullopt});
    mChanged.notify_all();
}

std::deque<executor::KVCacheEvent> BaseKVCacheManager::take(std::optional<std::chrono::milliseconds> timeout)
{
    std::unique_lock lock(mMutex);
    auto const ready = [this] { return mClosed || !mEvents.empty(); };
    if (timeout)
    {
        mChanged.wait_for(lock, *timeout, ready);
    }
    else
    {
        mChanged.wait(lock, ready);
    }
    return std::exchange(mEvents, {});
}

void BaseKVCacheManager::close()
{
    std::lock_guard const lock(mMutex);
    mClosed = true;
    mChanged.notify_all();
}
} // namespace tensorrt_llm::batch_manager::kv_cache_manager

namespace tensorrt_llm::executor
{
KVCacheEventManager::KVCacheEventManager(
    std::shared_ptr<batch_manager::kv_cache_manager::BaseKVCacheManager> kvCacheManager)
    : mManager(std::move(kvCacheManager))
{
}

std::deque<KVCacheEvent> KVCacheEventManager::getLatestEvents(std::optional<std::chrono::milliseconds> timeout)
{
    cuelight::standin::maybeThrow(cuelight::standin::settingsFor({}), "events");
    return mManager->take(timeout);
}
} // namespace tensorrt_llm::executor
