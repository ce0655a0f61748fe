// Stand-in: reads options, keeps what was set, and the C interface of standin.h.
#include "settings.h"

#include <atomic>
#include <charconv>
#include <condition_variable>
#include <cstdlib>
#include <fstream>
#include <map>
#include <mutex>
#include <new>
#include <stdexcept>
#include <vector>

namespace cuelight::standin
{
namespace
{
struct Number
{
    char const* key;
    int64_t Settings::*field;
};

struct Text
{
    char const* key;
    std::string Settings::*field;
};

Number const kNumbers[] = {
    {"tokens_per_block", &Settings::tokensPerBlock},
    {"vocab", &Settings::vocab},
    {"max_seq_len", &Settings::maxSeqLen},
    {"max_input_len", &Settings::maxInputLen},
    {"blocks", &Settings::blocks},
    {"block_bytes", &Settings::blockBytes},
    {"max_batch_size", &Settings::maxBatchSize},
    {"max_num_tokens", &Settings::maxNumTokens},
    {"lora", &Settings::lora},
    {"tokens_per_step", &Settings::tokensPerStep},
    {"open_ms", &Settings::openMs},
    {"step_us", &Settings::stepUs},
    {"step_us_per_token", &Settings::stepUsPerToken},
    {"enqueue_us", &Settings::enqueueUs},
    {"transfer_ms", &Settings::transferMs},
    {"end_in_output", &Settings::endInOutput},
    {"gpu_logits", &Settings::gpuLogits},
    {"request_error_every", &Settings::requestErrorEvery},
    {"zero_final", &Settings::zeroFinal},
    {"stray_every", &Settings::strayEvery},
    {"late_cancel_steps", &Settings::lateCancelSteps},
    {"queue_full", &Settings::queueFull},
    {"forward_error_at", &Settings::forwardErrorAt},
    {"forward_error_every", &Settings::forwardErrorEvery},
    {"forward_error_from", &Settings::forwardErrorFrom},
    {"wedge_at", &Settings::wedgeAt},
    {"abort_at", &Settings::abortAt},
    {"exit_at", &Settings::exitAt},
    {"kv_gap_every", &Settings::kvGapEvery},
    {"kv_partial", &Settings::kvPartial},
    {"kv_windows", &Settings::kvWindows},
    {"transfer_stall", &Settings::transferStall},
    {"transfer_error", &Settings::transferError},
    {"small_buffer_stalls", &Settings::smallBufferStalls},
    {"reap_idle", &Settings::reapIdle},
};

Text const kTexts[] = {
    {"version", &Settings::version},
    {"open_error", &Settings::openError},
    {"throw_in", &Settings::throwIn},
    {"throw_kind", &Settings::throwKind},
};

bool apply(Settings& settings, std::string const& key, std::string const& value)
{
    for (auto const& text : kTexts)
    {
        if (key == text.key)
        {
            settings.*text.field = value;
            return true;
        }
    }
    for (auto const& number : kNumbers)
    {
        if (key != number.key)
        {
            continue;
        }
        int64_t parsed = 0;
        auto const end = value.data() + value.size();
        auto const [at, error] = std::from_chars(value.data(), end, parsed);
        if (error != std::errc() || at != end || parsed < 0)
        {
            return false;
        }
        settings.*number.field = parsed;
        return true;
    }
    return false;
}

// A wrong option in a file or in the environment must not go unnoticed.
void applyAll(Settings& settings, std::string const& text, char separator, std::string const& origin)
{
    std::size_t start = 0;
    while (start <= text.size())
    {
        auto const end = std::min(text.find(separator, start), text.size());
        auto const item = text.substr(start, end - start);
        start = end + 1;
        auto const equals = item.find('=');
        if (item.empty() || item[0] == '#')
        {
            continue;
        }
        if (equals == std::string::npos || !apply(settings, item.substr(0, equals), item.substr(equals + 1)))
        {
            throw std::runtime_error("stand-in: \"" + item + "\" in " + origin + " is no option; options are "
                + cuelight_standin_options());
        }
    }
}

struct Process
{
    std::mutex mutex;
    std::condition_variable released;
    std::map<std::string, std::string> set;
    Source source;
    uint64_t releases = 0;
    std::atomic<uint64_t> age{1};
};

// Never destroyed: threads of engines that hang may outlive main.
Process& process()
{
    static auto& instance = *new Process; // NOLINT: see above
    return instance;
}
} // namespace

Settings settingsFor(std::filesystem::path const& model)
{
    Settings settings;
    if (std::ifstream file{model / "standin.conf"})
    {
        std::string const text{std::istreambuf_iterator<char>(file), {}};
        applyAll(settings, text, '\n', (model / "standin.conf").string());
    }
    if (char const* environment = std::getenv("CUELIGHT_STANDIN"))
    {
        applyAll(settings, environment, ',', "CUELIGHT_STANDIN");
    }
    auto& here = process();
    std::lock_guard const lock(here.mutex);
    for (auto const& [key, value] : here.set)
    {
        apply(settings, key, value);
    }
    return settings;
}

uint64_t settingsAge()
{
    return process().age.load(std::memory_order_acquire);
}

void wedge()
{
    auto& here = process();
    std::unique_lock lock(here.mutex);
    auto const before = here.releases;
    here.released.wait(lock, [&] { return here.releases != before; });
}

void maybeThrow(Settings const& settings, char const* call)
{
    if (settings.throwIn != call)
    {
        return;
    }
    if (settings.throwKind == "int")
    {
        throw 42;
    }
    if (settings.throwKind == "string")
    {
        throw std::string("not an exception");
    }
    if (settings.throwKind == "bad_alloc")
    {
        throw std::bad_alloc();
    }
    if (settings.throwKind == "out_of_range")
    {
        throw std::out_of_range("_Map_base::at");
    }
    throw std::runtime_error(std::string("stand-in: thrown in ") + call + " on request");
}

Source currentSource()
{
    auto& here = process();
    std::lock_guard const lock(here.mutex);
    return here.source;
}
} // namespace cuelight::standin

using cuelight::standin::process;

extern "C" void cuelight_standin_source(
    cuelight_standin_forward forward, cuelight_standin_forget forget, void* user)
{
    auto& here = process();
    std::lock_guard const lock(here.mutex);
    here.source = {forward, forget, user};
}

extern "C" int cuelight_standin_set(char const* key, char const* value)
{
    cuelight::standin::Settings scratch;
    if (!cuelight::standin::apply(scratch, key, value))
    {
        return -1;
    }
    auto& here = process();
    std::lock_guard const lock(here.mutex);
    here.set[key] = value;
    here.age.fetch_add(1, std::memory_order_release);
    return 0;
}

extern "C" void cuelight_standin_reset(void)
{
    auto& here = process();
    std::lock_guard const lock(here.mutex);
    here.set.clear();
    here.releases++;
    here.age.fetch_add(1, std::memory_order_release);
    here.released.notify_all();
}

extern "C" char const* cuelight_standin_options(void)
{
    static std::string const all = []
    {
        std::string names;
        for (auto const& number : cuelight::standin::kNumbers)
        {
            names += (names.empty() ? "" : ",") + std::string(number.key);
        }
        for (auto const& text : cuelight::standin::kTexts)
        {
            names += "," + std::string(text.key);
        }
        return names;
    }();
    return all.c_str();
}
