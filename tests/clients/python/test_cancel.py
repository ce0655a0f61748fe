"""A client that leaves takes its work with it."""

import asyncio
import random

import openai
import pytest

from cuelight_server import MODEL, async_client_of, eventually

LONG = dict(model=MODEL, messages=[{"role": "user", "content": "Tell me 6 stories."}], max_tokens=1500,
            extra_body={"ignore_eos": True})


def cancelled(server):
    return server.metric("cuelight_cancellations_total", reason="disconnect") or 0.0


def check_gone(server, before, count):
    eventually(f"{count} cancellations are counted", lambda: cancelled(server) >= before + count)
    server.wait_until_idle()
    assert cancelled(server) == before + count


def test_closing_a_stream_cancels_its_request(slow, slow_client):
    before = cancelled(slow)
    stream = slow_client.chat.completions.create(stream=True, **LONG)
    for _ in zip(range(3), stream):
        pass
    assert slow.metric("cuelight_running") == 1.0
    assert slow.metric("cuelight_kv_blocks_used") > 0.0
    assert len(slow.actors("Request", "Sequence")) == 2
    stream.close()
    check_gone(slow, before, 1)


def test_a_client_that_gives_up_waiting_cancels_its_request(slow, slow_client):
    before = cancelled(slow)
    with pytest.raises(openai.APITimeoutError):
        slow_client.with_options(timeout=0.5).chat.completions.create(**LONG)
    check_gone(slow, before, 1)


def test_a_cancelled_task_cancels_all_choices(slow, slow_client, run_async):
    before = cancelled(slow)

    async def leave():
        async with async_client_of(slow) as client:
            async def read():
                async for _ in await client.chat.completions.create(stream=True, n=3, **LONG):
                    pass
            task = asyncio.create_task(read())
            while not await asyncio.to_thread(lambda: slow.metric("cuelight_running") == 3.0):
                assert not task.done(), task.exception()
                await asyncio.sleep(0.02)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    run_async(leave())
    check_gone(slow, before, 1)


def test_streams_cut_at_random_tokens_leave_nothing_behind(server, client):
    server.wait_until_idle()
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    draw, before, cut = random.Random(seed), cancelled(server), 200
    for _ in range(cut):
        stream = client.chat.completions.create(stream=True, **LONG)
        for _ in zip(range(draw.randrange(1, 30)), stream):
            pass
        stream.close()
    check_gone(server, before, cut)
    answer = client.chat.completions.create(model=MODEL,
                                            messages=[{"role": "user", "content": "What is the capital of France?"}])
    assert answer.choices[0].message.content == "The capital of France is Paris."
