// Bridge: calls of ffi.rs to the shim's, and its results back.
#include "convert.h"

namespace cuelight::trtllm::ffi
{
namespace
{
// The Rust side of the hook catches its own panics, so that nothing is thrown here.
class Hook : public trtllm::LogitsHook
{
public:
    explicit Hook(rust::Box<ffi::LogitsHook> to)
        : mTo(std::move(to))
    {
    }

    void row(LogitsRow const& row) noexcept override
    {
        mTo->row(rust::Str(row.processor.data(), row.processor.size()),
            LogitsOf{row.sequence, row.has_client, row.client, row.beam},
            rust::Slice<std::int32_t const>(row.tokens, row.tokens_len),
            rust::Slice<float>(row.logits, row.logits_len));
    }

private:
    rust::Box<ffi::LogitsHook> mTo;
};

Row rowOf(trtllm::Row const& from)
{
    return {from.request, from.has_client, from.client, from.sequence, from.beam, from.is_final,
        from.is_sequence_final, static_cast<Finish>(from.finish), static_cast<Fault>(from.fault), from.tokens_at,
        from.tokens_len, from.log_probs_at, from.log_probs_len, from.has_cum_log_prob, from.cum_log_prob,
        from.logits_at, from.logits_rows, from.decoding_iter, from.error, from.handoff, from.metrics};
}

Handoff handoffOf(trtllm::Handoff const& from)
{
    Handoff to{};
    to.some = true;
    to.context_request = from.context_request;
    put(from.first_tokens, to.first_tokens);
    put(from.draft_tokens, to.draft_tokens);
    to.has_state = from.has_state;
    put(from.state, to.state);
    to.dp_rank = OptI32{from.dp_rank.has_value(), from.dp_rank.value_or(0)};
    to.endpoint = OptStr{from.endpoint.has_value(), rust::String::lossy(from.endpoint.value_or(""))};
    return to;
}

Metrics metricsOf(trtllm::Metrics const& from)
{
    return {from.scheduled_us, from.first_token_us, from.last_token_us, from.kv_transfer_us, from.kv_transfer_bytes,
        from.total_blocks, from.new_blocks, from.reused_blocks, from.missed_blocks, from.draft_tokens,
        from.accepted_draft_tokens};
}

KvEventRow eventOf(trtllm::KvEventRow const& from)
{
    return {from.id, static_cast<KvEventKind>(from.kind), from.window, from.dp_rank, from.has_parent, from.parent,
        from.blocks_at, from.blocks_len, from.old_level, from.new_level, from.old_priority, from.new_priority};
}

KvBlockRow blockOf(trtllm::KvBlockRow const& from)
{
    return {from.hash, from.tokens_at, from.tokens_len, from.has_lora, from.lora, from.level, from.priority,
        from.images};
}

Iteration iterationOf(trtllm::Iteration const& from)
{
    return {from.iter, from.latency_ms, from.queue_ms, from.active, from.queued, from.completed, from.max_active,
        from.scheduled, from.context_requests, from.generation_requests, from.paused, from.context_tokens,
        from.tokens_per_iteration, from.gpu_bytes, from.cpu_bytes, from.pinned_bytes, from.has_kv, from.kv_blocks,
        from.kv_free, from.kv_used, from.kv_block_tokens, from.kv_allocated_total, from.kv_reused_total,
        from.kv_missed_total, from.has_draft, from.draft_tokens, from.draft_accepted};
}

// Replaces what was there and keeps the allocation.
template <class From, class To, class Convert>
void putAll(std::vector<From> const& from, rust::Vec<To>& to, Convert convert)
{
    to.clear();
    to.reserve(from.size());
    for (auto const& item : from)
    {
        to.push_back(convert(item));
    }
}

rust::String textOf(std::string const& from)
{
    return rust::String::lossy(from);
}
} // namespace

Engine::Engine(std::unique_ptr<trtllm::Engine> engine)
    : mEngine(std::move(engine))
{
}

Capabilities capabilities()
{
    auto const from = trtllm::capabilities();
    return {from.standin, from.prompt_ignore_length, from.mooncake, from.transfer_timeout,
        from.sender_future_timeout, from.poll_interval, from.context_dp_rank, from.disagg_request_id,
        from.cache_salt, from.max_gpu_total_bytes, from.missed_blocks, textOf(from.headers), textOf(from.library)};
}

std::unique_ptr<Engine> open(EngineOptions const& options, rust::Box<LogitsHook> hook, bool use_hook)
{
    auto to = use_hook ? std::make_shared<Hook>(std::move(hook)) : nullptr;
    try
    {
        return std::make_unique<Engine>(trtllm::Engine::open(shimOptions(options), std::move(to)));
    }
    catch (Unusable const& error)
    {
        throw CallError("options", error.what());
    }
}

Admitted Engine::enqueue(RequestOptions const& options) const
{
    auto const admitted = mEngine->enqueue(shimRequest(options));
    return {static_cast<Admission>(admitted.status), admitted.request, textOf(admitted.text)};
}

void Engine::poll(std::uint64_t timeout_ms, Output& out) const
{
    std::lock_guard const lock(mPolling);
    mEngine->poll(std::chrono::milliseconds(timeout_ms), mOutput);
    putAll(mOutput.rows, out.rows, rowOf);
    put(mOutput.tokens, out.tokens);
    put(mOutput.log_probs, out.log_probs);
    put(mOutput.logits, out.logits);
    out.logits_width = mOutput.logits_width;
    putAll(mOutput.errors, out.errors, textOf);
    putAll(mOutput.handoffs, out.handoffs, handoffOf);
    putAll(mOutput.metrics, out.metrics, metricsOf);
}

std::int32_t Engine::responses_ready() const
{
    return mEngine->responses_ready();
}

void Engine::cancel(std::uint64_t request) const
{
    mEngine->cancel(request);
}

bool Engine::kv_events(std::uint64_t timeout_ms, KvEvents& out) const
{
    std::lock_guard const lock(mTelling);
    bool const any = mEngine->kv_events(std::chrono::milliseconds(timeout_ms), mEvents);
    putAll(mEvents.rows, out.rows, eventOf);
    putAll(mEvents.blocks, out.blocks, blockOf);
    put(mEvents.tokens, out.tokens);
    put(mEvents.token_extra_ids, out.token_extra_ids);
    put(mEvents.hashes, out.hashes);
    put(mEvents.counts, out.counts);
    return any;
}

void Engine::iterations(rust::Vec<Iteration>& out) const
{
    std::vector<trtllm::Iteration> steps;
    mEngine->iterations(steps);
    putAll(steps, out, iterationOf);
}

void Engine::request_states(rust::Vec<RequestState>& out) const
{
    std::vector<trtllm::RequestState> states;
    mEngine->request_states(states);
    putAll(states, out,
        [](trtllm::RequestState const& from) -> RequestState
        {
            return {from.iter, from.request, from.stage, from.scheduled, from.paused, from.prefilled, from.generated,
                from.kv_transfer_ms};
        });
}

bool Engine::can_enqueue() const
{
    return mEngine->can_enqueue();
}

bool Engine::is_participant() const
{
    return mEngine->is_participant();
}

void Engine::shutdown() const
{
    mEngine->shutdown();
}
} // namespace cuelight::trtllm::ffi
