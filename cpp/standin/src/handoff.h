// Stand-in: prompts whose KV waits to be pulled by another executor, perhaps of another process.
#pragma once

#include "job.h"

namespace cuelight::standin
{
// A handoff is a file: there from the end of the prefill until its KV has been pulled.
class Handoffs
{
public:
    Handoffs() = default;
    ~Handoffs();
    Handoffs(Handoffs const&) = delete;
    Handoffs& operator=(Handoffs const&) = delete;

    // Keeps the blocks until the file is gone; the opaque state that leads to it.
    std::vector<char> offer(tle::IdType request, Lease&& lease);
    // Gives up blocks whose KV was pulled, or that have waited for longer than `timeout`. How many were given up.
    std::size_t reap(BlockPool& pool, std::optional<std::chrono::milliseconds> timeout);
    [[nodiscard]] bool empty() const { return mOffers.empty(); }

private:
    struct Offer
    {
        std::filesystem::path file;
        Lease lease;
        Clock::time_point since;
    };

    std::filesystem::path mFolder; // empty until the first offer
    std::vector<Offer> mOffers;
};

// What a state leads to; throws if it is not one of this stand-in's.
std::string handoffOf(std::vector<char> const& state);
// Whether the KV can be pulled: it is there, and so is the process that keeps it.
bool handoffAlive(std::string const& handoff);
// It has been pulled.
void handoffDone(std::string const& handoff);
} // namespace cuelight::standin
