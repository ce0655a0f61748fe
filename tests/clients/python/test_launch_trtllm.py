"""launch/trtllm.sh: what it would run, and what it says about what is missing. Nothing is started."""

import json
import os
import shlex
import subprocess

import pytest

from cuelight_server import REPOSITORY


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


class Machine:
    """A folder that plays a machine with TensorRT-LLM, an engine and GPUs."""

    def __init__(self, folder):
        self.folder, self.bin, self.libs = folder, folder / "bin", folder / "libs"
        self.engine, self.model = folder / "an engine", folder / "model"
        for made in (self.bin, self.libs, self.engine, self.model):
            made.mkdir()
        (self.libs / "libtensorrt_llm.so").touch()
        (self.model / "config.json").touch()
        (self.model / "tokenizer.json").touch()
        for name in ("cuelight", "mpirun", "executorWorker"):
            self.program(name, "")
        self.gpus(8)
        self.built()

    def program(self, name, script):
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

    def gpus(self, count):
        self.program("nvidia-smi", "\n".join(f"echo 'GPU {nth}: H100 (UUID: {nth})'" for nth in range(count)))

    def built(self, tp=1, pp=1, indent=None):
        mapping = {"moe_tp_size": 9, "world_size": tp * pp, "tp_size": tp, "pp_size": pp}
        text = json.dumps({"pretrained_config": {"mapping": mapping}, "build_config": {}}, indent=indent)
        (self.engine / "config.json").write_text(text)
        for rank in range(tp * pp):
            (self.engine / f"rank{rank}.engine").touch()

    def launch(self, *more, path="/usr/bin:/bin", libs=None):
        env = {"PATH": f"{self.bin}:{path}", "CUELIGHT_BIN": str(self.bin / "cuelight"),
               "LD_LIBRARY_PATH": str(libs or self.libs)}
        command = [REPOSITORY / "launch/trtllm.sh", "--engine", self.engine, "--model", self.model, "--dry-run", *more]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=30)

    def sets(self, *more, **options):
        """What would be set, by key."""
        done = self.launch(*more, **options)
        assert done.returncode == 0, done.stderr
        words = shlex.split(done.stdout)
        assert words[:2] == [str(self.bin / "cuelight"), "serve"] and words[2::2] == ["--set"] * (len(words) // 2 - 1)
        return dict(word.split("=", 1) for word in words[3::2])

    def refused(self, *more, status=1, **options):
        done = self.launch(*more, **options)
        assert (done.returncode, done.stdout) == (status, ""), done
        return done.stderr


def test_one_gpu_needs_no_mpi(machine):
    assert machine.sets() == {
        "worker.engine": "trtllm", "worker.model": f"'{machine.model}'", "worker.trtllm.mode": "leader",
        "worker.trtllm.engine_dir": f"'{machine.engine}'"}


@pytest.mark.parametrize("indent", [None, 4])
def test_a_leader_is_started_by_mpirun_with_a_process_for_each_gpu(machine, indent):
    machine.built(tp=2, pp=2, indent=indent)
    sets = machine.sets("--set", "frontend.http=127.0.0.1:1")
    root = ", --allow-run-as-root" if os.getuid() == 0 else ""
    assert sets["worker.process_command"] == f'[mpirun, -n, "4"{root}]'
    assert sets["frontend.http"] == "127.0.0.1:1"


def test_an_orchestrator_names_its_worker_and_needs_no_mpirun(machine):
    machine.built(tp=2)
    worker = machine.bin / "executorWorker"
    sets = machine.sets("--mode", "orchestrator", "--executor-worker", worker)
    assert sets["worker.trtllm.worker_executable"] == f"'{worker}'"
    assert sets["worker.trtllm.mode"] == "orchestrator" and "worker.process_command" not in sets


def test_engines_get_gpus_of_their_own(machine):
    machine.built(tp=2)
    sets = machine.sets("--dp", "2")
    assert (sets["worker.dp_size"], sets["worker.trtllm.devices"]) == ("2", "[0, 1, 2, 3]")
    assert machine.sets("--dp", "2", "--devices", "4,5,7,6")["worker.trtllm.devices"] == "[4, 5, 7, 6]"


def test_a_stand_in_needs_no_gpu_and_no_library(machine):
    (machine.bin / "nvidia-smi").unlink()
    (machine.engine / "config.json").unlink()
    assert machine.sets("--stand-in", libs="/nowhere")["worker.engine"] == "trtllm"


def test_what_is_missing_is_named(machine):
    assert "no folder of LD_LIBRARY_PATH has libtensorrt_llm.so" in machine.refused(libs="/nowhere")
    assert "need 9, and nvidia-smi lists 8" in machine.refused("--dp", "9")
    assert "--devices names GPU 8, and nvidia-smi lists 0 to 7" in machine.refused("--devices", "8")
    assert "--devices lists 2 GPUs where 1 engines for 1 each need 1" in machine.refused("--devices", "0,1")
    assert "/none is no program" in machine.refused("--mode", "orchestrator", "--executor-worker", "/none")
    assert "give --executor-worker FILE, or set TRTLLM_ROOT" in machine.refused("--mode", "orchestrator")
    assert "--options /none is no file" in machine.refused("--options", "/none")
    assert "--engine /none is no folder" in machine.refused("--engine", "/none")
    assert "/none has no config.json and tokenizer.json" in machine.refused("--model", "/none")
    machine.built(tp=2)
    (machine.engine / "rank1.engine").unlink()
    assert "is for 2 GPUs but has no rank1.engine" in machine.refused()
    (machine.engine / "config.json").unlink()
    assert "has no config.json: name what trtllm-build has written" in machine.refused()


def test_wrong_arguments_say_so(machine):
    assert "--mode both: must be leader or orchestrator; see --help" in machine.refused("--mode", "both", status=64)
    assert "--dp 0: must be a whole number from 1" in machine.refused("--dp", "0", status=64)
    assert "--devices a: must be numbers" in machine.refused("--devices", "a", status=64)
    assert "unknown argument --nothing" in machine.refused("--nothing", status=64)
    assert "--set needs a value" in machine.refused("--set", status=64)
    done = machine.launch("--help")
    assert done.returncode == 0 and done.stdout.startswith("usage: launch/trtllm.sh")
