"""Who may use which rank: workers that fit or do not, room that several front ends share, nodes that vanish unseen."""

import json
import shutil
import threading

import openai
import pytest

from cuelight_cluster import SHIPPED
from cuelight_server import MODEL, client_of, eventually

DRAFT = {"worker.model": f"models/{MODEL}-draft", "worker.served_name": MODEL}
ODD = {"block tokens": {"worker.block_tokens": 32}, "engine": {"worker.engine": "sim"},
       "precision": {"worker.precision": "f32"}, "weights": DRAFT}


class Stream:
    """A long answer that goes on until it is closed; its tokens are read by a thread."""

    def __init__(self, front, max_tokens=1500):
        self.client = client_of(front)
        self.usage, self.error = None, None
        # Returns once a rank has taken it, which is not to say that it runs.
        self.answer = self.client.completions.create(
            model=MODEL, prompt="a b", max_tokens=max_tokens, stream=True, extra_body={"ignore_eos": True},
            stream_options={"include_usage": True})
        self.thread = threading.Thread(target=self.read)
        self.thread.start()

    def read(self):
        try:
            for chunk in self.answer:
                self.usage = chunk.usage
        except Exception as error:  # noqa: BLE001
            self.error = error

    def end(self):
        """The tokens of the whole answer."""
        self.thread.join(timeout=60)
        assert not self.thread.is_alive() and self.error is None, self.error
        self.client.close()
        return self.usage.completion_tokens

    def leave(self):
        self.answer.close()
        self.thread.join(timeout=20)
        self.client.close()


def ask(front):
    """Four tokens; the number that came and the ranks that gave them."""
    with client_of(front) as client:
        answer = client.completions.create(model=MODEL, prompt="a b", max_tokens=4,
                                           extra_body={"ignore_eos": True, "return_ranks": True})
        return answer.usage.completion_tokens, answer.model_extra["cuelight"]["ranks"]


def runs(worker):
    return lambda: worker.metric("cuelight_running") == 1.0


@pytest.mark.parametrize("difference", ODD)
def test_a_worker_that_did_not_fit_is_used_when_those_it_had_to_fit_are_gone(cluster, difference):
    front = cluster.frontend()
    good = cluster.worker("good")
    cluster.wait_for_ranks(front, 1)
    cluster.add("odd", ["worker"], {"worker.model": SHIPPED, **ODD[difference]})

    def model():
        return json.loads(front.get("/health")[2])["models"][0]
    eventually("it is refused", lambda: [refused["worker"] for refused in model()["refused"]] == [f"odd/{MODEL}"])
    assert ask(front) == (4, [[f"good/{MODEL}/0"]])
    good.crash()
    eventually("the other one serves", lambda: model()["ranks_ready"] == 1 and model()["refused"] == [])
    assert ask(front) == (4, [[f"odd/{MODEL}/0"]])


def test_room_that_one_front_end_gives_up_is_used_by_another_that_was_refused(cluster):
    fronts = [cluster.frontend("front-a"), cluster.frontend("front-b")]
    worker = cluster.worker("w1", worker__max_running=1, worker__max_waiting=1)
    for front in fronts:
        cluster.wait_for_ranks(front, 1)
    worker.inject("slow_steps", ms=3)
    for holder, other in (fronts, fronts[::-1]):
        streams = [Stream(holder)]
        eventually("it runs", runs(worker))
        streams.append(Stream(holder))  # waits behind it
        with pytest.raises(openai.RateLimitError) as refused:
            ask(other)
        assert "retry-after" in refused.value.response.headers
        for stream in streams:
            stream.leave()

        def served():
            try:
                return ask(other)[0] == 4
            except openai.RateLimitError as error:
                return str(error)
        eventually("the other front end is served", served, 5)
    worker.wait_until_idle()


def test_new_requests_stand_back_while_one_that_has_begun_waits_for_room(cluster):
    front = cluster.frontend()
    sets = dict(worker__max_running=1, worker__max_waiting=1)
    workers = [cluster.worker(f"w{i}", **sets) for i in (1, 2)]
    cluster.wait_for_ranks(front, 2)
    for worker in workers:
        worker.inject("slow_steps", ms=5)
    streams = [Stream(front, 200), Stream(front, 200)]
    for worker in workers:
        eventually("both run", runs(worker))
    streams += [Stream(front, 200), Stream(front, 200)]  # wait behind them
    workers[0].crash()
    eventually("two of them wait", lambda: "waiting for a rank" in front.get("/cluster/tree?format=text")[2])
    with pytest.raises(openai.RateLimitError, match="requests that have begun wait"):
        ask(front)
    assert [stream.end() for stream in streams] == [200] * 4
    assert front.metric("cuelight_requests_total", outcome="failed") == 0.0
    assert ask(front)[0] == 4


def test_a_worker_that_vanishes_while_the_cluster_actor_is_away_is_forgotten(cluster):
    # Slow to start again, so that the crash falls between; the delay is of the front end alone.
    front = cluster.frontend(cluster__confirm_timeout_s=1, supervision__delay_ms=1500)
    workers = [cluster.worker(f"w{i}") for i in (1, 2)]
    cluster.wait_for_ranks(front, 2)
    front.inject("kill_actor", kind="Cluster")
    workers[0].crash()
    eventually("one link is left", lambda: len(front.actors("WorkerLink")) == 1)
    assert front.actors("WorkerLink") == [f"w2/{MODEL}"]
    assert ask(front)[0] == 4


