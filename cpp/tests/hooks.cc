// Tests: logits post-processors, token sources, configuration, capabilities, numbers.
#include "harness.h"

#include "../shim/numbers.h"

#include <cmath>
#include <mutex>

using namespace tests;

namespace
{
// Makes its processor's name decide which token is taken.
class Forcing : public LogitsHook
{
public:
    void row(LogitsRow const& row) noexcept override
    {
        std::lock_guard const lock(mutex);
        seen.emplace_back(row.processor);
        clients.push_back(row.has_client ? static_cast<std::int64_t>(row.client) : -1);
        lengths.push_back(row.tokens_len);
        row.logits[row.processor == "first" ? 10 : row.processor == "batched" ? 20 : 30] = 1000.f;
    }

    std::mutex mutex;
    std::vector<std::string> seen;
    std::vector<std::int64_t> clients;
    std::vector<std::size_t> lengths;
};

struct Counting
{
    std::size_t calls = 0;
    std::size_t known = 0;
    std::size_t forgotten = 0;
    bool fails = false;
};

int countOn(void* user, char const*, cuelight_standin_row* rows, size_t len)
{
    auto& counting = *static_cast<Counting*>(user);
    counting.calls++;
    for (size_t i = 0; i < len; i++)
    {
        counting.known += rows[i].known_len;
        auto const next = (rows[i].tokens[rows[i].tokens_len - 1] + 1) % 100;
        if (rows[i].logits != nullptr)
        {
            std::fill_n(rows[i].logits, rows[i].vocab, 0.f);
            rows[i].logits[next] = 5.f;
        }
        rows[i].token = next;
        rows[i].logprob = -0.25f * static_cast<float>(next);
    }
    return counting.fails ? 1 : 0;
}

void forget(void* user, char const*, uint64_t)
{
    static_cast<Counting*>(user)->forgotten++;
}
} // namespace

TEST(processors_change_logits_by_name_by_batch_and_by_request)
{
    for (auto const* device : {"0", "1"})
    {
        standin({{"gpu_logits", device}});
        auto options = small();
        options.processor_names = {"first", "second"};
        options.processor_batched = true;
        auto const hook = std::make_shared<Forcing>();
        Bench bench(options, hook);
        std::pair<char const*, std::int32_t> const names[] = {{"first", 10}, {"second", 30}, {"batched", 20}, {"", 30}};
        for (auto const& [name, token] : names)
        {
            auto request = prompt({1, 2}, 3);
            request.client_id = 5;
            if (*name == 0)
            {
                request.own_processor = true;
            }
            else
            {
                request.processor = name;
            }
            EQ(bench.run(request).tokens, (std::vector<std::int32_t>{token, token, token}));
        }
        EQ(hook->seen.size(), 12U);
        EQ(hook->seen.back(), "dynamic");
        EQ(hook->clients[0], 5);
        EQ(hook->lengths[2], 4U);
        auto request = prompt({1}, 1);
        request.processor = "third";
        EQ(bench.engine->enqueue(request).status, Admission::Invalid);
    }
}

TEST(processors_without_a_hook_are_refused)
{
    auto options = small();
    options.processor_names = {"first"};
    CHECK(failure([&] { Bench bench(options); }).find("hook") != std::string::npos);
    auto request = prompt({1}, 1);
    request.own_processor = true;
    EQ(Bench().engine->enqueue(request).status, Admission::Invalid);
}

TEST(tokens_come_from_the_host_program)
{
    Counting counting;
    cuelight_standin_source(countOn, forget, &counting);
    {
        Bench bench;
        auto request = prompt({5, 6, 7}, 4);
        request.return_log_probs = true;
        auto const answer = bench.run(request);
        EQ(answer.tokens, (std::vector<std::int32_t>{8, 9, 10, 11}));
        EQ(answer.log_probs.size(), 4U);
        EQ(answer.log_probs[0], -2.f);
        EQ(answer.log_probs[3], -2.75f);
        request.bias_ids = {50};
        request.bias_values = {10.f};
        EQ(bench.run(request).tokens[0], 50);
        counting.known = 0;
        bench.run(prompt({1, 2, 3}, 3));
        EQ(counting.known, 3U + 4U);
    }
    EQ(counting.forgotten, 3U);
    {
        Bench bench;
        counting.fails = true;
        EQ(bench.run(prompt({1}, 3)).fault, Fault::Forward);
    }
}

