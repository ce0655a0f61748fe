// Shim: logits post-processing by the host program.
#pragma once

#include "build.h"

#include <memory>
#include <mutex>
#include <string_view>

namespace cuelight::trtllm
{
// One beam of one sequence in one step. Valid during the call only.
struct LogitsRow
{
    std::string_view processor; // the name by which the request asked for it; "batched" or "dynamic" as well
    std::uint64_t sequence = 0; // with several return sequences, ids of children
    bool has_client = false;
    std::uint64_t client = 0;
    std::int32_t beam = 0;
    std::int32_t const* tokens = nullptr; // prompt and output so far
    std::size_t tokens_len = 0;
    float* logits = nullptr; // to be changed in place
    std::size_t logits_len = 0;
};

// What the host program does with logits. Called from the executor's thread, one call at a time, while the whole
// batch waits. It must not throw: what goes wrong is between it and the request's owner.
class LogitsHook
{
public:
    virtual ~LogitsHook() = default;
    virtual void row(LogitsRow const& row) noexcept = 0;
};

// Hands logits to a hook: in place where they are 32-bit floats in host memory, otherwise by copying them there and
// back on the executor's stream.
class LogitsBridge : public std::enable_shared_from_this<LogitsBridge>
{
public:
    explicit LogitsBridge(std::shared_ptr<LogitsHook> hook);

    // The function that the executor calls for requests that name `name`.
    tle::LogitsPostProcessor processor(std::string const& name);
    tle::LogitsPostProcessorBatched batched();

private:
    void one(std::string const& name, tle::IdType id, tle::Tensor& logits, tle::BeamTokens const& tokens,
        tle::StreamPtr const& stream, std::optional<tle::IdType> client);
    void rows(std::string const& name, tle::IdType id, float* logits, std::size_t count,
        tle::BeamTokens const& tokens, std::optional<tle::IdType> client);
    void onHost(std::string const& name, tle::IdType id, tle::Tensor& logits, tle::BeamTokens const& tokens,
        std::optional<tle::IdType> client);

    std::shared_ptr<LogitsHook> const mHook;
    std::vector<float> mScratch;
    std::vector<tle::Tensor> mInFlight; // copies on their way to the device, kept until the next step
    tle::StreamPtr mStream;
};
} // namespace cuelight::trtllm
