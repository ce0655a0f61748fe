"""Errors: typed exceptions, OpenAI's shape on every path, limits, retries."""

import concurrent.futures
import json

import httpx
import openai
import pytest

from cuelight_server import MODEL, SLOW, client_of

MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]


def check_shape(answer, status):
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"].split(";")[0] == "application/json"
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"] and error["type"] and error["code"]
    return error


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\"text\"", b"\xff\xfe", b"{\"model\": 1e999}", b"null",
                                  b"[" * 10_000, b"{\"a\":" * 10_000])
def test_a_malformed_body_is_a_400(server, body):
    for path in ("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"):
        check_shape(httpx.post(server.origin + path, content=body, headers={"content-type": "application/json"}), 400)


@pytest.mark.parametrize("method, path, status", [
    ("GET", "/", 404), ("POST", "/v1/nothing", 404), ("GET", "/v1/models/nothing", 404), ("GET", "/v1", 404),
    ("GET", "/v1/chat/completions", 405), ("DELETE", "/v1/models", 405), ("POST", "/health", 405),
])
def test_wrong_paths_and_methods_answer_in_openais_shape(server, method, path, status):
    answer = httpx.request(method, server.origin + path)
    check_shape(answer, status)
    if status == 405:
        assert answer.headers["allow"]


@pytest.mark.parametrize("body, param", [
    ({"messages": MESSAGES}, "model"), ({"model": MODEL}, "messages"), ({"model": MODEL, "messages": []}, "messages"),
    ({"model": MODEL, "messages": [{"role": "nobody", "content": "x"}]}, "messages[0].role"),
    ({"model": MODEL, "messages": [{"role": "user"}]}, "messages[0].content"),
    ({"model": MODEL, "messages": MESSAGES, "temperature": "hot"}, "temperature"),
    ({"model": MODEL, "messages": MESSAGES, "stream": "yes"}, "stream"),
    ({"model": MODEL, "messages": MESSAGES, "max_tokens": 1.5}, "max_tokens"),
    ({"model": 5, "messages": MESSAGES}, "model"),
])
def test_a_wrong_parameter_is_named(server, body, param):
    assert check_shape(httpx.post(server.base_url + "/chat/completions", json=body), 400)["param"] == param


def test_an_unknown_model_is_not_found(client):
    with pytest.raises(openai.NotFoundError) as error:
        client.chat.completions.create(model="nothing", messages=MESSAGES)
    assert (error.value.code, error.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nothing")


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_over_the_context_is_refused_before_any_stream(ask, stream):
    with pytest.raises(openai.BadRequestError) as error:
        ask("fox " * 5000, stream=stream)
    assert error.value.code == "context_length_exceeded"


def test_an_empty_message_is_no_fault(ask):
    assert ask("", max_tokens=4).choices[0].finish_reason in ("stop", "length")


def test_a_body_over_the_limit_is_refused(make_server):
    server = make_server({"frontend.max_body_bytes": 65536})
    body = {"model": MODEL, "messages": [{"role": "user", "content": "x" * 100_000}]}
    check_shape(httpx.post(server.base_url + "/chat/completions", json=body), 413)
    def parts():
        yield b"{\"model\": \"" + b"x" * 70_000
        yield b"\"}"
    answer = httpx.post(server.base_url + "/chat/completions", content=parts(),
                        headers={"content-type": "application/json"})
    check_shape(answer, 413)
    with client_of(server) as client:
        assert client.chat.completions.create(model=MODEL, messages=MESSAGES).choices


def test_a_body_that_is_not_json_by_its_header_is_refused(server):
    answer = httpx.post(server.base_url + "/chat/completions", content=b"a=b",
                        headers={"content-type": "application/x-www-form-urlencoded"})
    assert answer.status_code in (400, 415)
    check_shape(answer, answer.status_code)


def hold_all(client):
    """Streams that take up all places of the slow server."""
    streams = [client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True, max_tokens=100,
                                              extra_body={"ignore_eos": True})
               for _ in range(SLOW["frontend.max_requests"])]
    for stream in streams:
        next(iter(stream))
    return streams


def test_one_request_too_many_is_a_429_with_advice(slow, slow_client):
    streams = hold_all(slow_client)
    try:
        with pytest.raises(openai.RateLimitError) as error:
            slow_client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=1)
        assert int(error.value.response.headers["retry-after"]) >= 1
        assert json.loads(error.value.response.text)["error"]["code"] == "rate_limit_exceeded"
    finally:
        for stream in streams:
            stream.close()
    slow.wait_until_idle()


def test_a_client_that_retries_gets_its_answer(slow, slow_client):
    streams = hold_all(slow_client)
    with concurrent.futures.ThreadPoolExecutor(1) as pool, client_of(slow, max_retries=8) as patient:
        late = pool.submit(lambda: patient.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=2))
        for stream in streams:
            for _ in stream:
                pass
        assert late.result(timeout=60).usage.completion_tokens == 2
