"""The same load and the same kills for Cuelight and for NVIDIA Dynamo 1.6.1 with its mocker, side by side.

    python3 benches/peers/kill.py [--kills 30] [--streams 24] [--only cuelight,dynamo]

One front end and three workers each, tokens about every 23 ms, `--streams` closed-loop streams of 128 tokens. Every two
seconds (Cuelight) or twelve (Dynamo, whose mocker takes that long to start) one worker is killed (SIGKILL) and started again; migration limit 3 for both. A stream that is cut short, ends with
an error, or says another number of tokens than it delivered is counted; the gap is the longest wait between two parts of
a stream that lived through a kill. Dynamo comes from PyPI into target/peers (see dynamo.sh, which installs it).
"""

import argparse
import asyncio
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
VENV = ROOT / "target/peers/dynamo/venv"
RUN = ROOT / "target/peers/kill"
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
    binary = ROOT / "target/release/cuelight"
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
        command = [binary, "node", "--config", RUN / f"cuelight{i}.yaml", *common]
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


async def ask(port, tally, gaps, watch):
    body = json.dumps({"model": "cuelight-tiny", "messages": [{"role": "user", "content": "Tell me a story."}],
                       "max_tokens": TOKENS, "ignore_eos": True, "stream": True, "temperature": 0,
                       "stream_options": {"include_usage": True}}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    began = last = time.monotonic()
    gap, done, usage, finish, error, started = 0.0, False, None, None, None, False
    try:
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
                     b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        while line := await asyncio.wait_for(reader.readline(), 60):
            if line.startswith(b"HTTP/1.1 ") and b" 200 " not in line:
                error = line.decode().strip()
            if not line.startswith(b"data: "):
                continue
            now = time.monotonic()
            if started:
                gap = max(gap, now - last)
            last, started = now, True
            if line.startswith(b"data: [DONE]"):
                done = True
                break
            event = json.loads(line[6:])
            error = error or event.get("error")
            usage = event.get("usage") or usage
            for choice in event.get("choices", []):
                finish = choice.get("finish_reason") or finish
    except (OSError, asyncio.TimeoutError) as problem:
        error = repr(problem)
    finally:
        writer.close()
    tally["requests"] += 1
    if error or not done or finish is None:
        tally["failed"] += 1
        if len(tally.setdefault("examples", [])) < 3:
            tally["examples"].append(str(error or "cut short")[:120])
    elif usage and usage["completion_tokens"] != TOKENS:
        tally["wrong token count"] += 1
    elif usage and watch["prompt"] is None and not watch["kills"]:
        watch["prompt"] = usage["prompt_tokens"]
    elif usage and usage["prompt_tokens"] != watch["prompt"]:
        tally["wrong usage"] += 1
    if any(began < kill < last for kill in watch["kills"]):
        tally["lived through a kill"] += 1
        gaps.append(gap)


async def ready(port):
    for _ in range(600):
        tally = {"requests": 0, "failed": 0, "wrong token count": 0, "wrong usage": 0, "lived through a kill": 0}
        try:
            await ask(port, tally, [], {"kills": [], "prompt": 0})
        except OSError:
            tally["failed"] = 1
        if not tally["failed"]:
            return
        await asyncio.sleep(0.2)
    raise SystemExit("not ready; see the logs in target/peers/kill")


async def measure(name, start, kills, streams):
    front, workers, port = start()
    watch = {"kills": [], "prompt": None}
    tally = {"requests": 0, "failed": 0, "wrong token count": 0, "wrong usage": 0, "lived through a kill": 0}
    gaps, stop = [], asyncio.Event()
    try:
        await ready(port)
        await asyncio.sleep(5)

        async def client():
            while not stop.is_set():
                await ask(port, tally, gaps, watch)
        clients = [asyncio.create_task(client()) for _ in range(streams)]
        await asyncio.sleep(8)  # a calm start, in which the right usage is learnt
        for i in range(kills):
            victim = workers[i % len(workers)]
            watch["kills"].append(time.monotonic())
            victim.kill()
            victim.start()
            await asyncio.sleep(2 if name == "cuelight" else max(2, MOCKER_START_S))
        stop.set()
        await asyncio.gather(*clients)
    finally:
        for process in workers + front:
            process.kill()
    gaps.sort()
    at = lambda q: round(1000 * gaps[min(len(gaps) - 1, int(q * len(gaps)))]) if gaps else None  # noqa: E731
    return {"peer": name, "kills": kills, **tally, "gap p50 ms": at(0.5), "gap p99 ms": at(0.99), "gap max ms": at(1.0)}


# A mocker needs this long to load Python and register; killing the next one sooner would leave none.
MOCKER_START_S = 12


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--streams", type=int, default=24)
    parser.add_argument("--only", default="cuelight,dynamo")
    options = parser.parse_args()
    RUN.mkdir(parents=True, exist_ok=True)
    for name in options.only.split(","):
        row = asyncio.run(measure(name, {"cuelight": cuelight, "dynamo": dynamo}[name], options.kills, options.streams))
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
