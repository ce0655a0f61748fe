"""Servers and clients that tests share."""

import asyncio

import pytest

from cuelight_answers import slow_down
from cuelight_cluster import Cluster
from cuelight_server import MODEL, SLOW, Server, client_of


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
