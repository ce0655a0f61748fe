#!/usr/bin/env python3
"""A cluster on a machine without an idle moment: is a node taken for lost that lives?

    target/test-venv/bin/python benches/cluster/false_alarms.py [--minutes 10]

A front end and two workers at the default `cluster.failure_detection_ms`, beside one endless loop more than there are
cores, answer one request after the other. Prints the answers, those that were wrong, the nodes that were taken for lost and
how busy the machine was; ends with 1 if there was a false alarm. Needs what `tests/run` installs, and
`cargo build --release`.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.dont_write_bytecode = True
sys.path.insert(0, str(ROOT / "tests/clients"))

from cuelight_cluster import Cluster  # noqa: E402
from cuelight_server import client_of  # noqa: E402
from cuelight_answers import ask  # noqa: E402


def jiffies():
    """All of them, and the idle ones."""
    with open("/proc/stat") as stat:
        values = [int(value) for value in stat.readline().split()[1:]]
    return sum(values), values[3] + values[4]


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--minutes", type=float, default=10)
    options = options.parse_args()
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() + 1)]
    cluster = Cluster(tempfile.mkdtemp(prefix="cuelight-false-alarms-"))
    try:
        nodes = [cluster.frontend(), cluster.worker("w1"), cluster.worker("w2")]
        cluster.wait_for_ranks(nodes[0], 2)
        answers, wrong, before, end = 0, [], jiffies(), time.monotonic() + 60 * options.minutes
        with client_of(nodes[0]) as client:
            expected, _ = ask(client)
            while time.monotonic() < end:
                try:
                    answer, _ = ask(client)
                    answers += 1
                    if answer != expected:
                        wrong.append(str(answer))
                except Exception as error:  # each one counts
                    wrong.append(repr(error))
                time.sleep(0.3)
        after = jiffies()
        lost = sum(node.metric("cuelight_cluster_lost_total") or 0 for node in nodes)
        busy = 100 * (1 - (after[1] - before[1]) / (after[0] - before[0]))
        print(f"{answers} answers, {len(wrong)} wrong {wrong[:3]}, {lost:.0f} nodes taken for lost, {busy:.2f} % busy")
        return 1 if lost or wrong else 0
    finally:
        for loop in loops:
            loop.kill()
        cluster.end()


if __name__ == "__main__":
    sys.exit(main())
