"""The Responses API through the openai package."""

from __future__ import annotations

import openai
import pytest

ASK = {"model": "smollm2-135m", "input": "What is the capital of France?", "temperature": 0, "max_output_tokens": 40}


def test_plain_and_streamed_are_equal(client):
    whole = client.responses.create(**ASK, store=False)
    assert whole.status == "completed" and "Paris" in whole.output_text
    events = list(client.responses.create(**ASK, stream=True))
    assert events[0].type == "response.created" and events[-1].type == "response.completed"
    text = "".join(each.delta for each in events if each.type == "response.output_text.delta")
    assert text == whole.output_text == events[-1].response.output_text
    assert events[-1].response.usage.output_tokens == whole.usage.output_tokens


def test_what_needs_a_store_is_refused(client):
    for fields in ({"store": True}, {"previous_response_id": "resp_1"}):
        with pytest.raises(openai.BadRequestError, match=next(iter(fields))):
            client.responses.create(**ASK, **fields)
