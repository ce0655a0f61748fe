// Stand-in: handoffs by files.
#include "handoff.h"

#include "check.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <fstream>
#include <unistd.h>

namespace cuelight::standin
{
namespace
{
std::string const kMagic = "standin-state-1 ";

std::filesystem::path makeFolder()
{
    static std::atomic<int> count{0};
    auto const name = "cuelight-standin-" + std::to_string(::getpid()) + "-" + std::to_string(count++);
    auto folder = std::filesystem::temp_directory_path() / name;
    std::filesystem::create_directories(folder);
    return folder;
}
} // namespace

Handoffs::~Handoffs()
{
    if (!mFolder.empty())
    {
        std::error_code ignored;
        std::filesystem::remove_all(mFolder, ignored);
    }
}

std::vector<char> Handoffs::offer(tle::IdType request, Lease&& lease)
{
    if (mFolder.empty())
    {
        mFolder = makeFolder();
    }
    auto const file = mFolder / std::to_string(request);
    check(std::ofstream(file).good(), "cannot create " + file.string());
    mOffers.push_back({file, std::move(lease), Clock::now()});
    auto const state = kMagic + std::to_string(::getpid()) + " " + file.string();
    return {state.begin(), state.end()};
}

std::size_t Handoffs::reap(BlockPool& pool, std::optional<std::chrono::milliseconds> timeout)
{
    auto const now = Clock::now();
    auto const over = std::stable_partition(mOffers.begin(), mOffers.end(),
        [&](auto const& offer)
        {
            bool const late = timeout && now - offer.since > *timeout;
            return std::filesystem::exists(offer.file) && !late;
        });
    auto const count = static_cast<std::size_t>(mOffers.end() - over);
    for (auto offer = over; offer != mOffers.end(); offer++)
    {
        pool.release(offer->lease);
        std::error_code ignored;
        std::filesystem::remove(offer->file, ignored);
    }
    mOffers.erase(over, mOffers.end());
    return count;
}

std::string handoffOf(std::vector<char> const& state)
{
    std::string text(state.begin(), state.end());
    check(text.rfind(kMagic, 0) == 0, "the state of the context phase is of another build");
    auto const rest = text.substr(kMagic.size());
    auto const digits = rest.find_first_not_of("0123456789");
    check(digits > 0 && digits < 10 && rest[digits] == ' ', "the state of the context phase cannot be read");
    return rest;
}

bool handoffAlive(std::string const& handoff)
{
    auto const space = handoff.find(' ');
    auto const pid = static_cast<pid_t>(std::stol(handoff.substr(0, space)));
    bool const lives = ::kill(pid, 0) == 0 || errno == EPERM;
    return lives && std::filesystem::exists(handoff.substr(space + 1));
}

void handoffDone(std::string const& handoff)
{
    std::error_code ignored;
    std::filesystem::remove(handoff.substr(handoff.find(' ') + 1), ignored);
}
} // namespace cuelight::standin
