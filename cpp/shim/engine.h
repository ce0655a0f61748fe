// Shim: one TensorRT-LLM Executor behind a narrow interface of plain values.
//
// Threads: `open`, `shutdown` and the destructor belong to one thread. In between, all methods may be called from any
// thread at once, but `poll` from one thread only, `kv_events` from one thread only, and the statistics from one thread
// only (who takes something takes it from all others). Before `shutdown` returns, `poll` and `kv_events` must have
// been told to stop and their threads must have left: the executor must not be destroyed under them.
//
// Ownership: every argument is copied before a call returns, every result is the caller's. Nothing refers to memory
// of the executor, which is destroyed with the Engine. The hook lives until then.
//
// Blocking: `open` until the model is loaded on all ranks; `poll` and `kv_events` up to their timeouts; `shutdown` until
// all requests have ended, which in an engine that hangs is never: then end the process. All else is short.
//
// Errors: what is expected is a value (Admitted, Fault, Finish). Everything else leaves as CallError, whose text names
// the call, whatever was thrown; the executor must then be considered lost. Nothing else is ever thrown, except that
// `open` throws Unusable for options that cannot be used.
#pragma once

#include "error.h"
#include "logits.h"
#include "types.h"

#include <chrono>
#include <memory>

namespace cuelight::trtllm
{
class Engine
{
public:
    // Loads the model. `hook` is needed for logits post-processors only.
    static std::unique_ptr<Engine> open(EngineOptions const& options, std::shared_ptr<LogitsHook> hook);
    ~Engine();
    Engine(Engine const&) = delete;
    Engine& operator=(Engine const&) = delete;

    // Responses may come before this returns.
    Admitted enqueue(RequestOptions const& options);
    // Everything that is ready, or what comes within `timeout`; replaces `output`.
    void poll(std::chrono::milliseconds timeout, Output& output);
    [[nodiscard]] std::int32_t responses_ready() const;
    // Its last response comes later all the same. Ids that are unknown or have ended are ignored.
    void cancel(std::uint64_t request);

    // False if this process has no KV events (they are off, or it only orchestrates). Replaces `events`.
    bool kv_events(std::chrono::milliseconds timeout, KvEvents& events);
    // Appends the steps since the last call, as many as the executor keeps.
    void iterations(std::vector<Iteration>& out);
    void request_states(std::vector<RequestState>& out);

    [[nodiscard]] bool can_enqueue() const;
    [[nodiscard]] bool is_participant() const;
    // Idempotent.
    void shutdown();

private:
    Engine(EngineOptions const& options, std::shared_ptr<LogitsHook> hook);

    RequestContext mContext;
    bool mEvents;
    std::unique_ptr<tle::Executor> mExecutor;
    std::shared_ptr<tle::KVCacheEventManager> mEventManager;
};

// Of this build. Throws CallError if the library is of another version than the headers.
Capabilities capabilities();
void check_versions();

// The parts of poll, kv_events and the statistics that need no executor.
void flatten(std::vector<tle::Response> const& responses, Output& output);
void flatten(std::deque<tle::KVCacheEvent> const& events, KvEvents& out);
void flatten(std::deque<tle::IterationStats> const& stats, std::vector<Iteration>& out);
void flatten(std::deque<tle::RequestStatsPerIteration> const& stats, std::vector<RequestState>& out);
} // namespace cuelight::trtllm
