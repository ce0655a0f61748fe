"""Each limit of the configuration has a metric that shows how close it is."""

import json
import signal
import threading

import openai
import pytest

from cuelight_server import MODEL, client_of, eventually

TEXT = "Tell me, in one sentence that is not too long, what the capital of France is, and say please. " * 4


def test_what_requests_take_of_the_limits_is_counted(make_server):
    server = make_server()
    fuel = server.metric("cuelight_chat_template_most_fuel")
    assert fuel == 0.0, "nothing was rendered yet"
    with client_of(server) as client:
        ask = dict(model=MODEL, messages=[{"role": "user", "content": TEXT}], max_tokens=3)
        client.chat.completions.create(n=3, **ask)
        client.chat.completions.create(**ask)
    assert server.metric("cuelight_request_choices_count") == 2.0
    assert server.metric("cuelight_request_choices_sum") == 4.0
    prompt = server.metric("cuelight_request_prompt_tokens_sum") / 2
    # The three choices share the prompt as far as full blocks go, and so does the second request.
    assert prompt <= server.metric("cuelight_step_tokens_sum") < 4 * prompt + 12
    assert 0 < server.metric("cuelight_load_seconds") < 30
    assert 5 < server.metric("cuelight_tokenizer_cached_words") < 100
    assert 20 < server.metric("cuelight_chat_template_most_fuel") < server.metric(
        "cuelight_limit", key="frontend.template_fuel")
    assert server.metric("process_network_listen_overflows_total") is not None


def test_repeated_beginnings_of_prompts_take_room_of_their_cache(make_server):
    server = make_server()
    text = "The quick brown fox jumps over the lazy dog and then goes home again. " * 30
    with client_of(server) as client:
        sizes = []
        for _ in range(2):
            client.completions.create(model=MODEL, prompt=text, max_tokens=1)
            sizes.append(server.metric("cuelight_tokenizer_cached_bytes"))
    assert 0 < sizes[0] < sizes[1] < 10 * len(text), "a chunk is kept when it comes again"


def test_a_template_that_takes_too_much_shows_its_limit(make_server):
    server = make_server({"frontend.template_fuel": 1000})
    messages = [{"role": "user", "content": "hello"}] * 200
    with client_of(server) as client, pytest.raises(openai.BadRequestError, match="fuel|steps"):
        client.chat.completions.create(model=MODEL, messages=messages, max_tokens=1)
    assert server.metric("cuelight_chat_template_most_fuel") == 1000.0


def test_how_long_requests_stand_in_line_is_counted(make_server):
    server = make_server({"worker.engine": "sim", "worker.sim.step_us": 5000, "worker.max_running": 1,
                          "worker.max_waiting": 1, "frontend.router.queue": 8})
    with client_of(server) as client:
        threads = [threading.Thread(target=lambda i=i: client.completions.create(
            model=MODEL, prompt=f"{i} is the number", max_tokens=40, extra_body={"ignore_eos": True}))
            for i in range(4)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
    assert server.metric("cuelight_router_queue_seconds_count") >= 1.0
    assert server.metric("cuelight_router_queue_seconds_sum") > 0.1, "who stood in line waited for 40 steps"


def test_a_request_that_waits_for_a_rank_is_counted(cluster):
    front = cluster.frontend(frontend__no_rank_wait_s=30)
    worker = cluster.worker("w1")
    cluster.wait_for_ranks(front, 1)
    worker.inject("slow_steps", ms=10)
    with client_of(front) as client:
        stream = client.completions.create(model=MODEL, prompt="Count up: one,", max_tokens=60, stream=True,
                                           extra_body={"ignore_eos": True})
        next(iter(stream))
        assert front.metric("cuelight_requests_without_rank") == 0.0
        worker.crash()
        eventually("it waits", lambda: front.metric("cuelight_requests_without_rank") == 1.0)
        worker.restart()
        assert "".join(chunk.choices[0].text for chunk in stream if chunk.choices)
    assert front.metric("cuelight_requests_without_rank") == 0.0


def test_frames_and_trees_of_other_nodes_are_counted(cluster):
    front = cluster.frontend(cluster__failure_detection_ms=30_000, cluster__tree_timeout_ms=100)
    worker = cluster.worker("w1", cluster__failure_detection_ms=30_000)
    cluster.wait_for_ranks(front, 1)
    assert len(json.loads(front.admin("/cluster/tree"))["children"]) == 2
    assert 0 < front.metric("cuelight_cluster_largest_frame_bytes") < front.metric(
        "cuelight_limit", key="cluster.max_frame_bytes")
    assert front.metric("cuelight_cluster_trees_missed_total") == 0.0
    worker.send(signal.SIGSTOP)
    assert json.loads(front.admin("/cluster/tree"))["kind"] in ("Nodes", "NodeRoot")
    worker.send(signal.SIGCONT)
    assert front.metric("cuelight_cluster_trees_missed_total") == 1.0
