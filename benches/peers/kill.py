"""The same load and the same kills for Cuelight and for NVIDIA Dynamo 1.6.1 with its mocker, side by side.

    python3 benches/peers/kill.py [--kills 30] [--streams 24] [--only cuelight,dynamo] [--out FILE]

One front end and three workers each, tokens about every 23 ms, `--streams` closed-loop streams of 128 tokens, all with
the same prompt, greedy. Every two seconds (Cuelight) or twelve (Dynamo, whose mocker takes that long to start) one
worker, the three in turn, is killed (SIGKILL) and started again; migration limit 3 for both. Nothing is drawn at random.
An answer fails if it ends with an error or is cut short; it is wrong if its usage counts other tokens than were asked
for or than the calm start showed for the prompt, or if its text is another one than in the calm start (compared only
where every answer of the calm start has the same text: Dynamo's mocker makes it up anew each time). The gap is the
longest wait between two parts of a stream that lived through a kill. `--out` writes all of it as JSON, every gap
included. CUELIGHT names another binary than target/release/cuelight. Dynamo comes from PyPI into target/peers (see
dynamo.sh, which installs it).
"""

import argparse
import asyncio
import collections
import json
import os
import pathlib
import shutil
import signal
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
VENV = ROOT / "target/peers/dynamo/venv"
RUN = ROOT / "target/peers/kill"
BINARY = pathlib.Path(os.environ.get("CUELIGHT", ROOT / "target/release/cuelight"))
TOKENS = 128
BASE_PORT = 18700


