"""Structured output through the ``openai`` package."""

from __future__ import annotations

import json

import openai
import pytest

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "people": {"type": "integer", "maximum": 99999999}},
    "required": ["city", "people"],
    "additionalProperties": False,
}
ASK = [{"role": "user", "content": "Name a city and how many people live there, as JSON."}]


def test_a_schema_is_followed_plain_and_streamed(client):
    form = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA, "strict": True}}
    arguments = {"model": "smollm2-135m", "messages": ASK, "temperature": 0, "max_tokens": 120, "response_format": form}
    plain = client.chat.completions.create(**arguments).choices[0]
    assert set(json.loads(plain.message.content)) == {"city", "people"} and plain.finish_reason == "stop"
    chunks = client.chat.completions.create(**arguments, stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == plain.message.content


def test_a_choice(client):
    answer = client.completions.create(
        model="smollm2-135m",
        prompt="Is the sea wet?",
        max_tokens=8,
        extra_body={"structured_outputs": {"choice": ["yes", "no"]}},
    )
    assert answer.choices[0].text in ("yes", "no")


def test_an_impossible_schema_is_a_400(client):
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nope"}}}
    with pytest.raises(openai.BadRequestError, match="nope"):
        client.chat.completions.create(model="smollm2-135m", messages=ASK, response_format=form)
