// Shim: KV events and statistics as rows.
#include "engine.h"

#include "detect.h"

namespace cuelight::trtllm
{
void KvEvents::clear()
{
    rows.clear();
    blocks.clear();
    tokens.clear();
    token_extra_ids.clear();
    hashes.clear();
    counts.clear();
}

namespace
{
template <class Block>
KvBlockRow blockOf(Block const& from, KvEvents& out)
{
    KvBlockRow row;
    row.hash = from.blockHash;
    row.tokens_at = static_cast<std::uint32_t>(out.tokens.size());
    row.tokens_len = static_cast<std::uint32_t>(from.tokens.size());
    row.has_lora = from.loraId.has_value();
    row.lora = from.loraId.value_or(0);
    row.level = from.cacheLevel;
    row.priority = from.priority;
    if constexpr (HasMmKeys<Block>::value)
    {
        row.images = static_cast<std::uint32_t>(from.mmKeys.size());
    }
    for (auto const& token : from.tokens)
    {
        out.tokens.push_back(token.tokenId);
        out.token_extra_ids.push_back(token.tokenExtraId);
    }
    return row;
}

struct Fill
{
    KvEventRow& row;
    KvEvents& out;

    void operator()(tle::KVCacheCreatedData const& data) const
    {
        auto const& counts = data.numBlocksPerCacheLevel;
        row.kind = KvEventKind::Created;
        row.blocks_at = static_cast<std::uint32_t>(out.counts.size());
        row.blocks_len = static_cast<std::uint32_t>(counts.size());
        out.counts.insert(out.counts.end(), counts.begin(), counts.end());
    }

    void operator()(tle::KVCacheStoredData const& data) const
    {
        row.kind = KvEventKind::Stored;
        row.has_parent = data.parentHash.has_value();
        row.parent = data.parentHash.value_or(0);
        row.blocks_at = static_cast<std::uint32_t>(out.blocks.size());
        row.blocks_len = static_cast<std::uint32_t>(data.blocks.size());
        for (auto const& block : data.blocks)
        {
            out.blocks.push_back(blockOf(block, out));
        }
    }

    void operator()(tle::KVCacheRemovedData const& data) const
    {
        row.kind = KvEventKind::Removed;
        row.blocks_at = static_cast<std::uint32_t>(out.hashes.size());
        row.blocks_len = static_cast<std::uint32_t>(data.blockHashes.size());
        out.hashes.insert(out.hashes.end(), data.blockHashes.begin(), data.blockHashes.end());
    }

    void operator()(tle::KVCacheUpdatedData const& data) const
    {
        row.kind = KvEventKind::Updated;
        row.blocks_at = static_cast<std::uint32_t>(out.hashes.size());
        row.blocks_len = 1;
        out.hashes.push_back(data.blockHash);
        if (data.cacheLevel)
        {
            row.old_level = data.cacheLevel->oldValue;
            row.new_level = data.cacheLevel->newValue;
        }
        if (data.priority)
        {
            row.old_priority = data.priority->oldValue;
            row.new_priority = data.priority->newValue;
        }
    }
};

template <class Event>
void addEvent(Event const& event, KvEvents& out)
{
    KvEventRow row;
    row.id = event.eventId;
    row.window = event.windowSize;
    if constexpr (HasDpRank<Event>::value)
    {
        row.dp_rank = event.attentionDpRank.value_or(-1);
    }
    std::visit(Fill{row, out}, event.data);
    out.rows.push_back(row);
}

template <class Kv>
void setKv(Kv const& kv, Iteration& row)
{
    row.has_kv = true;
    row.kv_blocks = kv.maxNumBlocks;
    row.kv_free = kv.freeNumBlocks;
    row.kv_used = kv.usedNumBlocks;
    row.kv_block_tokens = kv.tokensPerBlock;
    row.kv_allocated_total = kv.allocTotalBlocks;
    row.kv_reused_total = kv.reusedBlocks;
    if constexpr (HasMissedBlocks<Kv>::value)
    {
        row.kv_missed_total = kv.missedBlocks;
    }
}

template <class Stats>
Iteration iterationOf(Stats const& stats)
{
    Iteration row;
    row.iter = stats.iter;
    row.latency_ms = stats.iterLatencyMS;
    row.queue_ms = stats.newActiveRequestsQueueLatencyMS;
    row.active = stats.numActiveRequests;
    row.queued = stats.numQueuedRequests;
    row.completed = stats.numCompletedRequests;
    row.max_active = stats.maxNumActiveRequests;
    row.gpu_bytes = stats.gpuMemUsage;
    row.cpu_bytes = stats.cpuMemUsage;
    row.pinned_bytes = stats.pinnedMemUsage;
    if (auto const& batch = stats.inflightBatchingStats)
    {
        row.scheduled = batch->numScheduledRequests;
        row.context_requests = batch->numContextRequests;
        row.generation_requests = batch->numGenRequests;
        row.paused = batch->numPausedRequests;
        row.context_tokens = batch->numCtxTokens;
        row.tokens_per_iteration = batch->avgNumDecodedTokensPerIter;
    }
    if (stats.kvCacheStats)
    {
        setKv(*stats.kvCacheStats, row);
    }
    if constexpr (HasDraftStats<Stats>::value)
    {
        if (stats.specDecodingStats)
        {
            row.has_draft = true;
            row.draft_tokens = stats.specDecodingStats->numDraftTokens;
            row.draft_accepted = stats.specDecodingStats->numAcceptedTokens;
        }
    }
    return row;
}
} // namespace

void flatten(std::deque<tle::KVCacheEvent> const& events, KvEvents& out)
{
    for (auto const& event : events)
    {
        addEvent(event, out);
    }
}

void flatten(std::deque<tle::IterationStats> const& stats, std::vector<Iteration>& out)
{
    for (auto const& step : stats)
    {
        out.push_back(iterationOf(step));
    }
}

void flatten(std::deque<tle::RequestStatsPerIteration> const& stats, std::vector<RequestState>& out)
{
    for (auto const& step : stats)
    {
        for (auto const& request : step.requestStats)
        {
            RequestState row;
            row.iter = step.iter;
            row.request = request.id;
            row.stage = static_cast<std::uint8_t>(request.stage);
            row.scheduled = request.scheduled;
            row.paused = request.paused;
            row.prefilled = request.contextPrefillPosition;
            row.generated = request.numGeneratedTokens;
            row.kv_transfer_ms = request.disServingStats ? request.disServingStats->kvCacheTransferMS : 0;
            out.push_back(row);
        }
    }
}
} // namespace cuelight::trtllm
