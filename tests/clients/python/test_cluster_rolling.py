"""Every node of a cluster is restarted under load, front ends included, and no client gets less than its answer."""

import threading

import openai

from cuelight_answers import ask, slow_down
from cuelight_server import client_of, eventually

SETS = dict(cluster__failure_detection_ms=600, supervision__restarts=100)


class Load:
    """Clients that ask one after another. Who is turned away before its stream has begun asks another front end."""

    def __init__(self, fronts, expected, clients=6):
        self.fronts, self.expected = fronts, expected
        self.complete, self.elsewhere, self.wrong = dict.fromkeys((front.name for front in fronts), 0), 0, []
        self.over = threading.Event()
        self.threads = [threading.Thread(target=self.run, args=(at,)) for at in range(clients)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        for thread in self.threads:
            thread.join(timeout=60)
            assert not thread.is_alive()

    def run(self, at):
        while not self.over.is_set():
            at += 1
            if not any(self.try_one(self.fronts[(at + turn) % len(self.fronts)]) for turn in range(len(self.fronts))):
                self.wrong.append("no front end took a request")

    def try_one(self, front):
        """Whether this front end took the request."""
        begun = []
        try:
            with client_of(front) as client:
                outcome, _ = ask(client, begun.append)
        except (openai.APIConnectionError, openai.InternalServerError) as error:
            if begun:
                self.wrong.append(f"cut after {len(begun)} chunks by {front.name}: {error!r}")
            elif isinstance(error, openai.InternalServerError) and error.status_code != 503:
                self.wrong.append(repr(error))
            self.elsewhere += 1
            return bool(begun)
        except Exception as error:  # noqa: BLE001
            self.wrong.append(f"after {len(begun)} chunks by {front.name}: {error!r}")
            return True
        if outcome != self.expected:
            self.wrong.append(outcome)
        self.complete[front.name] += 1
        return True


def drain_under(front, expected):
    """SIGTERM while a stream of ours runs there for certain."""
    def drain(count):
        if count == 8:
            front.terminate()
            eventually("health says that it drains", lambda: front.get("/health")[0] == 503)
    with client_of(front) as client:
        assert ask(client, drain)[0] == expected


def test_every_node_is_restarted_under_load_and_no_stream_is_cut(cluster):
    fronts = [cluster.frontend(name, **SETS) for name in ("front-a", "front-b")]
    workers = [cluster.worker(f"w{i}", **SETS) for i in (1, 2)]
    for front in fronts:
        cluster.wait_for_ranks(front, 2)
    slow_down(*workers)
    with client_of(fronts[0]) as client:
        expected, _ = ask(client)
    with Load(fronts, expected) as load:
        for node in [fronts[0], workers[0], fronts[1], workers[1]]:
            eventually("every front end has requests",
                       lambda: all(front.metric("cuelight_requests_active") > 0 for front in fronts))
            if node in fronts:
                drain_under(node, expected)
            else:
                node.terminate()
            assert node.wait() == 0, node.log_text()
            node.restart()
            if node in workers:
                slow_down(node)
            for front in fronts:
                cluster.wait_for_ranks(front, 2)
        served = dict(load.complete)
        eventually("all front ends serve", lambda: all(load.complete[name] > count for name, count in served.items()))
    assert not load.wrong, load.wrong[:3]
    assert load.elsewhere > 0, "no client had to ask another front end"
    for node in (*fronts, *workers):
        node.wait_until_idle()
