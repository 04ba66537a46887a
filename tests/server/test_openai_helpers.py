"""The ``openai`` package's own helpers: parsed answers, the streaming helper, tools from models, and async."""

from __future__ import annotations

import asyncio
import json
from typing import Literal

import openai
import pytest
from pydantic import BaseModel

MODEL = "smollm2-135m"
ASK = [{"role": "user", "content": "Is Paris in France or in Spain?"}]
COMMON = {"model": MODEL, "messages": ASK, "temperature": 0, "max_tokens": 200}


class Place(BaseModel):
    """Where a city is."""

    country: Literal["France", "Spain"]
    is_capital: bool


@pytest.fixture
def tools(tool_server):
    return openai.OpenAI(base_url=f"{tool_server.url}/v1", api_key=tool_server.key, max_retries=0, timeout=120)


def test_parsed_answers_of_both_endpoints(client):
    answer = client.chat.completions.parse(**COMMON, response_format=Place)
    assert isinstance(answer.choices[0].message.parsed, Place)
    answer = client.responses.parse(
        model=MODEL, input=ASK[0]["content"], text_format=Place, temperature=0, max_output_tokens=200
    )
    assert isinstance(answer.output_parsed, Place)


def test_an_answer_that_is_cut_says_so(client):
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(**{**COMMON, "max_tokens": 3}, response_format=Place)


def test_the_streaming_helper_sees_every_event(client):
    with client.chat.completions.stream(**COMMON, response_format=Place) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= set(kinds)
    assert final.choices[0].message.parsed == client.chat.completions.parse(**COMMON, response_format=Place).choices[
        0
    ].message.parsed


def test_tools_made_from_models_are_called_and_parsed(tools):
    tool = openai.pydantic_function_tool(Place)
    answer = tools.chat.completions.parse(**COMMON, tools=[tool], tool_choice="required")
    (call,) = answer.choices[0].message.tool_calls
    assert isinstance(call.function.parsed_arguments, Place) and answer.choices[0].finish_reason == "tool_calls"
    with tools.chat.completions.stream(**COMMON, tools=[tool], tool_choice="required") as stream:
        kinds = {event.type for event in stream}
        streamed = stream.get_final_completion().choices[0].message.tool_calls[0]
    assert {"tool_calls.function.arguments.delta", "tool_calls.function.arguments.done"} <= kinds
    assert streamed.function.parsed_arguments == call.function.parsed_arguments


def test_a_conversation_with_calls_goes_round(tools):
    tool = openai.pydantic_function_tool(Place)
    first = tools.chat.completions.create(**COMMON, tools=[tool], tool_choice="required").choices[0].message
    history = [*ASK, first, {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "It is."}]
    tool["function"]["strict"] = False  # a call that may be or not be has no grammar yet
    answer = tools.chat.completions.create(**{**COMMON, "messages": history, "max_tokens": 8}, tools=[tool])
    assert answer.usage.prompt_tokens > 20 and answer.choices[0].message.role == "assistant"


def test_async_streams_of_tools_and_responses(tool_server):
    async def run() -> tuple[str, list[str]]:
        async with openai.AsyncOpenAI(
            base_url=f"{tool_server.url}/v1", api_key=tool_server.key, max_retries=0, timeout=120
        ) as client:
            tool = openai.pydantic_function_tool(Place)
            stream = await client.chat.completions.create(**COMMON, tools=[tool], tool_choice="required", stream=True)
            pieces = [piece async for chunk in stream for piece in chunk.choices[0].delta.tool_calls or []]
            events = await client.responses.create(model=MODEL, input="Hi", stream=True, max_output_tokens=4)
            return "".join(piece.function.arguments for piece in pieces), [event.type async for event in events]

    arguments, kinds = asyncio.run(run())
    assert Place.model_validate_json(arguments)
    assert kinds[0] == "response.created" and kinds[-1] in ("response.completed", "response.incomplete")


def test_a_wrong_key_is_the_clients_own_error(tool_server):
    client = openai.OpenAI(base_url=f"{tool_server.url}/v1", api_key="sk-wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        client.models.list()


def test_extra_answers_survive_the_clients_models(client):
    answer = client.chat.completions.create(**{**COMMON, "max_tokens": 2}, extra_body={"return_token_ids": True})
    dumped = json.loads(answer.model_dump_json())
    assert len(dumped["choices"][0]["token_ids"]) == 2 and dumped["prompt_token_ids"]
