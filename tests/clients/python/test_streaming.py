"""Streams: chunks, usage, raw SSE frames, async clients."""

import asyncio
import json

import httpx
import pytest

from cuelight_server import MODEL, async_client_of

FRANCE = "What is the capital of France?"
PARIS = "The capital of France is Paris."
MESSAGES = [{"role": "user", "content": FRANCE}]


def text_of(chunks):
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


def test_a_stream_has_a_role_then_text_then_a_reason(ask):
    chunks = list(ask(FRANCE, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert text_of(chunks) == PARIS
    assert sum(1 for chunk in chunks if chunk.choices[0].delta.content) > 1
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["stop"]
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks)


def test_usage_comes_last_when_asked_for(ask):
    *chunks, last = ask(FRANCE, stream=True, stream_options={"include_usage": True})
    whole = ask(FRANCE).usage
    assert last.choices == []
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (whole.prompt_tokens, whole.completion_tokens)
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)


def test_choices_of_one_stream_are_told_apart(ask):
    options = dict(n=3, temperature=1.0, seed=5, max_tokens=24)
    whole = [choice.message.content for choice in ask("Tell me a story.", **options).choices]
    texts = ["", "", ""]
    for chunk in ask("Tell me a story.", stream=True, **options):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == whole


def test_streamed_logprobs_are_those_of_the_whole_answer(ask):
    whole = ask(FRANCE, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    rows = [row for chunk in ask(FRANCE, logprobs=True, top_logprobs=2, stream=True) for choice in chunk.choices
            if choice.logprobs for row in choice.logprobs.content]
    assert [(row.token, row.logprob) for row in rows] == [(row.token, row.logprob) for row in whole]


@pytest.mark.parametrize("seed", range(6))
def test_wild_bytes_stream_as_the_text_that_the_whole_answer_has(client, seed):
    # At this temperature bytes of broken and of long characters come in any order.
    options = dict(model=MODEL, prompt="🌍", temperature=2.0, seed=seed, max_tokens=120,
                   extra_body={"ignore_eos": True, "repetition_penalty": 3.0})
    whole = client.completions.create(**options).choices[0].text
    assert "".join(chunk.choices[0].text for chunk in client.completions.create(stream=True, **options)) == whole


def test_async_clients_stream_side_by_side(server, run_async):
    questions = {"What is 64 plus 72?": "64 + 72 = 136.", FRANCE: PARIS, "Spell the word summer.": "s-u-m-m-e-r"}

    async def one(client, question):
        stream = await client.chat.completions.create(model=MODEL, stream=True,
                                                      messages=[{"role": "user", "content": question}])
        return question, text_of([chunk async for chunk in stream])

    async def all_of_them():
        async with async_client_of(server) as client:
            return await asyncio.gather(*(one(client, question) for question in list(questions) * 20))

    answers = run_async(all_of_them())
    assert len(answers) == 60
    assert all(questions[question] == text for question, text in answers)


def test_frames_are_server_sent_events(server):
    body = {"model": MODEL, "messages": MESSAGES, "stream": True}
    with httpx.stream("POST", server.base_url + "/chat/completions", json=body, timeout=30) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].split(";")[0] == "text/event-stream"
        frames = [frame for frame in "".join(answer.iter_text()).split("\n\n") if frame]
    assert frames[-1] == "data: [DONE]"
    assert all(frame.startswith("data: ") and "\n" not in frame for frame in frames)
    assert all(json.loads(frame[6:])["object"] == "chat.completion.chunk" for frame in frames[:-1])
