"""Sampling, limits, stop strings and log probabilities."""

import concurrent.futures

import httpx
import openai
import pytest

from cuelight_server import MODEL, client_of

FRANCE = "What is the capital of France?"
PARIS = "The capital of France is Paris."


def token_ids(server, text):
    return httpx.post(server.origin + "/tokenize", json={"model": MODEL, "prompt": text}).json()["tokens"]


@pytest.mark.parametrize("limits", [{"max_tokens": 3}, {"max_completion_tokens": 3},
                                    {"max_tokens": 50, "max_completion_tokens": 3}])
def test_the_token_limit_ends_the_answer(ask, limits):
    answer = ask(FRANCE, **limits)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 3
    assert PARIS.startswith(answer.choices[0].message.content)


@pytest.mark.parametrize("stop, text", [
    ("Paris", "The capital of France is "),
    ("l of Fr", "The capita"),  # across token borders
    (["Berlin", " is P", "Paris"], "The capital of France"),
    ([f"nothing {i}" for i in range(15)] + ["."], "The capital of France is Paris"),
    ("Rome", PARIS),
])
def test_a_stop_string_ends_the_text_before_it(ask, stop, text):
    choice = ask(FRANCE, stop=stop).choices[0]
    assert (choice.message.content, choice.finish_reason) == (text, "stop")


@pytest.mark.parametrize("stop", ["Paris", "l of Fr", " is P"])
def test_no_part_of_a_stop_string_is_streamed(ask, stop):
    chunks = list(ask(FRANCE, stop=stop, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == PARIS[:PARIS.index(stop)]


def test_the_same_seed_gives_the_same_text_whatever_else_runs(ask):
    def story(seed):
        return ask("Tell me a story.", temperature=1.0, seed=seed, max_tokens=48).choices[0].message.content
    alone = [story(seed) for seed in range(4)]
    assert len(set(alone)) == 4
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        together = list(pool.map(story, [0, 1, 2, 3] * 4))
    assert together == alone * 4


def test_greedy_is_the_default_and_repeatable(ask):
    texts = {ask("Tell me a story.", max_tokens=64).choices[0].message.content for _ in range(3)}
    assert len(texts) == 1


@pytest.mark.parametrize("options", [
    {"presence_penalty": 1.5}, {"frequency_penalty": -2.0}, {"temperature": 0.7, "top_p": 0.5},
    {"temperature": 2.0, "extra_body": {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.3}},
    {"user": "someone", "metadata": {"a": "b"}, "store": False, "parallel_tool_calls": True},
])
def test_options_are_accepted(ask, options):
    assert ask(FRANCE, max_tokens=4, **options).usage.completion_tokens >= 1


@pytest.mark.parametrize("penalty", [{"frequency_penalty": 2.0}, {"extra_body": {"repetition_penalty": 5.0}}])
def test_a_penalty_makes_repetition_rarer(ask, penalty):
    def commas(**options):
        return ask("Count from 1 to 40.", max_tokens=100, **options).choices[0].message.content.count(",")
    assert commas(**penalty) < commas() - 5


def test_logit_bias_forces_and_forbids(server, client, ask):
    token = token_ids(server, " fox")[0]
    forced = client.completions.create(model=MODEL, prompt="The", max_tokens=3, logit_bias={str(token): 100})
    assert forced.choices[0].text == " fox" * 3
    paris = token_ids(server, " Paris")[0]
    assert ask(FRANCE, logit_bias={str(paris): -100}).choices[0].message.content != PARIS


def test_bad_words_are_not_said(ask):
    assert "Paris" in ask(FRANCE).choices[0].message.content
    for words in (["Paris"], [" Paris"], ["Rome", "capital of France is Paris"]):
        answer = ask(FRANCE, extra_body={"bad_words": words}).choices[0]
        assert answer.message.content and not any(word.strip() in answer.message.content for word in words)


@pytest.mark.parametrize("body, says", [
    ({"response_format": {"type": "json_object"}}, "response_format: "),
    ({"response_format": {"type": "regex", "regex": "a+"}}, "response_format: "),
    ({"lora": "french"}, '"french"'),
])
def test_what_the_engine_cannot_do_is_refused(server, body, says):
    for stream in (False, True):
        with client_of(server, max_retries=0) as client, pytest.raises(openai.BadRequestError) as error:
            client.completions.create(model=MODEL, prompt="One", stream=stream, extra_body=body)
        assert says in str(error.value) and "worker.trtllm." in str(error.value)  # what would be needed
    server.wait_until_idle()


def test_ignore_eos_min_tokens_and_stop_token_ids(server, ask):
    answer = ask(FRANCE, max_tokens=40, extra_body={"ignore_eos": True})
    assert (answer.usage.completion_tokens, answer.choices[0].finish_reason) == (40, "length")
    assert ask(FRANCE, max_tokens=40, extra_body={"min_tokens": 20}).usage.completion_tokens >= 20
    of = token_ids(server, " of")[0]
    stopped = ask(FRANCE, extra_body={"stop_token_ids": [of]})
    assert stopped.choices[0].finish_reason == "stop"
    assert stopped.usage.completion_tokens < ask(FRANCE).usage.completion_tokens


def test_logprobs_are_those_of_the_text(ask):
    most = ask(FRANCE, logprobs=True, top_logprobs=20).choices[0].logprobs.content
    assert {len(row.top_logprobs) for row in most} == {20}
    answer = ask(FRANCE, logprobs=True, top_logprobs=5)
    rows = [row for row in answer.choices[0].logprobs.content if row.token != "<|im_end|>"]
    assert "".join(row.token for row in rows) == PARIS
    for row in rows:
        assert bytes(row.bytes).decode() == row.token
        assert len(row.top_logprobs) == 5
        values = [top.logprob for top in row.top_logprobs]
        assert values == sorted(values, reverse=True) and values[0] <= 0
        assert (row.token, row.logprob) == (row.top_logprobs[0].token, row.top_logprobs[0].logprob)
    assert ask(FRANCE, logprobs=True).choices[0].logprobs.content[0].top_logprobs == []
    assert ask(FRANCE).choices[0].logprobs is None


@pytest.mark.parametrize("options, param", [
    ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"), ({"top_logprobs": 3}, "top_logprobs"),
    ({"stop": [str(i) for i in range(17)]}, "stop"), ({"temperature": 2.5}, "temperature"),
    ({"top_p": 0}, "top_p"), ({"n": 0}, "n"), ({"max_tokens": 0}, "max_tokens"),
    ({"presence_penalty": 3}, "presence_penalty"), ({"logit_bias": {"99999": 1}}, "logit_bias"),
])
def test_what_is_out_of_range_is_refused_by_name(ask, options, param):
    with pytest.raises(openai.BadRequestError) as error:
        ask(FRANCE, **options)
    assert error.value.param.startswith(param)
