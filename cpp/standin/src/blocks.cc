// Stand-in: the block pool's accounting, its prefix tree and its events.
#include "blocks.h"

#include "check.h"

namespace cuelight::standin
{
namespace tle = tensorrt_llm::executor;

namespace
{
std::uint64_t mix(std::uint64_t hash, std::uint64_t value)
{
    hash ^= value + 0x9e3779b97f4a7c15ULL + (hash << 6) + (hash >> 2);
    hash *= 0xff51afd7ed558ccdULL;
    return hash ^ (hash >> 32);
}

std::size_t blocksOf(Settings const& settings, tle::KvCacheConfig const& config)
{
    auto const maxTokens = config.getMaxTokens();
    auto const blocks = maxTokens ? *maxTokens / settings.tokensPerBlock : settings.blocks;
    check(blocks > 0, "the KV cache has no room for a single block");
    return static_cast<std::size_t>(blocks);
}
} // namespace

BlockPool::BlockPool(Settings const& settings, tle::KvCacheConfig const& config, std::shared_ptr<EventLog> events)
    : mBlockTokens(static_cast<std::size_t>(settings.tokensPerBlock))
    , mWindows(settings.kvWindows)
    , mWindow(static_cast<std::int32_t>(settings.maxSeqLen))
    , mReuse(config.getEnableBlockReuse())
    , mPartial(settings.kvPartial != 0)
    , mHostBlocks(config.getHostCacheSize().value_or(0) / static_cast<std::size_t>(settings.blockBytes))
    , mEvents(std::move(events))
    , mBlocks(blocksOf(settings, config))
{
    for (std::size_t id = mBlocks.size(); id > 0; id--)
    {
        mFree.push_back(id - 1);
    }
    tell(tle::KVCacheCreatedData{{static_cast<std::int32_t>(mBlocks.size()), static_cast<std::int32_t>(mHostBlocks)}});
}

// A model with sliding windows says everything once for each window size.
void BlockPool::tell(tle::KVCacheEventData const& data)
{
    for (std::int64_t window = mWindows; window > 0; window--)
    {
        mEvents->add(data, static_cast<std::int32_t>(mWindow * window / mWindows));
    }
}

std::uint64_t BlockPool::hashOf(std::uint64_t parent, Tokens const& tokens, std::size_t from, std::size_t to) const
{
    auto hash = mix(parent, to - from);
    for (auto at = from; at < to; at++)
    {
        hash = mix(hash, static_cast<std::uint32_t>(tokens[at]));
    }
    return hash;
}

std::size_t BlockPool::reuse(Lease& lease, Tokens const& tokens, std::size_t limit)
{
    auto hash = lease.root;
    lease.reused = 0;
    for (std::size_t from = 0; mReuse && from + mBlockTokens <= limit; from += mBlockTokens)
    {
        hash = hashOf(hash, tokens, from, from + mBlockTokens);
        auto found = mCached.find(hash);
        if (found == mCached.end())
        {
            auto const hosted = mHosted.find(hash);
            if (hosted == mHosted.end() || available() == 0)
            {
                break;
            }
            mHost.erase(hosted->second);
            mHosted.erase(hosted);
            auto const id = take();
            insert(id, hash);
            tell(tle::KVCacheUpdatedData{hash, tle::KVCacheEventDiff<std::int32_t>{1, 0}, std::nullopt});
            found = mCached.find(hash);
            settle(id);
        }
        auto& block = mBlocks[found->second];
        mEvictable.erase({block.used, found->second});
        block.users++;
        lease.blocks.push_back(found->second);
        lease.hashes.push_back(hash);
        lease.reused++;
    }
    mReused += static_cast<std::int32_t>(lease.reused);
    mMissed += static_cast<std::int32_t>(needed(limit) - lease.reused);
    return lease.reused * mBlockTokens;
}

bool BlockPool::grow(Lease& lease, std::size_t tokens)
{
    auto const want = needed(tokens);
    if (want <= lease.blocks.size())
    {
        return true;
    }
    if (available() < want - lease.blocks.size())
    {
        return false;
    }
    while (lease.blocks.size() < want)
    {
        auto const id = take();
        mBlocks[id].users = 1;
        lease.blocks.push_back(id);
        lease.allocated++;
        mAllocated++;
    }
    return true;
}

std::size_t BlockPool::take()
{
    if (mFree.empty())
    {
        evict();
    }
    auto const id = mFree.back();
    mFree.pop_back();
    mBlocks[id] = Block{};
    return id;
}

void BlockPool::evict()
{
    auto const id = mEvictable.begin()->second;
    mEvictable.erase(mEvictable.begin());
    auto const block = mBlocks[id];
    mCached.erase(block.hash);
    mFree.push_back(id);
    if (mHostBlocks > 0)
    {
        toHost(block);
        return;
    }
    tell(tle::KVCacheRemovedData{{block.hash}});
}

void BlockPool::toHost(Block const& block)
{
    if (mHost.size() == mHostBlocks)
    {
        auto const oldest = mHost.front();
        mHost.pop_front();
        mHosted.erase(oldest);
        tell(tle::KVCacheRemovedData{{oldest}});
    }
    mHosted[block.hash] = mHost.insert(mHost.end(), block.hash);
    tell(tle::KVCacheUpdatedData{block.hash, tle::KVCacheEventDiff<std::int32_t>{0, 1}, std::nullopt});
}

// Puts a block that nobody uses where it belongs.
void BlockPool::settle(std::size_t id)
{
    auto& block = mBlocks[id];
    if (block.users > 0)
    {
        return;
    }
    if (!block.cached)
    {
        mFree.push_back(id);
        return;
    }
    mEvictable.erase({block.used, id});
    block.used = ++mClock;
    mEvictable.insert({block.used, id});
}

bool BlockPool::insert(std::size_t id, std::uint64_t hash)
{
    if (!mCached.emplace(hash, id).second)
    {
        return false;
    }
    auto& block = mBlocks[id];
    block.hash = hash;
    block.cached = true;
    return true;
}

void BlockPool::store(Lease& lease, Tokens const& tokens, std::size_t computed)
{
    if (!mReuse)
    {
        return;
    }
    std::vector<std::size_t> run;
    for (auto at = lease.hashes.size(); (at + 1) * mBlockTokens <= computed; at++)
    {
        auto const parent = at == 0 ? lease.root : lease.hashes.back();
        auto const hash = hashOf(parent, tokens, at * mBlockTokens, (at + 1) * mBlockTokens);
        lease.hashes.push_back(hash);
        auto const hosted = mHosted.find(hash);
        if (hosted != mHosted.end())
        {
            mHost.erase(hosted->second);
            mHosted.erase(hosted);
            tell(tle::KVCacheUpdatedData{hash, tle::KVCacheEventDiff<std::int32_t>{1, 0}, std::nullopt});
            insert(lease.blocks[at], hash);
        }
        else if (insert(lease.blocks[at], hash))
        {
            run.push_back(at);
            continue;
        }
        tellStored(lease, tokens, run, at * mBlockTokens);
        run.clear();
    }
    tellStored(lease, tokens, run, computed);
}

// `run` are consecutive blocks of the sequence.
void BlockPool::tellStored(
    Lease const& lease, Tokens const& tokens, std::vector<std::size_t> const& run, std::size_t end)
{
    if (run.empty())
    {
        return;
    }
    tle::KVCacheStoredData data;
    if (run.front() > 0)
    {
        data.parentHash = lease.hashes[run.front() - 1];
    }
    for (auto const at : run)
    {
        tle::KVCacheStoredBlockData block{lease.hashes[at], {}, lease.lora, 0, 35};
        for (auto i = at * mBlockTokens; i < std::min((at + 1) * mBlockTokens, end); i++)
        {
            block.tokens.push_back({tokens[i], 0});
        }
        data.blocks.push_back(std::move(block));
    }
    tell(std::move(data));
}

void BlockPool::finish(Lease& lease, Tokens const& tokens, std::size_t computed)
{
    computed = std::min(computed, tokens.size());
    store(lease, tokens, computed);
    auto const full = computed / mBlockTokens;
    if (mReuse && mPartial && computed % mBlockTokens > 0 && full < lease.blocks.size() && full == lease.hashes.size())
    {
        auto const parent = full == 0 ? lease.root : lease.hashes.back();
        lease.hashes.push_back(hashOf(parent, tokens, full * mBlockTokens, computed));
        if (insert(lease.blocks[full], lease.hashes.back()))
        {
            tellStored(lease, tokens, {full}, computed);
        }
    }
    release(lease);
}

// From the last to the first, so that a block is evicted before the one that it follows.
void BlockPool::release(Lease& lease)
{
    for (auto at = lease.blocks.size(); at > 0; at--)
    {
        mBlocks[lease.blocks[at - 1]].users--;
        settle(lease.blocks[at - 1]);
    }
    lease.blocks.clear();
    lease.hashes.clear();
}

void BlockPool::fill(tle::KvCacheStats& stats) const
{
    stats.maxNumBlocks = static_cast<std::int32_t>(total());
    stats.freeNumBlocks = static_cast<std::int32_t>(available());
    stats.usedNumBlocks = stats.maxNumBlocks - stats.freeNumBlocks;
    stats.tokensPerBlock = static_cast<std::int32_t>(mBlockTokens);
    stats.allocTotalBlocks = mAllocated + mReused;
    stats.allocNewBlocks = mAllocated;
    stats.reusedBlocks = mReused;
    stats.missedBlocks = mMissed;
    auto const looked = mReused + mMissed;
    stats.cacheHitRate = looked > 0 ? static_cast<float>(mReused) / static_cast<float>(looked) : 0.f;
}
} // namespace cuelight::standin
