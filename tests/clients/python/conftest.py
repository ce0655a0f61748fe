"""Servers and clients that tests share."""

import asyncio

import openai
import pytest

from cuelight_server import MODEL, Server

# One engine step takes this long on the `slow` server, so a stream is still running when a test interferes.
SLOW_STEP_MS = 20


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


SLOW = {"worker.engine": "sim", "worker.sim.step_us": SLOW_STEP_MS * 1000, "frontend.max_requests": 3}


@pytest.fixture
def client(server):
    with client_of(server) as client:
        yield client


@pytest.fixture
def slow_client(slow):
    slow.wait_until_idle()
    with client_of(slow) as client:
        yield client


def client_of(server, **options):
    """The official client, without retries unless the test is about them."""
    return openai.OpenAI(**{"base_url": server.base_url, "api_key": "none", "max_retries": 0, "timeout": 60, **options})


def async_client_of(server, **options):
    return openai.AsyncOpenAI(**{"base_url": server.base_url, "api_key": "none", "max_retries": 0, "timeout": 60,
                                 **options})


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
