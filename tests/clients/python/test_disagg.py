"""Prompts that one rank prefills and another decodes: the answers are those of one rank that does both."""

import random
import signal
import threading

import pytest

from cuelight_answers import alike, ask, busy, runs, slow_down
from cuelight_recall import recall
from cuelight_server import MODEL, TRTLLM, client_of, eventually
from cuelight_split import TRANSPORTS, WITH_NIXL, Split, fetches


# 8 to 1,900 tokens; a fact at the start, so that the answer needs what was prefilled first.
PROMPT = "The code of the red door is 4711. " + "The grass is green. The sky is blue. " * 60 + "\n"
ANSWERS = {
    "greedy": {},
    "sampled, two choices": dict(temperature=0.9, seed=7, n=2),
    "logprobs": dict(logprobs=3),
}


@pytest.fixture
def split(cluster):
    return lambda *args, **options: Split(cluster, *args, **options)


@pytest.mark.parametrize("transport", WITH_NIXL)
def test_answers_are_those_of_a_rank_that_does_both(split, make_server, transport):
    nodes, alone = split(transport, decodes=2), make_server()
    with client_of(nodes.front) as client, client_of(alone) as reference:
        for nth, (name, options) in enumerate(ANSWERS.items()):
            for length in (1, 7, len(PROMPT) // 2, len(PROMPT)):
                asked = dict(prompt=PROMPT[:length] + "one two", salt=f"{nth} {length}", max_tokens=24, **options)
                expected, _ = ask(reference, **asked)
                assert ask(client, **asked)[0] == expected, (name, length)
                # What is cached now, and where, does not change the answer either.
                again, _ = ask(client, **asked)
                assert (again["texts"], again["logprobs"]) == (expected["texts"], expected["logprobs"])
    assert nodes.places("elsewhere") > 0 and nodes.places("short") > 0
    assert nodes.fetches("whole") > 0 and nodes.fetches("part") == 0.0
    assert TRTLLM or nodes.fetches("nothing") == 0.0  # with log probabilities it computes prompts where it decodes
    assert all(node.metric("cuelight_kv_checksum_mismatches_total") == 0.0 for node in nodes.decodes)
    assert nodes.fetches("quarantine") == 0.0
    nodes.wait_until_idle()


def test_a_request_hears_where_its_prompt_is_prefilled_and_why(split):
    nodes = split("tcp", front={"frontend__disaggregation__shun_ms": 60_000})

    def place(prompt, salt=None):
        body = {"explain_routing": True, **({"cache_salt": salt} if salt else {})}
        answer = client.completions.create(model=MODEL, prompt=prompt, max_tokens=4, extra_body=body)
        [[told]] = answer.model_extra["cuelight"]["routing"]
        return told["prefill"]

    with client_of(nodes.front) as client:
        first = place(PROMPT, "a")
        assert first["place"] == "elsewhere" and first["rank"] == "prefill0/cuelight-tiny/0"
        assert place(PROMPT, "a") == {"place": "short"}
        assert place(PROMPT + PROMPT[:len(PROMPT) // 5], "a") == {"place": "cached"}
        assert place("one two three", "b") == {"place": "short"}
        nodes.prefills[0].crash()
        nodes.wait(prefills=0)
        assert place(PROMPT, "c") == {"place": "empty"}
    nodes.front.wait_until_idle()


def test_without_a_rank_that_decodes_the_model_is_not_ready_and_says_why(cluster):
    front = cluster.frontend().wait_until_live()
    cluster.worker("p", worker__role="prefill")
    eventually("the prefill rank is linked", lambda: front.prefill_ranks_ready() == 1)
    status, _, text = front.get("/health")
    assert status == 503 and "worker.role decode or aggregated" in text, text


def strike(nodes, victim, fault):
    if fault == "kill":
        victim.crash()
    elif fault == "stop":
        victim.send(signal.SIGSTOP)
    else:
        victim.inject("kill_actor", kind=fault)


def heal(nodes, victim, fault):
    if fault == "kill":
        victim.restart()
    elif fault == "stop":
        victim.send(signal.SIGCONT)
    nodes.wait()


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("role, fault", [
    *((role, fault) for role in ("prefill", "decode") for fault in ("kill", "stop", "Rank", "Sequence")),
    ("decode", "Transfer")])
def test_an_answer_is_the_same_whatever_happens_to_its_ranks(split, transport, role, fault):
    nodes = split(transport, prefills=2, decodes=2, worker={"worker__max_batch_tokens": 32, "worker__max_running": 32})
    slow_down(*nodes.workers.values())
    if TRTLLM:
        slow_down(*nodes.prefills, ms=300)  # it prefills in one step
    # With log probabilities TensorRT-LLM's prompts are computed where they are decoded.
    asked = dict(prompt=PROMPT, max_tokens=40, **({} if TRTLLM else {"logprobs": 2}))
    with client_of(nodes.front) as client:
        expected, _ = ask(client, salt="without faults", **asked)
        pool = {node.name: node for node in (nodes.prefills if role == "prefill" else nodes.decodes)}
        outcome = []

        def run():
            outcome.append(ask(client, salt=f"{role} {fault}", **asked)[0])
        asking = threading.Thread(target=run)
        asking.start()
        if fault == "Transfer":
            eventually("blocks are fetched", lambda: any(fetches(node) for node in pool.values()))
            victim = next(node for node in pool.values() if fetches(node))
        else:
            eventually("the leg runs", lambda: any(runs(node) for node in pool.values()))
            victim = busy(pool)
        strike(nodes, victim, fault)
        asking.join(timeout=60)
        assert [alike(one, asked) for one in outcome] == [alike(expected, asked)]
        heal(nodes, victim, fault)
    assert nodes.front.metric("cuelight_requests_total", outcome="failed") == 0.0
    nodes.wait_until_idle()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_facts_in_long_prompts_are_found_again(split, transport):
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    nodes = split(transport)
    with client_of(nodes.front) as client:
        for nth in range(24):
            message, expected = recall(rng, 1 + nth % 12)
            answer = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": message}],
                                                    temperature=0, max_tokens=20)
            assert answer.choices[0].message.content == expected, message
    assert nodes.places("elsewhere") >= 20 and nodes.fetches("whole") >= 20
    assert nodes.fetches("part") == nodes.fetches("nothing") == 0.0
    assert all(node.metric("cuelight_kv_checksum_mismatches_total") == 0.0 for node in nodes.decodes)
    nodes.wait_until_idle()


def test_the_rank_that_a_request_names_decodes_it_and_a_session_stays(split):
    nodes = split("tcp", decodes=2, front={"frontend__router__affinity": "hard"})
    with client_of(nodes.front) as client:
        for nth in range(6):
            rank = f"decode{nth % 2}/cuelight-tiny/0"
            _, ranks = ask(client, prompt=f"{nth} {PROMPT}", rank=rank)
            assert ranks == [[rank]]
        served = [ask(client, prompt=f"session {nth} {PROMPT}", session="mine")[1] for nth in range(6)]
        assert all(ranks == served[0] for ranks in served), served
    assert nodes.places("elsewhere") == 12.0
    nodes.wait_until_idle()


@pytest.mark.parametrize("sizes", [(16, 64), (64, 16)], ids=str)
def test_the_two_sides_may_have_blocks_of_different_sizes(split, make_server, sizes):
    nodes = split("tcp", roles={"prefill": {"worker__block_tokens": sizes[0]}, "decode": {"worker__block_tokens": sizes[1]}})
    alone = make_server()
    with client_of(nodes.front) as client, client_of(alone) as reference:
        for nth, length in enumerate((300, 777, len(PROMPT))):
            asked = dict(prompt=PROMPT[:length], salt=str(nth), max_tokens=24, logprobs=2)
            got, expected = ask(client, **asked)[0], ask(reference, **asked)[0]
            assert (got["texts"], got["logprobs"]) == (expected["texts"], expected["logprobs"])
    assert nodes.places("elsewhere") == nodes.fetches("whole") == 3.0
    nodes.wait_until_idle()


def test_ranks_that_do_both_serve_beside_the_others(split, cluster):
    nodes = split("tcp", front={"frontend__router__mode": "round-robin"})
    both = cluster.worker("both")
    cluster.wait_for_ranks(nodes.front, 2)
    with client_of(nodes.front) as client:
        answers, served = [], set()
        for nth in range(8):
            outcome, ranks = ask(client, prompt=PROMPT, salt=str(nth), max_tokens=24)
            answers.append(outcome["texts"])
            served.update(ranks[0])
        assert all(answer == answers[0] for answer in answers)
        assert served == {"decode0/cuelight-tiny/0", "both/cuelight-tiny/0"}
        nodes.decodes[0].crash()
        cluster.wait_for_ranks(nodes.front, 1)
        assert ask(client, prompt=PROMPT, salt="alone", max_tokens=24)[0]["texts"] == answers[0]
    both.wait_until_idle()
