"""Several nodes are one server: whatever happens to a worker, its clients do not notice."""

import json
import signal
import threading
import time

import httpx
import openai
import pytest

from cuelight_answers import LONG, alike, ask, busy, slow_down
from cuelight_server import MODEL, client_of, eventually

ANSWERS = {
    "greedy": {},
    "sampled, two choices": dict(temperature=0.9, seed=7, n=2),
    "logprobs": dict(logprobs=3),
    "a stop string that comes late": dict(stop=["10 * 10"]),
}


@pytest.mark.parametrize("fault", ["crash", "stop", "drain", "engine_panic", "step_fails", "step_hangs", "kill Rank",
                                   "kill Cluster"])
def test_an_answer_is_the_same_whatever_happens_to_its_worker(cluster, trio, fault):
    front, workers = trio

    def strike(worker):
        if fault == "crash":
            worker.crash()
        elif fault == "stop":
            worker.send(signal.SIGSTOP)
        elif fault == "drain":
            worker.send(signal.SIGTERM)
        elif fault.startswith("kill "):
            worker.inject("kill_actor", kind=fault.split()[1])
        elif fault == "step_hangs":
            worker.inject(fault, ms=3_600_000)
        else:
            worker.inject(fault)

    def heal(worker):
        if fault == "stop":
            worker.send(signal.SIGCONT)
        elif fault in ("crash", "drain"):
            worker.process.wait(timeout=60)
            worker.restart()
        cluster.wait_for_ranks(front, 2)
        slow_down(worker)

    with client_of(front) as client:
        for name, options in ANSWERS.items():
            expected, _ = ask(client, **options)
            victims = []

            def strike_once(count):
                if count == 8:
                    victims.append(busy(workers))
                    strike(victims[0])
            outcome, ranks = ask(client, strike_once, **options)
            assert alike(outcome, options) == alike(expected, options), name
            if fault != "drain":
                assert any(len(of_choice) > 1 for of_choice in ranks), f"{name}: nothing was migrated: {ranks}"
            heal(victims[0])
    assert front.metric("cuelight_requests_total", outcome="failed") == 0.0
    for node in (front, *workers.values()):
        node.wait_until_idle()
    if fault == "step_hangs":  # nothing else frees what a hung engine holds
        replaced = [worker.log_text().count("replacing this process") for worker in workers.values()]
        assert sum(replaced) == len(ANSWERS)
        assert all(worker.metric("cuelight_hung_engines") == 0.0 for worker in workers.values())


def test_nodes_form_one_tree_and_both_front_ends_use_all_workers(cluster):
    fronts = [cluster.frontend("front-a"), cluster.frontend("front-b")]
    workers = [cluster.worker(f"w{i}") for i in range(3)]
    for front in fronts:
        cluster.wait_for_ranks(front, 3)
    with client_of(fronts[0]) as a, client_of(fronts[1]) as b:
        for client in (a, b):
            answer = client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "What is the capital of France?"}])
            assert answer.choices[0].message.content == "The capital of France is Paris."
    for node in (*fronts, *workers):
        tree = json.loads(node.admin("/cluster/tree"))
        assert (tree["kind"], tree["counters"]["nodes"]) == ("Nodes", 5), node.name
        assert {root["name"] for root in tree["children"]} == {"front-a", "front-b", "w0", "w1", "w2"}
        assert len([name for name in node.actors("FrontendLink")]) == 6
    assert json.loads(workers[0].admin("/health"))["status"] == "ready"


