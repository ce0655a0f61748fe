"""A client that does not read its stream is cut off, and costs nobody else anything."""

import json
import socket
import threading

import pytest

from cuelight_server import MODEL, client_of, eventually

MESSAGES = [{"role": "user", "content": "Tell me 6 stories."}]
# A token has about 1.6 KB here: of 16 answers there is more than a kernel keeps for one connection (`tcp_wmem`).
LONG = dict(model=MODEL, messages=MESSAGES, max_tokens=1500, n=16, stream=True, logprobs=True, top_logprobs=20,
            ignore_eos=True)
BUFFER = 512 << 10
SETS = {"worker.engine": "sim", "worker.sim.step_us": 500, "frontend.stream_buffer_bytes": BUFFER,
        "worker.max_running": 64}


@pytest.fixture
def stall():
    """Asks for a long stream, takes its first bytes and then no more."""
    connections = []

    def ask(server):
        body = json.dumps(LONG).encode()
        connection = socket.socket()
        connections.append(connection)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(20)
        connection.connect(("127.0.0.1", server.port))
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        assert connection.recv(12) == b"HTTP/1.1 200"
        return connection

    yield ask
    for connection in connections:
        connection.close()


def cut_off(server):
    return server.metric("cuelight_cancellations_total", reason="slow_client") or 0.0


def rest_of(connection):
    """All that still comes until the answer or the connection ends."""
    parts = [b""]
    while not parts[-1].endswith(b"0\r\n\r\n") and (part := connection.recv(1 << 16)):
        parts.append(part)
    return b"".join(parts).decode()


def test_clients_that_never_read_are_cut_off_and_the_others_go_on(make_server, stall):
    server = make_server(SETS)
    answers = []

    def read():
        with client_of(server) as client:
            stream = client.completions.create(model=MODEL, prompt="a b", max_tokens=1500, stream=True, temperature=0,
                                               extra_body={"ignore_eos": True})
            answers.append("".join(chunk.choices[0].text for chunk in stream))

    def read_along(*others):
        reader = threading.Thread(target=read)
        reader.start()
        for other in others:
            other()
        reader.join(timeout=60)
        assert not reader.is_alive()

    def interfere():
        slow.extend(stall(server) for _ in range(2))
        eventually("both are cut off", lambda: cut_off(server) == 2.0)
        eventually("their blocks are free", lambda: len(server.actors("Request", "Sequence")) <= 2)
    slow = []
    read_along()
    read_along(interfere)
    assert len(answers) == 2 and answers[0] == answers[1]
    # What their connections have not taken is bounded, and is all that is left.
    eventually("nothing runs", lambda: server.metric("cuelight_kv_blocks_used") == 0.0)
    assert server.metric("cuelight_running") == server.metric("cuelight_requests_active") == 0.0
    assert server.metric("cuelight_stream_backlog_bytes") < 3 * BUFFER
    # Who reads on finds out; who leaves takes the rest along.
    told = rest_of(slow[0])
    last = told[told.rindex("data: "):]
    assert '"code":"client_too_slow"' in last and f"(limit {BUFFER})" in last and "[DONE]" not in told
    slow[1].close()
    server.wait_until_idle()
    assert cut_off(server) == 2.0


def test_a_connection_that_takes_nothing_any_more_is_closed(make_server, stall):
    server = make_server({**SETS, "frontend.request_timeout_s": 5})
    connections = lambda: server.metric("cuelight_http_connections")  # noqa: E731
    slow = stall(server)
    eventually("it is cut off", lambda: cut_off(server) == 1.0)
    assert connections() == 2.0, "its own and the one that asks"
    eventually("nobody has read, nobody has left, and it is closed", lambda: connections() == 1.0)
    server.wait_until_idle()
    assert "client_too_slow" not in rest_of(slow), "the end of the answer has not left the server"
