"""An engine in a process of its own: its end is nobody's but its own, and nothing of it is left behind."""

import os
import pathlib
import signal
import threading
import time

import pytest

from cuelight_server import MODEL, client_of, eventually, golden

PROCESS = {"worker.process": "true"}
PROMPTS = ["What is the capital of France?", "Tell me about the sea.", "Count from one to ten.", "Who are you?"]


def processes():
    """Of all processes of this machine: id, parent, state, command line."""
    found = []
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            command = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue  # it has ended meanwhile
        found.append((int(folder.name), int(parent), state, command))
    return found


def children(server):
    return [(pid, state) for pid, parent, state, _ in processes() if parent == server.process.pid]


def engine_of(server):
    """The id of the node's only child, which is alive."""
    (pid, state), = children(server)
    assert state != "Z"
    return pid


def is_gone(pid):
    return not any(pid == one and state != "Z" for one, _, state, _ in processes())


def answer(client, prompt, max_tokens=1000):
    chunks = client.completions.create(model=MODEL, prompt=prompt, max_tokens=max_tokens, temperature=0, stream=True,
                                       extra_body={"ignore_eos": True})
    return "".join(chunk.choices[0].text for chunk in chunks if chunk.choices)


def test_answers_are_those_of_an_engine_in_the_node(make_server):
    server = make_server(PROCESS)
    engine_of(server)
    with client_of(server) as client:
        for case in golden():
            said = client.completions.create(model=MODEL, prompt=case["prompt_ids"], temperature=0,
                                             max_tokens=len(case["greedy_ids"])).choices[0].text
            assert said == case["greedy_text"]
    server.wait_until_idle()


@pytest.mark.parametrize("how, silence, why", [(signal.SIGKILL, 10, "ended with signal: 9 (SIGKILL)"),
                                               (signal.SIGABRT, 10, "ended with signal: 6 (SIGABRT)"),
                                               (signal.SIGSTOP, 1, "(worker.process_silence_s)")])
def test_a_process_that_is_lost_under_load_is_replaced_and_no_client_can_tell(make_server, how, silence, why):
    plain = make_server({})
    with client_of(plain) as client:
        expected = [answer(client, prompt) for prompt in PROMPTS]
    server = make_server({**PROCESS, "worker.process_silence_s": silence})
    first, said = engine_of(server), [None] * len(PROMPTS)
    with client_of(server) as client:
        def ask(which):
            said[which] = answer(client, PROMPTS[which])
        threads = [threading.Thread(target=ask, args=[which]) for which in range(len(PROMPTS))]
        for thread in threads:
            thread.start()
        eventually("tokens have come", lambda: (server.metric("cuelight_step_tokens_count") or 0) >= 20)
        os.kill(first, how)
        for thread in threads:
            thread.join(60)
    assert said == expected
    assert server.metric("cuelight_generation") == 2
    eventually("one process is left, and no zombie",
               lambda: [pid != first and state != "Z" for pid, state in children(server)] == [True])
    assert server.metric("cuelight_engine_processes") == 1
    assert server.metric("cuelight_engine_process_starts_total") == 2
    server.wait_until_idle()
    assert why in server.log_text()


def test_a_killed_node_leaves_no_process_behind(make_server):
    server = make_server(PROCESS)
    engine = engine_of(server)
    server.kill()
    eventually("the engine's process has ended", lambda: is_gone(engine))


def test_a_stopped_process_does_not_outlive_a_killed_node(make_server):
    server = make_server(PROCESS)
    engine = engine_of(server)
    os.kill(engine, signal.SIGSTOP)
    server.kill()
    eventually("the engine's process has ended", lambda: is_gone(engine))


def test_sigterm_to_all_lets_streams_finish_and_ends_the_process(make_server):
    server = make_server({**PROCESS, "worker.engine": "sim", "worker.sim.step_us": 10_000})
    engine = engine_of(server)
    with client_of(server) as client:
        stream = client.completions.create(model=MODEL, prompt="Hello", max_tokens=100, stream=True,
                                           extra_body={"ignore_eos": True})
        chunks = [next(stream)]
        os.kill(engine, signal.SIGTERM)  # as a service manager does
        server.terminate()
        chunks += stream
    assert chunks[-1].choices[0].finish_reason == "length"
    assert server.wait() == 0
    eventually("the engine's process has ended", lambda: is_gone(engine))


def test_an_idle_node_with_a_process_ends_at_once(make_server):
    server = make_server(PROCESS)
    engine, began = engine_of(server), time.monotonic()
    server.terminate()
    assert server.wait() == 0
    assert time.monotonic() - began < 3
    eventually("the engine's process has ended", lambda: is_gone(engine))
