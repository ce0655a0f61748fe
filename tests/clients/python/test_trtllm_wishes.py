"""What only TensorRT-LLM can do of a request: forms of the answer, adapters (by the stand-in, which reads forms and obeys none)."""

import openai
import pytest

from cuelight_server import MODEL, REPOSITORY, client_of

TRTLLM = REPOSITORY / "tests/trtllm"
FRANCE = [{"role": "user", "content": "What is the capital of France?"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}


@pytest.fixture
def able(make_server, tmp_path):
    options = tmp_path / "options.yml"
    options.write_text((TRTLLM / "options.yml").read_text() + "\nguided_decoding_backend: xgrammar\n")
    return make_server({"worker.engine": "trtllm", "worker.trtllm.engine_dir": TRTLLM / "engine",
                        "worker.trtllm.options": options, "worker.trtllm.loras": f"[french={TRTLLM / 'lora'}]"})


def test_a_form_and_an_adapter_may_be_asked_for(able):
    with client_of(able, max_retries=0) as client:
        def ask(**body):
            answer = client.chat.completions.create(model=MODEL, messages=FRANCE, max_tokens=20, **body)
            return answer.choices[0].message.content
        for form in ({"type": "json_object"}, {"type": "text"},
                     {"type": "json_schema", "json_schema": {"name": "city", "strict": True, "schema": SCHEMA}}):
            assert ask(response_format=form)
        for form in ({"type": "regex", "regex": "[A-Z].*"}, {"type": "ebnf", "ebnf": 'root ::= "a"'},
                     {"type": "structural_tag", "structures": [], "triggers": []}):
            assert ask(extra_body={"response_format": form})
        assert ask(extra_body={"lora": "french"}) and ask(extra_body={"lora": "french", "n": 2})
        with pytest.raises(openai.BadRequestError, match="which has: french"):
            ask(extra_body={"lora": "dutch"})
    able.wait_until_idle()
