"""The server around the API: keys, TLS, draining, health, metrics, the tree."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import threading
import time

import httpx
import openai
import pytest

from cuelight_server import BINARY, MODEL, REPOSITORY, SLOW, Server, client_of, eventually, free_port

MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]
PARIS = "The capital of France is Paris."


def answer_of(client):
    return client.chat.completions.create(model=MODEL, messages=MESSAGES).choices[0].message.content


@pytest.mark.parametrize("form", ["env:CUELIGHT_TEST_KEY", "sha256:"])
def test_only_a_known_key_gets_in(make_server, form):
    key = "a-key-for-this-test"
    if form == "sha256:":
        form += hashlib.sha256(key.encode()).hexdigest()
    server = make_server({"frontend.api_keys": form}, env={"CUELIGHT_TEST_KEY": key})
    with client_of(server, api_key=key) as client:
        assert answer_of(client) == PARIS
    for wrong in ("another", key + "x", key[:-1]):
        with client_of(server, api_key=wrong) as client:
            for request in (lambda: answer_of(client), lambda: client.models.list()):
                with pytest.raises(openai.AuthenticationError) as error:
                    request()
                assert error.value.code == "invalid_api_key"
    assert httpx.post(server.base_url + "/chat/completions", json={}).status_code == 401
    assert httpx.get(server.origin + "/live").status_code == 200
    assert key not in server.log_text()


def test_tls_serves_what_plain_http_does(make_server, tmp_path):
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                    "-keyout", key, "-out", cert, "-days", "2", "-subj", "/CN=localhost",
                    "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"], check=True, capture_output=True)
    server = make_server({"frontend.tls.cert": cert, "frontend.tls.key": key}, ca=str(cert))
    with client_of(server, http_client=openai.DefaultHttpxClient(verify=server.tls)) as client:
        assert answer_of(client) == PARIS
        chunks = client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == PARIS
    with pytest.raises(openai.APIConnectionError), client_of(server) as stranger:
        answer_of(stranger)  # it does not trust the certificate
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://127.0.0.1:{server.port}/health")


def test_sigterm_lets_running_requests_finish_and_refuses_new_ones(make_server):
    server = make_server(SLOW)
    with client_of(server) as client:
        stream = client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True, max_tokens=100,
                                                extra_body={"ignore_eos": True})
        chunks = [next(stream), next(stream)]
        server.terminate()
        eventually("GET /health says 503", lambda: server.get("/health")[0] == 503)
        with pytest.raises(openai.InternalServerError) as error:
            client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=1)
        assert error.value.status_code == 503
        assert int(error.value.response.headers["retry-after"]) >= 1
        assert json.loads(error.value.response.text)["error"]["code"] == "draining"
        chunks += stream
    assert chunks[-1].choices[0].finish_reason == "length"
    assert server.wait() == 0


def test_draining_ends_in_time_and_cut_streams_say_so(make_server):
    server = make_server({**SLOW, "node.drain_timeout_s": 1})
    with client_of(server) as client:
        stream = client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True, max_tokens=1500,
                                                extra_body={"ignore_eos": True})
        next(stream)
        started = time.monotonic()
        server.terminate()
        with pytest.raises(openai.APIError):
            for _ in stream:
                pass
    assert server.wait() == 0
    assert time.monotonic() - started < 8


def test_an_idle_server_ends_at_once(make_server):
    server = make_server()
    with client_of(server) as client:
        assert answer_of(client) == PARIS
        started = time.monotonic()
        server.terminate()  # the client's connection is still open, and idle
        assert server.wait() == 0
        assert time.monotonic() - started < 3


def test_health_metrics_tree_and_description_are_there(server, client):
    for path in ("/health", "/live"):
        assert server.get(path)[0] == 200
    answer_of(client)
    status, headers, text = server.get("/metrics")
    assert status == 200 and headers["content-type"].startswith(("text/plain", "application/openmetrics-text"))
    for name in ("cuelight_ttft_seconds", "cuelight_inter_token_latency_seconds", "cuelight_queue_seconds",
                 "cuelight_request_duration_seconds", "cuelight_kv_blocks_used", "cuelight_running",
                 "cuelight_waiting"):
        assert f"# TYPE {name} " in text, name
    assert server.metric("cuelight_requests_total", outcome="ok") >= 1
    for kind in ("NodeRoot", "Frontend", "Models", "Requests", "Worker", "Rank"):
        assert len(server.actors(kind)) == 1, kind
    openapi = json.loads(server.get("/openapi.json")[2])
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/live", "/metrics", "/tokenize",
                 "/detokenize"):
        assert path in openapi["paths"], path


def histogram(server, name):
    """(upper bounds with the observations up to each, sum, count) of a histogram."""
    text = server.get("/metrics")[2]
    assert f"# TYPE {name} histogram" in text
    buckets = {float(le): int(count) for le, count in re.findall(rf'^{name}_bucket{{.*?le="(.*?)".*}} (\d+)$', text, re.M)}
    return buckets, server.metric(f"{name}_sum"), server.metric(f"{name}_count")


def test_histograms_and_counters_of_tokens_say_what_clients_are_told(make_server):
    server = make_server()
    prompt = "one two three four five six seven eight nine ten " * 10
    with client_of(server) as client:
        usages = [client.completions.create(model=MODEL, prompt=prompt, max_tokens=tokens, temperature=0,
                                            extra_body={"ignore_eos": True}).usage for tokens in (3, 40, 40)]
    told = {"prompt": [usage.prompt_tokens for usage in usages],
            "output": [usage.completion_tokens for usage in usages],
            "cached": [usage.prompt_tokens_details.cached_tokens for usage in usages]}
    prompt_tokens = httpx.post(f"{server.origin}/tokenize", json={"model": MODEL, "prompt": prompt}).json()["count"]
    blocks = (prompt_tokens - 1) // 16 * 16  # whole ones, and the last token is always computed
    assert told == {"prompt": [prompt_tokens] * 3, "output": [3, 40, 40], "cached": [0, blocks, blocks]}
    assert blocks > 100
    for kind, tokens in told.items():
        eventually(f"{kind} tokens of three requests are counted",
                   lambda: histogram(server, f"cuelight_request_{kind}_tokens")[2] == 3)
        buckets, total, _ = histogram(server, f"cuelight_request_{kind}_tokens")
        assert total == sum(tokens) == server.metric(f"cuelight_{kind}_tokens_total"), kind
        assert len(buckets) > 10, kind
        assert buckets == {le: sum(count <= le for count in tokens) for le in buckets}, kind


def test_many_clients_at_once_are_all_answered(server):
    wrong = []

    def ask():
        with client_of(server) as client:
            for _ in range(5):
                text = answer_of(client)
                if text != PARIS:
                    wrong.append(text)

    threads = [threading.Thread(target=ask) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    server.wait_until_idle()


def test_a_checkpoint_that_does_not_load_in_time_ends_the_node_with_words(tmp_path):
    model = tmp_path / "cuelight-tiny"
    shutil.copytree(REPOSITORY / "models/cuelight-tiny", model)
    (model / "model.safetensors").unlink()
    os.mkfifo(model / "model.safetensors")  # a file system that does not answer
    command = [BINARY, "serve", "--model", model, "--set", f"frontend.http=127.0.0.1:{free_port()}",
               "--set", "worker.load_timeout_s=0.5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert done.returncode == 70, done
    assert "worker.load_timeout_s" in done.stderr and "0.5 s" in done.stderr


def test_faults_cannot_be_injected_unless_the_configuration_says_so(server):
    answer = httpx.post(f"{server.origin}/debug/faults", json={"fault": "step_hangs", "ms": 1})
    assert answer.status_code == 404 and answer.json()["error"]["code"] == "unknown_url", answer.text


def test_a_node_with_clients_leaves_one_hung_engine_behind_and_ends_at_the_next(tmp_path):
    sets = {"faults.enabled": "true", "worker.step_timeout_s": "0.3", "supervision.restarts": 100}
    server = Server(tmp_path, sets).wait_until_ready()

    def hang():
        fault = {"fault": "step_hangs", "ms": 3_600_000}
        assert httpx.post(f"{server.origin}/debug/faults", json=fault).status_code == 200
    hang()
    with client_of(server, max_retries=0) as client:
        assert answer_of(client) == PARIS  # migrated to the next generation
    eventually("the gauge shows it", lambda: server.metric("cuelight_hung_engines") == 1.0)
    hang()
    with client_of(server) as client, pytest.raises((openai.APIConnectionError, openai.APIStatusError)):
        answer_of(client)
    assert server.process.wait(timeout=20) == 70
    assert "giving up" in server.log_text()
