"""How nodes find, check and trust each other: back ends of discovery, TLS, the examples of the README."""

import json
import os
import shutil
import signal
import socket
import subprocess
import time

import pytest

from cuelight_cluster import COOKIE, SHIPPED, dotted
from cuelight_server import BINARY, MODEL, REPOSITORY, client_of, eventually, free_port

PARIS = "The capital of France is Paris."


def answer_of(node):
    with client_of(node) as client:
        messages = [{"role": "user", "content": "What is the capital of France?"}]
        return client.chat.completions.create(model=MODEL, messages=messages).choices[0].message.content


class Etcd:
    """etcd from Debian's packages, with its data in a folder."""

    def __init__(self, folder):
        self.folder, self.port, self.peer = folder, free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = None
        self.start()

    def start(self):
        command = ["etcd", "--data-dir", str(self.folder), "--listen-client-urls", self.url, "--advertise-client-urls",
                   self.url, "--listen-peer-urls", f"http://127.0.0.1:{self.peer}", "--log-level", "error"]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL)

        def answers():
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", self.port)) == 0
        eventually("etcd answers", answers)

    def kill(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture
def etcd(tmp_path):
    etcd = Etcd(tmp_path / "etcd")
    yield etcd
    etcd.kill()


def test_nodes_find_each_other_in_a_shared_directory(cluster, tmp_path):
    directory = tmp_path / "nodes"
    directory.mkdir()
    found = {"cluster.discovery": "file", "cluster.directory": directory, "cluster.seeds": "[]", "cluster.ttl_s": 1}
    front = cluster.add("front", ["frontend"], found)
    workers = [cluster.add(f"w{i}", ["worker"], {"worker.model": SHIPPED, **found}) for i in range(2)]
    cluster.wait_for_ranks(front, 2)
    assert answer_of(front) == PARIS
    workers[0].crash()
    cluster.wait_for_ranks(front, 1)
    workers[0].restart()
    cluster.wait_for_ranks(front, 2)
    shutil.rmtree(directory)  # nobody who is connected depends on it
    time.sleep(1.5)  # longer than the ttl: what would lapse has lapsed
    assert front.ranks_ready() == 2 and answer_of(front) == PARIS


def test_nodes_find_each_other_through_etcd_and_go_on_without_it(cluster, etcd):
    found = {"cluster.discovery": "etcd", "cluster.etcd.endpoints": json.dumps([etcd.url]), "cluster.seeds": "[]",
             "cluster.ttl_s": 2}
    front = cluster.add("front", ["frontend"], found)
    cluster.add("w0", ["worker"], {"worker.model": SHIPPED, **found})
    cluster.wait_for_ranks(front, 1)
    etcd.kill()
    late = cluster.add("w1", ["worker"], {"worker.model": SHIPPED, **found})
    late.wait_until_ready()
    assert front.ranks_ready() == 1 and answer_of(front) == PARIS
    shutil.rmtree(etcd.folder)
    etcd.start()  # empty: everybody announces itself again
    cluster.wait_for_ranks(front, 2)


def certificates(folder):
    """An authority and a certificate of it that all nodes may show."""
    def openssl(*arguments):
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, cwd=folder)
    folder.mkdir()
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-days", 2, "-subj", "/CN=authority")
    openssl("req", *key, "-keyout", "node.key", "-out", "node.csr", "-subj", "/CN=node")
    (folder / "san").write_text("subjectAltName=DNS:cuelight\n")
    openssl("x509", "-req", "-in", "node.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", 2,
            "-extfile", "san", "-out", "node.pem")
    return dotted({"cluster__tls__cert": folder / "node.pem", "cluster__tls__key": folder / "node.key",
                   "cluster__tls__ca": folder / "ca.pem"})


def test_tls_between_nodes_keeps_out_who_has_no_certificate_of_ours(cluster, tmp_path):
    ours, theirs = certificates(tmp_path / "ours"), certificates(tmp_path / "theirs")
    front = cluster.add("front", ["frontend"], ours)
    cluster.add("w0", ["worker"], {"worker.model": SHIPPED, **ours})
    cluster.wait_for_ranks(front, 1)
    assert answer_of(front) == PARIS
    for name, sets in {"plain": {}, "foreign": theirs}.items():
        stranger = cluster.add(name, ["worker"], {"worker.model": SHIPPED, **sets})
        stranger.wait_until_ready()
        eventually("it is turned away", lambda: "cannot reach a peer" in stranger.log_text())
        assert stranger.metric("cuelight_cluster_nodes") == 0.0
    assert front.ranks_ready() == 1 and front.metric("cuelight_cluster_nodes") == 1.0


def test_the_example_of_the_readme_works(tmp_path):
    names = ("front", "worker1", "worker2")
    http = free_port()
    nodes = {name: f"127.0.0.1:{free_port()}" for name in names}
    processes = []
    try:
        for name in names:
            seeds = nodes["worker1"] if name == "front" else nodes["front"]
            sets = [f"cluster.listen={nodes[name]}", f"cluster.seeds=['{seeds}']"]
            sets.append(f"frontend.http=127.0.0.1:{http}" if name == "front" else f"node.admin=127.0.0.1:{free_port()}")
            command = [str(BINARY), "node", "--config", f"configs/cluster/{name}.yaml"]
            for pair in sets:
                command += ["--set", pair]
            with open(tmp_path / f"{name}.log", "wb") as log:
                processes.append(subprocess.Popen(command, cwd=REPOSITORY, stdout=log, stderr=subprocess.STDOUT,
                                                  env={**os.environ, "CUELIGHT_COOKIE": COOKIE}))

        def both():
            shown = subprocess.run([str(BINARY), "tree", "--url", f"http://127.0.0.1:{http}"], capture_output=True, text=True)
            return shown.stdout.count("WorkerLink") == 2 and shown.stdout.count("NodeRoot") == 3 or shown.stdout
        eventually("the tree shows all three nodes", both, 30)
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        codes = [process.wait(timeout=30) for process in processes]
    assert codes == [0, 0, 0]
