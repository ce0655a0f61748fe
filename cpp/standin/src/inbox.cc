// Stand-in: the queue, its order and its limit.
#include "inbox.h"

#include "check.h"

namespace cuelight::standin
{
Inbox::Inbox(std::optional<std::int32_t> limit, bool orchestrator)
    : mLimit(limit)
    , mOrchestrator(orchestrator)
{
}

std::vector<tle::IdType> Inbox::add(std::vector<tle::Request> const& requests, Settings const& settings)
{
    std::vector<tle::IdType> ids;
    std::lock_guard const lock(mMutex);
    check(!mStopped, "Shutdown called");
    auto const after = static_cast<std::int64_t>(mJobs.size() + requests.size());
    bool const full = settings.queueFull != 0 || (mLimit && *mLimit > 0 && after > *mLimit);
    if (full && !mOrchestrator)
    {
        check(false, "Maximum queue size of " + std::to_string(mLimit.value_or(0))
                + " has been reached, please try again later");
    }
    for (auto const& request : requests)
    {
        auto job = std::make_shared<Job>(mNext++, request);
        auto const copies = request.getSamplingConfig().getNumReturnSequences().value_or(1);
        for (std::int32_t i = 1; i < copies; i++)
        {
            job->childIds.push_back(mNext++);
        }
        job->refused = full;
        if (auto const allotted = request.getAllottedTimeMs())
        {
            job->deadline = job->arrival + *allotted;
        }
        ids.push_back(job->id);
        mJobs.emplace(Order{request.getPriority(), job->id}, std::move(job));
    }
    mNews = true;
    mChanged.notify_all();
    return ids;
}

void Inbox::cancel(tle::IdType id)
{
    std::lock_guard const lock(mMutex);
    mCancelled.insert(id);
}

void Inbox::stop()
{
    std::lock_guard const lock(mMutex);
    mStopped = true;
    mNews = true;
    mChanged.notify_all();
}

void Inbox::wait(std::optional<std::chrono::milliseconds> timeout)
{
    std::unique_lock lock(mMutex);
    auto const ready = [this] { return mNews; }; // stop is news
    if (timeout)
    {
        mChanged.wait_for(lock, *timeout, ready);
    }
    else
    {
        mChanged.wait(lock, ready);
    }
    mNews = false;
}

bool Inbox::stopped() const
{
    std::lock_guard const lock(mMutex);
    return mStopped;
}

std::size_t Inbox::waiting() const
{
    std::lock_guard const lock(mMutex);
    return mJobs.size();
}

std::shared_ptr<Job> Inbox::next()
{
    std::lock_guard const lock(mMutex);
    if (mJobs.empty())
    {
        return nullptr;
    }
    auto job = mJobs.begin()->second;
    mJobs.erase(mJobs.begin());
    return job;
}

void Inbox::putBack(std::shared_ptr<Job> job)
{
    std::lock_guard const lock(mMutex);
    auto const order = Order{job->request.getPriority(), job->id};
    mJobs.emplace(order, std::move(job));
}

std::vector<std::shared_ptr<Job>> Inbox::late()
{
    std::vector<std::shared_ptr<Job>> late;
    auto const now = Clock::now();
    std::lock_guard const lock(mMutex);
    for (auto at = mJobs.begin(); at != mJobs.end();)
    {
        bool const over = at->second->deadline && now > *at->second->deadline;
        if (over)
        {
            late.push_back(at->second);
        }
        at = over ? mJobs.erase(at) : std::next(at);
    }
    return late;
}

std::set<tle::IdType> Inbox::cancelled() const
{
    std::lock_guard const lock(mMutex);
    return mCancelled;
}

void Inbox::forget(tle::IdType id)
{
    std::lock_guard const lock(mMutex);
    mCancelled.erase(id);
}
} // namespace cuelight::standin
