// Bridge: what src/engine/trtllm/ffi.rs declares, over the shim. Contracts are told in cpp/shim/engine.h.
#pragma once

#include "cpp/shim/engine.h"
#include "rust/cxx.h"

namespace cuelight::trtllm::ffi
{
struct Admitted;
struct Capabilities;
struct EngineOptions;
struct Iteration;
struct KvEvents;
struct LogitsHook;
struct Output;
struct RequestOptions;
struct RequestState;

// Its methods are const since the executor does its own locking; the buffers each belong to one taker's thread.
class Engine
{
public:
    explicit Engine(std::unique_ptr<trtllm::Engine> engine);

    Admitted enqueue(RequestOptions const& options) const;
    void poll(std::uint64_t timeout_ms, Output& out) const;
    std::int32_t responses_ready() const;
    void cancel(std::uint64_t request) const;
    bool kv_events(std::uint64_t timeout_ms, KvEvents& out) const;
    void iterations(rust::Vec<Iteration>& out) const;
    void request_states(rust::Vec<RequestState>& out) const;
    bool can_enqueue() const;
    bool is_participant() const;
    void shutdown() const;

private:
    std::unique_ptr<trtllm::Engine> const mEngine;
    mutable std::mutex mPolling;
    mutable trtllm::Output mOutput;
    mutable std::mutex mTelling;
    mutable trtllm::KvEvents mEvents;
};

Capabilities capabilities();
std::unique_ptr<Engine> open(EngineOptions const& options, rust::Box<LogitsHook> hook, bool use_hook);
} // namespace cuelight::trtllm::ffi