class Process:
    def __init__(self, name, command, env=None):
        self.name, self.command, self.env = name, list(map(str, command)), {**os.environ, **(env or {})}
        self.start()

    def start(self):
        with open(RUN / f"{self.name}.log", "ab") as log:
            self.process = subprocess.Popen(self.command, cwd=ROOT, env=self.env, stdin=subprocess.DEVNULL,
                                            stdout=log, stderr=subprocess.STDOUT, start_new_session=True)

    def kill(self):
        """The whole group: a mocker is a parent with children."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def cuelight():
    common = ["--set", "cluster.cookie=env:CUELIGHT_COOKIE", "--set", "log.level=warn"]
    nodes = []
    for i in range(4):
        sections = "frontend: {}\n" if i == 0 else "worker: {engine: sim}\n"
        (RUN / f"cuelight{i}.yaml").write_text(sections + "cluster: {}\n")
        sets = [f"node.name=n{i}", f"cluster.listen=127.0.0.1:{BASE_PORT + 10 + i}",
                f"cluster.seeds=['127.0.0.1:{BASE_PORT + 10}']"]
        if i == 0:
            sets += [f"frontend.http=127.0.0.1:{BASE_PORT}", "frontend.migration_limit=3"]
        else:
            sets += ["worker.model=models/cuelight-tiny", "worker.sim.step_us=23000"]
        command = [BINARY, "node", "--config", RUN / f"cuelight{i}.yaml", *common]
        for pair in sets:
            command += ["--set", pair]
        nodes.append(Process(f"cuelight{i}", command, {"CUELIGHT_COOKIE": "a cookie for benchmarks"}))
    return nodes[:1], nodes[1:], BASE_PORT


def dynamo():
    python = VENV / "bin/python"
    if not python.exists():
        sys.exit("install Dynamo first: benches/peers/dynamo.sh unpaced")
    state = RUN / "dynamo-kv"
    shutil.rmtree(state, ignore_errors=True)
    state.mkdir(parents=True)
    env = {"HF_HUB_OFFLINE": "1", "DYN_FILE_KV": str(state), "DYN_TCP_RPC_HOST": "127.0.0.1",
           "DYN_SYSTEM_HOST": "127.0.0.1", "DYN_TCP_RESPONSE_STREAM_HOST": "127.0.0.1",
           "DYN_EVENT_PLANE_HOST": "127.0.0.1", "DYN_LOG": "error"}
    plane = ["--discovery-backend", "file", "--request-plane", "tcp"]
    front = Process("dynamo-front", [python, "-m", "dynamo.frontend", "--http-host", "127.0.0.1", "--http-port",
                                     BASE_PORT + 1, *plane, "--router-mode", "round-robin", "--migration-limit", "3"], env)
    worker = [python, "-m", "dynamo.mocker", "--model-path", "models/cuelight-tiny", "--model-name", "cuelight-tiny", *plane,
              "--speedup-ratio", "1000", "--decode-speedup-ratio", "0.00025", "--max-num-seqs", "256",
              "--num-gpu-blocks-override", "65536"]
    return [front], [Process(f"dynamo-worker{i}", worker, env) for i in range(3)], BASE_PORT + 1


class Watch:
    """What the clients of one side were told."""

    def __init__(self):
        self.kills, self.gaps, self.examples = [], [], []
        self.longest, self.load = collections.defaultdict(float), []
        self.requests = self.lived = 0
        self.failed, self.wrong = collections.Counter(), collections.Counter()
        self.prompt, self.texts = None, set()

    def failure(self, kind, example):
        self.failed[kind] += 1
        if len(self.examples) < 5:
            self.examples.append(f"{kind}: {example}"[:200])

    def whole(self, usage, text):
        """Learns from an answer of the calm start, and holds later ones against it."""
        if not self.kills:
            self.prompt = self.prompt or usage.get("prompt_tokens")
            self.texts.add(text)
        self.wrong["completion_tokens"] += usage.get("completion_tokens") != TOKENS
        self.wrong["prompt_tokens"] += usage.get("prompt_tokens") != self.prompt
        self.wrong["text"] += len(self.texts) == 1 and text not in self.texts

    def report(self):
        at = lambda q: sorted(self.gaps)[min(len(self.gaps) - 1, int(q * len(self.gaps)))] if self.gaps else None  # noqa: E731
        return {"kills": len(self.kills), "requests": self.requests, "lived through a kill": self.lived,
                "failed": sum(self.failed.values()), "failed by kind": dict(self.failed), "examples": self.examples,
                "wrong completion_tokens": self.wrong["completion_tokens"],
                "wrong prompt_tokens": self.wrong["prompt_tokens"],
                "wrong text": self.wrong["text"] if len(self.texts) == 1 else None,
                "gap ms": {"p50": at(0.5), "p99": at(0.99), "max": at(1.0)}}


def reason(done, finish, usage):
    """Why an answer without an error is not a whole one."""
    if not done:
        return "cut short"
    return "no finish_reason" if finish is None else "no usage" if usage is None else None


async def ask(port, watch):
    body = json.dumps({"model": "cuelight-tiny", "messages": [{"role": "user", "content": "Tell me a story."}],
                       "max_tokens": TOKENS, "ignore_eos": True, "stream": True, "temperature": 0,
                       "stream_options": {"include_usage": True}}).encode()
    began = last = time.monotonic()
    gap, done, usage, finish, failure, text, writer = 0.0, False, None, None, None, [], None
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
                     b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        while line := await asyncio.wait_for(reader.readline(), 60):
            if line.startswith(b"HTTP/1.1 ") and b" 200 " not in line:
                failure = (f"status {line[9:12].decode()}", line.decode().strip())
            if not line.startswith(b"data: "):
                continue
            now = time.monotonic()
            gap, last = max(gap, now - last) if text else 0.0, now
            if line.startswith(b"data: [DONE]"):
                done = True
                break
            event = json.loads(line[6:])
            if event.get("error"):
                failure = failure or ("error event", str(event["error"]))
            usage = event.get("usage") or usage
            for choice in event.get("choices", []):
                finish = choice.get("finish_reason") or finish
                text.append((choice.get("delta") or {}).get("content") or "")
    except asyncio.TimeoutError:
        failure = ("nothing for 60 s", "")
    except (OSError, ValueError) as problem:
        failure = ("connection or framing", repr(problem))
    finally:
        if writer:
            writer.close()
    watch.requests += 1
    incomplete = reason(done, finish, usage)
    if failure or incomplete:
        watch.failure(*(failure or (incomplete, f"after {len(text)} parts")))
    else:
        watch.whole(usage, "".join(text))
    lived = [at for at, kill in enumerate(watch.kills) if began < kill < last]
    if lived:
        watch.lived += 1
        watch.gaps.append(round(1000 * gap))
    for at in lived:
        watch.longest[at] = max(watch.longest[at], round(1000 * gap))


async def ready(port):
    for _ in range(600):
        watch = Watch()
        await ask(port, watch)
        if not watch.failed:
            return
        await asyncio.sleep(0.2)
    raise SystemExit("not ready; see the logs in target/peers/kill")


async def measure(name, start, kills, streams):
    front, workers, port = start()
    watch, stop = Watch(), asyncio.Event()
    seconds = SECONDS[name]
    try:
        await ready(port)
        await asyncio.sleep(5)

        async def client():
            while not stop.is_set():
                await ask(port, watch)
        clients = [asyncio.create_task(client()) for _ in range(streams)]
        await asyncio.sleep(8)  # a calm start, in which the right answer is learnt
        for i in range(kills):
            victim = workers[i % len(workers)]
            watch.kills.append(time.monotonic())
            victim.kill()
            victim.start()
            await asyncio.sleep(seconds)
            watch.load.append(round(os.getloadavg()[0], 1))
            if (i + 1) % 10 == 0:
                print(name, json.dumps(watch.report()), file=sys.stderr, flush=True)
        stop.set()
        await asyncio.gather(*clients)
    finally:
        for process in workers + front:
            process.kill()
    return {"peer": name, "seconds between kills": seconds, **watch.report(),
            "load average, median": statistics.median(watch.load)}, watch


# Between two kills. A mocker needs this long to load Python and register; killing the next one sooner would leave none.
SECONDS = {"cuelight": 2, "dynamo": 12}


def versions():
    """Of both sides, as they say themselves."""
    said = lambda *command: subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: E731
    of = "import importlib.metadata as m; print(m.version('ai-dynamo'))"
    return {"cuelight": said(BINARY, "--version").split()[-1], "dynamo": said(VENV / "bin/python", "-c", of)}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--streams", type=int, default=24)
    parser.add_argument("--only", default="cuelight,dynamo")
    parser.add_argument("--out", help="a file for all of it, as JSON")
    options = parser.parse_args()
    RUN.mkdir(parents=True, exist_ok=True)
    whole = {"command": "python3 benches/peers/kill.py " + " ".join(sys.argv[1:]), "versions": versions(),
             "streams": options.streams, "tokens of each": TOKENS, "workers": 3, "migration limit": 3,
             "cores": os.cpu_count(), "sides": []}
    for name in options.only.split(","):
        start = {"cuelight": cuelight, "dynamo": dynamo}[name]
        row, watch = asyncio.run(measure(name, start, options.kills, options.streams))
        print(json.dumps(row), flush=True)
        each = [f"{watch.longest[at]:.0f} at {load}" for at, load in enumerate(watch.load)]
        whole["sides"].append({**row, "gaps: ms, times": dict(sorted(collections.Counter(watch.gaps).items())),
                               "longest gap ms of each kill, at which load average": each})
        if options.out:
            pathlib.Path(options.out).write_text(json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    main()
