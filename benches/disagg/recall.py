#!/usr/bin/env python3
"""Facts in long prompts that one rank prefills and another decodes: is each of them found again?

    target/test-venv/bin/python benches/disagg/recall.py [--runs 1000] [--transport tcp|ucx] [--seed N] [--stories 12]

A front end, two ranks that prefill and two that decode on loopback, eight clients at a time. A prompt of up to 1,900 tokens
has one fact in it, at a random place; the answer is right only if the KV of all its blocks has come to its place. Every
fetched block is compared with a checksum of the one that was prefilled. A wrong answer is asked for again of a server of one
node: with more than 12 stories (1,400 tokens) the shipped model itself does not always find the fact. Ends with 1 if an answer is wrong that one
node gets right, a block differs, or a block was not fetched.
"""

import argparse
import pathlib
import random
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.dont_write_bytecode = True
sys.path.insert(0, str(ROOT / "tests/clients"))

from cuelight_cluster import Cluster  # noqa: E402
from cuelight_recall import recall  # noqa: E402
from cuelight_server import MODEL, Server, client_of  # noqa: E402
from cuelight_split import Split  # noqa: E402

LONGEST = 1900


def main():
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("--runs", type=int, default=1000)
    args.add_argument("--transport", default="tcp", choices=["tcp", "ucx"])
    args.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    args.add_argument("--stories", type=int, default=12)
    args = args.parse_args()
    print(f"seed {args.seed}")
    with tempfile.TemporaryDirectory() as folder:
        cluster = Cluster(folder)
        try:
            nodes = Split(cluster, args.transport, prefills=2, decodes=2,
                          front={"frontend__disaggregation__min_uncached_tokens": 100})
            wrong = run(nodes, args, folder)
        finally:
            cluster.end()
    sys.exit(1 if wrong else 0)


def ask(client, message):
    """The answer, and the prompt's tokens."""
    answer = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": message}], temperature=0,
                                            max_tokens=20)
    return answer.choices[0].message.content, answer.usage.prompt_tokens


def run(nodes, args, folder):
    rng = random.Random(args.seed)
    asks = [recall(rng, rng.randint(1, args.stories)) for _ in range(args.runs)]
    began = time.monotonic()
    with client_of(nodes.front) as client, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda which: ask(client, which[0]), asks))
    seconds = time.monotonic() - began
    nodes.wait_until_idle()
    tokens = sorted(count for _, count in answers)
    missed = [(message, said) for (message, expected), (said, _) in zip(asks, answers) if said != expected]
    right, wrong = len(answers) - len(missed), 0
    if missed:
        alone = Server(folder).wait_until_ready()
        try:
            with client_of(alone) as client:
                wrong = sum(ask(client, message)[0] != said for message, said in missed)
        finally:
            alone.kill()
    bytes_pulled = sum(node.metric("cuelight_kv_pulled_bytes_total") for node in nodes.decodes)
    mismatches = sum(node.metric("cuelight_kv_checksum_mismatches_total") for node in nodes.decodes)
    fetched = {outcome: int(nodes.fetches(outcome)) for outcome in ("whole", "part", "nothing", "cancelled", "quarantine")}
    places = {place: int(nodes.places(place)) for place in ("elsewhere", "short", "cached", "full", "failing", "fallback")}
    print(f"{args.transport}: {right} of {len(answers)} right, {len(missed) - wrong} wrong as on one node, {wrong} wrong here "
          f"alone, in {seconds:.0f} s; prompts of {tokens[0]} to "
          f"{tokens[-1]} tokens, median {tokens[len(tokens) // 2]}; prefilled {places}; fetched {fetched}, "
          f"{bytes_pulled / 1e6:.0f} MB, {int(mismatches)} blocks differ")
    assert tokens[-1] <= LONGEST, "the longest prompt is longer than it should be"
    return wrong or mismatches or fetched["part"] or fetched["nothing"] or not places["elsewhere"]


if __name__ == "__main__":
    main()
