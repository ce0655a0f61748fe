"""The scripts of launch/: each starts what its file says, prints a line that works, and leaves nothing behind."""

import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess

import pytest

from cuelight_server import BINARY, MODEL, REPOSITORY, Server, client_of, eventually, free_port

# Nodes of each, in the order of its file; the front end is the first.
DEPLOYMENTS = {
    "agg": ["front", "worker"],
    "agg_router": ["front", "worker1", "worker2", "worker3"],
    "disagg": ["front", "prefill", "decode"],
    "disagg_router": ["front", "prefill1", "prefill2", "decode1", "decode2"],
}
LONG = "The grass is green. The sky is blue. " * 30
WITHIN_S = 30


def free_ports(count):
    """The first of so many free ports in a row."""
    first = free_port()
    for nth in range(1, count):
        if free_port() != first + nth:
            return free_ports(count)
    return first


class Launched(Server):
    """A script that runs in a session of its own, as in a terminal. `origin` is its front end's address."""

    def __init__(self, folder, name, *sets, program=BINARY):
        self.nodes = DEPLOYMENTS[name]
        self.port = free_ports(1 + 2 * len(self.nodes))
        self.log = folder / "launch.log"
        self.at(self.port)
        command = [str(REPOSITORY / f"launch/{name}.sh")]
        for pair in sets:
            command += ["--set", pair]
        env = {**os.environ, "CUELIGHT_BIN": str(program), "CUELIGHT_PORTS": str(self.port), "TMPDIR": str(folder)}
        with open(self.log, "wb") as log:
            # Whoever runs the tests may ignore SIGINT; a shell could not take that back.
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                                            cwd=folder, env=env, start_new_session=True,
                                            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))

    def at(self, port):
        self.tls, self.origin = None, f"http://127.0.0.1:{port}"
        self.base_url = f"{self.origin}/v1"
        return self

    def wait_for_curl(self):
        def printed():
            assert self.process.poll() is None, f"it ended with {self.process.returncode}:\n{self.log_text()}"
            return any(line.startswith("curl ") for line in self.lines()) or self.log_text()
        eventually("it prints a curl line", printed, WITHIN_S)
        [line] = [line for line in self.lines() if line.startswith("curl ")]
        return line

    def lines(self):
        return self.log_text().splitlines()

    def logs(self):
        return pathlib.Path(re.search(r"logs are in (\S+)", self.log_text())[1])

    def of_node(self, name, metric, **labels):
        """A metric of one node, from its `node.admin`."""
        front = self.port
        try:
            return self.at(front + 2 + 2 * self.nodes.index(name)).metric(metric, **labels) or 0.0
        finally:
            self.at(front)

    def interrupt(self):
        """Ctrl-C: the terminal tells the whole group in front."""
        os.killpg(self.process.pid, signal.SIGINT)

    def processes(self):
        """What runs in its session, by process id."""
        found = {}
        for entry in pathlib.Path("/proc").iterdir():
            try:
                session = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[3])
                if session == self.process.pid and (command := (entry / "cmdline").read_text()):
                    found[int(entry.name)] = command.replace("\0", " ")
            except (OSError, ValueError, IndexError):
                continue  # no process, or one that has just ended
        return found

    def end(self):
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def launch(tmp_path):
    scripts = []

    def make(*args, **options):
        scripts.append(Launched(tmp_path, *args, **options))
        return scripts[-1]
    yield make
    for script in scripts:
        script.end()


def complete(server, prompt):
    with client_of(server) as client:
        answer = client.completions.create(model=MODEL, prompt=prompt, max_tokens=8, temperature=0.0)
    return answer.choices[0].text, answer.usage.prompt_tokens_details.cached_tokens


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_what_it_prints_works_and_ctrl_c_ends_all_of_it(launch, server, name):
    script = launch(name)
    line = script.wait_for_curl()
    answer = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=WITHIN_S)
    assert '"content":"The capital of France is Paris."' in answer.stdout, answer
    assert len(script.processes()) == 1 + len(script.nodes)

    assert complete(script, LONG)[0] == complete(server, LONG)[0]
    fetches = {node: script.of_node(node, "cuelight_kv_fetches_total", outcome="whole") for node in script.nodes[1:]}
    if "disagg" in name:
        assert script.metric("cuelight_prefill_places_total", place="elsewhere") == 1.0
        assert sum(fetches.values()) == 1.0 and all(node.startswith("decode") for node in fetches if fetches[node])
    if "router" in name:
        cached = complete(script, LONG + "And")[1]
        assert cached > 100, "it goes where its prefix is"

    script.interrupt()
    assert script.wait(WITHIN_S) == 0, script.log_text()
    assert script.processes() == {}
    logs = {log.stem: log.read_text() for log in script.logs().iterdir()}
    assert sorted(logs) == sorted(script.nodes)
    assert not re.search(r"\bERROR\b|panicked at", "".join(logs.values())), logs


def test_a_node_that_cannot_start_is_named_and_the_others_end(launch):
    script = launch("disagg", "worker.role=none")
    assert script.wait(WITHIN_S) == 1
    said = script.log_text()
    assert re.search(r"(prefill|decode) ended with status 64", said) and "worker.role = none: must be" in said
    assert "front ended" not in said and "curl" not in said
    assert script.processes() == {}


def test_a_port_that_is_taken_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        env = {**os.environ, "CUELIGHT_BIN": str(BINARY), "CUELIGHT_PORTS": str(port)}
        ended = subprocess.run([REPOSITORY / "launch/agg.sh"], env=env, capture_output=True, text=True, timeout=WITHIN_S)
    assert ended.returncode == 1 and f"port {port} is taken" in ended.stderr, ended


def test_a_worker_that_dies_later_is_reported_and_the_others_serve_on(launch):
    script = launch("agg_router")
    script.wait_for_curl()
    [victim] = [pid for pid, command in script.processes().items() if "--node worker2" in command]
    os.kill(victim, signal.SIGKILL)
    eventually("it is reported", lambda: "worker2 ended with status 137" in script.log_text() or script.log_text())
    for nth in range(3):
        complete(script, f"{nth} {LONG}")
    script.process.send_signal(signal.SIGTERM)
    assert script.wait(WITHIN_S) == 0
    assert script.processes() == {}


def test_a_second_ctrl_c_ends_at_once_what_still_answers(launch):
    script = launch("agg", "worker.engine=sim", "worker.sim.step_us=100000")
    script.wait_for_curl()
    with client_of(script) as client:
        stream = client.completions.create(model=MODEL, prompt="x", max_tokens=1000, stream=True,
                                           extra_body={"ignore_eos": True})
        next(iter(stream))
        script.interrupt()
        eventually("it is ending", lambda: "once more ends it at once" in script.log_text())
        assert script.process.poll() is None, "the front end finishes its stream"
        script.interrupt()
        assert script.wait(5) == 1
    eventually("nothing is left", lambda: script.processes() == {} or script.processes())


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv of util-linux")
def test_nodes_end_with_a_script_that_is_killed(launch):
    script = launch("agg")
    script.wait_for_curl()
    script.process.kill()
    script.process.wait()
    eventually("nothing is left", lambda: script.processes() == {} or script.processes(), WITHIN_S)
