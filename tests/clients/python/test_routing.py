"""What clients may say about where their requests go, and what becomes of it: by body and by header."""

import collections
import concurrent.futures
import json
import threading

import openai
import pytest

from cuelight_server import MODEL, client_of, eventually

SIM = {"worker__engine": "sim", "worker__sim__step_us": 2000}


def place(client, prompt="x", headers=None, max_tokens=2, **extra):
    """The rank that served a request."""
    answer = client.completions.create(model=MODEL, prompt=prompt, max_tokens=max_tokens, extra_headers=headers,
                                       extra_body={"return_ranks": True, "ignore_eos": True, **extra})
    return answer.model_extra["cuelight"]["ranks"][0][-1]


@pytest.fixture
def pair(cluster):
    """Makes a front end with settings of the test's own, and two workers of two ranks each."""
    def make(**sets):
        front = cluster.frontend(**sets)
        for name in ("w1", "w2"):
            cluster.worker(name, worker__dp_size=2, **SIM)
        cluster.wait_for_ranks(front, 4)
        return front
    return make


def test_a_rank_may_be_named_in_the_body_or_in_a_header(pair):
    with client_of(pair()) as client:
        for rank in (f"w1/{MODEL}/1", f"w2/{MODEL}/0"):
            assert place(client, rank=rank) == rank
            assert place(client, headers={"x-cuelight-rank": rank}) == rank
        with pytest.raises(openai.BadRequestError, match=f"w1/{MODEL}/0"):
            place(client, headers={"x-cuelight-rank": "w9/none/0"})


def test_direct_mode_wants_a_rank_named(pair):
    with client_of(pair(frontend__router__mode="direct")) as client:
        with pytest.raises(openai.BadRequestError, match="rank"):
            place(client)
        assert place(client, headers={"x-cuelight-rank": f"w2/{MODEL}/1"}) == f"w2/{MODEL}/1"


@pytest.mark.parametrize("how", ["body", "header"])
def test_a_session_stays_on_its_rank_whatever_else_is_there(pair, how):
    front = pair(frontend__router__affinity="soft", frontend__router__mode="round-robin")

    def ask(client, session, prompt):
        if how == "body":
            return place(client, prompt, session=session)
        return place(client, prompt, headers={"x-cuelight-session": session})
    with client_of(front) as client:
        first = {session: ask(client, session, "a") for session in ("one", "two", "three", "four")}
        assert len(set(first.values())) == 4, "in turn"
        for nth in range(3):
            assert {session: ask(client, session, f"{nth} b") for session in first} == first


def full(client, rank):
    """A stream that fills a rank with room for one; close it to give the room back."""
    stream = client.completions.create(model=MODEL, prompt="Count up:", max_tokens=1500, stream=True,
                                       extra_body={"ignore_eos": True, "rank": rank})
    next(iter(stream))
    return stream


@pytest.mark.parametrize("affinity", ["soft", "hard"])
def test_a_full_rank_sends_a_soft_session_elsewhere_and_lets_a_hard_one_wait(cluster, affinity):
    front = cluster.frontend(frontend__router__affinity=affinity, frontend__router__queue=4)
    for name in ("w1", "w2"):
        cluster.worker(name, worker__max_running=1, worker__max_waiting=1, **SIM)
    cluster.wait_for_ranks(front, 2)
    with client_of(front) as client:
        home = place(client, session="s")
        streams = [full(client, home)]
        streams.append(client.completions.create(model=MODEL, prompt="behind it", max_tokens=1500, stream=True,
                                                 extra_body={"ignore_eos": True, "rank": home}))
        found = []
        asking = threading.Thread(target=lambda: found.append(place(client, session="s")))
        asking.start()
        if affinity == "hard":
            eventually("it stands in line", lambda: front.metric("cuelight_router_queue") == 1.0)
            assert found == []
            [stream.close() for stream in streams]
        asking.join(timeout=20)
        [stream.close() for stream in streams]
    assert len(found) == 1 and (found[0] == home) == (affinity == "hard"), (home, found)


ONE_AT_A_TIME = {"worker.engine": "sim", "worker.sim.step_us": 2000, "worker.max_running": 1, "worker.max_waiting": 1,
                 "frontend.router.queue": 16}


def fill(client):
    """Streams that fill the only rank."""
    return [client.completions.create(model=MODEL, prompt=f"filler {nth}", max_tokens=1500, stream=True,
                                      extra_body={"ignore_eos": True}) for nth in range(2)]


def in_order(server, asks):
    """Starts the asks one after the other while nothing moves, and tells the order in which they are answered."""
    done, threads = [], []
    for nth, (name, ask) in enumerate(asks):
        threads.append(threading.Thread(target=lambda name=name, ask=ask: (ask(), done.append(name))))
        threads[-1].start()
        eventually("it stands in line", lambda nth=nth: server.metric("cuelight_router_queue") == nth + 1.0)
    return done, threads


def test_priority_says_who_goes_first(make_server):
    server = make_server(ONE_AT_A_TIME)
    client = client_of(server)
    streams = fill(client)
    asks = [(priority, lambda priority=priority: place(client, f"p {priority}", priority=priority))
            for priority in (5, -3, 0, 9)]
    done, threads = in_order(server, asks)
    [stream.close() for stream in streams]
    [thread.join(timeout=20) for thread in threads]
    # The rank has room for two, which may end in either order.
    assert (set(done[:2]), set(done[2:])) == ({-3, 0}, {5, 9}), done


def test_clients_with_different_keys_take_turns(make_server):
    sets = {"frontend.api_keys": "['env:KEY_A', 'env:KEY_B']", **ONE_AT_A_TIME}
    server = make_server(sets, env={"KEY_A": "key-a", "KEY_B": "key-b"})
    a, b = (client_of(server, api_key=key) for key in ("key-a", "key-b"))
    streams = fill(a)
    asks = [(name, lambda client=client, nth=nth: place(client, f"{nth} words"))
            for nth, (name, client) in enumerate([("a", a)] * 4 + [("b", b)] * 2)]
    done, threads = in_order(server, asks)
    [stream.close() for stream in streams]
    [thread.join(timeout=20) for thread in threads]
    # In turn that is a, b, a, b, a, a; neighbours may change places, since two are served at a time.
    assert done.index("b") <= 2 and done[:5].count("b") == 2, done


def test_several_front_ends_stay_balanced_without_knowing_each_other(cluster):
    fronts = [cluster.frontend(name) for name in ("front-a", "front-b", "front-c")]
    for nth in range(4):
        cluster.worker(f"w{nth}", **SIM)
    for front in fronts:
        cluster.wait_for_ranks(front, 4)
    clients = [client_of(front) for front in fronts]

    def work(nth):
        client = clients[nth % 3]
        return [place(client, f"{nth} and {turn} make something new of it", max_tokens=20) for turn in range(8)]
    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        ranks = collections.Counter(rank for some in pool.map(work, range(24)) for rank in some)
    assert sum(ranks.values()) == 192 and len(ranks) == 4
    assert max(ranks.values()) < 1.5 * min(ranks.values()), ranks


def test_a_worker_without_a_prefix_cache_is_warned_of(cluster):
    front = cluster.frontend()
    cluster.worker("w1", worker__prefix_cache="false", **SIM)
    cluster.wait_for_ranks(front, 1)
    warnings = json.loads(front.get("/health")[2])["models"][0]["warnings"]
    assert [warning["worker"] for warning in warnings] == [f"w1/{MODEL}"]
    assert "worker.prefix_cache" in warnings[0]["reason"]
