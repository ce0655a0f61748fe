#!/usr/bin/env python3
"""What long prompts do to the tokens of others, with ranks that do both and with ranks that do one.

    target/test-venv/bin/python benches/disagg/mixed.py [--engines sim,native] [--seconds 15] [--plots benches/disagg/plots]

Two workers on loopback, either both `aggregated`, or one `prefill` and one `decode`; KV blocks travel by UCX if the tests have
installed it, else by TCP. Two loads of `cuelight bench` at once: clients that stream 256 tokens after a prompt of 64, one
after the other, and prompts of 1,800 tokens with 8 tokens of answer that come at random, more of them in each row. ITL is of the
former, TTFT of both. `sim`: steps of 4 ms, and 100 µs for each prompt token, 512 tokens a step; `native`: the shipped model, one thread a worker.
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
from cuelight_split import UCX  # noqa: E402

RATES = {"sim": [0.5, 1, 2, 3, 4], "native": [0.5, 1, 2, 3]}
CLIENTS = {"sim": 16, "native": 8}
SIM = {"worker.engine": "sim", "worker.sim.step_us": 4000, "worker.sim.prefill_us_per_token": 100}
ROLES = {"aggregated": ["aggregated", "aggregated"], "disaggregated": ["prefill", "decode"]}


def bench(front, out, seconds, *options):
    return subprocess.Popen([str(BINARY), "bench", "--url", front.origin, "--duration", str(seconds), "--json", str(out),
                             *map(str, options)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def measure(engine, roles, rate, seconds, seed):
    """(of the streams, of the long prompts), as `cuelight bench` reports them."""
    with tempfile.TemporaryDirectory() as folder:
        cluster = Cluster(folder)
        try:
            front = cluster.frontend(frontend__disaggregation__min_uncached_tokens=256)
            env = {"CUELIGHT_UCX_DIR": str(UCX.parent)} if UCX else {}
            for nth, role in enumerate(ROLES[roles]):
                sets = {"worker.role": role, "worker.max_batch_tokens": 512, **(SIM if engine == "sim" else {})}
                cluster.add(f"w{nth}", ["worker"], {"worker.model": ROOT / "models/cuelight-tiny", **sets}, env)
            cluster.wait_for_ranks(front, 2 if roles == "aggregated" else 1)
            outs = [pathlib.Path(folder) / f"{name}.json" for name in ("streams", "long")]
            runs = [bench(front, outs[0], seconds, "--concurrency", CLIENTS[engine], "--prompt-tokens", 64,
                          "--output-tokens", 256, "--seed", seed),
                    bench(front, outs[1], seconds, "--rate", rate, "--prompt-tokens", 1800, "--output-tokens", 8,
                          "--seed", seed + 1000)]
            codes = [run.wait(timeout=seconds + 120) for run in runs]
            assert codes == [0, 0], f"cuelight bench ended with {codes}"
            return [json.loads(out.read_text()) for out in outs]
        finally:
            cluster.end()


def row(engine, roles, rate, seconds, seed):
    streams, long = measure(engine, roles, rate, seconds, seed)
    at = lambda report, figure, q: report[f"{figure}_ms"][q]  # noqa: E731
    return {"engine": engine, "ranks": roles, "rate": rate,
            "itl": [at(streams, "itl", q) for q in ("p50", "p99")],
            "ttft": [at(streams, "ttft", q) for q in ("p50", "p99")],
            "ttft long": [at(long, "ttft", q) for q in ("p50", "p99")],
            "tokens": streams["throughput"]["output_tokens_per_s"],
            "failed": streams["requests"]["failed"] + long["requests"]["failed"]}


def plot(rows, engine, path):
    """ITL p50 and p99 over the rate of long prompts, as SVG."""
    width, height, left, bottom = 560, 340, 60, 50
    top = 1.1 * max(value for one in rows for value in one["itl"])
    most = max(one["rate"] for one in rows)
    x = lambda rate: left + (width - left - 20) * rate / most  # noqa: E731
    y = lambda ms: height - bottom - (height - bottom - 40) * ms / top  # noqa: E731
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
             f'font-size="12"><rect width="{width}" height="{height}" fill="white"/>',
             f'<text x="{left}" y="20">{engine}: ITL of streams while prompts of 1,800 tokens come</text>',
             f'<text x="{width / 2}" y="{height - 12}" text-anchor="middle">long prompts per second</text>',
             f'<text x="14" y="{height / 2}" transform="rotate(-90 14 {height / 2})" text-anchor="middle">ms</text>']
    for nth in range(6):
        ms = top * nth / 5
        parts.append(f'<line x1="{left}" x2="{width - 20}" y1="{y(ms)}" y2="{y(ms)}" stroke="#ddd"/>'
                     f'<text x="{left - 6}" y="{y(ms) + 4}" text-anchor="end">{ms:.0f}</text>')
    for rate in sorted({one["rate"] for one in rows}):
        parts.append(f'<text x="{x(rate)}" y="{height - bottom + 18}" text-anchor="middle">{rate:g}</text>')
    for roles, colour in (("aggregated", "#c0392b"), ("disaggregated", "#2471a3")):
        of = sorted((one for one in rows if one["ranks"] == roles), key=lambda one: one["rate"])
        for which, dash in ((0, "4 3"), (1, "none")):
            points = " ".join(f'{x(one["rate"]):.1f},{y(one["itl"][which]):.1f}' for one in of)
            parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2" '
                         f'stroke-dasharray="{dash}"/>')
            last = of[-1]
            parts.append(f'<text x="{x(last["rate"]) - 4}" y="{y(last["itl"][which]) - 6}" fill="{colour}" '
                         f'text-anchor="end">{roles}, p{(50, 99)[which]}</text>')
    path.write_text("\n".join([*parts, "</svg>\n"]))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engines", default="sim,native")
    parser.add_argument("--seconds", type=int, default=15)
    parser.add_argument("--plots", type=pathlib.Path)
    options = parser.parse_args()
    print("| engine | ranks | long prompts/s | ITL p50/p99 ms | TTFT p50/p99 ms | TTFT of long prompts p50/p99 ms | "
          "tokens/s of the streams | failed |\n|---|---|---:|---|---|---|---:|---:|")
    for engine in options.engines.split(","):
        rows = []
        for seed, rate in enumerate(RATES[engine]):
            for roles in ROLES:
                rows.append(row(engine, roles, rate, options.seconds, seed))
                cell = lambda name: " / ".join(f"{value:.1f}" for value in rows[-1][name])  # noqa: E731
                print(f"| {engine} | {roles} | {rate:g} | {cell('itl')} | {cell('ttft')} | {cell('ttft long')} | "
                      f"{rows[-1]['tokens']:.0f} | {rows[-1]['failed']} |", flush=True)
        if options.plots:
            options.plots.mkdir(parents=True, exist_ok=True)
            plot(rows, engine, options.plots / f"{engine}.svg")


if __name__ == "__main__":
    main()
