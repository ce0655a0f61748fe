// Stand-in: a request on its way, and the sequences it is made of.
#pragma once

#include "blocks.h"
#include "sampler.h"

#include <set>

namespace cuelight::standin
{
using Clock = std::chrono::steady_clock;
namespace tle = tensorrt_llm::executor;

// One request. Its sequences share it.
struct Job
{
    tle::IdType id = 0;
    std::vector<tle::IdType> childIds; // of the sequences after the first
    tle::Request request;
    Clock::time_point arrival;
    std::optional<Clock::time_point> deadline;
    Rules rules;
    std::size_t open = 0; // sequences that have not ended
    bool refused = false; // the queue was full when it came, and its client waits elsewhere

    Job(tle::IdType id, tle::Request request)
        : id(id)
        , request(std::move(request))
        , arrival(Clock::now())
    {
    }
};

enum class Stage
{
    kQueued,   // has no blocks
    kTransfer, // waits for the KV of its prompt
    kRunning,
    kDone
};

struct Sequence
{
    std::shared_ptr<Job> job;
    tle::IdType id = 0;
    std::int32_t index = 0;
    Stage stage = Stage::kQueued;
    Tokens tokens;
    std::size_t promptLen = 0;
    std::size_t maxLen = 0;
    std::size_t computed = 0; // tokens whose KV is there
    std::size_t chunk = 0;    // tokens to be computed in this step
    std::size_t told = 0;     // tokens that the source has seen
    std::size_t sent = 0;     // output tokens in responses so far
    Lease lease;
    std::vector<float> logProbs;
    float cumLogProb = 0.f;
    std::vector<float> newLogits;
    std::uint64_t hash = 0; // of the tokens, for the built-in rule
    std::size_t hashed = 0;
    tle::FinishReason finish = tle::FinishReason::kNOT_FINISHED;
    std::int32_t iterations = 0;
    std::int64_t cancelAt = -1; // step that answers its cancellation
    bool pausedNow = false;
    bool scheduledNow = false;
    std::string handoff; // where its prompt's KV comes from
    std::optional<Clock::time_point> transferEnd;
    tle::RequestPerfMetrics metrics;

    [[nodiscard]] std::size_t outputLen() const { return tokens.size() - promptLen; }
};
} // namespace cuelight::standin
