"""Runs `cuelight serve` for a test, on a loopback port of its own."""

import itertools
import json
import os
import pathlib
import random
import re
import signal
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request

import openai

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
BINARY = pathlib.Path(os.environ.get("CUELIGHT_BIN", REPOSITORY / "target/release/cuelight"))
MODEL = "cuelight-tiny"
READY_WITHIN_S = 30
END_WITHIN_S = 20
SETTLE_WITHIN_S = 10

# An engine that takes its time, so that a stream still runs when a test interferes, on a node with room for three.
SLOW = {"worker.engine": "sim", "worker.sim.step_us": 20_000, "frontend.max_requests": 3}

# Workers whose test does not choose an engine run TensorRT-LLM's stand-in with this; the others run as ever.
TRTLLM = os.environ.get("CUELIGHT_TEST_TRTLLM") == "1"

# A proxy of the environment must not see what goes to 127.0.0.1.
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"


FRONTEND_IDLE = ("cuelight_requests_active", "cuelight_stream_backlog_bytes", "cuelight_tokenizer_queue")
WORKER_IDLE = ("cuelight_running", "cuelight_waiting", "cuelight_kv_blocks_used", "cuelight_kv_leases",
               "cuelight_kv_pulls_in_flight", "cuelight_kv_blocks_quarantined")


# Below those that the kernel gives to connections that go out: one of them could take it before its server does.
PORTS = itertools.cycle(range(10_000, 32_000))
for _ in range(random.randrange(22_000)):
    next(PORTS)


def free_port():
    for port in PORTS:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue


def eventually(what, condition, within_s=SETTLE_WITHIN_S):
    """Polls until `condition()` is `True`; anything else it returns may say why not, for the complaint."""
    deadline = time.monotonic() + within_s
    while (value := condition()) is not True:
        assert time.monotonic() < deadline, f"not within {within_s} s: {what} (it was {value!r})"
        time.sleep(0.02)


def with_engine(sets):
    """The settings of a worker, with the engine that the tests are run for."""
    if not TRTLLM or sets.get("worker.engine", "native") != "native":
        return sets
    folder = REPOSITORY / "tests/trtllm"
    engine = {"worker.engine": "trtllm", "worker.trtllm.engine_dir": folder / "engine",
              "worker.trtllm.options": folder / "options.yml", "worker.process_silence_s": 2}
    if int(sets.get("worker.dp_size", 1)) > 1:
        engine["worker.trtllm.devices"] = json.dumps(list(range(int(sets["worker.dp_size"]))))
    return {**sets, **engine}


class Server:
    """A server process. `sets` become `--set key=value`."""

    # What is 0 when nothing runs.
    idle_metrics = FRONTEND_IDLE + WORKER_IDLE

    def __init__(self, folder, sets=None, env=None, ca=None):
        assert BINARY.is_file(), f"{BINARY} is missing: build it first, with cargo build --release"
        self.port = free_port()
        self.tls = ssl.create_default_context(cafile=ca) if ca else None
        self.origin = f"{'https' if ca else 'http'}://127.0.0.1:{self.port}"
        self.base_url = f"{self.origin}/v1"
        self.log = pathlib.Path(folder) / f"server-{self.port}.log"
        command = [str(BINARY), "serve", "--set", f"frontend.http=127.0.0.1:{self.port}"]
        for key, value in with_engine(sets or {}).items():
            command += ["--set", f"{key}={value}"]
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                                            cwd=REPOSITORY, env={**os.environ, **(env or {})})

    def get(self, path, timeout=10):
        """(status, headers, text) of a GET, whatever its status."""
        try:
            with urllib.request.urlopen(self.origin + path, timeout=timeout, context=self.tls) as answer:
                return answer.status, answer.headers, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.headers, error.read().decode()

    def wait_until_ready(self):
        def ready():
            assert self.process.poll() is None, f"the server ended with {self.process.returncode}:\n{self.log_text()}"
            try:
                return self.get("/health", timeout=2)[0] == 200
            except OSError:
                return False
        try:
            eventually("GET /health says 200", ready, READY_WITHIN_S)
        except BaseException:
            self.kill()
            print(self.log_text())
            raise
        return self

    def log_text(self):
        return self.log.read_text(errors="replace")

    def metric(self, name, **labels):
        """The sum of a metric's series with these labels; None if there is no such series."""
        found = None
        for line in self.get("/metrics")[2].splitlines():
            series = re.fullmatch(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)(?: \S+)?", line)
            if series and series[1] == name:
                has = dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', series[2] or ""))
                if labels.items() <= has.items():
                    found = (found or 0.0) + float(series[3])
        return found

    def actors(self, *kinds):
        """Names of the live actors of these kinds."""
        found, left = [], [json.loads(self.get("/cluster/tree")[2])]
        while left:
            actor = left.pop()
            left += actor["children"]
            if actor["kind"] in kinds:
                found.append(actor["name"])
        return found

    def wait_until_idle(self):
        """No request, no leg, no actor of one, no used KV block and no unread byte is left behind."""
        names = self.idle_metrics

        def idle():
            left = {name: value for name in names if (value := self.metric(name)) != 0.0}
            left.update({actor: "lives" for actor in self.actors("Request", "Sequence", "Transfer")})
            return left or True
        eventually("nothing runs and nothing is held", idle)

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)

    def wait(self, within_s=END_WITHIN_S):
        return self.process.wait(timeout=within_s)

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def stop(self):
        """Ends the server in good order and looks through its log."""
        if self.process.poll() is None:
            self.terminate()
            try:
                status = self.wait()
            except subprocess.TimeoutExpired:
                self.kill()
                raise AssertionError(f"SIGTERM did not end the server in {END_WITHIN_S} s:\n{self.log_text()}") from None
            assert status == 0, f"the server ended with {status}:\n{self.log_text()}"
        bad = [line for line in self.log_text().splitlines() if re.search(r"\bERROR\b|panicked at", line)]
        assert not bad, "the server complained:\n" + "\n".join(bad)


def client_of(server, **options):
    """The official client, without retries unless the test is about them."""
    return openai.OpenAI(**client_options(server, options))


def async_client_of(server, **options):
    return openai.AsyncOpenAI(**client_options(server, options))


def client_options(server, options):
    return {"base_url": server.base_url, "api_key": "none", "max_retries": 0, "timeout": 60, **options}


def golden():
    """The 16 golden conversations of the shipped model."""
    return json.loads((REPOSITORY / "tests/fixtures/golden.json").read_text())
