#!/usr/bin/env python3
"""What it gains to fetch KV blocks while the rest of their prompt is still being computed.

    target/test-venv/bin/python benches/disagg/overlap.py [--requests 20] [--transport tcp|ucx]

A front end, a rank that prefills in chunks of 256 tokens and one that decodes, on loopback; one client that asks for one token after a
prompt of 512 to 1,900 tokens that nobody has cached, with `frontend.disaggregation.overlap` on and off, and of a rank that does
both. TTFT as `cuelight bench` measures it.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.dont_write_bytecode = True
sys.path.insert(0, str(ROOT / "tests/clients"))

from cuelight_cluster import Cluster  # noqa: E402
from cuelight_server import BINARY  # noqa: E402
from cuelight_split import Split  # noqa: E402

WORKER = {"worker__max_batch_tokens": 256, "worker__max_running": 64, "worker__transfer__checksums": "false",
          "cluster__failure_detection_ms": 2000}


def ttft(front, tokens, requests, seed):
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        subprocess.run([str(BINARY), "bench", "--url", front.origin, "--concurrency", "1", "--requests", str(requests),
                        "--warmup", "2", "--prompt-tokens", str(tokens), "--output-tokens", "1", "--seed", str(seed),
                        "--json", out.name], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        report = json.load(open(out.name))
        assert report["requests"]["failed"] == 0
        return report["ttft_ms"]["p50"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=20)
    parser.add_argument("--transport", default="tcp", choices=["tcp", "ucx"])
    options = parser.parse_args()
    lengths, columns = (512, 1024, 1900), {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("overlap", "no overlap", "one rank"):
            cluster = Cluster(f"{folder}")
            try:
                if name == "one rank":
                    front = cluster.frontend("alone-front")
                    sets = {key: value for key, value in WORKER.items() if "transfer" not in key}
                    cluster.worker("alone", **sets)
                    cluster.wait_for_ranks(front, 1)
                else:
                    overlap = {"frontend__disaggregation__overlap": "true" if name == "overlap" else "false"}
                    front = Split(cluster, options.transport, front={**overlap, "cluster__failure_detection_ms": 2000},
                                  worker=WORKER).front
                columns[name] = [ttft(front, tokens, options.requests, seed) for seed, tokens in enumerate(lengths)]
            finally:
                cluster.end()
    print("| prompt | " + " | ".join(f"{name}: TTFT p50 ms" for name in columns) + " |\n|---:|" + "---:|" * len(columns))
    for nth, tokens in enumerate(lengths):
        print(f"| {tokens:,} | " + " | ".join(f"{column[nth]:.1f}" for column in columns.values()) + " |")


if __name__ == "__main__":
    main()
