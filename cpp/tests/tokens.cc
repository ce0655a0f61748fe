// Tests: requests and the tokens that come back.
#include "harness.h"

#include <cmath>

using namespace tests;

TEST(tokens_stream_one_by_one_until_the_limit)
{
    Bench bench;
    auto const answer = bench.run(prompt({1, 2, 3}, 5));
    EQ(answer.tokens.size(), 5U);
    EQ(answer.lengths.size(), 5U);
    EQ(answer.finish, Finish::Length);
    EQ(bench.run(prompt({1, 2, 3}, 5)).tokens, answer.tokens);
}

TEST(without_streaming_one_response_has_all)
{
    Bench bench;
    auto request = prompt({1, 2, 3}, 5);
    auto const streamed = bench.run(request).tokens;
    request.streaming = false;
    auto const answer = bench.run(request);
    EQ(answer.lengths.size(), 1U);
    EQ(answer.tokens, streamed);
    request.exclude_input = false;
    EQ(bench.run(request).tokens.size(), 8U);
}

TEST(an_output_continues_as_if_its_tokens_were_prompt)
{
    Bench bench;
    auto const whole = bench.run(prompt({9, 8, 7}, 10)).tokens;
    std::vector<std::int32_t> longer{9, 8, 7};
    longer.insert(longer.end(), whole.begin(), whole.begin() + 4);
    auto const rest = bench.run(prompt(longer, 6)).tokens;
    EQ(rest, std::vector<std::int32_t>(whole.begin() + 4, whole.end()));
}

TEST(the_end_id_is_no_token_so_the_final_response_is_empty)
{
    Bench bench;
    auto request = prompt({4, 5, 6}, 9);
    auto const free = bench.run(request).tokens;
    request.end_id = free[3];
    auto const answer = bench.run(request);
    EQ(answer.tokens, std::vector<std::int32_t>(free.begin(), free.begin() + 3));
    EQ(answer.finish, Finish::EndId);
    EQ(answer.lengths.back(), 0U);
    request.sampling.min_tokens = 6;
    CHECK(bench.run(request).tokens.size() >= 6);
}

TEST(stop_words_end_the_output_and_are_part_of_it)
{
    Bench bench;
    auto request = prompt({4, 5, 6}, 9);
    auto const free = bench.run(request).tokens;
    request.stop_words = {{500, free[2], free[3]}, {1, 2}};
    auto const answer = bench.run(request);
    EQ(answer.tokens, std::vector<std::int32_t>(free.begin(), free.begin() + 4));
    EQ(answer.finish, Finish::StopWords);
}

TEST(bad_words_and_bias_change_the_choice)
{
    Bench bench;
    auto request = prompt({4, 5, 6}, 4);
    auto const free = bench.run(request).tokens;
    request.bad_words = {{free[0]}, {1}};
    EQ(bench.run(request).tokens[0], (free[0] + 1) % 512);
    request.bias_ids = {77};
    request.bias_values = {100.f};
    EQ(bench.run(request).tokens, (std::vector<std::int32_t>{77, 77, 77, 77}));
    request.bias_ids = {512};
    auto const admitted = bench.engine->enqueue(request);
    EQ(admitted.status, Admission::Invalid);
    CHECK(admitted.text.find("512") != std::string::npos);
}

TEST(log_probs_are_those_of_the_new_tokens)
{
    for (auto const* steps : {"1", "3"})
    {
        standin({{"tokens_per_step", steps}});
        Bench bench;
        auto request = prompt({1, 2, 3}, 8);
        request.return_log_probs = true;
        auto const answer = bench.run(request);
        EQ(answer.log_probs.size(), 8U);
        float sum = 0;
        for (auto const log_prob : answer.log_probs)
        {
            CHECK(log_prob < 0 && log_prob > -1);
            sum += log_prob;
        }
        CHECK(std::abs(sum - answer.cum_log_prob) < 1e-4);
    }
}

TEST(several_tokens_come_in_one_response)
{
    auto const one = Bench().run(prompt({1, 2, 3}, 8)).tokens;
    standin({{"tokens_per_step", "3"}});
    Bench bench;
    auto const answer = bench.run(prompt({1, 2, 3}, 8));
    EQ(answer.tokens, one);
    EQ(answer.lengths.size(), 3U);
}

TEST(sampling_depends_on_seed_and_sequence_only)
{
    Bench bench;
    auto request = prompt({1, 2, 3}, 12);
    request.sampling.top_p = 0.99f;
    request.sampling.temperature = 3.f;
    request.sampling.seed = 7;
    request.sampling.num_return_sequences = 3;
    auto const first = bench.run(request);
    EQ(first.sequences.size(), 3U);
    CHECK(first.sequences.at(0) != first.sequences.at(1));
    EQ(bench.run(request).sequences.at(2), first.sequences.at(2));
    request.sampling.seed = 8;
    CHECK(bench.run(request).sequences.at(2) != first.sequences.at(2));
}

