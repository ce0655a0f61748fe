// Tests: KV blocks, their events, statistics, handoffs between engines.
#include "harness.h"

#include <set>

using namespace tests;

namespace
{
EngineOptions withEvents(std::int32_t max_tokens = 1600)
{
    auto options = small();
    options.kv.event_buffer_max_size = 1000;
    options.kv.max_tokens = max_tokens;
    return options;
}

EngineOptions withTransceiver()
{
    auto options = small();
    options.transceiver.backend = "UCX";
    return options;
}

// What the events so far add up to.
struct Cache
{
    std::map<std::uint64_t, std::int32_t> levels;
    std::size_t partial = 0;
    std::vector<std::uint64_t> ids;
    std::set<std::int32_t> windows;

    void read(Engine& engine)
    {
        KvEvents events;
        CHECK(engine.kv_events(50ms, events));
        for (auto const& row : events.rows)
        {
            ids.push_back(row.id);
            windows.insert(row.window);
            for (auto i = row.blocks_at; i < row.blocks_at + row.blocks_len; i++)
            {
                if (row.kind == KvEventKind::Stored)
                {
                    auto const& block = events.blocks[i];
                    CHECK(levels.emplace(block.hash, block.level).second);
                    partial += block.tokens_len < 16 ? 1 : 0;
                    CHECK(!row.has_parent || levels.count(row.parent) == 1);
                }
                else if (row.kind == KvEventKind::Removed)
                {
                    EQ(levels.erase(events.hashes[i]), 1U);
                }
                else if (row.kind == KvEventKind::Updated)
                {
                    EQ(levels.at(events.hashes[i]), row.old_level);
                    levels[events.hashes[i]] = row.new_level;
                }
            }
        }
    }
};
} // namespace

TEST(kv_events_tell_full_blocks_and_the_partial_one)
{
    Bench bench(withEvents());
    bench.run(prompt(counted(40), 10));
    Cache cache;
    cache.read(*bench.engine);
    EQ(cache.levels.size(), 4U); // 49 tokens have been computed
    EQ(cache.partial, 1U);
    for (std::size_t i = 0; i < cache.ids.size(); i++)
    {
        EQ(cache.ids[i], i);
    }
}

TEST(evicted_blocks_are_told_and_salts_keep_apart)
{
    Bench bench(withEvents(160));
    Cache cache;
    for (std::int32_t i = 0; i < 12; i++)
    {
        bench.run(prompt(counted(60, i * 3), 4));
        cache.read(*bench.engine);
        CHECK(cache.levels.size() <= 10);
    }
    auto request = prompt(counted(60), 4);
    request.return_perf_metrics = true;
    bench.run(request);
    EQ(bench.run(request).metrics->reused_blocks, 3);
    request.cache_salt = 99;
    EQ(bench.run(request).metrics->reused_blocks, 0);
}

TEST(blocks_go_to_the_host_and_come_back)
{
    auto options = withEvents(96);
    options.kv.host_cache_size = 65536 * 20;
    standin({{"kv_partial", "0"}});
    Bench bench(options);
    Cache cache;
    auto request = prompt(counted(60), 4);
    request.return_perf_metrics = true;
    bench.run(request);
    bench.run(prompt(counted(60, 5), 4));
    bench.run(prompt(counted(60, 9), 4));
    cache.read(*bench.engine);
    auto const hosted = std::count_if(
        cache.levels.begin(), cache.levels.end(), [](auto const& block) { return block.second == 1; });
    CHECK(hosted > 0);
    EQ(bench.run(request).metrics->reused_blocks, 3);
    cache.read(*bench.engine);
}

TEST(lost_kv_events_leave_gaps)
{
    standin({{"kv_gap_every", "3"}});
    Bench bench(withEvents());
    for (std::int32_t i = 0; i < 4; i++)
    {
        bench.run(prompt(counted(40, i), 4));
    }
    KvEvents events;
    bench.engine->kv_events(50ms, events);
    std::size_t gaps = 0;
    for (std::size_t i = 1; i < events.rows.size(); i++)
    {
        gaps += events.rows[i].id != events.rows[i - 1].id + 1 ? 1 : 0;
    }
    CHECK(gaps > 0);
    auto small_buffer = withEvents();
    small_buffer.kv.event_buffer_max_size = 2;
    Bench other(small_buffer);
    other.run(prompt(counted(40), 4));
    other.run(prompt(counted(40, 2), 4));
    other.engine->kv_events(50ms, events);
    EQ(events.rows.size(), 2U);
    CHECK(events.rows[0].id > 0);
}

TEST(sliding_windows_say_everything_for_each_size)
{
    standin({{"kv_windows", "2"}});
    Bench bench(withEvents());
    bench.run(prompt(counted(40), 4));
    KvEvents events;
    bench.engine->kv_events(50ms, events);
    std::set<std::int32_t> windows;
    for (auto const& row : events.rows)
    {
        windows.insert(row.window);
    }
    EQ(windows.size(), 2U);
}

TEST(without_events_there_is_nothing_to_wait_for)
{
    KvEvents events;
    CHECK(!Bench().engine->kv_events(10s, events));
    auto options = withEvents();
    options.parallel.mode = "ORCHESTRATOR";
    CHECK(!Bench(options).engine->kv_events(10s, events));
}

