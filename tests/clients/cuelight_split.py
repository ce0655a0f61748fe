"""A cluster in which some ranks prefill and others decode."""

import json

import pytest

from cuelight_server import REPOSITORY, eventually

UCX = next(iter(REPOSITORY.glob("target/test-venv/lib/python3*/site-packages/libucx/lib/libucp.so.0")), None)
NIXL = next(iter(REPOSITORY.glob("target/test-venv/lib/python3*/site-packages/.nixl_cu13.mesonpy.libs/libnixl_capi.so")), None)
TRANSPORTS = ["tcp", pytest.param("ucx", marks=pytest.mark.skipif(UCX is None, reason="PyPI's libucx-cu13 is not here"))]

WITH_NIXL = [*TRANSPORTS, pytest.param("nixl", marks=pytest.mark.skipif(NIXL is None, reason="PyPI's nixl-cu13 is not here"))]


def library_env(transport):
    """What a node must be told for this transport."""
    return {"ucx": {"CUELIGHT_UCX_DIR": UCX and str(UCX.parent)},
            "nixl": {"CUELIGHT_NIXL_DIR": NIXL and str(NIXL.parent)}}.get(transport, {})


def own_actors(node):
    """Kinds of the actors of this node alone: the tree is the whole cluster's."""
    left = [root for root in json.loads(node.admin("/cluster/tree"))["children"] if root["name"] == node.name]
    kinds = set()
    while left:
        actor = left.pop()
        left += actor["children"]
        kinds.add(actor["kind"])
    return kinds


def fetches(node):
    """Whether blocks are on their way to it, or it waits for them."""
    return "Transfer" in own_actors(node)


class Split:
    """A front end, ranks that prefill and ranks that decode."""

    def __init__(self, cluster, transport, prefills=1, decodes=1, front=None, worker=None, roles=None):
        self.cluster = cluster
        self.front = cluster.frontend(**{"cluster__failure_detection_ms": 600,
                                         "frontend__disaggregation__min_uncached_tokens": 64, **(front or {})})
        sets = {"worker__transfer__transport": transport, "worker__transfer__checksums": "true",
                "supervision__restarts": 100, "cluster__failure_detection_ms": 600, **(worker or {})}
        env = library_env(transport)

        def make(role, nth):
            return cluster.worker(f"{role}{nth}", env=env, worker__role=role, **{**sets, **(roles or {}).get(role, {})})
        self.prefills = [make("prefill", nth) for nth in range(prefills)]
        self.decodes = [make("decode", nth) for nth in range(decodes)]
        self.workers = {node.name: node for node in self.prefills + self.decodes}
        self.wait()

    def wait(self, decodes=None, prefills=None):
        self.cluster.wait_for_ranks(self.front, len(self.decodes) if decodes is None else decodes)
        wanted = len(self.prefills) if prefills is None else prefills
        eventually(f"{wanted} ranks prefill", lambda: self.front.prefill_ranks_ready() == wanted or
                   self.front.prefill_ranks_ready())

    def places(self, place):
        return self.front.metric("cuelight_prefill_places_total", place=place)

    def fetches(self, outcome):
        return sum(node.metric("cuelight_kv_fetches_total", outcome=outcome) for node in self.decodes)

    def wait_until_idle(self):
        for node in (self.front, *self.workers.values()):
            node.wait_until_idle()
