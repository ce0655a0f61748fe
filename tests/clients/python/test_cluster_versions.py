"""Nodes that speak another version of the cluster protocol are refused: loudly, and shown in `/health`."""

import json
import re
import socket
import threading

import pytest

from cuelight_server import REPOSITORY, eventually

OURS = int(re.search(r"PROTOCOL: u16 = (\d+)", (REPOSITORY / "src/actors/cluster/hello.rs").read_text())[1])
THEIRS = OURS + 7
WORDS = f"it speaks version {THEIRS} of the cluster protocol (cuelight 9.9), not {OURS}"


def frame(payload):
    return len(payload).to_bytes(4, "little") + payload


def read_frame(connection):
    def exactly(count):
        data = b""
        while len(data) < count:
            part = connection.recv(count - len(data))
            assert part, "the node closed the connection"
            data += part
        return data
    return exactly(int.from_bytes(exactly(4), "little"))


class OtherVersion:
    """A node of another version: it refuses who dials it, and can dial."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = "127.0.0.1:%d" % self.listener.getsockname()[1]
        self.greetings = []
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return  # closed
            with connection:
                self.greetings.append(read_frame(connection))
                connection.sendall(frame(bytes([1, len(WORDS)]) + WORDS.encode()))  # `Answer::Refused`

    def dial(self, address):
        """What a node says to one that speaks this version."""
        host, port = address.rsplit(":", 1)
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(frame(b"CUELIGHT" + THEIRS.to_bytes(2, "little") + b"whatever follows in that version"))
            answer = read_frame(connection)
            assert connection.recv(1) == b"", "the node went on after its refusal"
        assert answer[0] == 1, answer
        return answer[2:].decode()

    def close(self):
        if self.listener.fileno() >= 0:
            self.listener.shutdown(socket.SHUT_RDWR)  # wakes who accepts
            self.listener.close()


@pytest.fixture
def other():
    other = OtherVersion()
    yield other
    other.close()


def refused(node):
    return {found["address"]: found["reason"] for found in json.loads(node.get("/health")[2])["refused_nodes"]}


def names_both(reason):
    return f"version {THEIRS} " in reason and len(re.findall(rf"(?:node|not) {OURS}\b", reason)) == 1


def complaints(node, words, address):
    lines = [line for line in node.log_text().splitlines() if words in line and address in line]
    return [line for line in lines if " WARN " in line and f"version {THEIRS} " in line]


def test_a_node_of_another_version_is_refused_and_health_names_both_versions(cluster, other):
    cluster.seeds.append(other.address)
    front, worker = cluster.frontend(), cluster.worker("w1")
    cluster.wait_for_ranks(front, 1)  # the others form their cluster
    for node in (front, worker):
        # It was dialled, and has refused.
        eventually("health names it", lambda: other.address in refused(node))
        assert names_both(refused(node)[other.address]), refused(node)
        assert complaints(node, "cannot reach a peer", other.address), node.log_text()
        # It dials, and is refused.
        answer = other.dial(node.listen)
        assert f"version {OURS} of the cluster protocol" in answer and answer.endswith(f"not {THEIRS}"), answer
        eventually("health names its host", lambda: "127.0.0.1" in refused(node))
        assert names_both(refused(node)["127.0.0.1"]), refused(node)
        assert complaints(node, "turned a node away", "127.0.0.1"), node.log_text()
        assert node.metric("cuelight_cluster_turned_away_total", reason="protocol") == 1.0
        assert node.metric("cuelight_cluster_nodes") == 1.0 and node.get("/health")[0] == 200
    assert len(other.greetings) >= 2 and {greeting[:10] for greeting in other.greetings} == {b"CUELIGHT" + OURS.to_bytes(2, "little")}
    # It comes back in this version.
    other.close()
    cluster.worker("w2", cluster__listen=other.address)
    cluster.wait_for_ranks(front, 2)
    for node in (front, worker):
        eventually("health forgets it", lambda: refused(node) == {})
