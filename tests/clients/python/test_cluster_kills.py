"""Any actor is killed in mid-stream: only what lived in it is lost, and its node heals."""

import json

import openai
import pytest

from cuelight_answers import alike, ask, busy, slow_down
from cuelight_server import client_of, eventually

# All that a client can see of an answer, in one; it has a leg on each worker.
RICH = dict(n=2, temperature=0.9, seed=7, logprobs=3, max_tokens=100)
ON_WORKERS = ["NodeControl", "PeerLink", "FrontendLink", "Sequence", "Worker"]
ON_FRONT_ENDS = ["NodeControl", "PeerLink", "Cluster", "WorkerLink", "Models", "Router"]
# Those that are there in a cluster at rest. Who dials whom is up to chance.
LASTING = ["NodeRoot", "Cluster", "NodeControl", "Frontend", "Models", "Requests", "Router", "WorkerLink", "Worker", "Rank",
           "FrontendLink"]
SETS = dict(cluster__failure_detection_ms=600, supervision__restarts=100, supervision__delay_ms=20)


@pytest.fixture
def trio(cluster):
    """Two workers and a front end that dials both; their actors are started again as often as they are killed."""
    workers = [cluster.worker(f"w{i}", **SETS) for i in (1, 2)]
    front = cluster.frontend(**SETS)
    cluster.wait_for_ranks(front, 2)
    slow_down(*workers)
    return front, {worker.name: worker for worker in workers}



def actors_of(node, kinds):
    """How many actors of each kind live on this node."""
    tree = json.loads(node.admin("/cluster/tree"))
    left = [root for root in tree["children"] if root["name"] == node.name]
    found = dict.fromkeys(kinds, 0)
    while left:
        actor = left.pop()
        left += actor["children"]
        if actor["kind"] in found:
            found[actor["kind"]] += 1
    return found


@pytest.mark.parametrize("where, kinds", [("worker", ON_WORKERS), ("front end", ON_FRONT_ENDS)])
def test_an_answer_is_the_same_whichever_actor_is_killed(cluster, trio, where, kinds):
    front, workers = trio
    nodes = [front, *workers.values()]
    with client_of(front) as client:
        expected, _ = ask(client, **RICH)
        whole = {node.name: actors_of(node, LASTING) for node in nodes}
        for kind in kinds:
            killed = []

            def strike(count):
                if count == 8:
                    targets = [node for node in nodes if (node is front) == (where == "front end")]
                    has = [node for node in targets if actors_of(node, [kind])[kind] > 0]
                    killed.append(has[-1].inject("kill_actor", kind=kind))
            assert alike(ask(client, strike, **RICH)[0], RICH) == alike(expected, RICH), kind
            assert [result.split()[:2] for result in killed] == [["killed", kind]]
            cluster.wait_for_ranks(front, 2)
            eventually(f"all is there again after {kind}",
                       lambda: all(actors_of(node, LASTING) == whole[node.name] for node in nodes))
            slow_down(*workers.values())
        assert alike(ask(client, **RICH)[0], RICH) == alike(expected, RICH)
    assert front.metric("cuelight_requests_total", outcome="failed") == 0.0
    for node in nodes:
        assert node.process.poll() is None, node.log_text()
        node.wait_until_idle()


def test_a_node_whose_root_is_killed_ends_and_its_legs_go_on_elsewhere(cluster, trio):
    front, workers = trio
    with client_of(front) as client:
        expected, _ = ask(client, **RICH)
        killed = []

        def strike(count):
            if count == 8:
                killed.append(busy(workers))
                killed[0].inject("kill_actor", kind="NodeRoot")
        outcome, ranks = ask(client, strike, **RICH)
        assert alike(outcome, RICH) == alike(expected, RICH) and any(len(of_choice) == 2 for of_choice in ranks)
        assert killed[0].wait() == 70 and "the supervision tree gave up" in killed[0].log_text()
        killed[0].restart()
        cluster.wait_for_ranks(front, 2)
        slow_down(killed[0])
        # A front end takes its clients along: they are told, and its legs end.
        texts = []
        with pytest.raises(openai.APIError):
            stream = client.completions.create(model="cuelight-tiny", prompt="a b", max_tokens=1000, stream=True,
                                               extra_body={"ignore_eos": True})
            for chunk in stream:
                texts.append(chunk.choices[0].text)
                assert chunk.choices[0].finish_reason is None
                if len(texts) == 8:
                    front.inject("kill_actor", kind="NodeRoot")
        assert front.wait() == 70
    for worker in workers.values():
        worker.wait_until_idle()
    front.restart()
    cluster.wait_for_ranks(front, 2)
    with client_of(front) as client:
        assert alike(ask(client, **RICH)[0], RICH) == alike(expected, RICH)
