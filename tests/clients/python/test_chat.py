"""Chat completions: answers, shapes, usage, tools, unicode."""

import json

import httpx
import pytest

from cuelight_server import MODEL, golden

FRANCE = "What is the capital of France?"
PARIS = "The capital of France is Paris."


def test_the_capital_of_france_is_paris(ask):
    answer = ask(FRANCE)
    choice = answer.choices[0]
    assert choice.message.content == PARIS
    assert (choice.message.role, choice.finish_reason, choice.index) == ("assistant", "stop", 0)
    assert (answer.object, answer.model) == ("chat.completion", MODEL)
    assert answer.id.startswith("chatcmpl-") and answer.created > 1_700_000_000
    assert answer.usage.prompt_tokens == 15
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


@pytest.mark.parametrize("question, answer", [
    ("What is 64 plus 72?", "64 + 72 = 136."),
    ("Translate night to French.", "In French, night is nuit."),
    ("Spell the word summer.", "s-u-m-m-e-r"),
    ("Sort these numbers: 68, 13, 34", "13, 34, 68."),
    ("Repeat after me: heron duck wolf", "heron duck wolf"),
    ("Write as JSON: Sam is 56 years old and lives in Amman.", '{"name": "Sam", "age": 56, "city": "Amman"}'),
])
def test_questions_have_their_answers(ask, question, answer):
    assert ask(question).choices[0].message.content == answer


def as_openai(message):
    """A golden message with the fields that OpenAI's API wants around a tool call."""
    message = dict(message)
    if "tool_calls" in message:
        message["tool_calls"] = [
            {"id": f"call_{i}", "type": "function",
             "function": {"name": call["function"]["name"], "arguments": json.dumps(call["function"]["arguments"])}}
            for i, call in enumerate(message["tool_calls"])]
    if message["role"] == "tool":
        message.setdefault("tool_call_id", "call_0")
    return message


@pytest.mark.parametrize("number", range(16))
def test_golden_conversations_give_the_text_that_transformers_gives(client, number):
    case = golden()[number]
    answer = client.chat.completions.create(
        model=MODEL, messages=[as_openai(message) for message in case["messages"]], max_tokens=64, temperature=0,
        **({"tools": case["tools"]} if case["tools"] else {}))
    assert answer.choices[0].message.content == case["greedy_text"]
    assert answer.usage.prompt_tokens == len(case["prompt_ids"])


TOOL = {"type": "function", "function": {
    "name": "get_weather", "description": "Get the weather in a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}


def test_tools_are_rendered_unless_none_may_be_called(ask):
    plain = ask(FRANCE, max_tokens=1).usage.prompt_tokens
    assert ask(FRANCE, max_tokens=1, tools=[TOOL]).usage.prompt_tokens > plain + 20
    assert ask(FRANCE, max_tokens=1, tools=[TOOL], tool_choice="auto").usage.prompt_tokens > plain + 20
    assert ask(FRANCE, max_tokens=1, tools=[TOOL], tool_choice="none").usage.prompt_tokens == plain


def test_earlier_turns_and_parts_and_developer_messages_are_read(client):
    answer = client.chat.completions.create(model=MODEL, messages=[
        {"role": "developer", "content": "Be kind and clear."},
        {"role": "user", "content": [{"type": "text", "text": "My name is Ada."}]},
        {"role": "assistant", "content": "Nice to meet you, Ada."},
        {"role": "user", "content": "What is my name?"}])
    assert answer.choices[0].message.content == "Your name is Ada."


def test_a_repeated_prompt_comes_from_the_cache(client):
    story = "Read this.\n" + "The treasure of Mina is buried under the ribbon tree.\n" * 8
    def once():
        return client.chat.completions.create(model=MODEL, max_tokens=4, messages=[
            {"role": "user", "content": story + "Where is the treasure of Mina?"}])
    first, second = once(), once()
    assert second.usage.prompt_tokens_details.cached_tokens >= 64
    assert second.usage.prompt_tokens_details.cached_tokens < second.usage.prompt_tokens
    assert first.choices[0].message.content == second.choices[0].message.content


def test_n_choices_come_in_order_and_differ(ask):
    def three(seed):
        answer = ask("Tell me a story.", n=3, temperature=1.0, seed=seed, max_tokens=40)
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        return answer, [choice.message.content for choice in answer.choices]
    answer, texts = three(7)
    assert len(set(texts)) == 3
    assert three(7)[1] == texts
    assert answer.usage.completion_tokens == 3 * 40


@pytest.mark.parametrize("text", ["Grüße, мир, 世界 🌍🏽!", "e\u0301 is not é", "\u202eright to left", "👩‍👩‍👧‍👦" * 20])
def test_any_unicode_is_a_prompt_and_comes_back_from_its_tokens(server, ask, text):
    tokens = httpx.post(server.origin + "/tokenize", json={"model": MODEL, "prompt": text}).json()
    assert tokens["count"] == len(tokens["tokens"]) > 0
    back = httpx.post(server.origin + "/detokenize", json={"model": MODEL, "tokens": tokens["tokens"]}).json()
    assert back["prompt"] == text
    assert ask(text, max_tokens=8).choices[0].finish_reason in ("stop", "length")


def test_models_are_listed_and_found(client):
    assert MODEL in [model.id for model in client.models.list()]
    model = client.models.retrieve(MODEL)
    assert (model.id, model.object) == (MODEL, "model")
