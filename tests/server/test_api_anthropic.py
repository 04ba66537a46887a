"""Anthropic's Messages API against a running server, spoken by hand."""

from __future__ import annotations

import json

FRANCE = [{"role": "user", "content": "What is the capital of France?"}]
BODY = {"model": "smollm2-135m", "messages": FRANCE, "max_tokens": 40, "temperature": 0}


def events_of(body: bytes) -> list[dict]:
    blocks = [block.split("\n", 1) for block in body.decode().strip().split("\n\n")]
    events = [json.loads(data.removeprefix("data: ")) for _, data in blocks]
    assert [name for name, _ in blocks] == [f"event: {each['type']}" for each in events]
    return events


def test_plain_and_streamed_are_equal(server):
    status, body, _ = server.request("/v1/messages", BODY, {"anthropic-version": "2023-06-01"})
    whole = json.loads(body)
    assert status == 200 and whole["stop_reason"] == "end_turn" and whole["role"] == "assistant"
    ((block),) = whole["content"]
    assert "Paris" in block["text"]
    status, body, headers = server.request("/v1/messages", {**BODY, "stream": True})
    events = events_of(body)
    assert status == 200 and headers["Content-Type"].startswith("text/event-stream")
    text = "".join(each["delta"]["text"] for each in events if each["type"] == "content_block_delta")
    assert text == block["text"] and events[0]["type"] == "message_start" and events[-1]["type"] == "message_stop"
    assert events[-2]["usage"]["output_tokens"] == whole["usage"]["output_tokens"]
    usage = whole["usage"]
    _, body, _ = server.request("/v1/messages/count_tokens", {"messages": FRANCE})
    assert json.loads(body)["input_tokens"] == usage["input_tokens"] + usage["cache_read_input_tokens"]


def test_stop_sequences_and_errors(server):
    _, body, _ = server.request("/v1/messages", {**BODY, "stop_sequences": ["Paris"]})
    answer = json.loads(body)
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("stop_sequence", "Paris")
    for body, kind, status in (
        ({**BODY, "max_tokens": None}, "invalid_request_error", 400),
        ({**BODY, "model": "claude"}, "not_found_error", 404),
        (b"{", "invalid_request_error", 400),
    ):
        got, answer, _ = server.request("/v1/messages", body)
        error = json.loads(answer)
        assert (
            got == status and error["type"] == "error" and error["error"]["type"] == kind and error["error"]["message"]
        )
