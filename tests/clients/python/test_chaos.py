"""`cuelight chaos` as an operator runs it: against a cluster that runs already, and with faults of the network."""

import json
import os
import shutil
import subprocess

import pytest

from cuelight_server import BINARY, REPOSITORY

SETS = dict(cluster__failure_detection_ms=1000, supervision__restarts=100, supervision__window_s=2,
            supervision__delay_ms=20)


def chaos(folder, *args):
    """(exit code, report, what it printed)."""
    report = folder / "report.json"
    command = [BINARY, "chaos", "--json", report, "--clients", "6", *args]
    with subprocess.Popen(command, cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as harness:
        try:
            shown, _ = harness.communicate(timeout=120)
        finally:
            harness.kill()
    if "--netns" in args:
        spaces = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
        assert f"cuechaos-{harness.pid}-" not in spaces, "it leaves its network behind"
    return harness.returncode, json.loads(report.read_text()) if report.exists() else None, shown


def check(code, report, shown):
    assert code == 0 and report["verdict"] == "ok" and report["violations_total"] == 0, shown
    requests = report["requests"]
    assert requests["wrong"] == requests["failed"] == 0 < requests["complete"] == requests["requests"], shown
    assert report["full_ranks"] == 2, shown
    assert all(fault["no_effect"] is False for fault in report["faults"]), shown


def test_a_running_cluster_is_attached_to_and_broken_without_one_wrong_answer(cluster, tmp_path):
    front = cluster.frontend(**SETS)
    workers = [cluster.worker(f"w{i}", **SETS) for i in (1, 2)]
    cluster.wait_for_ranks(front, 2)
    nodes = [front, *workers]
    only = ["engine_panic", "step_fails", "slow_steps", "kill_actor", "slow_client", "vanishing_client"]
    args = ["--seed", "5", "--faults", str(len(only)), "--pause-ms", "100", "--only", ",".join(only)]
    for node in nodes:
        args += ["--attach", node.origin]
    code, report, shown = chaos(tmp_path, *args)
    check(code, report, shown)
    assert sorted(fault["fault"]["kind"] for fault in report["faults"]) == sorted(only), shown
    assert [node["name"] for node in report["nodes"]] == [node.origin.removeprefix("http://") for node in nodes]
    # It leaves the cluster as it was: nobody's process ended, no slowed step, nothing running.
    for node in nodes:
        assert node.process.poll() is None, node.log_text()
        node.wait_until_idle()
    code, _, shown = chaos(tmp_path, "--attach", front.origin, "--only", "kill")
    assert code == 64 and "kill needs --node" in shown, shown


def test_ranks_with_roles_are_broken_in_the_phases_of_a_transfer_without_one_wrong_answer(tmp_path):
    args = ["--seed", "6", "--faults", "6", "--only", "kill,stop", "--pause-ms", "100", "--logs", str(tmp_path / "logs"),
            "--phases", "prefilling,reserved,decoding"]
    for node in ("front", "prefill1", "prefill2", "decode1", "decode2"):
        args += ["--node", f"configs/chaos-disagg/{node}.yaml"]
    code, report, shown = chaos(tmp_path, *args)
    check(code, report, shown)
    assert report["full_prefill_ranks"] == 2, shown
    assert {fault["victim"] for fault in report["faults"]} == {"prefill", "decode"}, shown
    # Each waited for its phase, and the load is such that it came.
    assert all(fault["phases"].get(fault["aim"], 0) > 0 for fault in report["faults"]), shown
    assert {fault["aim"] for fault in report["faults"]} >= {"prefilling", "reserved"}, shown
    assert sum(row["count"] for row in report["caught"]) == 6 and all(row["unseen"] == 0 for row in report["caught"]), shown


# Which queueing discipline of the kernel each fault is made of, and how many faults show it.
NETWORK = {"partition,partition_one_way": ("blackhole", 4),
           "bandwidth": ("tbf rate 64kbit burst 3200 latency 400ms", 1),
           "delay": ("netem delay 10ms 5ms", 1),
           "loss": ("netem loss 5%", 1)}


def refusal(queue):
    """Why this machine cannot shape packets so; None if it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if not (shutil.which("ip") and shutil.which("tc")):
        return "there is no `ip` or no `tc`: install iproute2"
    space = f"cuetest-{os.getpid()}"
    try:
        for command in (f"ip netns add {space}", f"ip -n {space} link add bridge0 type bridge",
                        f"ip -n {space} link add veth0 type veth peer name veth1",
                        f"tc -n {space} qdisc replace dev veth0 root {queue}"):
            done = subprocess.run(command.split(), capture_output=True, text=True)
            if done.returncode != 0:
                return f"`{command}` says: {done.stderr.strip()}"
    finally:
        subprocess.run(["ip", "netns", "del", space], capture_output=True)
    return None


@pytest.mark.parametrize("kinds", NETWORK)
def test_no_client_can_tell_what_the_network_between_nodes_does(tmp_path, kinds):
    queue, faults = NETWORK[kinds]
    why = refusal(queue)
    args = ["--netns", "--seed", "1", "--faults", str(faults), "--only", kinds, "--pause-ms", "100",
            "--set", "cluster.failure_detection_ms=500", "--logs", str(tmp_path / "logs")]
    for node in ("front", "w1", "w2"):
        args += ["--node", f"configs/chaos/{node}.yaml"]
    if why and "netem" in why:
        code, _, shown = chaos(tmp_path, *args, "--netns-wires", "veth")
        assert code == 64 and f"{kinds} this kernel has no netem" in shown, shown
        # Then the harness does it by itself.
        why = None if os.path.exists("/dev/net/tun") else f"{why}, and there is no /dev/net/tun"
    if why:
        pytest.skip(f"NOT TESTED: {kinds} between nodes: {why}")
    code, report, shown = chaos(tmp_path, *args)
    check(code, report, shown)
    met = {(fault["fault"]["kind"], fault["fault"].get("direction")) for fault in report["faults"]}
    if "partition" in kinds:
        assert met == {("partition", "both"), ("partition", "in"), ("partition", "out")}, met
        assert all(fault["touched"] > 0 for fault in report["faults"]), shown
    else:
        assert met == {(kinds, None)}, met
