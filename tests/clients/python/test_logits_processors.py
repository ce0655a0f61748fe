"""Logits processors, on the native engine: by request, by configuration, by environment; errors end their request only."""

import openai
import pytest

from cuelight_answers import slow_down
from cuelight_server import MODEL, client_of

HELLO = "Hello world!"
FORCED = {"name": "forced_text", "arguments": {"text": "The sky is green."}}


def complete(client, processors=None, **options):
    body = {"logits_processors": processors} if processors is not None else {}
    answer = client.completions.create(**{**dict(model=MODEL, prompt="One, two,", max_tokens=30, temperature=0), **options},
                                       extra_body=body)
    return answer.choices[0].text, answer.choices[0].finish_reason


def test_a_request_names_processors_with_arguments(server):
    with client_of(server) as client:
        plain = complete(client)
        assert complete(client, ["forced_text"]) == (HELLO, "stop")
        assert complete(client, [FORCED]) == ("The sky is green.", "stop")
        assert complete(client, []) == complete(client, [{"name": "temperature", "arguments": {"value": 4}}]) == plain
        # Logits divided by two and drawn at temperature 1 are logits drawn at temperature 2.
        for seed in range(4):
            halved = complete(client, [{"name": "temperature", "arguments": {"value": 2}}], temperature=1, seed=seed)
            assert halved == complete(client, temperature=2, seed=seed)
        chat = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "What is 2 + 2?"}],
                                              extra_body={"logits_processors": ["forced_text"]})
        assert chat.choices[0].message.content == HELLO


@pytest.mark.parametrize("processors, says", [
    (["nobody"], "nobody: it is not known; there are forced_text, temperature"),
    ([{"name": "temperature", "arguments": {"value": -1}}], "value = -1: must be a number above 0"),
    ([{"name": "temperature"}], "it needs `value`"),
    ([{"name": "temperature", "arguments": {"value": 1e-39}}], "must be a number above 0"),
    (["x" * 100_000], "names and arguments must have at most 8192 bytes"),
    ("forced_text", "logits_processors = \"forced_text\": must be an array"),
    ([{"name": "forced_text", "with": 1}], "logits_processors[0].with"),])
def test_what_is_wrong_about_a_processor_ends_its_request_alone(server, processors, says):
    with client_of(server, max_retries=0) as client:
        with pytest.raises(openai.APIError) as error:
            complete(client, processors)
        assert error.value.status_code == 400 and says in str(error.value)
        assert complete(client, ["forced_text"]) == (HELLO, "stop")
    server.wait_until_idle()


def test_a_processor_that_leaves_no_token_ends_its_request_alone(server):
    with client_of(server, max_retries=0) as client:
        with pytest.raises(openai.APIError) as error:  # its text is over, and it may not end
            client.completions.create(model=MODEL, prompt="One, two,", max_tokens=40, temperature=0,
                                      extra_body={"logits_processors": [FORCED], "min_tokens": 30})
        assert error.value.status_code == 400 and "logits processor forced_text: what it left is" in str(error.value)
        assert complete(client, ["forced_text"]) == (HELLO, "stop")
    server.wait_until_idle()


@pytest.mark.parametrize("how", ["key", "environment"])
def test_a_worker_has_processors_that_are_always_on(make_server, how):
    if how == "key":
        server = make_server({"worker.logits_processors": "['forced_text={\"text\":\"The sky is green.\"}']"})
        expected = "The sky is green."
    else:
        server, expected = make_server(env={"CUELIGHT_TEST_LOGITS_PROCESSOR": "1"}), HELLO
    with client_of(server) as client:
        assert complete(client) == (expected, "stop")


def test_a_request_goes_on_on_another_rank_as_its_processors_would_have(cluster):
    front = cluster.frontend()
    workers = {name: cluster.worker(name) for name in ("w1", "w2")}
    cluster.wait_for_ranks(front, 2)
    slow_down(*workers.values(), ms=20)
    text = "One day the red fox met the grey owl. " * 3
    with client_of(front) as client:
        def kill(count):
            if count == 5:
                next(worker for worker in workers.values() if worker.metric("cuelight_running") > 0).crash()
        stream = client.completions.create(
            model=MODEL, prompt="One, two,", max_tokens=200, temperature=0, stream=True,
            extra_body={"logits_processors": [{"name": "forced_text", "arguments": {"text": text}}]})
        said = ""
        for count, chunk in enumerate(stream):
            said += chunk.choices[0].text if chunk.choices else ""
            kill(count)
    assert said == text
