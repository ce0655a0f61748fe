"""What an answer says beyond its text is the same, too, when its rank is lost half-way."""

from cuelight_answers import ask, busy, slow_down
from cuelight_server import MODEL, client_of

PREFIX = "one two three four five six seven eight nine ten " * 10
MESSAGES = [{"role": "user", "content": "Tell me 3 stories."}]


def lose_a_worker(workers, lost):
    """Crashes the worker that runs the leg, once, at the eighth chunk."""
    def strike(count):
        if count == 8 and not lost:
            lost.append(busy(workers))
            lost[0].crash()
    return strike


def heal(cluster, front, lost):
    lost.restart()
    cluster.wait_for_ranks(front, 2)
    slow_down(lost)


def test_cached_tokens_are_those_that_the_first_rank_had(cluster, trio):
    front, workers = trio
    with client_of(front) as client:
        def cached(salt, on_chunk=lambda count: None):
            outcome, ranks = ask(client, on_chunk, salt=salt, prompt=PREFIX, max_tokens=60)
            return outcome["usage"]["prompt_tokens_details"]["cached_tokens"], outcome, len(ranks[0])

        cold, warm = cached("without faults"), cached("without faults")
        assert cold[0] == 0 and warm[0] > 100 and cold[2] == warm[2] == 1
        # Nobody has the prompt of this salt; then, one rank has it, and it is lost.
        for salt, expected, prepare in (("lost cold", cold, 0), ("lost warm", warm, 1)):
            for _ in range(prepare):
                assert cached(salt)[0] == 0
            lost = []
            assert cached(salt, lose_a_worker(workers, lost)) == (*expected[:2], 2), salt
            heal(cluster, front, lost[0])


def test_log_probabilities_of_a_chat_are_the_same(cluster, trio):
    front, workers = trio

    def chat(on_chunk=lambda count: None):
        said, usage, finish, ranks = {0: [], 1: []}, None, {}, None
        stream = client.chat.completions.create(
            model=MODEL, messages=MESSAGES, stream=True, n=2, temperature=0.8, seed=11, max_tokens=80, logprobs=True,
            top_logprobs=20, stream_options={"include_usage": True},
            extra_body={"ignore_eos": True, "return_ranks": True})
        for count, chunk in enumerate(stream):
            for choice in chunk.choices:
                finish[choice.index] = choice.finish_reason
                for entry in choice.logprobs.content if choice.logprobs else []:
                    said[choice.index].append(entry.model_dump())
            usage = chunk.usage and chunk.usage.model_dump()
            ranks = (chunk.model_extra or {}).get("cuelight", {}).get("ranks", ranks)
            on_chunk(count)
        return (said, usage, finish), ranks

    with client_of(front) as client:
        expected, _ = chat()
        assert [len(tokens) for tokens in expected[0].values()] == [80, 80] and expected[1]["completion_tokens"] == 160
        assert all(len(token["top_logprobs"]) == 20 and token["bytes"] for token in expected[0][0])
        lost = []
        outcome, ranks = chat(lose_a_worker(workers, lost))
        assert outcome == expected and any(len(of_choice) == 2 for of_choice in ranks)
