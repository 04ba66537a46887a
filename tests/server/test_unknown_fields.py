"""``--unknown-fields=warn`` over HTTP: the header, the line in the log, and an answer all the same."""

from __future__ import annotations

import json

import pytest
from running_server import RunningServer

ASK = {"prompt": "The capital of France is", "temperature": 0, "max_tokens": 3}


@pytest.fixture(scope="module")
def lenient_server():
    with RunningServer("--unknown-fields", "warn") as running:
        yield running


def test_a_header_and_the_log_name_what_was_ignored(lenient_server):
    body = {**ASK, "guided_json": {}, "härte,\r\nX-Evil: 1": 5}
    status, answer, headers = lenient_server.request("/v1/completions", body, {"X-Request-Id": "abc-1"})
    assert status == 200 and "Paris" in json.loads(answer)["choices"][0]["text"]
    assert headers["X-Ignored-Fields"] == "guided_json, h%C3%A4rte%2C%0D%0AX-Evil%3A 1"
    assert "X-Evil" not in headers
    assert "request abc-1: ignored unknown fields guided_json, h%C3%A4rte" in lenient_server.log()


def test_streams_and_large_bodies_have_it_too(lenient_server):
    for fields in ({"stream": True}, {"padding": "x" * 20000}):  # a large body is prepared on a thread
        status, _, headers = lenient_server.request("/v1/completions", {**ASK, **fields, "wat": 1})
        assert status == 200 and "wat" in headers["X-Ignored-Fields"].split(", ")
    chat = {"messages": [{"role": "user", "content": "hi", "wat": 1}], "max_tokens": 1}
    assert lenient_server.request("/v1/chat/completions", chat)[2]["X-Ignored-Fields"] == "messages[0].wat"
    many = {**ASK, **{f"field{i:04}": 1 for i in range(3000)}}
    header = lenient_server.request("/v1/completions", many)[2]["X-Ignored-Fields"]
    assert len(header) < 1100 and header.endswith("...")


def test_without_unknown_fields_nothing_is_said(lenient_server):
    before = lenient_server.log().count("ignored unknown fields")
    assert "X-Ignored-Fields" not in lenient_server.request("/v1/completions", ASK)[2]
    assert lenient_server.request("/v1/completions", {**ASK, "best_of": 2})[0] == 400
    assert lenient_server.log().count("ignored unknown fields") == before
