"""Schemathesis reads /openapi.json and looks for requests that the server does not answer as documented."""

import os
import random
import subprocess
import sys

CHECKS = ["not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance",
          "unsupported_method", "allow_header_conformance"]
# Small, so that an example without max_tokens stays an example.
SMALL = {"worker.max_context": 256, "frontend.max_choices": 4}
EXAMPLES = 40
WITHIN_S = 180


def test_no_request_finds_an_undocumented_answer(make_server):
    server = make_server(SMALL)
    seed = os.environ.get("SCHEMATHESIS_SEED") or str(random.randrange(2**31))
    print(f"SCHEMATHESIS_SEED={seed} repeats this run")
    command = [sys.executable, "-m", "schemathesis.cli", "run", server.origin + "/openapi.json", "--seed", seed,
               "--checks", ",".join(CHECKS), "--phases", "examples,coverage,fuzzing", "--mode", "all",
               "--max-examples", str(EXAMPLES), "--workers", "2", "--request-timeout", "30", "--continue-on-failure",
               "--warnings", "off", "--no-color", "--generation-database", "none"]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          timeout=WITHIN_S, cwd=server.log.parent)
    print(done.stdout)
    assert done.returncode == 0, f"schemathesis found failures (SCHEMATHESIS_SEED={seed}):\n{done.stdout[-8000:]}"
    server.wait_until_idle()
