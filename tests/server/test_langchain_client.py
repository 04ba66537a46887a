"""LangChain's ``ChatOpenAI``: invoke, stream, tools, structured output."""

from __future__ import annotations

from typing import Literal

import pytest
from pydantic import BaseModel

langchain_openai = pytest.importorskip("langchain_openai")

QUESTION = "What is the capital of France?"


class Place(BaseModel):
    """Where a city is."""

    country: Literal["France", "Spain"]


@pytest.fixture
def model(tool_server):
    return langchain_openai.ChatOpenAI(
        base_url=f"{tool_server.url}/v1",
        api_key=tool_server.key,
        model="smollm2-135m",
        temperature=0,
        max_tokens=200,
        max_retries=0,
    )


def test_invoke_and_stream_are_equal(model):
    answer = model.invoke([("system", "Be brief."), ("user", QUESTION)])
    chunks = list(model.stream([("system", "Be brief."), ("user", QUESTION)], stream_usage=True))
    assert "Paris" in answer.content == "".join(chunk.content for chunk in chunks)
    assert answer.response_metadata["finish_reason"] == "stop"
    usage = next(chunk.usage_metadata for chunk in chunks if chunk.usage_metadata)
    assert usage["output_tokens"] == answer.usage_metadata["output_tokens"] > 0


def test_tools_are_bound_called_and_answered(model):
    bound = model.bind_tools([Place], tool_choice="any")
    answer = bound.invoke(QUESTION)
    (call,) = answer.tool_calls
    assert call["name"] == "Place" and call["args"]["country"] in ("France", "Spain")
    total = None
    for chunk in bound.stream(QUESTION):
        total = chunk if total is None else total + chunk
    assert total.tool_calls[0]["args"] == call["args"]
    from langchain_core.messages import HumanMessage, ToolMessage

    history = [HumanMessage(QUESTION), answer, ToolMessage("It is.", tool_call_id=call["id"])]
    assert model.bind_tools([Place]).invoke(history, max_tokens=4).usage_metadata["output_tokens"] == 4


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output(model, method):
    assert isinstance(model.with_structured_output(Place, method=method).invoke(QUESTION), Place)
