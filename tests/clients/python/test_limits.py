"""Each limit of the configuration has a metric that shows how close it is."""

import http.client
import json
import signal
import subprocess
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

    def missed():
        assert json.loads(front.admin("/cluster/tree"))["kind"] == "Nodes"  # without it
        return front.metric("cuelight_cluster_trees_missed_total") >= 1.0
    eventually("a tree is missed", missed)
    worker.send(signal.SIGCONT)


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
def test_one_connection_too_many_is_told_so_and_has_its_place_when_another_goes(make_server, tmp_path, secure):
    sets, ca = {"frontend.max_connections": 2}, None
    if secure:
        cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                        "-keyout", key, "-out", cert, "-days", "1", "-subj", "/CN=cuelight",
                        "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
        sets |= {"frontend.tls.cert": cert, "frontend.tls.key": key}
        ca = str(cert)
    server = make_server(sets, ca=ca)

    def connect():
        return http.client.HTTPSConnection("127.0.0.1", server.port, timeout=10, context=server.tls) if secure \
            else http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)

    def ask(connection):
        connection.request("POST", "/v1/completions", body='{"model": "%s", "prompt": "x", "max_tokens": 1}' % MODEL,
                           headers={"content-type": "application/json"})
        answer = connection.getresponse()
        return answer.status, dict(answer.headers), json.loads(answer.read())

    held = []

    def hold():
        while len(held) < 2:
            connection = connect()
            if ask(connection)[0] != 200:
                return "no place yet"
            held.append(connection)
        return True
    eventually("two hold all places", hold)
    status, headers, body = ask(connect())
    assert (status, body["error"]["code"], headers["connection"]) == (429, "rate_limit_exceeded", "close")
    assert int(headers["retry-after"]) >= 1 and "frontend.max_connections" in body["error"]["message"]
    assert ask(held[0])[0] == 200, "those that are there go on"
    held.pop().close()
    eventually("the next one has a place", lambda: ask(connect())[0] == 200)


def test_a_request_that_no_pool_can_hold_fails_alone(cluster):
    front = cluster.frontend()
    worker = cluster.worker("w1", worker__kv_blocks=16)
    cluster.worker("w2", worker__kv_blocks=16)
    cluster.wait_for_ranks(front, 2)
    with client_of(front) as client:
        other = client.completions.create(model=MODEL, prompt="Count up: one,", max_tokens=100, stream=True,
                                          extra_body={"ignore_eos": True})
        next(iter(other))
        with pytest.raises(openai.BadRequestError, match="blocks"):
            client.completions.create(model=MODEL, prompt=[100] * 400, max_tokens=4)
        assert len("".join(chunk.choices[0].text for chunk in other if chunk.choices)) > 10
    for reason in ("worker_lost", "rank_lost", "sequence_lost", "pressure"):
        assert front.metric("cuelight_migrations_total", reason=reason) == 0.0
    assert worker.metric("cuelight_generation") == 1.0
