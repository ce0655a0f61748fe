"""Engines' processes that a launcher starts (`worker.process_command`), as MPI does for engines on several GPUs."""

import json
import os
import signal
import stat

from cuelight_server import MODEL, REPOSITORY, Server, client_of, eventually

# Starts two processes that know their places, and ends when they have, as mpirun does.
LAUNCHER = """#!/bin/sh
for place in 1 0; do OMPI_COMM_WORLD_RANK=$place "$@" & done
wait
"""


def answer(server):
    with client_of(server) as client:
        asked = client.chat.completions.create(model=MODEL, temperature=0, messages=[
            {"role": "user", "content": "What is the capital of France?"}])
        return asked.choices[0].message.content


def another_serves(server):
    return server.metric("cuelight_generation") == 2.0 and server.get("/health")[0] == 200


def processes(parent):
    """Engines' processes under this one, and what they are called by."""
    found, left = [], [parent]
    while left:
        pid = left.pop()
        for other in filter(str.isdigit, os.listdir("/proc")):
            try:
                fields = open(f"/proc/{other}/stat").read().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(fields[1]) == pid and fields[0] != "Z":
                found.append(int(other))
                left.append(int(other))
    return found


def test_a_native_engine_may_have_a_launcher(make_server):
    server = make_server({"worker.engine": "native", "worker.process": "true",
                          "worker.process_command": json.dumps(["nice", "-n", "1"])})
    assert answer(server) == "The capital of France is Paris."
    [engine] = processes(server.process.pid)
    os.kill(engine, signal.SIGKILL)
    eventually("another one serves", lambda: another_serves(server))
    assert answer(server) == "The capital of France is Paris."


def test_several_processes_of_an_engine_come_and_go_together(make_server, tmp_path):
    launcher = tmp_path / "launcher"
    launcher.write_text(LAUNCHER)
    launcher.chmod(launcher.stat().st_mode | stat.S_IXUSR)
    sets = {"worker.engine": "trtllm", "worker.trtllm.engine_dir": REPOSITORY / "tests/trtllm/engine",
            "worker.process_command": json.dumps([str(launcher)])}
    server = make_server(sets)
    assert answer(server) == "The capital of France is Paris."
    [leader] = [pid for pid in processes(server.process.pid) if b"engine" in open(f"/proc/{pid}/cmdline", "rb").read().split(b"\0")
                and os.path.realpath(f"/proc/{pid}/exe") == os.path.realpath(f"/proc/{server.process.pid}/exe")]
    launched = int(open(f"/proc/{leader}/stat").read().rsplit(")", 1)[1].split()[1])
    os.kill(launched, signal.SIGKILL)
    eventually("another one serves", lambda: another_serves(server))
    eventually("what it had started is gone", lambda: not os.path.exists(f"/proc/{leader}"))
    assert answer(server) == "The capital of France is Paris."
    server.stop()
    assert not processes(server.process.pid)


def test_a_launcher_that_does_not_exist_is_named(tmp_path):
    server = Server(tmp_path, {"worker.process": "true", "worker.process_command": json.dumps(["/no/launcher"]),
                               "supervision.restarts": 1, "supervision.delay_ms": 10})
    try:
        assert server.wait(within_s=30) == 70
        assert "worker.process_command was not started: No such file or directory" in server.log_text()
    finally:
        server.kill()
