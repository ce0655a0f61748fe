#!/usr/bin/env python3
"""How soon a client's request hears that the network to its worker is silent.

    sudo target/test-venv/bin/python benches/cluster/partition.py [--rounds 20] [--limits 200,2000]

A front end, and a worker in a network namespace of its own. While the worker streams tokens, packets in both directions
are dropped without a word (`tc … blackhole`), at a random moment; there is no other worker, and `frontend.no_rank_wait_s` and
`frontend.migration_limit` are 0, so the client's stream ends with an error as soon as its request has heard of the loss. Then
the network heals and the worker joins again. Prints least, p50 and most of the times from the first dropped packet to the error
at the client, for each `cluster.failure_detection_ms`; ends with 1 if one is over it. Needs root, what `tests/run` installs,
and `cargo build --release`.
"""

import argparse
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.dont_write_bytecode = True
sys.path.insert(0, str(ROOT / "tests/clients"))

import openai  # noqa: E402

from cuelight_cluster import SHIPPED, Cluster  # noqa: E402
from cuelight_server import BINARY, MODEL, client_of, eventually, free_port  # noqa: E402

SPACE, WIRE = f"cuelight-{os.getpid()}", f"cl{os.getpid()}"
HERE, THERE = "10.214.7.1", "10.214.7.2"


def ip(*words):
    subprocess.run(["ip", *words], check=True)


def silent(is_silent):
    """Drops all packets in both directions, or none."""
    how = ["replace", "dev"] if is_silent else ["del", "dev"]
    tail = ["root", "blackhole"] if is_silent else ["root"]
    for space, device in ((["-n", SPACE], "eth0"), ([], WIRE)):
        subprocess.run(["tc", *space, "qdisc", *how, device, *tail], check=True)


def worker(folder, limit, seed):
    sets = {"node.name": "far", "cluster.listen": f"{THERE}:7000", "cluster.cookie": "env:CUELIGHT_COOKIE",
            "cluster.seeds": f"['{seed}']", "cluster.failure_detection_ms": limit, "worker.model": SHIPPED,
            "worker.engine": "sim", "worker.sim.step_us": 5000}
    config = folder / "far.yaml"
    config.write_text("worker: {}\ncluster: {}\n")
    command = ["ip", "netns", "exec", SPACE, str(BINARY), "node", "--config", str(config)]
    for key, value in sets.items():
        command += ["--set", f"{key}={value}"]
    log = open(folder / "far.log", "ab")
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                            env={**os.environ, "CUELIGHT_COOKIE": "a cookie for tests"})


def one(front, client, dice):
    """Seconds from the first dropped packet to the error at the client."""
    eventually("the worker is linked", lambda: front.ranks_ready() == 1, 30)
    stream = client.completions.create(model=MODEL, prompt="Count up:", max_tokens=2000, stream=True,
                                       extra_body={"ignore_eos": True})
    chunks = iter(stream)
    for _ in range(3 + dice.randrange(100)):
        next(chunks)
    silent(True)
    began = time.monotonic()
    try:
        for _ in chunks:
            pass
        sys.exit("the stream ended without an error")
    except openai.APIError:
        return time.monotonic() - began
    finally:
        silent(False)


def measure(limit, rounds, dice):
    cluster = Cluster(tempfile.mkdtemp(prefix="cuelight-partition-"))
    listen = f"{HERE}:{free_port()}"
    front = cluster.frontend(frontend__no_rank_wait_s=0, frontend__migration_limit=0,
                             cluster__failure_detection_ms=limit, cluster__listen=listen)
    far = worker(cluster.folder, limit, listen)
    try:
        with client_of(front) as client:
            return sorted(1e3 * one(front, client, dice) for _ in range(rounds))
    finally:
        far.kill()
        far.wait()
        cluster.end()


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rounds", type=int, default=20)
    options.add_argument("--limits", default="200,2000", help="cluster.failure_detection_ms, in milliseconds")
    options.add_argument("--seed", type=int, default=1)
    options = options.parse_args()
    ip("netns", "add", SPACE)
    late = False
    try:
        ip("link", "add", WIRE, "type", "veth", "peer", "name", "eth0", "netns", SPACE)
        ip("addr", "add", f"{HERE}/24", "dev", WIRE)
        ip("link", "set", WIRE, "up")
        for words in (["addr", "add", f"{THERE}/24", "dev", "eth0"], ["link", "set", "eth0", "up"],
                      ["link", "set", "lo", "up"]):
            ip("-n", SPACE, *words)
        dice = random.Random(options.seed)
        for limit in map(int, options.limits.split(",")):
            times = measure(limit, options.rounds, dice)
            late |= times[-1] > limit
            print(f"failure_detection_ms {limit}: least {times[0]:.0f}, p50 {times[len(times) // 2]:.0f}, "
                  f"most {times[-1]:.0f} ms, {len(times)} times, seed {options.seed}")
    finally:
        subprocess.run(["ip", "link", "del", WIRE], check=False)
        subprocess.run(["ip", "netns", "del", SPACE], check=False)
    sys.exit(1 if late else 0)


if __name__ == "__main__":
    main()
