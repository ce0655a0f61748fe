"""What was prefilled is kept for whoever may still fetch it, and blocks that may still be written are not used."""

import signal
import threading

import pytest

from cuelight_answers import ask, slow_down
from cuelight_server import client_of, eventually
from cuelight_split import TRANSPORTS, UCX, Split, fetches

PROMPT = "The code of the red door is 4711. " + "The grass is green. The sky is blue. " * 60 + "\n"


class Asking(threading.Thread):
    """One question, asked beside the test."""

    def __init__(self, client, **asked):
        super().__init__()
        self.client, self.asked, self.answer = client, asked, None
        self.start()

    def run(self):
        self.answer = ask(self.client, **self.asked)[0]

    def outcome(self):
        self.join(timeout=60)
        return self.answer


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("fault", ["kill", "stop"])
def test_a_prompt_is_not_prefilled_again_if_its_decode_rank_is_lost_before_it_has_it(cluster, transport, fault):
    nodes = Split(cluster, transport, decodes=2, worker={"worker__max_batch_tokens": 32, "worker__max_running": 32})
    asked = dict(prompt=PROMPT, max_tokens=24)
    with client_of(nodes.front) as client:
        expected, _ = ask(client, salt="without faults", **asked)
        assert nodes.places("elsewhere") == 1.0
        slow_down(*nodes.prefills, ms=25)  # many chunks are still to come when the rank is lost
        asking = Asking(client, salt="one prefill", **asked)
        eventually("blocks are fetched", lambda: any(map(fetches, nodes.decodes)))
        victim = next(filter(fetches, nodes.decodes))
        if fault == "kill":
            victim.crash()
        else:
            victim.send(signal.SIGSTOP)
        outcome = asking.outcome()
        assert outcome == expected
        survivor = next(node for node in nodes.decodes if node is not victim)
        assert survivor.metric("cuelight_kv_fetches_total", outcome="whole") >= 1.0
        assert nodes.places("elsewhere") == 2.0, "its prompt was prefilled once"
        if fault == "kill":
            victim.restart()
        else:
            victim.send(signal.SIGCONT)
        nodes.wait()
    nodes.wait_until_idle()


@pytest.mark.skipif(UCX is None, reason="PyPI's libucx-cu13 is not here")
@pytest.mark.parametrize("most", [64, 8])
def test_blocks_that_a_frozen_peer_may_still_write_are_in_quarantine_until_it_speaks(cluster, most):
    """With more than it may have there, the rank ends instead, and has a pool of its own in its next life."""
    # A pull by UCX's tcp needs its peer, and cannot be taken back.
    transfer = {"ucx__transports": "tcp", "timeout_s": 1, "quiet_s": 0.2, "stall_s": 60, "quarantine_max": most}
    nodes = Split(cluster, "ucx", front={"cluster__failure_detection_ms": 8000}, worker={
        "cluster__failure_detection_ms": 8000, **{f"worker__transfer__{key}": value for key, value in transfer.items()}},
        roles={"decode": {"worker__kv_blocks": 140}})
    [prefill], [decode] = nodes.prefills, nodes.decodes
    asked = dict(prompt=PROMPT[:1000], max_tokens=24)  # 29 blocks
    with client_of(nodes.front) as client:
        expected, _ = ask(client, salt="without faults", **asked)
        slow_down(decode, ms=30)
        first = Asking(client, prompt="The snow is white. " * 315, salt="holds the blocks", max_tokens=60)
        eventually("it decodes", lambda: decode.metric("cuelight_kv_blocks_used") > 112 and not fetches(decode))
        second = Asking(client, salt="waits for them", **asked)
        eventually("its prompt is lent", lambda: prefill.metric("cuelight_kv_leases") == 1 and
                   decode.metric("cuelight_waiting") == 1)
        prefill.send(signal.SIGSTOP)
        generation = decode.metric("cuelight_generation")
        in_quarantine = lambda: decode.metric("cuelight_kv_blocks_quarantined")  # noqa: E731
        if most == 64:
            eventually("blocks are in quarantine", lambda: in_quarantine() > 0)
            assert decode.metric("cuelight_kv_quarantine_level") == 0.0
        else:
            eventually("the rank has ended", lambda: decode.metric("cuelight_generation") > generation)
        assert second.outcome() == expected and first.outcome() is not None
        if most == 64:
            assert in_quarantine() > 0, "nothing has been heard of it"
        assert decode.metric("cuelight_generation") - generation <= (0 if most == 64 else 2)
        if most == 64:
            prefill.send(signal.SIGCONT)
            eventually("it was heard", lambda: in_quarantine() == 0)
        else:  # UCX would end it: it answers a connection that was closed meanwhile
            prefill.crash()
            prefill.restart()
        nodes.wait()
        assert ask(client, salt="afterwards", **asked)[0] == expected
    nodes.wait_until_idle()
