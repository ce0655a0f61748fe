// Stand-in: KV blocks, found again by the tokens they hold, in device memory or in the host's.
#pragma once

#include "events.h"
#include "settings.h"

#include <list>
#include <set>
#include <unordered_map>

namespace cuelight::standin
{
using Tokens = std::vector<std::int32_t>;

// The blocks of one sequence.
struct Lease
{
    std::uint64_t root = 0;            // separates salts and adapters
    std::optional<std::uint64_t> lora;
    std::vector<std::size_t> blocks;
    std::vector<std::uint64_t> hashes; // of the full blocks that were found or stored
    std::size_t reused = 0;
    std::size_t allocated = 0;
};

class BlockPool
{
public:
    BlockPool(Settings const& settings, tensorrt_llm::executor::KvCacheConfig const& config,
        std::shared_ptr<EventLog> events);

    // Blocks that `tokens` tokens need.
    [[nodiscard]] std::size_t needed(std::size_t tokens) const { return (tokens + mBlockTokens - 1) / mBlockTokens; }
    [[nodiscard]] std::size_t available() const { return mFree.size() + mEvictable.size(); }
    [[nodiscard]] std::size_t total() const { return mBlocks.size(); }

    // Takes over leading full blocks of the first `limit` tokens that are cached; tokens that need no computing.
    std::size_t reuse(Lease& lease, Tokens const& tokens, std::size_t limit);
    // Has blocks for so many tokens, or changes nothing.
    bool grow(Lease& lease, std::size_t tokens);
    // The first `computed` tokens can be found from now on, as far as they fill blocks.
    void store(Lease& lease, Tokens const& tokens, std::size_t computed);
    // The same, with the last block that is not full, and gives up the blocks.
    void finish(Lease& lease, Tokens const& tokens, std::size_t computed);
    // Gives up the blocks.
    void release(Lease& lease);

    void fill(tensorrt_llm::executor::KvCacheStats& stats) const;

private:
    struct Block
    {
        std::uint64_t hash = 0;
        std::size_t users = 0;
        std::uint64_t used = 0;
        bool cached = false;
    };

    std::size_t take();
    void evict();
    void toHost(Block const& block);
    void settle(std::size_t id);
    bool insert(std::size_t id, std::uint64_t hash);
    void tellStored(Lease const& lease, Tokens const& tokens, std::vector<std::size_t> const& run, std::size_t end);
    void tell(tensorrt_llm::executor::KVCacheEventData const& data);
    std::uint64_t hashOf(std::uint64_t parent, Tokens const& tokens, std::size_t from, std::size_t to) const;

    std::size_t mBlockTokens;
    std::int64_t mWindows;
    std::int32_t mWindow;
    bool mReuse;
    bool mPartial;
    std::size_t mHostBlocks;
    std::shared_ptr<EventLog> mEvents;
    std::vector<Block> mBlocks;
    std::vector<std::size_t> mFree;
    std::set<std::pair<std::uint64_t, std::size_t>> mEvictable; // nobody uses them; by last use
    std::unordered_map<std::uint64_t, std::size_t> mCached;
    std::list<std::uint64_t> mHost; // the oldest first
    std::unordered_map<std::uint64_t, std::list<std::uint64_t>::iterator> mHosted;
    std::uint64_t mClock = 0;
    std::int32_t mAllocated = 0;
    std::int32_t mReused = 0;
    std::int32_t mMissed = 0;
};
} // namespace cuelight::standin