TEST(configurations_reach_the_executor_or_are_refused)
{
    auto options = small();
    options.max_beam_width = 1;
    options.context_chunking_policy = "EQUAL_PROGRESS";
    options.capacity_scheduler_policy = "STATIC_BATCH";
    options.dynamic_batch_size = true;
    options.cuda_graph_mode = true;
    options.kv.free_gpu_memory_fraction = 0.5f;
    options.kv.max_attention_window = {512};
    options.lora.max_adapter_size = 16;
    options.parallel.device_ids = {0};
    options.transceiver = {"MOONCAKE", 4096, 1000, 1000, 100};
    options.speculative.lookahead_window = 4;
    options.speculative.lookahead_ngram = 3;
    options.speculative.lookahead_verification = 4;
    options.speculative.medusa_choices = {{0, 0, 1}, {1, 2}};
    options.speculative.eagle_greedy = true;
    EQ(Bench(options).run(prompt({1}, 2)).tokens.size(), 2U);
    auto const refused = [](auto change)
    {
        auto options = small();
        change(options);
        return failure([&] { Bench bench(options); });
    };
    CHECK(refused([](auto& o) { o.capacity_scheduler_policy = "FAIR"; }).find("MAX_UTILIZATION") != std::string::npos);
    CHECK(refused([](auto& o) { o.transceiver.backend = "RDMA"; }).find("NIXL") != std::string::npos);
    CHECK(refused([](auto& o) { o.speculative.lookahead_window = 4; }).find("ngram") != std::string::npos);
    CHECK(refused([](auto& o) { o.bias_type = "int4"; }).find("int4") != std::string::npos);
    CHECK(refused([](auto& o) { o.speculative.mode = "mtp"; }).find("medusa") != std::string::npos);
}

TEST(capabilities_say_what_this_build_has)
{
    auto const can = capabilities();
    CHECK(can.standin && can.mooncake && can.cache_salt && can.prompt_ignore_length);
    EQ(can.headers, can.library);
    check_versions();
    CHECK(Bench().engine->can_enqueue() && Bench().engine->is_participant());
    EQ(Bench().engine->responses_ready(), 0);
}

TEST(half_floats_round_to_nearest_even)
{
    for (std::uint32_t bits = 0; bits < 0x10000; bits++)
    {
        auto const half = static_cast<std::uint16_t>(bits);
        bool const nan = (bits & 0x7c00U) == 0x7c00U && (bits & 0x3ffU) != 0;
        CHECK(nan ? std::isnan(fromHalf(half)) : toHalf(fromHalf(half)) == half);
        bool const bnan = (bits & 0x7f80U) == 0x7f80U && (bits & 0x7fU) != 0;
        CHECK(bnan ? std::isnan(fromBfloat16(half)) : toBfloat16(fromBfloat16(half)) == half);
    }
    EQ(fromHalf(0x3c00), 1.f);
    EQ(fromHalf(0x0001), 0x1p-24f);
    EQ(toHalf(1.f + 0x1p-11f), 0x3c00);
    EQ(toHalf(1.f + 0x1.8p-10f), 0x3c02);
    EQ(toHalf(65504.f), 0x7bff);
    EQ(toHalf(65519.f), 0x7bff);
    EQ(toHalf(65520.f), 0x7c00);
    EQ(toHalf(0x1p-25f), 0);
    EQ(toHalf(0x1.8p-25f), 1);
    EQ(toBfloat16(1.f + 0x1p-8f), 0x3f80);
    EQ(toBfloat16(1.f + 0x1.8p-7f), 0x3f82);
}