TEST(penalties_and_ngrams_keep_tokens_from_repeating)
{
    Bench bench;
    auto request = prompt({4, 5, 6}, 6);
    request.bias_ids = {77, 78};
    request.bias_values = {30.f, 29.f};
    request.sampling.no_repeat_ngram_size = 1;
    auto const answer = bench.run(request).tokens;
    EQ(std::count(answer.begin(), answer.end(), 77), 1);
    request.sampling.no_repeat_ngram_size.reset();
    request.sampling.presence_penalty = 5.f;
    EQ(bench.run(request).tokens[1], 78);
}

TEST(values_that_no_sampler_takes_are_the_requests_own_fault)
{
    Bench bench;
    auto request = prompt({1}, 1);
    request.sampling.temperature = 0.f;
    EQ(bench.engine->enqueue(request).status, Admission::Invalid);
    request.sampling.temperature.reset();
    request.sampling.top_p = 1.5f;
    EQ(bench.engine->enqueue(request).status, Admission::Invalid);
    request = prompt({}, 1);
    EQ(bench.engine->enqueue(request).status, Admission::Invalid);
    request = prompt({1}, 0);
    EQ(bench.engine->enqueue(request).status, Admission::Invalid);
    request = prompt({1}, 1);
    request.stop_words = {{1, 2}, {3}};
    EQ(bench.engine->enqueue(request).status, Admission::Invalid);
    request = prompt({1}, 1);
    request.priority = 2.f;
    EQ(bench.engine->enqueue(request).status, Admission::Invalid);
}

TEST(generation_logits_and_metrics_come_when_asked_for)
{
    auto options = small();
    options.gather_generation_logits = true;
    Bench bench(options);
    auto request = prompt(counted(40), 4);
    request.return_generation_logits = true;
    request.return_perf_metrics = true;
    auto const answer = bench.run(request);
    EQ(answer.logits.size(), 4U * 512U);
    auto const best = std::max_element(answer.logits.begin(), answer.logits.begin() + 512);
    EQ(best - answer.logits.begin(), answer.tokens[0]);
    EQ(answer.metrics->reused_blocks, 0);
    CHECK(answer.metrics->first_token_us >= answer.metrics->scheduled_us);
    EQ(bench.run(request).metrics->reused_blocks, 2);
}

TEST(a_client_id_comes_back_and_priority_orders_the_queue)
{
    standin({{"step_us", "2000"}});
    auto options = small();
    options.max_batch_size = 1;
    Bench bench(options);
    auto const running = bench.enqueue(prompt({1}, 10));
    auto low = prompt({2}, 1);
    low.priority = 0.1f;
    low.client_id = 11;
    auto high = prompt({3}, 1);
    high.priority = 0.9f;
    high.client_id = 22;
    auto const second = bench.enqueue(low);
    auto const first = bench.enqueue(high);
    bench.wait(running);
    bench.wait(first);
    CHECK(!bench.answers[second].final);
    bench.wait(second);
    EQ(bench.output.rows.back().client, 11U);
}

TEST(a_chunked_prompt_gives_the_same_tokens)
{
    auto const whole = Bench().run(prompt(counted(300), 4)).tokens;
    auto options = small();
    options.max_num_tokens = 32;
    EQ(Bench(options).run(prompt(counted(300), 4)).tokens, whole);
}

TEST(lora_weights_are_sent_once)
{
    Bench bench;
    auto request = prompt({1, 2, 3}, 2);
    request.lora_id = 5;
    EQ(bench.run(request).fault, Fault::LoraMissing);
    request.lora_weights = HostTensor{"float16", {1, 4}, std::vector<std::uint8_t>(8)};
    request.lora_config = HostTensor{"int32", {1, 3}, std::vector<std::uint8_t>(12)};
    EQ(bench.run(request).fault, Fault::None);
    request.lora_weights.reset();
    request.lora_config.reset();
    EQ(bench.run(request).fault, Fault::None);
    request.lora_weights = HostTensor{"float16", {1, 4}, std::vector<std::uint8_t>(7)};
    EQ(bench.engine->enqueue(request).status, Admission::Invalid);
}

TEST(guides_need_a_configuration_and_a_grammar_that_can_be_read)
{
    auto request = prompt({1, 2, 3}, 2);
    request.guide_kind = "JSON_SCHEMA";
    request.guide = "{}";
    EQ(Bench().run(request).fault, Fault::Request);
    auto options = small();
    options.guided.backend = "XGRAMMAR";
    CHECK(failure([&] { Bench bench(options); }).find("EncodedVocab") != std::string::npos);
    options.guided.vocabulary = {"a", "b"};
    Bench bench(options);
    EQ(bench.run(request).fault, Fault::None);
    request.guide = "no schema";
    EQ(bench.run(request).fault, Fault::Request);
    request.guide_kind = "XML";
    EQ(bench.engine->enqueue(request).status, Admission::Invalid);
}
