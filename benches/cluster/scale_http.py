#!/usr/bin/env python3
"""Very many streams over HTTP on very many ranks: memory, CPU for each token and the time of a choice of one front end.

    sudo benches/cluster/scale_http.py [--streams 100000] [--ranks 1000] [--step-ms 5000] [--rate 1500] [--window 60]

A front end in a process of its own, a worker of `--ranks` simulated ranks in another, mode `kv`, and `cuelight bench`
in as many processes as the ports of one address need. Requests of 64 prompt tokens come at `--rate` a second until
`--streams` are open; each gets a token every `--step-ms`, and none ends before the measurement does. Then CPU time and
tokens are counted for `--window` seconds. Every stream is a connection and an open file of the front end: `ulimit -Hn`
must be above the streams. All run in a network namespace of their own (root), where 127.0.0.1, 127.0.0.2, ... give each
generator ports of its own and nothing can be reached from outside; with `--no-namespace` and up to 25,000 streams it needs no root.
"""

import argparse
import json
import os
import pathlib
import resource
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = ROOT / "target/release/cuelight"
MODEL = ROOT / "models/cuelight-tiny"
PORT, ADMIN = 8000, 8001
COOKIE = "scale-http-benchmark-cookie-0123456789"
PROMPT = 64
# Connections of one generator: fewer than the ports that Linux gives to one address.
OF_ONE = 25_000
# Open files that are no streams.
SPARE = 600
TICKS = os.sysconf("SC_CLK_TCK")
HERE = "CUELIGHT_SCALE_HTTP_NAMESPACE"


def get(path, port=PORT):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as answer:
            return answer.read().decode()
    except OSError:
        return ""


def series(text, name):
    """The sum of a metric over its labels."""
    lines = (line for line in text.splitlines() if line.startswith((name + " ", name + "{")))
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def active(metrics):
    return series(metrics, "cuelight_requests_active")


def computed():
    """Tokens that the ranks have computed."""
    return series(get("/metrics", ADMIN), "cuelight_step_tokens_sum")


def quantile(before, after, name, share):
    """The bound of the bucket that a share of the observations between two readings is below, in seconds."""
    def buckets(text):
        found = {}
        for line in text.splitlines():
            if line.startswith(name + "_bucket{"):
                bound = line.split('le="')[1].split('"')[0]
                found[bound] = found.get(bound, 0) + float(line.rsplit(" ", 1)[1])
        return found
    old, new = buckets(before), buckets(after)
    counts = sorted((float(bound.replace("+Inf", "inf")), new[bound] - old.get(bound, 0)) for bound in new)
    return next(bound for bound, count in counts if count >= share * counts[-1][1])


