// Stand-in: waiting for responses, all or by id.
#include "outbox.h"

#include <algorithm>
#include <iterator>
#include <stdexcept>

namespace cuelight::standin
{
namespace
{
constexpr std::size_t kEndedMax = 100'000;

template <class Ready>
void waitFor(std::condition_variable& changed, std::unique_lock<std::mutex>& lock,
    std::optional<std::chrono::milliseconds> const& timeout, Ready ready)
{
    if (timeout)
    {
        changed.wait_for(lock, *timeout, ready);
    }
    else
    {
        changed.wait(lock, ready);
    }
}
} // namespace

void Outbox::add(std::vector<tle::Response>&& responses)
{
    if (responses.empty())
    {
        return;
    }
    std::lock_guard const lock(mMutex);
    for (auto& response : responses)
    {
        if (response.hasError() || response.getResult().isFinal)
        {
            mEnded.insert(response.getRequestId());
            if (mEnded.size() > kEndedMax)
            {
                mEnded.erase(mEnded.begin());
            }
        }
        mReady.push_back(std::move(response));
    }
    mChanged.notify_all();
}

void Outbox::close()
{
    std::lock_guard const lock(mMutex);
    mClosed = true;
    mChanged.notify_all();
}

std::vector<tle::Response> Outbox::take(std::optional<std::chrono::milliseconds> const& timeout)
{
    std::unique_lock lock(mMutex);
    waitFor(mChanged, lock, timeout, [this] { return mClosed || !mReady.empty(); });
    return std::exchange(mReady, {});
}

std::vector<tle::Response> Outbox::take(tle::IdType id, std::optional<std::chrono::milliseconds> const& timeout)
{
    auto const mine = [id](tle::Response const& response) { return response.getRequestId() == id; };
    std::unique_lock lock(mMutex);
    waitFor(mChanged, lock, timeout,
        [&]
        { return mClosed || mEnded.count(id) > 0 || std::any_of(mReady.begin(), mReady.end(), mine); });
    std::vector<tle::Response> taken;
    auto const rest = std::stable_partition(mReady.begin(), mReady.end(), [&](auto const& r) { return !mine(r); });
    taken.assign(std::make_move_iterator(rest), std::make_move_iterator(mReady.end()));
    mReady.erase(rest, mReady.end());
    if (taken.empty() && mEnded.count(id) > 0)
    {
        taken.emplace_back(
            id, "ReqId " + std::to_string(id) + " has already been processed and was terminated.");
    }
    else if (taken.empty() && mClosed)
    {
        throw std::out_of_range("_Map_base::at");
    }
    return taken;
}

std::int32_t Outbox::ready(std::optional<tle::IdType> const& id) const
{
    std::lock_guard const lock(mMutex);
    return static_cast<std::int32_t>(std::count_if(mReady.begin(), mReady.end(),
        [&](auto const& response) { return !id || response.getRequestId() == *id; }));
}
} // namespace cuelight::standin
