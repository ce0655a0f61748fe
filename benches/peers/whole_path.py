#!/usr/bin/env python3
"""CPU time of the front end for each request and each streamed token, by prompt length and streams.

    benches/peers/whole_path.py [--quick] [--streams 1,64,256,1024] [--prompts 256,2000,8000]
                                [--servers NAMES] [--json FILE]

Each server is a front end process that routes by prefix (`kv`) to four simulated ranks in a process of
their own; only the front end's CPU time counts. One runs at a time, under the load of the front-end
benchmark (benches/README.md), unpaced, with 128 tokens of output. Servers: cuelight, dynamo-kv,
dynamo-round-robin, dynamo-tuned-kv, dynamo-tuned-round-robin. Dynamo 1.6.1 is what `benches/peers/dynamo.sh` has installed
(run it first); tuned is its faster tokenizer, msgpack, jemalloc and error-only logging.
Everything listens on the loopback address; what was started is ended by its process id.
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import socket
import statistics
import subprocess
import sys
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
STATE = ROOT / "target/bench/whole_path"
PYTHON = ROOT / "target/peers/dynamo/venv/bin/python"
MODEL = "cuelight-tiny"
COOKIE = "whole-path-benchmark-cookie-0123456789"
OUTPUT = 128
CONTEXT = 16384
SERVERS = ["cuelight", "dynamo-kv", "dynamo-round-robin", "dynamo-tuned-kv", "dynamo-tuned-round-robin"]


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def model_with_long_context():
    """The shipped model's directory, whose configuration allows prompts of 8,000 tokens."""
    to = STATE / "model" / MODEL
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(ROOT / "models" / MODEL, to)
    for name, key in [("config.json", "max_position_embeddings"), ("tokenizer_config.json", "model_max_length")]:
        path = to / name
        config = json.loads(path.read_text())
        config[key] = CONTEXT
        path.write_text(json.dumps(config))
    return to


class Servers:
    """A front end and its workers, until the end of a `with`."""

    def __init__(self, name, model):
        self.name, self.model, self.port, self.processes = name, model, free_port(), []

    def start(self, log, command, env=None):
        out = open(STATE / f"{self.name}-{log}.log", "wb")
        process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out, env={**os.environ, **(env or {})})
        self.processes.append(process)
        return process

    def __enter__(self):
        self.front = self.cuelight() if self.name == "cuelight" else self.dynamo()
        deadline = time.monotonic() + 120
        while not self.ready():
            if self.front.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                sys.exit(f"{self.name}: not ready; its logs are in {STATE}")
            time.sleep(0.1)
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def get(self, path):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=2) as answer:
                return answer.read().decode()
        except OSError:
            return ""

    def ready(self):
        if self.name == "cuelight":
            return '"ranks_ready":4' in self.get("/health").replace(" ", "")
        return MODEL in self.get("/v1/models")

    def cuelight(self):
        front, worker = (f"127.0.0.1:{free_port()}" for _ in range(2))
        sim = {"model": str(self.model), "engine": "sim", "dp_size": 4, "max_running": 1024, "max_waiting": 4096,
               "max_batch_tokens": 65536, "kv_blocks": 65536}
        cluster = {"cookie": "env:COOKIE", "seeds": [front]}
        files = {
            "front": {"node": {"name": "front"}, "log": {"level": "warn"}, "cluster": {**cluster, "listen": front},
                      "frontend": {"http": f"127.0.0.1:{self.port}", "models": [str(self.model)]}},
            "worker": {"node": {"name": "worker"}, "log": {"level": "warn"}, "cluster": {**cluster, "listen": worker},
                       "worker": sim},
        }
        for name, config in files.items():
            (STATE / f"{name}.yaml").write_text(json.dumps(config))
        nodes = [self.start(name, ["target/release/cuelight", "node", "--config", STATE / f"{name}.yaml"],
                            {"COOKIE": COOKIE}) for name in files]
        return nodes[0]

    def dynamo(self):
        store = STATE / "kv"
        shutil.rmtree(store, ignore_errors=True)
        store.mkdir()
        loopback = "TCP_RPC_HOST SYSTEM_HOST TCP_RESPONSE_STREAM_HOST EVENT_PLANE_HOST".split()
        env = {"HF_HUB_OFFLINE": "1", "DYN_FILE_KV": str(store), **{f"DYN_{name}": "127.0.0.1" for name in loopback}}
        mode, more, tuned = "round-robin" if self.name.endswith("round-robin") else "kv", [], {}
        if self.name.startswith("dynamo-tuned-"):
            more, tuned = ["--tokenizer", "fastokens"], {"DYN_LOG": "error", "DYN_REQUEST_PLANE_CODEC": "msgpack"}
            jemalloc = re.search(r"libjemalloc\.so\S* .*=> (\S+)", subprocess.getoutput("ldconfig -p"))
            if jemalloc is None:
                sys.exit(f"{self.name}: install Debian's libjemalloc2")
            tuned["LD_PRELOAD"] = jemalloc[1]
        common = ["--discovery-backend", "file", "--request-plane", "tcp"]
        front = self.start("front", [PYTHON, "-m", "dynamo.frontend", "--http-host", "127.0.0.1", "--http-port",
                                     str(self.port), "--router-mode", mode, *common, *more], {**env, **tuned})
        self.start("mocker", [PYTHON, "-m", "dynamo.mocker", "--model-path", self.model, "--model-name", MODEL,
                              *common, "--num-workers", "4", "--block-size", "16", "--speedup-ratio", "1000000",
                              "--max-num-seqs", "1024", "--num-gpu-blocks-override", "65536",
                              "--max-num-batched-tokens", "65536"], env)
        return front


