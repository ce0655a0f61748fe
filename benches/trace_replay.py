#!/usr/bin/env python3
"""A recorded trace, all of it, over HTTP against simulated ranks, by router mode.

    benches/trace_replay.py --trace conversation_trace.jsonl [--speedup 12] [--ranks 8] [--requests N]
                            [--modes kv,round-robin,least-loaded] [--json FILE]

`conversation_trace.jsonl` is Mooncake's (FAST25-release/traces in their repository): 12,031 requests in an hour, prompts of
12,000 tokens on average. `cuelight bench` plays it `--speedup` times as fast at one node for each mode, whose ranks are as
many times as fast too: a step takes 6 ms, 50 µs more for each prompt token and 60 µs for each leg that decodes, and TTFT and ITL
are given in the trace's time. 2,048 tokens a step, 524,288 tokens of KV a rank. Requests that hold more than
the model's 131,072 tokens are left out, which the first line says. At 12 times the speed a mode takes five minutes and a half.
"""

import argparse
import json
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[1]
BINARY = ROOT / "target/release/cuelight"
MODEL = "cuelight-tiny"
CONTEXT = 131_072


def model_with_long_context(folder):
    to = folder / MODEL
    shutil.copytree(ROOT / "models" / MODEL, to)
    for name, key in [("config.json", "max_position_embeddings"), ("tokenizer_config.json", "model_max_length")]:
        config = json.loads((to / name).read_text())
        config[key] = CONTEXT
        (to / name).write_text(json.dumps(config))
    return to


def kept(trace, folder, most):
    """The trace without what no rank could take, as a file; and how much that is."""
    lines = [json.loads(line) for line in trace.read_text().splitlines() if line.strip()][:most]
    short = [line for line in lines if line["input_length"] + line["output_length"] < CONTEXT]
    to = folder / "trace.jsonl"
    to.write_text("".join(json.dumps(line) + "\n" for line in short))
    span = (short[-1]["timestamp"] - short[0]["timestamp"]) / 1000
    prompt = sum(line["input_length"] for line in short) / len(short)
    print(f"{trace.name}: {len(short):,} of {len(lines):,} requests in {span:,.0f} s, prompts of {prompt:,.0f} tokens on "
          "average\n")
    return to


def node(options, mode, model, port):
    settings = {
        "worker.model": model, "worker.engine": "sim", "worker.dp_size": options.ranks, "worker.kv_blocks": 32_768,
        "worker.max_running": 256, "worker.max_batch_tokens": 2048, "worker.sim.step_us": 6000,
        "worker.sim.prefill_us_per_token": 50, "worker.sim.decode_us_per_leg": 60, "worker.sim.speedup": options.speedup,
        "frontend.http": f"127.0.0.1:{port}", "frontend.router.mode": mode, "log.level": "warn",
    }
    sets = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    return subprocess.Popen([BINARY, "serve", *map(str, sets)], cwd=ROOT)


def is_ready(port, ranks):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
            return f'"ranks_ready":{ranks}' in answer.read().decode().replace(" ", "")
    except OSError:
        return False


def replay(options, mode, model, trace, folder):
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    server, out = node(options, mode, model, port), folder / f"{mode}.json"
    try:
        deadline = time.monotonic() + 60
        while not is_ready(port, options.ranks):
            if server.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"{mode}: the node is not ready")
            time.sleep(0.1)
        done = subprocess.run([BINARY, "bench", "--url", f"http://127.0.0.1:{port}", "--trace", trace, "--speedup",
                               str(options.speedup), "--max-in-flight", "4096", "--pid", str(server.pid), "--json", out],
                              cwd=ROOT, stdout=subprocess.DEVNULL)
        if done.returncode:
            print(f"{mode}: `cuelight bench` ended with {done.returncode}", file=sys.stderr)
        return json.loads(out.read_text())
    finally:
        server.terminate()
        server.wait()


def row(options, mode, report):
    ttft, itl = ([report[name][part] * options.speedup for part in ("p50", "p99", "mean")] for name in ("ttft_ms", "itl_ms"))
    hits = report["tokens"]["cached"] / report["tokens"]["input"]
    ends = report["requests"]
    process = report["processes"][0]
    return (f"| {mode} | {ends['complete']:,} | {ends['failed'] + ends['not_sent']:,} | {ttft[2]:,.0f} | {ttft[0]:,.0f} | "
            f"{ttft[1]:,.0f} | {itl[2]:.1f} | {itl[1]:,.0f} | {hits:.1%} | {report['duration_s']:.0f} | "
            f"{process['cpu_ms_per_request']:.2f} | {process['rss_mib_peak']:.0f} |")


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--trace", type=pathlib.Path, required=True)
    options.add_argument("--speedup", type=float, default=12)
    options.add_argument("--ranks", type=int, default=8)
    options.add_argument("--requests", type=int)
    options.add_argument("--modes", type=lambda text: text.split(","), default=["kv", "round-robin"])
    options.add_argument("--json", type=pathlib.Path)
    options = options.parse_args()
    reports = {}
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        model, trace = model_with_long_context(folder), kept(options.trace, folder, options.requests)
        print("| mode | complete | failed, not sent | TTFT mean ms | p50 | p99 | ITL mean ms | p99 | cached | run s | "
              "node: CPU ms/request | RSS MiB |\n|---|---|---|---|---|---|---|---|---|---|---|---|")
        for mode in options.modes:
            reports[mode] = replay(options, mode, model, trace, folder)
            print(row(options, mode, reports[mode]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(reports, indent=1))


if __name__ == "__main__":
    main()
