"""The last rank that prefills is killed: what clients of Cuelight and of NVIDIA Dynamo 1.6.1 (with its mocker) are told.

    python3 benches/peers/last_prefill.py [--clients 8] [--seconds 20] [--only cuelight,dynamo]

One front end, one worker that prefills and one that decodes, each side on its own. Closed-loop clients ask for 16 tokens after
a prompt of 600 to 1,000 tokens that nobody has cached. After a calm start the worker that prefills is killed (SIGKILL) and stays away for
`--seconds`, then it is started again. For each phase: requests, those that failed, by kind, and the time from the kill to the
last failure and to the first answer after it. Dynamo comes from PyPI into target/peers (see dynamo.sh, which installs it).
"""

import argparse
import asyncio
import collections
import json
import pathlib
import random
import shutil
import sys
import time

import kill
from kill import BASE_PORT, BINARY, ROOT, RUN, VENV, Process


def cuelight():
    nodes, port = [], BASE_PORT + 40
    for name, section in (("front", "frontend: {}"), ("prefill", "worker: {engine: sim, role: prefill}"),
                          ("decode", "worker: {engine: sim, role: decode}")):
        path = RUN / f"cuelight-{name}.yaml"
        path.write_text(f"{section}\ncluster: {{}}\n")
        nth = len(nodes)
        sets = [f"node.name={name}", f"cluster.listen=127.0.0.1:{port + 1 + nth}", "cluster.cookie=env:CUELIGHT_COOKIE",
                f"cluster.seeds=['127.0.0.1:{port + 1}']", "log.level=warn"]
        if name == "front":
            sets += [f"frontend.http=127.0.0.1:{port}", "frontend.migration_limit=3"]
        else:
            sets += ["worker.model=models/cuelight-tiny", "worker.sim.prefill_us_per_token=100",
                     "worker.sim.step_us=2000", "worker.transfer.transport=tcp"]
        command = [BINARY, "node", "--config", path] + [part for pair in sets for part in ("--set", pair)]
        nodes.append(Process(f"cuelight-{name}", command, {"CUELIGHT_COOKIE": "a cookie for benchmarks"}))
    return nodes, nodes[1], port


def dynamo():
    python = VENV / "bin/python"
    if not python.exists():
        sys.exit("install Dynamo first: benches/peers/dynamo.sh unpaced")
    state = RUN / "dynamo-disagg-kv"
    shutil.rmtree(state, ignore_errors=True)
    state.mkdir(parents=True)
    env = {"HF_HUB_OFFLINE": "1", "DYN_FILE_KV": str(state), "DYN_TCP_RPC_HOST": "127.0.0.1",
           "DYN_SYSTEM_HOST": "127.0.0.1", "DYN_TCP_RESPONSE_STREAM_HOST": "127.0.0.1",
           "DYN_EVENT_PLANE_HOST": "127.0.0.1", "DYN_LOG": "error"}
    plane = ["--discovery-backend", "file", "--request-plane", "tcp"]
    front = Process("dynamo-disagg-front", [python, "-m", "dynamo.frontend", "--http-host", "127.0.0.1", "--http-port",
                                            BASE_PORT + 2, *plane, "--migration-limit", "3"], env)
    worker = [python, "-m", "dynamo.mocker", "--model-path", "models/cuelight-tiny", "--model-name", "cuelight-tiny", *plane,
              "--max-num-seqs", "256", "--num-gpu-blocks-override", "65536"]
    prefill = Process("dynamo-prefill", [*worker, "--disaggregation-mode", "prefill"], env)
    decode = Process("dynamo-decode", [*worker, "--disaggregation-mode", "decode"], env)
    return [front, prefill, decode], prefill, BASE_PORT + 2


async def ask(port, rng):
    """How a request ended: `ok`, or in which way it failed."""
    words = " ".join(str(rng.randrange(100)) for _ in range(300))
    body = json.dumps({"model": "cuelight-tiny", "prompt": words, "max_tokens": 16, "ignore_eos": True}).encode()
    writer = None
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
                     b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        answer = await asyncio.wait_for(reader.read(), 60)
        status = answer[9:12].decode()
        if status != "200":
            text = answer.split(b"\r\n\r\n", 1)[-1].decode(errors="replace")
            return f"{status}: {' '.join(text.split())[:110]}"
        body = answer.split(b"\r\n\r\n", 1)[1]
        usage = json.loads(body[body.index(b"{"):body.rindex(b"}") + 1])["usage"]  # it may come in chunks
        return "ok" if usage["completion_tokens"] == 16 else f"200 with {usage['completion_tokens']} tokens"
    except asyncio.TimeoutError:
        return "nothing for 60 s"
    except (OSError, ValueError, KeyError) as problem:
        return f"connection or framing: {type(problem).__name__}"
    finally:
        if writer:
            writer.close()


async def measure(name, start, options):
    nodes, prefill, port = start()
    rng, stop = random.Random(7), asyncio.Event()
    phase, ends, said = ["calm"], collections.defaultdict(collections.Counter), []
    try:
        for _ in range(600):
            if await ask(port, rng) == "ok":
                break
            await asyncio.sleep(0.2)
        else:
            sys.exit("not ready; see the logs in target/peers/kill")
        await asyncio.sleep(5)

        async def client():
            while not stop.is_set():
                of = phase[0]
                outcome = await ask(port, rng)
                ends[of][outcome] += 1
                said.append((time.monotonic(), outcome))
                if outcome != "ok":
                    await asyncio.sleep(0.05)
        clients = [asyncio.create_task(client()) for _ in range(options.clients)]
        await asyncio.sleep(5)
        killed, phase[0] = time.monotonic(), "without"
        prefill.kill()
        await asyncio.sleep(options.seconds)
        phase[0] = "again"
        prefill.start()
        await asyncio.sleep(15)
        stop.set()
        await asyncio.gather(*clients)
    finally:
        for node in nodes:
            node.kill()
    failures = [at - killed for at, outcome in said if at > killed and outcome != "ok"]
    answers = [at - killed for at, outcome in said if at > killed + 0.5 and outcome == "ok"]
    longest = max((b - a for a, b in zip([0.5, *answers], [*answers, options.seconds + 15])), default=None)
    return {"peer": name, "ended": {of: dict(outcomes) for of, outcomes in ends.items()}, "failed": len(failures),
            "last failure after the kill, s": round(max(failures), 1) if failures else None,
            "longest time without an answer, s": round(longest, 1)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--only", default="cuelight,dynamo")
    options = parser.parse_args()
    RUN.mkdir(parents=True, exist_ok=True)
    print(json.dumps(kill.versions()))
    for name in options.only.split(","):
        start = {"cuelight": cuelight, "dynamo": dynamo}[name]
        print(json.dumps(asyncio.run(measure(name, start, options)), indent=1), flush=True)


if __name__ == "__main__":
    main()