TEST(statistics_count_steps_blocks_and_requests)
{
    standin({{"step_us", "300"}});
    auto options = small();
    options.request_stats_max_iterations = 1000;
    Bench bench(options);
    auto const one = bench.enqueue(prompt(counted(40), 10));
    auto const two = bench.enqueue(prompt(counted(40), 10));
    bench.wait(one);
    bench.wait(two);
    std::vector<Iteration> steps;
    std::vector<RequestState> states;
    bench.engine->iterations(steps);
    bench.engine->request_states(states);
    CHECK(steps.size() >= 10 && !states.empty());
    std::int32_t most = 0;
    std::int32_t completed = 0;
    for (std::size_t i = 0; i < steps.size(); i++)
    {
        EQ(steps[i].iter, i + 1);
        EQ(steps[i].kv_used + steps[i].kv_free, steps[i].kv_blocks);
        most = std::max(most, steps[i].active);
        completed += steps[i].completed;
    }
    CHECK(most >= 1 && completed == 2);
    steps.clear();
    bench.engine->iterations(steps);
    CHECK(steps.empty());
}

TEST(max_utilization_pauses_and_still_answers_the_same)
{
    auto const alone = Bench().run(prompt(counted(30), 40)).tokens;
    auto options = small();
    options.capacity_scheduler_policy = "MAX_UTILIZATION";
    options.kv.max_tokens = 160;
    Bench bench(options);
    std::vector<std::uint64_t> ids;
    for (int i = 0; i < 4; i++)
    {
        ids.push_back(bench.enqueue(prompt(counted(30), 40)));
    }
    for (auto const id : ids)
    {
        EQ(bench.wait(id).tokens, alone);
    }
    std::vector<Iteration> steps;
    bench.engine->iterations(steps);
    CHECK(std::any_of(steps.begin(), steps.end(), [](auto const& step) { return step.paused > 0; }));
}

TEST(a_prompt_prefilled_by_one_engine_is_decoded_by_another)
{
    auto const whole = Bench().run(prompt(counted(50), 9)).tokens;
    Bench prefill(withTransceiver());
    Bench decode(withTransceiver());
    auto request = prompt(counted(50), 9);
    request.phase = Phase::ContextOnly;
    auto const asked = prefill.enqueue(request);
    auto const first = prefill.wait(asked);
    CHECK(first.handoff && first.handoff->has_state);
    EQ(first.handoff->context_request, asked);
    EQ(first.handoff->first_tokens, std::vector<std::int32_t>(whole.begin(), whole.begin() + 1));
    request.phase = Phase::GenerationOnly;
    CHECK(decode.engine->enqueue(request).status == Admission::Invalid);
    request.handoff = first.handoff;
    request.return_perf_metrics = true;
    auto const answer = decode.run(request);
    EQ(answer.tokens, whole);
    CHECK(answer.metrics->kv_transfer_us > 0 && answer.metrics->kv_transfer_bytes > 0);
}

TEST(an_idle_prefill_engine_keeps_its_blocks_until_it_is_poked)
{
    Bench prefill(withTransceiver());
    Bench decode(withTransceiver());
    auto request = prompt(counted(50), 3);
    request.phase = Phase::ContextOnly;
    auto const offered = prefill.run(request).handoff;
    auto const used = [&]
    {
        prefill.run(prompt({1}, 1));
        std::vector<Iteration> steps;
        prefill.engine->iterations(steps);
        return steps.back().kv_used;
    };
    CHECK(used() >= 4);
    request.phase = Phase::GenerationOnly;
    request.handoff = offered;
    decode.run(request);
    CHECK(used() < 4);
}

TEST(transfers_that_never_finish_cannot_be_cancelled)
{
    standin({{"transfer_stall", "1"}});
    Bench prefill(withTransceiver());
    auto options = withTransceiver();
    Bench decode(options);
    auto request = prompt(counted(50), 3);
    request.phase = Phase::ContextOnly;
    request.handoff = prefill.run(request).handoff;
    request.phase = Phase::GenerationOnly;
    auto const stuck = decode.enqueue(request);
    decode.engine->cancel(stuck);
    for (int i = 0; i < 10; i++)
    {
        decode.pump(5ms);
    }
    CHECK(!decode.answers[stuck].final);
    EQ(decode.run(prompt({1}, 2)).tokens.size(), 2U);
    options.transceiver.transfer_timeout_ms = 30;
    Bench bounded(options);
    EQ(bounded.run(request).fault, Fault::Other);
    cuelight_standin_reset(); // it comes after all
    EQ(decode.wait(stuck).finish, Finish::Cancelled);
}

TEST(handoffs_of_other_builds_or_dead_processes_are_errors)
{
    Bench decode(withTransceiver());
    auto request = prompt(counted(50), 3);
    request.phase = Phase::GenerationOnly;
    request.handoff = Handoff{};
    request.handoff->has_state = true;
    request.handoff->state = {1, 2, 3, 4, 5, 6, 7, 8, 9};
    EQ(decode.run(request).fault, Fault::Request);
    std::string const dead = "standin-state-1 999999999 /tmp/none";
    request.handoff->state.assign(dead.begin(), dead.end());
    EQ(decode.run(request).fault, Fault::Other);
    auto whole = prompt({1}, 2);
    whole.phase = Phase::ContextOnly;
    EQ(Bench().run(whole).fault, Fault::Request);
}

TEST(a_buffer_smaller_than_the_prompt_stalls_its_transfer)
{
    auto options = withTransceiver();
    options.transceiver.max_tokens_in_buffer = 32;
    options.transceiver.transfer_timeout_ms = 60;
    Bench prefill(withTransceiver());
    Bench decode(options);
    for (std::size_t length : {20, 50})
    {
        auto request = prompt(counted(length), 3);
        request.phase = Phase::ContextOnly;
        request.handoff = prefill.run(request).handoff;
        request.phase = Phase::GenerationOnly;
        EQ(decode.run(request).fault, length <= 32 ? Fault::None : Fault::Other);
    }
}
