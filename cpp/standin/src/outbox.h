// Stand-in: responses that nobody has taken yet, and the statistics.
#pragma once

#include "job.h"

namespace cuelight::standin
{
class Outbox
{
public:
    void add(std::vector<tle::Response>&& responses);
    // Whoever waits is answered with what there is, now and from now on.
    void close();

    std::vector<tle::Response> take(std::optional<std::chrono::milliseconds> const& timeout);
    std::vector<tle::Response> take(tle::IdType id, std::optional<std::chrono::milliseconds> const& timeout);
    [[nodiscard]] std::int32_t ready(std::optional<tle::IdType> const& id) const;

private:
    mutable std::mutex mMutex;
    std::condition_variable mChanged;
    std::vector<tle::Response> mReady;
    std::set<tle::IdType> mEnded; // the latest kEndedMax of them
    bool mClosed = false;
};

// The last so many items, taken all at once.
template <class T>
class Recent
{
public:
    explicit Recent(std::int32_t limit)
        : mLimit(limit)
    {
    }

    void add(T item)
    {
        std::lock_guard const lock(mMutex);
        if (mLimit == 0)
        {
            return;
        }
        if (mLimit > 0 && mItems.size() == static_cast<std::size_t>(mLimit))
        {
            mItems.pop_front();
        }
        mItems.push_back(std::move(item));
    }

    std::deque<T> take()
    {
        std::lock_guard const lock(mMutex);
        return std::exchange(mItems, {});
    }

    [[nodiscard]] bool wanted() const { return mLimit != 0; }

private:
    std::int32_t const mLimit;
    std::mutex mMutex;
    std::deque<T> mItems;
};
} // namespace cuelight::standin