def cpu(process):
    fields = pathlib.Path(f"/proc/{process.pid}/stat").read_text().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def rss_kib(process):
    lines = pathlib.Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def configs(options, folder):
    legs = 2 * -(-options.streams // options.ranks) + 8
    life = (options.streams / options.rate + options.window + 120) * 1000 / options.step_ms
    blocks = legs * (PROMPT // 16 + 2 + int(life) // 16)
    cluster = {"cookie": "env:COOKIE", "seeds": ["127.0.0.1:7001"]}
    every = "0.0.0.0" if HERE in os.environ else "127.0.0.1"
    most = options.streams + SPARE // 2
    front = {"node": {"name": "front"}, "log": {"level": "warn"}, "cluster": {**cluster, "listen": "127.0.0.1:7001"},
             "frontend": {"http": f"{every}:{PORT}", "models": [str(MODEL)], "max_connections": most,
                          "max_requests": most, "request_timeout_s": 7200}}
    worker = {"node": {"name": "worker", "admin": f"127.0.0.1:{ADMIN}"}, "log": {"level": "warn"}, "cluster": {**cluster, "listen": "127.0.0.1:7002"},
              "worker": {"model": str(MODEL), "engine": "sim", "dp_size": options.ranks, "kv_blocks": blocks,
                         "max_running": legs, "max_waiting": legs, "max_batch_tokens": max(legs * PROMPT, 8192),
                         "sim": {"step_us": options.step_ms * 1000}}}
    for name, config in (("front", front), ("worker", worker)):
        (folder / f"{name}.yaml").write_text(json.dumps(config))


def wait(what, seconds, done, processes):
    deadline = time.monotonic() + seconds
    while not done():
        ended = [process.args[1] for process in processes if process.poll() is not None]
        if ended or time.monotonic() > deadline:
            sys.exit(f"not {what}: " + (f"{ended} ended" if ended else f"after {seconds} s"))
        time.sleep(0.5)


def generators(options, folder):
    """Their command lines: answers so long that none ends before the measurement does."""
    parts = -(-options.streams // OF_ONE)
    output = int((options.streams / options.rate + options.window + 600) * 1000 / options.step_ms)
    for part in range(parts):
        streams = options.streams // parts + (part < options.streams % parts)
        yield [BINARY, "bench", "--url", f"http://127.0.0.{part + 1}:{PORT}", "--rate", str(options.rate / parts),
               "--arrivals", "constant", "--requests", str(streams), "--max-in-flight", str(streams),
               "--prompt-tokens", str(PROMPT), "--output-tokens", str(output), "--seed", str(part), "--timeout", "7200",
               "--allow-errors", "--json", folder / f"bench-{part}.json"]


def measure(options, folder):
    configs(options, folder)
    processes, env = [], {**os.environ, "COOKIE": COOKIE}

    def start(name, command, where):
        out = open(folder / f"{name}.log", "wb")
        where.append(subprocess.Popen([str(part) for part in command], cwd=ROOT, stdout=out, stderr=out, env=env))
        return where[-1]

    load = []
    try:
        front, worker = (start(name, [BINARY, "node", "--config", folder / f"{name}.yaml"], processes)
                         for name in ("front", "worker"))
        ready = f'"ranks_ready":{options.ranks}'
        wait("ready", 300, lambda: ready in get("/health").replace(" ", ""), processes)
        time.sleep(5)
        base, empty, spent, began = rss_kib(front), get("/metrics"), cpu(front), time.monotonic()
        for nth, command in enumerate(generators(options, folder)):
            start(f"bench-{nth}", command, load)
        wait("open", options.streams / options.rate + 300, lambda: active(get("/metrics")) >= options.streams,
             processes + load)
        opened, placing = time.monotonic() - began, cpu(front) - spent
        time.sleep(2 * options.step_ms / 1000 + 10)  # all have a token, and memory has settled
        full, counted = rss_kib(front), get("/metrics")
        figures = [cpu(front), cpu(worker), sum(map(cpu, load)), time.monotonic(), computed()]
        time.sleep(options.window)
        later = [cpu(front), cpu(worker), sum(map(cpu, load)), time.monotonic(), computed()]
        if active(get("/metrics")) < options.streams:
            sys.exit("a stream ended before the measurement did")
        took = [end - start for start, end in zip(figures, later)]
        tokens = took[4]
        name = "cuelight_router_decision_seconds"
        decisions = series(counted, name + "_count") - series(empty, name + "_count")
        mean = (series(counted, name + "_sum") - series(empty, name + "_sum")) / max(decisions, 1)
        p99 = quantile(empty, counted, name, 0.99)
        print(f"""
| figure | {options.streams:,} streams, {options.ranks:,} ranks |
|---|---|
| opened in | {opened:.0f} s, {placing / options.streams * 1e6:.0f} µs of CPU of the front end each, their tokens meanwhile included |
| memory of a stream, front end (RSS) | {(full - base) / options.streams:.1f} KiB, {full / 1024:,.0f} MiB in all |
| CPU a token: front end, worker, generators | {', '.join(f'{used / tokens * 1e6:.1f}' for used in took[:3])} µs at {tokens / took[3]:,.0f} tokens/s |
| choice of a rank | mean {mean * 1e6:.1f} µs, p99 below {p99 * 1e6:.0f} µs, {decisions:,.0f} choices |""")
        return failures(load, folder)
    finally:
        for process in load:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
        for process in load + processes:
            process.terminate()
        for process in load + processes:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def failures(load, folder):
    """Ends the generators; what they say went wrong, but for the streams that are cut now."""
    for process in load:
        process.send_signal(signal.SIGINT)
    for process in load:
        process.wait(120)
    failed = 0
    for nth, _ in enumerate(load):
        report = json.loads((folder / f"bench-{nth}.json").read_text())
        failed += report["requests"]["failed"] + report["requests"]["not_sent"]
        for error in report["errors"]:
            print(f"generator {nth}: {error}", file=sys.stderr)
    print(f"| failed, not sent | {failed} |")
    return 1 if failed else 0


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--streams", type=int, default=100_000)
    options.add_argument("--ranks", type=int, default=1000)
    options.add_argument("--step-ms", type=int, default=5000)
    options.add_argument("--rate", type=float, default=1500)
    options.add_argument("--window", type=float, default=60)
    options.add_argument("--no-namespace", action="store_true", help="stay in this network namespace")
    options = options.parse_args()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if most < options.streams + SPARE:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (options.streams + SPARE, options.streams + SPARE))
        except (ValueError, OSError):
            sys.exit(f"--streams {options.streams}: a process may have {most} files open here (ulimit -Hn); "
                     f"at most {most - SPARE} streams are possible")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(most, options.streams + SPARE),) * 2)
    if options.no_namespace and options.streams > OF_ONE:
        sys.exit(f"--no-namespace: at most {OF_ONE} streams, for which one address has ports")
    if not options.no_namespace and HERE not in os.environ:
        inside = "ip link set lo up && exec \"$@\""
        os.environ[HERE] = "1"
        os.execvp("unshare", ["unshare", "--net", "sh", "-c", inside, "sh", sys.executable, *sys.argv])
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(measure(options, pathlib.Path(folder)))


if __name__ == "__main__":
    main()
