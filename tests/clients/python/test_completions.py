"""Text completions: kinds of prompts, echo, log probabilities, what is refused."""

import httpx
import openai
import pytest

from cuelight_server import MODEL, golden

PROMPT = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
PARIS = "The capital of France is Paris."


def texts(answer):
    return [choice.text for choice in answer.choices]


@pytest.fixture
def complete(client):
    return lambda prompt, **options: client.completions.create(model=MODEL, prompt=prompt, **options)


def test_prompts_are_strings_or_ids_one_or_many(complete):
    ids = golden()[0]["prompt_ids"]
    assert texts(complete(PROMPT, max_tokens=20)) == [PARIS]
    assert texts(complete(ids, max_tokens=20)) == [PARIS]
    assert texts(complete([PROMPT, PROMPT], max_tokens=20)) == [PARIS] * 2
    answer = complete([ids, golden()[2]["prompt_ids"]], max_tokens=20)
    assert texts(answer) == [PARIS, golden()[2]["greedy_text"]]
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.usage.prompt_tokens == len(ids) + len(golden()[2]["prompt_ids"])
    assert (answer.object, answer.id[:5]) == ("text_completion", "cmpl-")


def test_choices_of_many_prompts_are_grouped_by_prompt(complete):
    options = dict(max_tokens=12, temperature=1.0, seed=3)
    answer = complete(["Once upon a time", "One day"], n=2, echo=True, **options)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert all(choice.text.startswith(prompt) for choice, prompt in
               zip(answer.choices, ["Once upon a time"] * 2 + ["One day"] * 2))


def test_echo_puts_the_prompt_first(complete):
    assert texts(complete("Once upon", echo=True, max_tokens=4)) == [
        "Once upon" + complete("Once upon", max_tokens=4).choices[0].text]


def test_legacy_logprobs_have_four_lists_of_one_length(complete):
    answer = complete(PROMPT, max_tokens=5, logprobs=3)
    logprobs = answer.choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.text_offset) == 5
    assert "".join(logprobs.tokens) == answer.choices[0].text
    for token, value, top in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs):
        assert value <= 0 and abs(top[token] - value) < 1e-6


def test_streams_give_the_same_text(complete):
    assert "".join(chunk.choices[0].text for chunk in complete(PROMPT, max_tokens=20, stream=True)) == PARIS


@pytest.mark.parametrize("options, param", [
    ({"prompt": ""}, "prompt"), ({"prompt": []}, "prompt"), ({"prompt": [[]]}, "prompt"),
    ({"prompt": [999999]}, "prompt"), ({"prompt": "a", "suffix": "b"}, "suffix"),
    ({"prompt": "a", "best_of": 5}, "best_of"), ({"prompt": "a", "logprobs": 21}, "logprobs"),
])
def test_what_cannot_be_done_is_refused_by_name(client, options, param):
    with pytest.raises(openai.BadRequestError) as error:
        client.completions.create(model=MODEL, max_tokens=2, **options)
    assert param in (error.value.param or error.value.message)


def test_a_conversation_is_tokenized_as_the_chat_endpoint_does(server):
    case = golden()[0]
    answer = httpx.post(server.origin + "/tokenize", json={"model": MODEL, "messages": case["messages"]}).json()
    assert answer["tokens"] == case["prompt_ids"]
