#!/usr/bin/env python3
"""How soon the KV blocks of a request are free on another node when its client closes its connection.

    target/test-venv/bin/python benches/cluster/disconnect.py [--rounds 200]

A front end and a worker on loopback. A client of plain sockets asks for a stream, leaves in the middle of it (by closing its
socket), and the worker's metrics are read over a kept connection until no block is in use: reading them once takes about as
long as is printed beside, and is part of each time. *decoding*: tokens come every 5 ms; *prefilling*: a prompt of 1,900 tokens
is computed in steps of 128, which take 7.6 ms each: it ends with the one that runs. Prints p50, p99 and the longest; ends with 1 if a p99 is over 20 ms.
"""

import argparse
import http.client
import json
import pathlib
import random
import socket
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.dont_write_bytecode = True
sys.path.insert(0, str(ROOT / "tests/clients"))

from cuelight_cluster import Cluster  # noqa: E402
from cuelight_server import MODEL  # noqa: E402


class Blocks:
    """The worker's blocks in use, by its metrics."""

    def __init__(self, worker):
        self.connection = http.client.HTTPConnection("127.0.0.1", worker.admin_port, timeout=10)

    def used(self):
        self.connection.request("GET", "/metrics")
        text = self.connection.getresponse().read()
        at = text.index(b"\ncuelight_kv_blocks_used{")
        return int(text[text.index(b"} ", at) + 2:text.index(b"\n", at + 1)])


def leave(front, blocks, body, tokens):
    """Seconds from the close of the socket to the last block's freedom."""
    client = socket.create_connection(("127.0.0.1", front.port))
    body = json.dumps({"model": MODEL, "stream": True, "ignore_eos": True, **body}).encode()
    client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                   b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
    seen = 0
    while seen < tokens:
        seen += client.recv(65536).count(b"data: ")
    while blocks.used() == 0:
        pass
    client.close()
    began = time.monotonic()
    while blocks.used() != 0:
        assert time.monotonic() < began + 10, "the blocks are not free after 10 s"
    return time.monotonic() - began


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rounds", type=int, default=200)
    options.add_argument("--seed", type=int, default=1)
    options = options.parse_args()
    dice = random.Random(options.seed)
    cluster = Cluster(tempfile.mkdtemp(prefix="cuelight-disconnect-"))
    late = False
    try:
        front = cluster.frontend()
        worker = cluster.worker("w1", worker__engine="sim", worker__sim__step_us=5000, worker__max_batch_tokens=128,
                                worker__sim__prefill_us_per_token=20, worker__max_running=64, worker__prefix_cache="false")
        cluster.wait_for_ranks(front, 1)
        blocks = Blocks(worker)
        began = time.monotonic()
        for _ in range(200):
            blocks.used()
        reading = (time.monotonic() - began) / 200
        phases = {"decoding": ({"prompt": "Count up:", "max_tokens": 1500}, lambda: 2 + dice.randrange(20)),
                  "prefilling": ({"prompt": [100] * 1900, "max_tokens": 10}, lambda: 0)}
        for phase, (body, tokens) in phases.items():
            times = sorted(1e3 * leave(front, blocks, body, tokens()) for _ in range(options.rounds))
            p99 = times[int(len(times) * 0.99)]
            late |= p99 > 20
            print(f"{phase}: p50 {times[len(times) // 2]:.1f}, p99 {p99:.1f}, most {times[-1]:.1f} ms, {len(times)} times; "
                  f"reading the metrics {1e3 * reading:.1f} ms")
    finally:
        cluster.end()
    sys.exit(1 if late else 0)


if __name__ == "__main__":
    main()
