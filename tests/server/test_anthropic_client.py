"""The ``anthropic`` package against /v1/messages: plain, streamed, tools, counting, errors."""

from __future__ import annotations

import asyncio
import json

import pytest

anthropic = pytest.importorskip("anthropic")

MODEL = "smollm2-135m"
FRANCE = [{"role": "user", "content": "What is the capital of France?"}]
GREEDY = {"temperature": 0}  # newer versions of the package have no argument for it
ASK = {"model": MODEL, "messages": FRANCE, "max_tokens": 40, "extra_body": GREEDY}
TOOL = {
    "name": "weather",
    "description": "The weather of a city",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"enum": ["Bern", "Paris"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


@pytest.fixture
def client(tool_server):
    return anthropic.Anthropic(base_url=tool_server.url, api_key=tool_server.key, max_retries=0, timeout=120)


def test_plain_and_streamed_are_equal(client):
    plain = client.messages.create(**ASK)
    assert "Paris" in plain.content[0].text and plain.stop_reason == "end_turn" and plain.role == "assistant"
    with client.messages.stream(**ASK) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == plain.content[0].text == final.content[0].text
    assert final.usage.output_tokens == plain.usage.output_tokens and final.stop_reason == plain.stop_reason


def test_system_stop_sequences_and_counting(client):
    answer = client.messages.create(**ASK, system="Be brief.", stop_sequences=["Paris"])
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", "Paris")
    count = client.messages.count_tokens(model=MODEL, messages=FRANCE, system="Be brief.").input_tokens
    assert count == answer.usage.input_tokens + answer.usage.cache_read_input_tokens


def test_tools_plain_and_streamed_and_their_results(client):
    arguments = {**ASK, "tools": [TOOL], "tool_choice": {"type": "any"}, "max_tokens": 100}
    plain = client.messages.create(**arguments)
    (block,) = plain.content
    assert plain.stop_reason == "tool_use" and block.name == "weather" and block.input["city"] in ("Bern", "Paris")
    with client.messages.stream(**arguments) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_message()
    assert "input_json" in kinds and final.content[0].input == block.input
    result = {"type": "tool_result", "tool_use_id": block.id, "content": "rain"}
    history = [*FRANCE, {"role": "assistant", "content": plain.content}, {"role": "user", "content": [result]}]
    answer = client.messages.create(**{**ASK, "messages": history, "max_tokens": 4}, tools=[TOOL])
    assert answer.usage.output_tokens == 4


def test_async(tool_server):
    async def run() -> str:
        async with anthropic.AsyncAnthropic(base_url=tool_server.url, api_key=tool_server.key) as client:
            async with client.messages.stream(**ASK) as stream:
                return "".join([text async for text in stream.text_stream])

    assert "Paris" in asyncio.run(run())


def test_an_answer_of_a_schema(client):
    schema = TOOL["input_schema"]
    answer = client.messages.create(**ASK, output_config={"format": {"type": "json_schema", "schema": schema}})
    block = answer.content[-1]  # perhaps behind thinking
    assert block.type == "text" and json.loads(block.text)["city"] in ("Bern", "Paris")


def test_errors_are_those_of_the_package(client, tool_server):
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(**{**ASK, "model": "claude"})
    with pytest.raises(anthropic.BadRequestError, match="temperature"):
        client.messages.create(**{**ASK, "extra_body": {"temperature": 101}})
    with pytest.raises(anthropic.AuthenticationError):
        anthropic.Anthropic(base_url=tool_server.url, api_key="sk-wrong", max_retries=0).messages.create(**ASK)
