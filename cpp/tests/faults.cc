// Tests: the executor's misbehaviour, and what the shim makes of it.
#include "harness.h"

#include <sys/wait.h>
#include <unistd.h>

using namespace tests;

namespace
{
// How a child ends in which an engine serves one request.
int endOfChild()
{
    auto const child = ::fork();
    if (child == 0)
    {
        Bench bench;
        bench.run(prompt({1, 2, 3}, 50));
        std::_Exit(0);
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    return status;
}
} // namespace

TEST(a_refused_request_is_a_response)
{
    standin({{"request_error_every", "2"}});
    Bench bench;
    EQ(bench.run(prompt({1}, 2)).fault, Fault::None);
    auto const answer = bench.run(prompt({1}, 2));
    EQ(answer.fault, Fault::Request);
    CHECK(answer.error.find("Encountered an error when fetching new request") == 0);
    EQ(bench.run(prompt(counted(3000), 2)).fault, Fault::Request);
    EQ(bench.run(prompt({1}, 2)).fault, Fault::Request);
}

TEST(a_forward_error_fails_the_whole_batch_and_the_engine_goes_on)
{
    standin({{"forward_error_at", "5"}, {"step_us", "500"}});
    Bench bench;
    auto const one = bench.enqueue(prompt({1}, 100));
    auto const two = bench.enqueue(prompt({2}, 100));
    EQ(bench.wait(one).fault, Fault::Forward);
    EQ(bench.wait(two).fault, Fault::Forward);
    CHECK(bench.answers[one].tokens.size() < 100);
    EQ(bench.run(prompt({3}, 4)).tokens.size(), 4U);
    standin({{"forward_error_from", "1"}});
    auto const failed = bench.run(prompt({3}, 4));
    EQ(failed.fault, Fault::Forward);
    CHECK(failed.tokens.empty()); // what is set while the engine idles holds for the next step
    cuelight_standin_reset();
    bench.run(prompt({3}, 4));
    std::vector<Iteration> steps;
    bench.engine->iterations(steps);
    CHECK(steps.back().kv_used <= 1); // those that failed hold no blocks
}

TEST(the_last_response_may_have_no_token)
{
    standin({{"zero_final", "1"}});
    Bench bench;
    auto const answer = bench.run(prompt({1}, 4));
    EQ(answer.tokens.size(), 4U);
    EQ(answer.lengths.back(), 0U);
    EQ(answer.finish, Finish::Length);
}

TEST(a_cancelled_request_still_ends_with_a_response)
{
    for (auto const* late : {"0", "5"})
    {
        standin({{"step_us", "500"}, {"late_cancel_steps", late}});
        Bench bench;
        auto const request = bench.enqueue(prompt({1}, 1000));
        while (bench.answers[request].tokens.empty())
        {
            bench.pump();
        }
        bench.engine->cancel(request);
        bench.engine->cancel(request);
        bench.engine->cancel(123'456);
        auto const answer = bench.wait(request);
        EQ(answer.finish, Finish::Cancelled);
        CHECK(answer.tokens.size() < 1000);
    }
}

TEST(a_request_out_of_time_ends)
{
    standin({{"step_us", "1000"}});
    Bench bench;
    auto request = prompt({1}, 1000);
    request.allotted_ms = 20;
    EQ(bench.run(request).finish, Finish::TimedOut);
    auto options = small();
    options.max_batch_size = 1;
    Bench busy(options);
    auto const first = busy.enqueue(prompt({1}, 100));
    auto const answer = busy.run(request);
    EQ(answer.finish, Finish::TimedOut);
    CHECK(answer.tokens.empty() && !busy.answers[first].final);
    busy.engine->cancel(first);
    busy.wait(first);
}

TEST(a_full_queue_is_a_value)
{
    standin({{"step_us", "3000"}});
    auto options = small();
    options.max_batch_size = 1;
    options.max_queue_size = 2;
    Bench bench(options);
    std::vector<std::uint64_t> accepted;
    Admitted refused;
    for (int i = 0; i < 50 && refused.status == Admission::Accepted; i++)
    {
        refused = bench.engine->enqueue(prompt({1}, 5));
    }
    EQ(refused.status, Admission::QueueFull);
    CHECK(refused.text.find("Maximum queue size of 2") != std::string::npos);
}

TEST(an_orchestrator_answers_a_full_queue_later)
{
    auto options = small();
    options.parallel.mode = "ORCHESTRATOR";
    Bench bench(options);
    standin({{"queue_full", "1"}});
    EQ(bench.run(prompt({1}, 5)).fault, Fault::QueueFull);
}

TEST(after_shutdown_requests_are_refused_and_nobody_waits)
{
    Bench bench;
    auto const request = bench.enqueue(prompt({1}, 20));
    std::thread stopper([&] { bench.engine->shutdown(); });
    stopper.join();
    EQ(bench.engine->enqueue(prompt({1}, 5)).status, Admission::Stopped);
    EQ(bench.wait(request).tokens.size(), 20U);
    bench.pump(10s);
    bench.engine->shutdown();
}

TEST(what_is_thrown_names_its_call_whatever_it_is)
{
    std::pair<char const*, char const*> const calls[]
        = {{"enqueue", "Executor.enqueueRequest: "}, {"await", "Executor.awaitResponses: "},
            {"cancel", "Executor.cancelRequest: "}, {"stats", "Executor.getLatestIterationStats: "},
            {"events", "KVCacheEventManager.getLatestEvents: "}, {"shutdown", "Executor.shutdown: "}};
    auto options = small();
    options.kv.event_buffer_max_size = 100;
    for (auto const* kind : {"runtime", "int", "string", "bad_alloc", "out_of_range"})
    {
        for (auto const& [call, prefix] : calls)
        {
            cuelight_standin_reset();
            Bench bench(options);
            standin({{"throw_in", call}, {"throw_kind", kind}});
            auto const text = failure(
                [&, name = std::string(call)]
                {
                    std::vector<Iteration> steps;
                    KvEvents events;
                    name == "enqueue"  ? (void) bench.engine->enqueue(prompt({1}, 1))
                    : name == "await"  ? bench.pump()
                    : name == "cancel" ? bench.engine->cancel(2)
                    : name == "stats"  ? bench.engine->iterations(steps)
                    : name == "events" ? (void) bench.engine->kv_events(0ms, events)
                                       : bench.engine->shutdown();
                });
            CHECK(text.rfind(prefix, 0) == 0);
        }
    }
    standin({{"throw_in", "open"}, {"throw_kind", "int"}});
    CHECK(failure([] { Bench bench; }).find("Executor: threw something that is not") == 0);
}

TEST(an_engine_that_cannot_be_opened_says_why)
{
    standin({{"open_error", "engine was built for another GPU"}});
    CHECK(failure([] { Bench bench; }).find("another GPU") != std::string::npos);
    cuelight_standin_reset();
    auto options = small();
    options.engine_dir = "/nonexistent/engine";
    CHECK(failure([&] { Bench bench(options); }).find("/nonexistent/engine") != std::string::npos);
}

TEST(a_wedged_engine_answers_nobody_and_holds_up_shutdown)
{
    standin({{"wedge_at", "3"}});
    Bench bench;
    auto const request = bench.enqueue(prompt({1}, 20));
    for (int i = 0; i < 20; i++)
    {
        bench.pump(2ms);
    }
    CHECK(!bench.answers[request].final);
    EQ(bench.answers[request].tokens.size(), 2U);
    std::vector<Iteration> steps;
    bench.engine->iterations(steps);
    EQ(steps.size(), 2U);
    std::atomic<bool> down{false};
    std::thread stopper(
        [&]
        {
            bench.engine->shutdown();
            down = true;
        });
    bench.pump(20ms);
    CHECK(!down);
    cuelight_standin_reset();
    stopper.join();
    EQ(bench.wait(request).tokens.size(), 20U);
}

TEST(a_process_may_end_under_an_engine)
{
    EQ(endOfChild(), 0);
    standin({{"exit_at", "4"}});
    auto status = endOfChild();
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 255);
    cuelight_standin_reset();
    standin({{"abort_at", "4"}});
    status = endOfChild();
    CHECK(WIFSIGNALED(status) || WEXITSTATUS(status) != 0); // sanitizers turn the signal into a status
}

TEST(stray_responses_are_told_as_they_are)
{
    standin({{"stray_every", "2"}});
    Bench bench;
    EQ(bench.run(prompt({1}, 6)).tokens.size(), 6U);
    EQ(bench.answers[999'999'999].fault, Fault::Other);
}

TEST(responses_may_come_before_enqueue_returns)
{
    standin({{"enqueue_us", "30000"}});
    Bench bench;
    std::atomic<bool> returned{false};
    std::thread enqueuer(
        [&]
        {
            (void) bench.engine->enqueue(prompt({1}, 3));
            returned = true;
        });
    while (bench.answers.empty())
    {
        bench.pump();
    }
    CHECK(!returned);
    enqueuer.join();
}

TEST(unknown_options_of_the_standin_are_refused)
{
    EQ(cuelight_standin_set("wedge", "1"), -1);
    EQ(cuelight_standin_set("wedge_at", "soon"), -1);
    EQ(cuelight_standin_set("wedge_at", "-1"), -1);
    CHECK(std::string(cuelight_standin_options()).find("wedge_at") != std::string::npos);
}
