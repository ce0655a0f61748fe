// Shim: responses as rows.
#include "engine.h"

#include "detect.h"
#include "numbers.h"

#include <algorithm>

namespace cuelight::trtllm
{
void Output::clear()
{
    rows.clear();
    tokens.clear();
    log_probs.clear();
    logits.clear();
    errors.clear();
    handoffs.clear();
    metrics.clear();
}

namespace
{
// Errors that arrive as responses are told apart by their texts only.
Fault faultOf(std::string const& text)
{
    auto const has = [&](char const* part) { return text.find(part) != std::string::npos; };
    if (has("has already been processed and was terminated"))
    {
        return Fault::Stale;
    }
    // The second is that of LoRA caches whose adapters are all in use.
    if (has("Maximum queue size") || has("no done tasks to evict"))
    {
        return Fault::QueueFull;
    }
    if (has("not found in cache") && (has("LoRA") || has("Lora")))
    {
        return Fault::LoraMissing;
    }
    if (has("Encountered an error when fetching new request"))
    {
        return Fault::Request;
    }
    if (has("Encountered an error in forward"))
    {
        return Fault::Forward;
    }
    return Fault::Other;
}

Finish finishOf(tle::FinishReason reason)
{
    switch (reason)
    {
    case tle::FinishReason::kNOT_FINISHED: return Finish::NotFinished;
    case tle::FinishReason::kEND_ID: return Finish::EndId;
    case tle::FinishReason::kSTOP_WORDS: return Finish::StopWords;
    case tle::FinishReason::kLENGTH: return Finish::Length;
    case tle::FinishReason::kTIMED_OUT: return Finish::TimedOut;
    case tle::FinishReason::kCANCELLED: return Finish::Cancelled;
    }
    return Finish::Unknown; // of a newer release
}

template <class Params>
Handoff handoffOf(Params const& params)
{
    Handoff handoff;
    handoff.context_request = params.getReqId();
    handoff.first_tokens = params.getFirstGenTokens();
    if (auto const& draft = params.getDraftTokens())
    {
        handoff.draft_tokens = *draft;
    }
    // Without a state getSerializedState would dereference a null pointer.
    handoff.has_state = params.getState() != nullptr;
    if (handoff.has_state)
    {
        auto const state = params.getSerializedState();
        handoff.state.assign(state.begin(), state.end());
    }
    if constexpr (HasCtxDpRank<Params>::value)
    {
        handoff.dp_rank = params.getCtxDpRank();
    }
    if constexpr (HasEndpoint<Params>::value)
    {
        handoff.endpoint = params.getDisaggInfoEndpoint();
    }
    return handoff;
}

template <class Perf>
Metrics metricsOf(Perf const& perf)
{
    auto const& timing = perf.timingMetrics;
    auto const unset = typename Perf::TimePoint{};
    auto const since = [&](auto from, auto to) -> std::int64_t
    {
        return from == unset || to == unset
            ? 0
            : static_cast<std::int64_t>(std::chrono::duration_cast<std::chrono::microseconds>(to - from).count());
    };
    Metrics metrics;
    metrics.scheduled_us = since(timing.arrivalTime, timing.firstScheduledTime);
    metrics.first_token_us = since(timing.arrivalTime, timing.firstTokenTime);
    metrics.last_token_us = since(timing.arrivalTime, timing.lastTokenTime);
    metrics.kv_transfer_us = since(timing.kvCacheTransferStart, timing.kvCacheTransferEnd);
    metrics.kv_transfer_bytes = timing.kvCacheSize;
    metrics.total_blocks = perf.kvCacheMetrics.numTotalAllocatedBlocks;
    metrics.new_blocks = perf.kvCacheMetrics.numNewAllocatedBlocks;
    metrics.reused_blocks = perf.kvCacheMetrics.numReusedBlocks;
    metrics.missed_blocks = perf.kvCacheMetrics.numMissedBlocks;
    if constexpr (HasDraftMetrics<Perf>::value)
    {
        metrics.draft_tokens = perf.speculativeDecoding.totalDraftTokens;
        metrics.accepted_draft_tokens = perf.speculativeDecoding.totalAcceptedDraftTokens;
    }
    return metrics;
}

// Only what is in host memory, as 32-bit floats; the vocabulary is the last dimension.
void addLogits(tle::Tensor const& tensor, Row& row, Output& output)
{
    auto const shape = tensor.getShape();
    auto const count = tensor.getSize();
    auto const width = shape.size() == 0 ? 0 : static_cast<std::size_t>(shape[shape.size() - 1]);
    auto const type = tensor.getDataType();
    auto const place = tensor.getMemoryType();
    bool const wide = type == tle::DataType::kFP32;
    bool const half = type == tle::DataType::kFP16;
    if (count == 0 || width == 0 || place == tle::MemoryType::kGPU || (!wide && !half && type != tle::DataType::kBF16))
    {
        return;
    }
    row.logits_at = output.logits.size();
    row.logits_rows = static_cast<std::uint32_t>(count / width);
    output.logits_width = static_cast<std::uint32_t>(width);
    if (wide)
    {
        auto const* data = static_cast<float const*>(tensor.getData());
        output.logits.insert(output.logits.end(), data, data + count);
        return;
    }
    auto const* data = static_cast<std::uint16_t const*>(tensor.getData());
    std::transform(data, data + count, std::back_inserter(output.logits),
        [half](std::uint16_t bits) { return half ? fromHalf(bits) : fromBfloat16(bits); });
}

template <class T>
std::int32_t append(std::vector<T>& list, T&& item)
{
    list.push_back(std::forward<T>(item));
    return static_cast<std::int32_t>(list.size()) - 1;
}

// Log probabilities are told of all tokens again and again; those of the new ones are the last.
void addBeam(tle::Result const& result, std::size_t beam, Row row, Output& output)
{
    auto const& tokens = result.outputTokenIds[beam];
    row.beam = static_cast<std::int32_t>(beam);
    row.finish = beam < result.finishReasons.size() ? finishOf(result.finishReasons[beam]) : Finish::NotFinished;
    row.tokens_at = static_cast<std::uint32_t>(output.tokens.size());
    row.tokens_len = static_cast<std::uint32_t>(tokens.size());
    output.tokens.insert(output.tokens.end(), tokens.begin(), tokens.end());
    row.log_probs_at = static_cast<std::uint32_t>(output.log_probs.size());
    if (result.logProbs && beam < result.logProbs->size())
    {
        auto const& all = (*result.logProbs)[beam];
        auto const count = std::min(all.size(), tokens.size());
        output.log_probs.insert(output.log_probs.end(), all.end() - static_cast<std::ptrdiff_t>(count), all.end());
        row.log_probs_len = static_cast<std::uint32_t>(count);
    }
    if (result.cumLogProbs && beam < result.cumLogProbs->size())
    {
        row.has_cum_log_prob = true;
        row.cum_log_prob = (*result.cumLogProbs)[beam];
    }
    output.rows.push_back(row);
}
} // namespace

void flatten(std::vector<tle::Response> const& responses, Output& output)
{
    output.rows.reserve(output.rows.size() + responses.size());
    for (auto const& response : responses)
    {
        Row row;
        row.request = response.getRequestId();
        auto const client = response.getClientId();
        row.has_client = client.has_value();
        row.client = client.value_or(0);
        if (response.hasError())
        {
            row.fault = faultOf(response.getErrorMsg());
            row.is_final = row.is_sequence_final = true;
            row.error = append(output.errors, std::string(response.getErrorMsg()));
            output.rows.push_back(row);
            continue;
        }
        auto const& result = response.getResult();
        row.is_final = result.isFinal;
        row.is_sequence_final = result.isSequenceFinal;
        row.sequence = result.sequenceIndex;
        row.decoding_iter = result.decodingIter;
        if (result.contextPhaseParams)
        {
            row.handoff = append(output.handoffs, handoffOf(*result.contextPhaseParams));
        }
        if (result.requestPerfMetrics)
        {
            row.metrics = append(output.metrics, metricsOf(*result.requestPerfMetrics));
        }
        if (result.generationLogits)
        {
            addLogits(*result.generationLogits, row, output);
        }
        for (std::size_t beam = 0; beam < result.outputTokenIds.size(); beam++)
        {
            addBeam(result, beam, row, output);
        }
        if (result.outputTokenIds.empty())
        {
            row.finish = result.finishReasons.empty() ? Finish::NotFinished : finishOf(result.finishReasons[0]);
            output.rows.push_back(row);
        }
    }
}
} // namespace cuelight::trtllm
