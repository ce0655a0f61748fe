"""Servers and clients that tests share."""

import asyncio

import pytest

from cuelight_answers import slow_down
from cuelight_cluster import Cluster
from cuelight_server import MODEL, SLOW, TRTLLM, Server, client_of


# What TensorRT-LLM's engine does in another way, or not at all.
NOT_WITH_TRTLLM = {
    "test_a_request_that_no_pool_can_hold_fails_alone": "worker.kv_blocks is not its key",
    "test_an_answer_is_the_same_whatever_happens_to_its_ranks[decode-Transfer": "it moves KV without our Transfers",
    "test_cached_tokens_are_those_that_the_first_rank_had": "it tells at a leg's end what it found",
    "test_log_probabilities_of_a_chat_are_the_same": "its random numbers do not go on after a migration",
    "test_a_worker_that_does_not_fit_is_refused_and_health_says_why": "these settings are not its",
    "test_a_worker_that_did_not_fit_is_used_when_those_it_had_to_fit_are_gone": "these settings are not its",
    "test_an_answer_that_has_begun_is_not_continued_by_a_worker_with_other_weights": "weights are not looked at",
    "test_the_two_sides_may_have_blocks_of_different_sizes": "both sides need the same blocks",
}


def pytest_collection_modifyitems(items):
    for item in items if TRTLLM else ():
        for name, why in NOT_WITH_TRTLLM.items():
            if item.name.startswith(name):
                item.add_marker(pytest.mark.skip(reason=f"TensorRT-LLM: {why}"))


@pytest.fixture
def make_server(tmp_path):
    """Starts servers with settings of the test's own; they end with the test."""
    servers = []

    def make(sets=None, env=None, ca=None):
        servers.append(Server(tmp_path, sets, env, ca))
        return servers[-1].wait_until_ready()

    yield make
    try:
        for server in servers:
            server.stop()
    finally:
        for server in servers:
            server.kill()


def shared(folder, sets):
    server = Server(folder, sets)
    try:
        yield server.wait_until_ready()
        server.stop()
    finally:
        server.kill()


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """The shipped model, as `cuelight serve` starts it."""
    yield from shared(tmp_path_factory.mktemp("server"), {})


@pytest.fixture(scope="session")
def slow(tmp_path_factory):
    """An engine that takes its time, on a node that takes three requests at once."""
    yield from shared(tmp_path_factory.mktemp("slow"), SLOW)


@pytest.fixture
def client(server):
    with client_of(server) as client:
        yield client


@pytest.fixture
def slow_client(slow):
    slow.wait_until_idle()
    with client_of(slow) as client:
        yield client


@pytest.fixture
def ask(client):
    """Sends one user message and returns the whole answer."""
    def ask(text, **options):
        return client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": text}], **options)
    return ask


@pytest.fixture
def run_async():
    """Runs a coroutine with a bound on its time."""
    def run(coroutine, within_s=60):
        return asyncio.run(asyncio.wait_for(coroutine, within_s))
    return run


@pytest.fixture
def cluster(tmp_path):
    """An empty cluster; its nodes end with the test."""
    cluster = Cluster(tmp_path)
    yield cluster
    cluster.end()


@pytest.fixture
def trio(cluster):
    """A front end and two workers whose steps take a few milliseconds."""
    front = cluster.frontend(cluster__failure_detection_ms=600)
    sets = dict(cluster__failure_detection_ms=600, supervision__restarts=100, worker__step_timeout_s=1)
    workers = [cluster.worker(f"w{i}", **sets) for i in (1, 2)]
    cluster.wait_for_ranks(front, 2)
    slow_down(*workers)
    return front, {worker.name: worker for worker in workers}
