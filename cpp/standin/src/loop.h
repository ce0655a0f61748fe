// Stand-in: the executor's thread, which admits, schedules, computes and answers, one step after the other.
#pragma once

#include "handoff.h"
#include "inbox.h"
#include "outbox.h"

#include <memory>

namespace cuelight::standin
{
struct Limits
{
    std::size_t batch;  // sequences in a step
    std::size_t tokens; // tokens in a step
    std::size_t input;  // longest prompt
    std::size_t total;  // longest sequence
};

class Loop
{
public:
    Loop(std::filesystem::path const& model, tle::ExecutorConfig const& config, Inbox& inbox, Outbox& outbox,
        std::shared_ptr<EventLog> events);

    // Until the inbox is stopped and every request has ended.
    void run();

    Recent<tle::IterationStats> iterationStats;
    Recent<tle::RequestStatsPerIteration> requestStats;

private:
    using Responses = std::vector<tle::Response>;

    // loop.cc
    void idle();
    void step();
    void refresh();
    void misbehave();
    void failAll(std::string const& what);
    void sweep();
    [[nodiscard]] std::uint64_t sourceId(Sequence const& sequence) const;
    // admit.cc
    void admit();
    bool start(std::shared_ptr<Job> const& job);
    void refuse(Job const& job, std::string const& why);
    std::optional<std::string> objection(Job const& job) const;
    std::optional<std::string> objectionToParts(tle::Request const& request) const;
    std::optional<std::string> objectionToHandoff(tle::Request const& request) const;
    void makeSequences(std::shared_ptr<Job> const& job);
    [[nodiscard]] std::size_t reserved() const;
    // plan.cc
    void applyCancels();
    void applyDeadlines();
    void advanceTransfers();
    void plan();
    bool makeRoom(Sequence& sequence, std::size_t tokens);
    void pause(Sequence& sequence);
    // compute.cc
    void compute();
    void produce(std::vector<Sequence*> const& ready);
    void askSource(std::vector<Sequence*> const& ready, std::vector<std::vector<float>>& logits);
    void postProcess(std::vector<Sequence*> const& ready, std::vector<std::vector<float>>& logits);
    void append(Sequence& sequence, Chosen chosen, std::vector<float> const& logits);
    // answer.cc
    void answer(Sequence& sequence);
    void end(Sequence& sequence, tle::FinishReason reason);
    tle::Response response(Sequence& sequence, std::size_t newTokens, bool ended);
    void describeHandoff(Sequence& sequence, tle::Result& result);
    // stats.cc
    void report(Clock::time_point began);
    void reportRequests();

    std::filesystem::path const mModel;
    tle::ExecutorConfig const mConfig;
    Inbox& mInbox;
    Outbox& mOutbox;
    Settings mSettings;
    std::uint64_t mSettingsAge = 0;
    Source const mSource;
    std::uint64_t const mNumber; // of the executor, in this process
    Limits mLimits;
    BlockPool mPool;
    Handoffs mHandoffs;
    std::vector<std::unique_ptr<Sequence>> mActive; // in the order of their admission
    std::set<std::uint64_t> mAdapters;
    Responses mResponses; // of this step
    std::int64_t mIteration = 0;
    std::uint64_t mAdmitted = 0;
    bool mForwardErrorDone = false;
    bool mStuck = false; // the last step computed nothing, though there are requests
    // Of the step, for the statistics.
    double mQueueMs = 0;
    std::int32_t mNew = 0;
    std::int32_t mCompleted = 0;
    std::int32_t mContext = 0;
    std::int32_t mContextTokens = 0;
    std::int32_t mGeneration = 0;
    std::int32_t mProduced = 0;
};
} // namespace cuelight::standin