def test_a_request_waits_for_a_worker_to_come_back_but_not_for_ever(cluster):
    front = cluster.frontend(frontend__no_rank_wait_s=3)
    worker = cluster.worker("w1")
    cluster.wait_for_ranks(front, 1)
    slow_down(worker)
    with client_of(front) as client:
        expected, _ = ask(client)

        def crash_and_return(count):
            if count == 8:
                worker.crash()
                threading.Thread(target=worker.restart).start()
        outcome, ranks = ask(client, crash_and_return)
        assert outcome == expected and len(ranks[0]) == 2
        cluster.wait_for_ranks(front, 1)
        slow_down(worker)
        texts = []
        with pytest.raises(openai.APIError) as error:
            stream = client.completions.create(stream=True, extra_body={"ignore_eos": True}, **LONG)
            for chunk in stream:
                texts.append(chunk.choices[0].text)
                if len(texts) == 8:
                    worker.crash()
        assert "cuelight-tiny" in str(error.value) and len(texts) >= 8
        with pytest.raises(openai.InternalServerError) as refused:
            client.completions.create(**LONG)
        assert refused.value.status_code == 503 and "retry-after" in refused.value.response.headers
    front.wait_until_idle()


def test_a_rolling_restart_of_all_workers_under_load_fails_nothing(cluster, trio):
    front, workers = trio
    failures, done, stop = [], [0], threading.Event()
    with client_of(front) as client:
        expected, _ = ask(client)

        def load():
            while not stop.is_set():
                try:
                    outcome, _ = ask(client)
                    if outcome != expected:
                        failures.append(outcome)
                    done[0] += 1
                except openai.OpenAIError as error:
                    failures.append(repr(error))
        threads = [threading.Thread(target=load) for _ in range(6)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(2):
                for worker in workers.values():
                    worker.send(signal.SIGTERM)
                    assert worker.wait() == 0
                    worker.restart()
                    slow_down(worker)
                    cluster.wait_for_ranks(front, 2)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    assert not failures and done[0] > 10, (done, failures[:3])


def test_a_draining_front_end_finishes_its_streams_and_refuses_new_ones(cluster, trio):
    front, _ = trio
    other = cluster.frontend("front-2")
    cluster.wait_for_ranks(other, 2)
    with client_of(front) as client, client_of(other) as second:
        expected, _ = ask(client)

        def drain(count):
            if count == 8:
                front.send(signal.SIGTERM)
                eventually("the node drains", lambda: httpx.get(f"{front.origin}/health").status_code == 503)
                with pytest.raises(openai.InternalServerError), client_of(front) as late:
                    ask(late)
                assert ask(second, max_tokens=3)[0]["usage"] is not None
        assert ask(client, drain)[0] == expected
    assert front.wait() == 0


def test_a_client_that_leaves_frees_what_it_held_on_another_node(cluster, trio):
    front, workers = trio
    with client_of(front) as client:
        stream = client.completions.create(stream=True, extra_body={"ignore_eos": True},
                                           **{**LONG, "max_tokens": 1500})
        for _ in zip(range(5), stream):
            pass
        busy = [worker for worker in workers.values() if worker.metric("cuelight_running") == 1.0]
        assert len(busy) == 1 and busy[0].metric("cuelight_kv_blocks_used") > 0
        left = time.monotonic()
        stream.close()
        eventually("the leg is gone", lambda: busy[0].metric("cuelight_running") == 0.0)
        assert time.monotonic() - left < 5
    for node in (front, *workers.values()):
        node.wait_until_idle()


def test_a_front_end_that_dies_takes_its_legs_along_and_no_others(cluster, trio):
    front, workers = trio
    other = cluster.frontend("front-2")
    cluster.wait_for_ranks(other, 2)
    with client_of(front) as doomed, client_of(other) as client:
        expected, _ = ask(client)
        streams = [doomed.completions.create(stream=True, extra_body={"ignore_eos": True},
                                             **{**LONG, "max_tokens": 1500}) for _ in range(4)]
        for stream in streams:
            next(iter(stream))
        running = lambda: sum(worker.metric("cuelight_running") for worker in workers.values())  # noqa: E731
        eventually("all run", lambda: running() == 4.0)
        outcome, _ = ask(client, lambda count: front.crash() if count == 8 else None)
        assert outcome == expected
    for worker in workers.values():
        worker.wait_until_idle()
    eventually("it is forgotten", lambda: other.metric("cuelight_cluster_nodes") == 2.0)


def life(node):
    return node.metric("cuelight_incarnation")


def test_a_stopped_worker_is_noticed_in_time_and_rejoins_without_its_legs(cluster, trio):
    front, workers = trio
    with client_of(front) as client:
        expected, _ = ask(client)
        gaps, last, victims = [], [time.monotonic()], []
        lives = {worker: life(worker) for worker in workers.values()}

        def strike(count):
            now = time.monotonic()
            gaps.append(now - last[0])
            last[0] = now
            if count == 8:
                victims.append(busy(workers))
                victims[0].send(signal.SIGSTOP)
        outcome, _ = ask(client, strike)
        assert outcome == expected
        assert 0.3 < max(gaps) < 2.0, f"failure detection is 0.6 s: {max(gaps)}"
        victims[0].send(signal.SIGCONT)
        eventually("it has joined again as another", lambda: life(victims[0]) > lives[victims[0]])
        cluster.wait_for_ranks(front, 2)
        victims[0].wait_until_idle()
        assert ask(client)[0] == expected


@pytest.mark.parametrize("sets, words", [
    ({"worker.block_tokens": 32}, "KV blocks"),
    ({"worker.max_context": 512}, "context"),
    ({"worker.engine": "sim"}, "worker.engine"),
    ({"worker.precision": "f32"}, "worker.precision"),
    ({"worker.model": f"models/{MODEL}-draft", "worker.served_name": MODEL}, "other answers"),
])
def test_a_worker_that_does_not_fit_is_refused_and_health_says_why(cluster, sets, words):
    front = cluster.frontend()
    cluster.worker("good")
    cluster.wait_for_ranks(front, 1)
    cluster.add("odd", ["worker"], {"worker.model": cluster.nodes[1].sets["worker.model"], **sets})

    def refused():
        return json.loads(front.get("/health")[2])["models"][0]["refused"]
    eventually("it is refused", lambda: len(refused()) == 1)
    assert refused()[0]["worker"] == "odd/cuelight-tiny" and words in refused()[0]["reason"]
    assert front.ranks_ready() == 1
    cluster.nodes[-1].crash()
    eventually("it is forgotten", lambda: refused() == [])


def test_a_node_with_another_cookie_stays_outside(cluster):
    front = cluster.frontend().wait_until_live()
    stranger = cluster.add("stranger", ["worker"], {"worker.model": "models/cuelight-tiny"},
                           env={"CUELIGHT_COOKIE": "another cookie"})
    eventually("it is turned away",
               lambda: (front.metric("cuelight_cluster_turned_away_total", reason="cookie") or 0) > 0
               or stranger.log_text().count("cookie") > 0)
    assert front.ranks_ready() == 0
    eventually("health says why", lambda: "cookie" in front.get("/health")[2])
    assert front.metric("cuelight_cluster_nodes") == 0.0
    assert "another cookie" not in stranger.log_text() + front.log_text()
    stranger.crash()
    cluster.worker("friend")
    cluster.wait_for_ranks(front, 1)
    eventually("health forgets it", lambda: "cookie" not in front.get("/health")[2])


def test_a_node_may_be_front_end_and_worker_of_a_cluster_at_once(cluster):
    both = cluster.add("both", ["frontend", "worker"], {"worker.model": "models/cuelight-tiny"}).wait_until_live()
    other = cluster.worker("other")
    cluster.wait_for_ranks(both, 2)
    with client_of(both) as client:
        expected, _ = ask(client)
        for lost in (None, other):
            if lost:
                lost.crash()
            for _ in range(4):
                answer, _ = ask(client)
                assert answer == expected
    assert both.ranks_ready() == 1


def test_too_many_legs_get_429_from_any_front_end_and_nothing_is_lost(cluster):
    fronts = [cluster.frontend("front-a"), cluster.frontend("front-b")]
    worker = cluster.worker("w1", worker__max_running=2, worker__max_waiting=2)
    for front in fronts:
        cluster.wait_for_ranks(front, 1)
    slow_down(worker)
    refused, answered, wrong = [], [], []
    with client_of(fronts[0]) as client:
        expected, _ = ask(client)

    def load(front):
        with client_of(front) as client:
            try:
                outcome, _ = ask(client)
                answered.append(outcome == expected)
            except openai.RateLimitError as error:
                refused.append("retry-after" in error.response.headers)
            except openai.OpenAIError as error:
                wrong.append(repr(error))
    threads = [threading.Thread(target=load, args=(front,)) for front in fronts for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, wrong
    assert refused and all(refused) and answered and all(answered), (refused, answered)
    worker.wait_until_idle()
    assert worker.metric("cuelight_mailbox_deepest", mailbox="ranks") <= 16


def test_the_same_name_in_a_new_life_replaces_the_old_one(cluster, trio):
    front, workers = trio
    worker = workers["w1"]
    names = lambda: [name for name in front.actors("NodeControl") if name.startswith("w1@")]  # noqa: E731
    before = names()
    worker.crash()
    worker.restart()
    cluster.wait_for_ranks(front, 2)
    after = names()
    assert len(before) == len(after) == 1 and before != after


def test_a_client_may_leave_in_any_phase_of_a_request(cluster):
    front = cluster.frontend(frontend__no_rank_wait_s=30)
    sets = {"worker__engine": "sim", "worker__sim__prefill_us_per_token": 20_000, "worker__sim__step_us": 3000,
            "worker__max_batch_tokens": 8, "worker__max_running": 2, "worker__max_waiting": 20}
    worker = cluster.worker("w1", **sets)
    cluster.wait_for_ranks(front, 1)
    leave = lambda: httpx.Timeout(0.4)  # noqa: E731

    def ask_and_leave(prompt, max_tokens):
        body = {"model": MODEL, "prompt": prompt, "max_tokens": max_tokens, "ignore_eos": True, "stream": True}
        with pytest.raises(httpx.ReadTimeout), httpx.stream("POST", f"{front.base_url}/completions", json=body,
                                                            timeout=leave()) as answer:
            for _ in answer.iter_raw():
                if time.monotonic() - began > 0.4:
                    raise httpx.ReadTimeout("the client leaves")

    prompt = " ".join(f"word{i}" for i in range(100))
    with client_of(front) as client:
        # Decoding, prefilling (the prompt takes seconds), and queued behind both.
        streams = [client.completions.create(model=MODEL, prompt="a b", max_tokens=1000, stream=True,
                                             extra_body={"ignore_eos": True}) for _ in range(2)]
        began = time.monotonic()
        ask_and_leave(prompt, 10)
        eventually("the queued leg is gone", lambda: worker.metric("cuelight_waiting") == 0.0)
        for stream in streams:
            stream.close()
        worker.wait_until_idle()
        began = time.monotonic()
        ask_and_leave(prompt, 10)
        worker.wait_until_idle()
        # Migrating: its worker is gone and no other is there.
        stream = client.completions.create(model=MODEL, prompt="a b", max_tokens=1000, stream=True,
                                           extra_body={"ignore_eos": True})
        next(iter(stream))
        worker.crash()
        eventually("it waits for a rank", lambda: front.ranks_ready() == 0)
        stream.close()
        front.wait_until_idle()
    worker.restart()
    cluster.wait_for_ranks(front, 1)
    worker.wait_until_idle()


def test_what_does_not_finish_within_the_drain_time_goes_on_elsewhere(cluster):
    front = cluster.frontend()
    workers = {name: cluster.worker(name, node__drain_timeout_s=0.1) for name in ("w1", "w2")}
    cluster.wait_for_ranks(front, 2)
    slow_down(*workers.values())
    with client_of(front) as client:
        expected, _ = ask(client)
        victims = []

        def drain(count):
            if count == 8:
                victims.append(busy(workers))
                victims[0].send(signal.SIGTERM)
        outcome, ranks = ask(client, drain)
    assert outcome == expected and [rank.split("/")[0] for rank in ranks[0]][0] == victims[0].name
    assert len(ranks[0]) == 2 and victims[0].wait() == 0
