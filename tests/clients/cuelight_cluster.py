"""Runs several `cuelight node` processes that form one cluster on loopback."""

import json
import os
import pathlib
import signal
import subprocess
import urllib.request

from cuelight_server import (BINARY, FRONTEND_IDLE, MODEL, READY_WITHIN_S, REPOSITORY, WORKER_IDLE, Server, eventually,
                             free_port, with_engine)

COOKIE = "a cookie for tests"
SHIPPED = REPOSITORY / "models/cuelight-tiny"


class Node(Server):
    """One node. `origin` is its front end's address, or where there is none its `node.admin`."""

    def __init__(self, cluster, name, sections, sets, env):
        self.name, self.cluster = name, cluster
        self.admin_port, self.port, self.listen = free_port(), free_port(), f"127.0.0.1:{free_port()}"
        self.tls = None
        self.has_frontend = "frontend" in sections
        self.idle_metrics = FRONTEND_IDLE + (WORKER_IDLE if "worker" in sections else ())
        self.origin = f"http://127.0.0.1:{self.port if self.has_frontend else self.admin_port}"
        self.base_url = f"{self.origin}/v1"
        self.log = cluster.folder / f"{name}.log"
        self.env = {**os.environ, "CUELIGHT_COOKIE": COOKIE, **env}
        self.config = cluster.folder / f"{name}.yaml"
        self.sets = {"node.name": name, "node.admin": f"127.0.0.1:{self.admin_port}", "faults.enabled": "true",
                     "cluster.listen": self.listen, "cluster.cookie": "env:CUELIGHT_COOKIE",
                     "cluster.seeds": json.dumps(cluster.seeds)}
        if self.has_frontend:
            self.sets["frontend.http"] = f"127.0.0.1:{self.port}"
        if "worker" in sections:
            self.sets["worker.threads"] = 1
        self.sets.update(with_engine(sets) if "worker" in sections else sets)
        self.config.write_text("".join(f"{section}: {{}}\n" for section in [*sections, "cluster"]))
        self.process = None
        self.start()

    def start(self):
        command = [str(BINARY), "node", "--config", str(self.config)]
        for key, value in self.sets.items():
            command += ["--set", f"{key}={value}"]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                                            cwd=REPOSITORY, env=self.env)
        return self

    def admin(self, path):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin_port}{path}", timeout=5) as answer:
            return answer.read().decode()

    def inject(self, fault, **options):
        body = json.dumps({"fault": fault, **options}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.admin_port}/debug/faults", body)
        with urllib.request.urlopen(request, timeout=5) as answer:
            return json.loads(answer.read())["result"]

    def send(self, which):
        self.process.send_signal(which)

    def crash(self):
        """Ends it as a power cut would."""
        self.process.kill()
        self.process.wait()

    def restart(self):
        self.start()
        return self.wait_until_ready()

    def wait_until_live(self):
        def live():
            try:
                return self.get("/live")[0] == 200
            except OSError as error:
                return str(error)
        eventually(f"{self.name} answers", live)
        return self

    def ranks_ready(self):
        return json.loads(self.get("/health")[2])["models"][0]["ranks_ready"]

    def prefill_ranks_ready(self):
        return json.loads(self.get("/health")[2])["models"][0]["prefill_ranks_ready"]


class Cluster:
    """Nodes that end with the test."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.nodes = []
        self.seeds = []

    def add(self, name, sections, sets=None, env=None):
        """Starts a node; every later node has it for a seed."""
        node = Node(self, name, sections, sets or {}, env or {})
        self.nodes.append(node)
        self.seeds.append(node.listen)
        return node

    def frontend(self, name="front", **sets):
        return self.add(name, ["frontend"], dotted(sets))

    def worker(self, name, env=None, **sets):
        return self.add(name, ["worker"], {"worker.model": SHIPPED, **dotted(sets)}, env)

    def wait_for_ranks(self, frontend, count):
        def all_linked():
            try:
                ready = frontend.ranks_ready()
            except OSError as error:
                return str(error)
            return ready == count or f"{ready} of {count} ranks"
        try:
            eventually(f"{count} ranks are linked", all_linked, READY_WITHIN_S)
        except BaseException:
            self.print_logs()
            raise

    def print_logs(self):
        for node in self.nodes:
            print(f"--- {node.name}\n{node.log_text()}")

    def end(self):
        for node in self.nodes:
            if node.process.poll() is None:
                node.send(signal.SIGCONT)
                node.kill()


def dotted(sets):
    """`worker__max_waiting=1` means `worker.max_waiting: 1`."""
    return {key.replace("__", "."): value for key, value in sets.items()}


__all__ = ["COOKIE", "MODEL", "Cluster", "Node"]
