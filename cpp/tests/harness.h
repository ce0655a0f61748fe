// Tests: what they all use: a list of tests, checks that say where they failed, an engine with what it answers.
#pragma once

#include "../shim/engine.h"
#include "standin.h"

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <iostream>
#include <map>
#include <sstream>
#include <thread>

namespace tests
{
using namespace cuelight::trtllm; // NOLINT: the code under test
using namespace std::chrono_literals;

struct Test
{
    char const* name;
    void (*body)();
};

inline std::vector<Test>& all()
{
    static std::vector<Test> list;
    return list;
}

struct Add
{
    Add(char const* name, void (*body)()) { all().push_back({name, body}); }
};

#define TEST(name)                                                                                                     \
    static void name();                                                                                                \
    static tests::Add const add_##name{#name, name};                                                                   \
    static void name()

struct Failed : std::runtime_error
{
    using std::runtime_error::runtime_error;
};

template <class A, class B>
void equal(A const& left, B const& right, char const* text, int line)
{
    if (!(left == right))
    {
        std::ostringstream what;
        what << "line " << line << ": " << text << ": " << left << " and " << right;
        throw Failed(what.str());
    }
}

inline void require(bool holds, char const* text, int line)
{
    if (!holds)
    {
        throw Failed("line " + std::to_string(line) + ": " + text);
    }
}

#define EQ(a, b) tests::equal((a), (b), #a " == " #b, __LINE__)
#define CHECK(a) tests::require((a), #a, __LINE__)

// Sets options of the stand-in for one test.
inline void standin(std::initializer_list<std::pair<char const*, char const*>> options)
{
    for (auto const& [key, value] : options)
    {
        require(cuelight_standin_set(key, value) == 0, key, __LINE__);
    }
}

// What a request has been answered.
struct Answer
{
    std::vector<std::int32_t> tokens; // of sequence 0
    std::map<std::int32_t, std::vector<std::int32_t>> sequences;
    std::vector<float> log_probs;
    std::vector<std::size_t> lengths; // tokens of each response
    float cum_log_prob = 0;
    Finish finish = Finish::NotFinished;
    Fault fault = Fault::None;
    std::string error;
    Maybe<Handoff> handoff;
    Maybe<Metrics> metrics;
    std::vector<float> logits;
    bool final = false;
};

inline EngineOptions small()
{
    EngineOptions options;
    options.engine_dir = std::filesystem::temp_directory_path().string();
    options.vocab_size = 512;
    return options;
}

inline RequestOptions prompt(std::vector<std::int32_t> tokens, std::int32_t max_tokens = 8)
{
    RequestOptions options;
    options.tokens = std::move(tokens);
    options.max_tokens = max_tokens;
    return options;
}

inline std::vector<std::int32_t> counted(std::size_t length, std::int32_t first = 1)
{
    std::vector<std::int32_t> tokens(length);
    for (std::size_t i = 0; i < length; i++)
    {
        tokens[i] = (first + static_cast<std::int32_t>(i) * 7) % 500;
    }
    return tokens;
}

// An engine, polled by the test's own thread.
class Bench
{
public:
    explicit Bench(EngineOptions const& options = small(), std::shared_ptr<LogitsHook> hook = nullptr)
        : engine(Engine::open(options, std::move(hook)))
    {
    }

    std::uint64_t enqueue(RequestOptions const& options) const
    {
        auto const admitted = engine->enqueue(options);
        if (admitted.status != Admission::Accepted)
        {
            throw Failed("not accepted: " + admitted.text);
        }
        return admitted.request;
    }

    void pump(std::chrono::milliseconds timeout = 5ms)
    {
        engine->poll(timeout, output);
        for (auto const& row : output.rows)
        {
            take(row);
        }
    }

    // Until its final response; at most ten seconds.
    Answer const& wait(std::uint64_t request)
    {
        auto const until = std::chrono::steady_clock::now() + 10s;
        while (!answers[request].final)
        {
            if (std::chrono::steady_clock::now() > until)
            {
                throw Failed("no final response of request " + std::to_string(request));
            }
            pump();
        }
        return answers[request];
    }

    Answer run(RequestOptions const& options) { return wait(enqueue(options)); }

    std::unique_ptr<Engine> engine;
    Output output;
    std::map<std::uint64_t, Answer> answers;

private:
    void take(Row const& row)
    {
        auto& answer = answers[row.request];
        auto const from = output.tokens.begin() + row.tokens_at;
        auto& sequence = answer.sequences[row.sequence];
        sequence.insert(sequence.end(), from, from + row.tokens_len);
        answer.tokens = answer.sequences[0];
        auto const logs = output.log_probs.begin() + row.log_probs_at;
        answer.log_probs.insert(answer.log_probs.end(), logs, logs + row.log_probs_len);
        answer.lengths.push_back(row.tokens_len);
        answer.cum_log_prob = row.cum_log_prob;
        answer.finish = row.finish;
        answer.fault = row.fault;
        answer.error = row.error < 0 ? "" : output.errors[static_cast<std::size_t>(row.error)];
        if (row.handoff >= 0)
        {
            answer.handoff = output.handoffs[static_cast<std::size_t>(row.handoff)];
        }
        if (row.metrics >= 0)
        {
            answer.metrics = output.metrics[static_cast<std::size_t>(row.metrics)];
        }
        auto const logits = output.logits.begin() + static_cast<std::ptrdiff_t>(row.logits_at);
        answer.logits.insert(answer.logits.end(), logits, logits + row.logits_rows * output.logits_width);
        answer.final = answer.final || row.is_final;
    }
};

// The text with which `body` fails.
template <class Body>
std::string failure(Body&& body)
{
    try
    {
        body();
    }
    catch (std::exception const& error)
    {
        return error.what();
    }
    return "";
}
} // namespace tests

namespace cuelight::trtllm
{
inline std::ostream& operator<<(std::ostream& out, Finish finish)
{
    return out << "Finish " << static_cast<int>(finish);
}
inline std::ostream& operator<<(std::ostream& out, Fault fault)
{
    return out << "Fault " << static_cast<int>(fault);
}
inline std::ostream& operator<<(std::ostream& out, Admission status)
{
    return out << "Admission " << static_cast<int>(status);
}
} // namespace cuelight::trtllm

namespace std // NOLINT: so that failures show lists
{
inline ostream& operator<<(ostream& out, vector<int32_t> const& list)
{
    out << "[";
    for (auto const item : list)
    {
        out << item << " ";
    }
    return out << "]";
}
} // namespace std
