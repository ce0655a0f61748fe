"""Answers of a cluster as a client sees them, whole enough to compare two of them."""

from cuelight_server import MODEL, TRTLLM

PROMPT = "Count up: one, two, three,"
LONG = dict(model=MODEL, prompt=PROMPT, max_tokens=160, temperature=0)


def read(stream, on_chunk=lambda count: None):
    """All that a stream says: the text of each choice, finish reasons, log probabilities, usage, ranks."""
    texts, finishes, logprobs, usage, ranks = {}, {}, {}, None, None
    for count, chunk in enumerate(stream):
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
            if choice.finish_reason:
                finishes[choice.index] = choice.finish_reason
            if choice.logprobs:
                of_choice = logprobs.setdefault(choice.index, {})
                for name, values in choice.logprobs.model_dump().items():  # tokens, their offsets, the best others, …
                    of_choice.setdefault(name, []).extend(values)
        if chunk.usage:
            usage = chunk.usage.model_dump(exclude_none=True)
        ranks = (chunk.model_extra or {}).get("cuelight", {}).get("ranks", ranks)
        on_chunk(count)
    return dict(texts=texts, finishes=finishes, logprobs=logprobs, usage=usage), ranks


def ask(client, on_chunk=lambda count: None, salt=None, rank=None, session=None, **options):
    """Streams an answer; `salt` keeps what is cached of it to those who ask with the same one."""
    wishes = {"cache_salt": salt, "rank": rank, "session": session}
    body = {"ignore_eos": True, "return_ranks": True, **{name: wish for name, wish in wishes.items() if wish}}
    stream = client.completions.create(stream=True, stream_options={"include_usage": True}, extra_body=body,
                                       **{**LONG, **options})
    return read(stream, on_chunk)


def runs(worker):
    """Whether it has a leg now. TensorRT-LLM tells of a step when it is over."""
    own = worker.metric("cuelight_running") > 0
    return own or (TRTLLM and worker.metric("cuelight_waiting") > 0)


def alike(outcome, options):
    """What of an outcome must be the same whatever happens to its ranks. TensorRT-LLM's random numbers do not go on
    where they were after a migration, and it knows what it found in its cache when a leg is over."""
    if not TRTLLM:
        return outcome
    usage = {key: value for key, value in outcome["usage"].items() if key != "prompt_tokens_details"}
    same = {**outcome, "usage": usage}
    return {"finishes": same["finishes"], "usage": usage} if options.get("temperature") else same


def busy(workers):
    """A worker that runs a leg now."""
    return next(worker for worker in workers.values() if runs(worker))


def slow_down(*workers, ms=4):
    for worker in workers:
        worker.inject("slow_steps", ms=ms)