def measure(client, server, streams, prompt, requests, repeat):
    """The rows of the front-end benchmark."""
    out = STATE / "rows.json"
    command = [client, "--servers", "none", "--target", f"{server.name}=http://127.0.0.1:{server.port}", "--pid",
               str(server.front.pid), "--model", MODEL, "--pace", "unpaced", "--streams", str(streams), "--prompt",
               str(prompt), "--output", str(OUTPUT), "--rounds", str(-(-requests // streams)), "--repeat",
               str(repeat), "--json", out]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    rows = json.loads(out.read_text())
    if done.returncode:
        print(f"{server.name}, {streams} streams, {prompt} tokens: {rows[0]['outcome']['errors']}", file=sys.stderr)
    return rows[0]


def binaries():
    built = subprocess.run(["cargo", "bench", "--bench", "frontend", "--no-run"], cwd=ROOT, check=True,
                           capture_output=True, text=True).stderr
    subprocess.run(["cargo", "build", "--release", "--bin", "cuelight"], cwd=ROOT, check=True)
    return ROOT / re.findall(r"\((\S+)\)", built)[-1]


def numbers(text):
    return [int(part) for part in text.split(",")]


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--quick", action="store_true", help="shows that everything works, not how fast")
    options.add_argument("--streams", type=numbers, default=[1, 64, 256, 1024])
    options.add_argument("--prompts", type=numbers, default=[256, 2000, 8000])
    options.add_argument("--servers", type=lambda text: text.split(","), default=SERVERS)
    options.add_argument("--json", type=pathlib.Path)
    options = options.parse_args()
    STATE.mkdir(parents=True, exist_ok=True)
    client, model, rows = binaries(), model_with_long_context(), []
    for name in options.servers:
        with Servers(name, model) as server:
            for prompt in options.prompts:
                for streams in options.streams:
                    least = 20 if options.quick else 100 if name != "cuelight" else 1000
                    requests, repeat = max(streams, least), 1 if options.quick else 3
                    row = measure(client, server, streams, prompt, requests, repeat)
                    rows.append({"server": name, "streams": streams, "prompt": prompt, "row": row})
                    print(f"{name}, {prompt} tokens, {streams} streams: done", file=sys.stderr)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    print(table(rows, options))


def table(rows, options):
    cells = {(row["server"], row["streams"], row["prompt"]): row["row"] for row in rows}
    lines = ["| prompt | streams | " + " | ".join(f"{name}: ms/request, µs/token" for name in options.servers) + " |",
             "|---:|---:|" + "---:|" * len(options.servers)]
    for prompt in options.prompts:
        for streams in options.streams:
            line = [f"| {prompt:,} | {streams:,} |"]
            for name in options.servers:
                per_request = cost(cells[name, streams, prompt])
                line.append(f" {per_request:.3f}, {per_request * 1000 / OUTPUT:.2f} |")
            lines.append("".join(line))
    for name in options.servers[1:]:
        ratios = [cost(cells[name, s, p]) / cost(cells[options.servers[0], s, p])
                  for p in options.prompts for s in options.streams]
        lines.append(f"\n{name} takes {min(ratios):.1f} to {max(ratios):.1f} times the CPU time of "
                     f"{options.servers[0]} for a request (median {statistics.median(ratios):.1f}).")
    return "\n".join(lines)


def cost(row):
    """Milliseconds of CPU time for each request."""
    return sum(row["cpu"].values()) * 1000 / max(row["outcome"]["requests"], 1)


if __name__ == "__main__":
    main()
