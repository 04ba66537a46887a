"""The Responses API: what becomes of a body, and the events of an answer, as the openai package understands them."""

from __future__ import annotations

import json

import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter
from text_helpers import bpe_tokenizer

from pyengine.errors import RequestError
from pyengine.protocol import FinishReason, TokenDelta
from pyengine.text.chat_template import ChatTemplate
from pyengine.text.processor import ModelText, TextProcessor
from pyengine.text.validation import Limits
from server.openai.response_shapes import ResponseShapes

BPE = bpe_tokenizer()
TEMPLATE = (
    "{% for t in tools or [] %}<tool>{{ t.function.name }}</tool>{% endfor %}{% for m in messages %}[{{ m.role }}]"
    "{{ m.reasoning_content }}{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}"
    "</tool_call>{% endfor %}{% endfor %}{% if add_generation_prompt %}[go]{% endif %}{# </think> #}"
)
PROCESSOR = TextProcessor(
    ModelText(BPE, ChatTemplate(TEMPLATE, BPE.facts.named_tokens)),
    Limits(max_model_len=2048, vocab_size=BPE.vocab_size),
)
TOOL = {"type": "function", "name": "weather", "parameters": {"type": "object"}}


def prepare(**fields: object):
    return PROCESSOR.responses(json.dumps({"input": "hi", **fields}).encode())


def test_fields_arrive():
    asked, request = prepare(
        instructions="be nice",
        max_output_tokens=9,
        temperature=0.5,
        top_p=0.9,
        stream=True,
        store=False,
        metadata={"a": "b"},
        include=[],
        truncation="disabled",
        tools=[TOOL],
        tool_choice="auto",
        parallel_tool_calls=False,
        text={"format": {"type": "text"}},
    )
    params = request.prompts[0].params
    assert (params.temperature, params.top_p, params.max_tokens, params.grammar) == (0.5, 0.9, 9, None)
    assert request.stream and request.form.message.tool_names == {"weather"} and asked.instructions == "be nice"
    assert request.prompts[0].text == "<tool>weather</tool>[system]be nice[user]hi[go]"
    schema = {"type": "json_schema", "name": "x", "schema": {"type": "object"}, "strict": True}
    assert prepare(text={"format": schema})[1].prompts[0].params.grammar
    assert prepare(tools=[TOOL], tool_choice={"type": "function", "name": "weather"})[1].form.message.names_tool


def test_items_become_messages():
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"type": "reasoning", "id": "rs", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "see", "annotations": []}],
        },
        {"type": "function_call", "call_id": "c", "name": "weather", "arguments": '{"a": 1}', "status": "completed"},
        {"type": "function_call_output", "call_id": "c", "output": "rain"},
        {"role": "assistant", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "more"},
    ]
    assert prepare(input=items)[1].prompts[0].text == (
        '[user]hi[assistant]hmsee<tool_call>{"name": "weather", "arguments": {"a": 1}}</tool_call>[tool]rain'
        "[assistant]one[assistant]two[user]more[go]"
    )


@pytest.mark.parametrize(
    ("fields", "param", "text"),
    [
        ({"store": True}, "store", "store is not supported"),
        ({"previous_response_id": "x"}, "previous_response_id", "is not supported"),
        ({"background": True}, "background", "is not supported"),
        ({"truncation": "auto"}, "truncation", "is not supported"),
        ({"bogus": 1}, "bogus", "unknown field"),
        ({"input": None}, "input", "missing required field `input`"),
        ({"input": []}, "input", "at least one message"),
        ({"input": [5]}, "input[0]", "must be an object"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type", "are not supported"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]", "not supported"),
        ({"input": [{"role": "user", "content": "x", "y": 1}]}, "input[0]", "unknown field 'y'"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "tools of type 'web_search' are not supported"),
        ({"text": {"verbosity": "low"}}, "text", "text.verbosity is not supported"),
        ({"temperature": -1}, "temperature", "must be in"),
        ({"instructions": "x", "input": [{"role": "robot", "content": "x"}]}, "input[0].role", "must be one of"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id", "must be a string"),
        ({"input": [{"type": "function_call", "call_id": "1", "arguments": "{}"}]}, "input[0].name", "must be a"),
        (
            {"input": [{"type": "function_call", "call_id": "1", "name": "a", "arguments": "{"}]},
            "input[0].arguments",
            "is not valid JSON",
        ),
        ({"tools": [{"type": "function", "name": "a b"}]}, "tools[0].name", "tools[0].name must be"),
        (
            {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "no"}}}},
            "text.format.schema",
            "text.format.schema cannot be used",
        ),
        ({"text": {"format": {"type": "xml"}}}, "text.format", "text.format.type must be"),
    ],
)
def test_wrong_bodies(fields, param, text):
    with pytest.raises(RequestError) as caught:
        prepare(**fields)
    assert (caught.value.status, caught.value.param) == (400, param) and text in caught.value.message


TEXT = '<think>hm</think>See. <tool_call>{"name": "weather", "arguments": {"city": "Bern"}}</tool_call>'


@pytest.mark.parametrize("size", [1, 4, 1000])
@pytest.mark.parametrize("reason", [FinishReason.STOP, FinishReason.LENGTH])
def test_events_are_the_response(size, reason):
    asked, prepared = prepare(tools=[TOOL])
    (generation,) = PROCESSOR.generations(prepared.prompts[0], prepared.form)

    def shapes() -> ResponseShapes:
        return ResponseShapes("m", asked, prepared.form.message, generation, prepared.num_prompt_tokens)

    streamed, ids = shapes(), BPE.encode(TEXT, False)
    events = streamed.opening()
    for start in range(0, len(ids), size):
        events += streamed.events(generation.push(TokenDelta("r", 0, ids[start : start + size])))
    events += streamed.events(generation.push(TokenDelta("r", 0, [1], reason, stop_token_id=1)))
    events = [json.loads(json.dumps(each)) for each in events]
    whole = Response.model_validate(shapes().whole())
    adapter = TypeAdapter(ResponseStreamEvent)
    typed = [adapter.validate_python(each) for each in events]
    assert [each.sequence_number for each in typed] == list(range(len(typed)))
    status = "completed" if reason is FinishReason.STOP else "incomplete"
    assert whole.status == status and typed[-1].type == f"response.{status}"
    for response in (whole, typed[-1].response):
        thinking, message, call = response.output
        assert thinking.content[0].text == "hm" and message.content[0].text == response.output_text == "See."
        assert (call.name, json.loads(call.arguments)) == ("weather", {"city": "Bern"})
        assert response.usage.output_tokens == len(ids) + 1
        assert 0 < response.usage.output_tokens_details.reasoning_tokens < len(ids)
    kinds = [each.type for each in typed]
    assert kinds.count("response.output_item.added") == kinds.count("response.output_item.done") == 3
    for kind, expected in (
        ("response.reasoning_text.delta", "hm"),
        ("response.output_text.delta", "See."),
        ("response.function_call_arguments.delta", whole.output[2].arguments),
    ):
        assert "".join(each.delta for each in typed if each.type == kind) == expected
    added = [each.item.id for each in typed if each.type == "response.output_item.added"]
    assert added == [item.id for item in typed[-1].response.output]
