"""Property-based fuzzing from the server's own OpenAPI document: whatever the document allows or forbids, no answer is
a 5xx, every answer has the shape that the document says, and what violates the document is refused.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from running_server import TOOL_TEMPLATE, RunningServer

pytest.importorskip("schemathesis")

BUDGET_S = 40
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
    "allow_header_conformance",
)


@pytest.fixture(scope="module")
def fuzzed_server(tmp_path_factory):
    """Short answers leave time for many requests."""
    template = tmp_path_factory.mktemp("template") / "template.jinja"
    template.write_text(TOOL_TEMPLATE)
    with RunningServer("--max-model-len", "64", "--chat-template", str(template)) as running:
        yield running


def test_nothing_that_the_document_allows_or_forbids_breaks_the_server(fuzzed_server, tmp_path):
    command = [str(Path(sys.executable).parent / "schemathesis"), "run", f"{fuzzed_server.url}/openapi.json"]
    command += ["--phases", "coverage,fuzzing", "--max-time", str(BUDGET_S), "--seed", "4", "--no-color"]
    command += ["--checks", ",".join(CHECKS), "--request-timeout", "60", "--no-shrink", "--continue-on-failure"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=3 * BUDGET_S)
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr[-2000:] + fuzzed_server.log()[-4000:]
    assert "Traceback" not in fuzzed_server.log()


@pytest.mark.parametrize(
    "body",
    [
        {"temperature": 1e-38},
        {"temperature": 5e-324},
        {"repetition_penalty": 0.001, "max_tokens": 20},
        {"top_p": 5e-324},
        {"max_tokens": 2.0, "stop_token_ids": [5.0]},
    ],
)
def test_extreme_numbers_are_served(fuzzed_server, body):
    body = {"prompt": "a b", "max_tokens": 2, "logprobs": 1, **body}
    status, answer, _ = fuzzed_server.request("/v1/completions", body)
    assert status == 200, answer


@pytest.mark.parametrize(
    "body",
    [
        {"allowed_token_ids": [5], "response_format": {"type": "json_object"}},
        {"allowed_token_ids": [2], "min_tokens": 2},
    ],
)
def test_wishes_that_leave_no_token_are_the_clients_mistake(fuzzed_server, body):
    status, answer, _ = fuzzed_server.request("/v1/completions", {"prompt": "a b", "max_tokens": 20, **body})
    assert status == 400 and "no token can be drawn" in json.loads(answer)["error"]["message"]
    _, events, _ = fuzzed_server.request("/v1/completions", {"prompt": "a b", "max_tokens": 20, "stream": True, **body})
    assert b"no token can be drawn" in events and events.endswith(b"data: [DONE]\n\n")


def test_answers_with_everything_asked_for_have_the_documents_shapes(fuzzed_server):
    validator = pytest.importorskip("jsonschema").Draft202012Validator
    document = json.loads(fuzzed_server.request("/openapi.json")[1])

    def check(path: str, body: dict) -> None:
        status, answer, _ = fuzzed_server.request(path, body)
        assert status == 200, answer
        content = document["paths"][path]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
        validator({**content, "components": document["components"]}).validate(json.loads(answer))

    message = {"role": "user", "content": "hi"}
    tool = {"name": "weather", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}}
    forced = {"tools": [{"type": "function", "function": tool}], "tool_choice": "required"}
    scored = {"logprobs": True, "top_logprobs": 2, "return_token_ids": True}
    check("/v1/chat/completions", {"messages": [message], **scored})
    check("/v1/chat/completions", {"messages": [message], **forced})
    check("/v1/completions", {"prompt": "a", "n": 2, "logprobs": 2, "return_token_ids": True})
    check("/v1/messages", {"messages": [message], "max_tokens": 4})
    check("/v1/messages/count_tokens", {"messages": [message]})
    check("/v1/responses", {"input": "a", "tools": [{"type": "function", **tool}], "tool_choice": "required"})
    check("/tokenize", {"prompt": "a", "return_token_strs": True})
    check("/detokenize", {"tokens": [5]})
