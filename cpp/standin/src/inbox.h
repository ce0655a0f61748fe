// Stand-in: requests and cancellations that the executor's thread has not seen yet.
#pragma once

#include "job.h"

namespace cuelight::standin
{
class Inbox
{
public:
    // `limit` requests may wait. An orchestrator is told later that there were too many, others at once.
    Inbox(std::optional<std::int32_t> limit, bool orchestrator);

    // Ids of the requests. Throws if they are too many, or after stop.
    std::vector<tle::IdType> add(std::vector<tle::Request> const& requests, Settings const& settings);
    void cancel(tle::IdType id);
    void stop();

    // Waits for anything that is new, or for `timeout`; for ever without one.
    void wait(std::optional<std::chrono::milliseconds> timeout);
    [[nodiscard]] bool stopped() const;
    [[nodiscard]] std::size_t waiting() const;
    // The next by priority, then by arrival.
    std::shared_ptr<Job> next();
    void putBack(std::shared_ptr<Job> job);
    // Those that have waited for longer than they may.
    std::vector<std::shared_ptr<Job>> late();
    // Ids to be cancelled; they stay until `forget`.
    std::set<tle::IdType> cancelled() const;
    void forget(tle::IdType id);

private:
    struct Order
    {
        float priority;
        tle::IdType id;
        bool operator<(Order const& other) const
        {
            return priority != other.priority ? priority > other.priority : id < other.id;
        }
    };

    std::optional<std::int32_t> const mLimit;
    bool const mOrchestrator;
    mutable std::mutex mMutex;
    std::condition_variable mChanged;
    std::map<Order, std::shared_ptr<Job>> mJobs;
    std::set<tle::IdType> mCancelled;
    tle::IdType mNext = 2;
    bool mNews = false;
    bool mStopped = false;
};
} // namespace cuelight::standin