def test_an_answer_that_has_begun_is_not_continued_by_a_worker_with_other_weights(cluster):
    front = cluster.frontend(frontend__no_rank_wait_s=2)
    good = cluster.worker("good")
    cluster.wait_for_ranks(front, 1)
    good.inject("slow_steps", ms=5)
    cluster.add("odd", ["worker"], DRAFT)
    eventually("it is refused", lambda: json.loads(front.get("/health")[2])["models"][0]["refused"] != [])
    stream = Stream(front)
    eventually("it runs", runs(good))
    good.crash()
    eventually("new requests are served", lambda: front.ranks_ready() == 1)
    assert ask(front) == (4, [[f"odd/{MODEL}/0"]])
    stream.thread.join(timeout=20)
    assert isinstance(stream.error, openai.APIError) and "differently" in str(stream.error), stream.error
    stream.client.close()


def test_room_that_a_busy_front_end_gave_back_can_be_used_at_once_by_an_idle_one(cluster):
    busy, idle = cluster.frontend("front-a"), cluster.frontend("front-b")
    worker = cluster.worker("w1", worker__max_running=8, worker__max_waiting=24)
    for front in (busy, idle):
        cluster.wait_for_ranks(front, 1)
    worker.inject("slow_steps", ms=3)
    streams = []
    try:
        while len(streams) < 64:
            streams.append(Stream(busy))
    except openai.RateLimitError:
        pass
    assert len(streams) > 16, "more than half of the rank is open to a front end whose neighbour is idle"
    for stream in streams:
        stream.leave()
    worker.wait_until_idle()
    outcomes = []

    def one():
        try:
            outcomes.append(ask(idle)[0])
        except openai.RateLimitError as error:
            outcomes.append(str(error))
    threads = [threading.Thread(target=one) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == [4] * 12


def test_what_the_pool_gave_up_is_loaded_from_the_host_tier_and_counts_for_less(cluster):
    front = cluster.frontend(frontend__router__predicted_ttl_s=0)
    small = {"worker__engine": "sim", "worker__kv_blocks": 24, "worker__sim__load_us_per_block": 100}
    first = cluster.worker("w1", worker__sim__host_blocks=64, **small)
    cluster.worker("w2", **small)
    cluster.wait_for_ranks(front, 2)
    with client_of(front) as client:
        def ask(which, **extra):
            ids = [100 + which] * 320  # 20 blocks
            answer = client.completions.create(model=MODEL, prompt=ids, max_tokens=4, temperature=0,
                                               extra_body={"explain_routing": True, "ignore_eos": True, **extra})
            placed = answer.model_extra["cuelight"]["routing"][0][0]
            return answer, {rank["rank"]: rank for rank in placed["ranks"]}

        before, _ = ask(1, rank="w1/cuelight-tiny/0")
        ask(2, rank="w1/cuelight-tiny/0")  # takes the room of the first
        eventually("blocks are in the host tier", lambda: first.metric("cuelight_kv_blocks_in_host") > 10)

        after, ranks = ask(1)
    mine, other = ranks["w1/cuelight-tiny/0"], ranks["w2/cuelight-tiny/0"]
    assert mine["host_blocks"] > 10 and mine["cached_blocks"] + mine["host_blocks"] == 20, mine
    assert other["host_blocks"] == 0 and mine["cost"] < other["cost"], (mine, other)
    assert after.usage.prompt_tokens_details.cached_tokens == 19 * 16, "all but the last block, which is computed"
    assert after.choices[0].text == before.choices[0].text


@pytest.mark.parametrize("what, says", [("config.json", "vocabulary of"), ("tokenizer.json", "tokenizer is another one")])
def test_a_worker_with_another_vocabulary_or_tokenizer_is_refused_by_name(cluster, tmp_path, what, says):
    folder = tmp_path / MODEL
    shutil.copytree(SHIPPED, folder)
    file = folder / what
    changed = json.loads(file.read_text())
    if what == "config.json":
        changed["vocab_size"] = 300  # the tokenizer has more
    else:  # one more token than the front end's
        changed["added_tokens"].append({**changed["added_tokens"][-1], "id": changed["added_tokens"][-1]["id"],
                                        "content": changed["added_tokens"][-1]["content"] + "x"})
    file.write_text(json.dumps(changed))
    front = cluster.frontend()
    cluster.worker("good", worker__engine="sim")
    cluster.wait_for_ranks(front, 1)
    cluster.worker("odd", worker__engine="sim", worker__model=folder)

    def refused():
        models = json.loads(front.get("/health")[2])["models"]
        return [(one["worker"], says in one["reason"]) for one in models[0]["refused"]]
    eventually("it is refused, and why", lambda: refused() == [(f"odd/{MODEL}", True)] or refused())
    assert ask(front) == (4, [[f"good/{MODEL}/0"]])
