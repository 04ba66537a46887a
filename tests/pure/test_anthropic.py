"""Anthropic's messages: what becomes of a body, and the events of an answer."""

from __future__ import annotations

import json

import pytest
from text_helpers import bpe_tokenizer

from pyengine.errors import RequestError
from pyengine.protocol import FinishReason, TokenDelta
from pyengine.text.chat_template import ChatTemplate
from pyengine.text.processor import ModelText, TextProcessor
from pyengine.text.validation import Limits
from server.anthropic.shapes import MessageShapes, error_body, event

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
TOOL = {
    "name": "weather",
    "description": "d",
    "input_schema": {"type": "object"},
    "cache_control": {"type": "ephemeral"},
}
HI = {"role": "user", "content": "hi"}


def prepare(**fields: object):
    return PROCESSOR.anthropic(json.dumps({"messages": [HI], "max_tokens": 9, **fields}).encode())


def test_fields_arrive():
    request = prepare(
        system=[
            {"type": "text", "text": "be"},
            {"type": "text", "text": "nice", "cache_control": {"type": "ephemeral"}},
        ],
        stop_sequences=["X"],
        temperature=0.5,
        top_p=0.9,
        top_k=3,
        stream=True,
        metadata={"user_id": "u"},
        tools=[TOOL],
        tool_choice={"type": "auto", "disable_parallel_tool_use": True},
        thinking={"type": "disabled"},
    )
    params = request.prompts[0].params
    assert (params.temperature, params.top_p, params.top_k, params.stop, params.max_tokens) == (0.5, 0.9, 3, ("X",), 9)
    assert request.stream and not request.form.message.parallel_tool_calls
    assert request.form.message.tool_names == {"weather"}
    assert request.prompts[0].text == "<tool>weather</tool>[system]be\nnice[user]hi[go]"
    assert PROCESSOR.anthropic_count(json.dumps({"messages": [HI]}).encode()) == len(BPE.encode("[user]hi[go]", False))


def test_history_of_calls():
    messages = [
        HI,
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "text", "text": "see"},
                {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Bern"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "rain"}]},
                {"type": "text", "text": "and"},
                {"type": "text", "text": "now?"},
            ],
        },
    ]
    assert prepare(messages=messages).prompts[0].text == (
        '[user]hi[assistant]hmsee<tool_call>{"name": "weather", "arguments": {"city": "Bern"}}</tool_call>'
        "[tool]rain[user]and\nnow?[go]"
    )
    prefill = prepare(messages=[HI, {"role": "assistant", "content": "It is"}])
    assert prefill.prompts[0].text == "[user]hi[assistant]It is"


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"max_tokens": None}, "missing required field `max_tokens`"),
        ({"max_tokens": 0}, "max_tokens must be in"),
        ({"bogus": 1}, "unknown field 'bogus'"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages[0].role must be user or assistant"),
        ({"messages": [{"role": "user", "content": 5}]}, "must be a string or text blocks"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "blocks of type 'image' are not supported"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_use"}]}]}, "are not supported here"),
        ({"messages": [{"role": "user", "content": [5]}]}, "must be an object, got int"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "y": 1}]}]}, "unknown field 'y'"),
        ({"messages": [{"role": "user", "content": [{"type": ["x"]}]}]}, "are not supported"),
        ({"messages": []}, "at least one message"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools of type 'bash_20250124' are not supported"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "time"}}, "which is not among the tools"),
        ({"tools": [TOOL], "tool_choice": {"type": "x"}}, "must be auto, any, tool or none"),
        ({"temperature": 101}, "temperature must be in"),
    ],
)
def test_wrong_bodies(fields, text):
    with pytest.raises(RequestError) as caught:
        prepare(**fields)
    assert caught.value.status == 400 and text in caught.value.message


def block(role: str, **fields: object) -> dict:
    return {"messages": [HI, {"role": role, "content": [fields]}], "system": "s"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{**TOOL, "name": "a b"}]}, "tools[0].name"),
        ({"tools": [TOOL, {"name": "a", "input_schema": 5}]}, "tools[1].input_schema"),
        (
            {"tools": [TOOL, {"name": "a", "input_schema": {"type": "no"}}], "tool_choice": {"type": "any"}},
            "tools[1].input_schema",
        ),
        ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
        (
            {"tools": [TOOL], "tool_choice": {"type": "auto", "disable_parallel_tool_use": "no"}},
            "tool_choice.disable_parallel_tool_use",
        ),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format"),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": {"type": "no"}}}},
            "output_config.format.schema",
        ),
        ({"stop_sequences": ["x" * 2000]}, "stop_sequences"),
        ({"thinking": {"type": "adaptive", "display": "loud"}}, "thinking.display"),
        (block("user", type="tool_result"), "messages[1].content[0].tool_use_id"),
        (block("assistant", type="tool_use", name="a"), "messages[1].content[0].id"),
        (block("assistant", type="tool_use", id="a"), "messages[1].content[0].name"),
        (block("assistant", type="tool_use", id="a", name="b", input=5), "messages[1].content[0].input"),
        (block("assistant", type="tool_use", id="a", name="weather"), "messages"),  # nothing to continue
    ],
)
def test_errors_name_the_field_that_the_client_sent(fields, param):
    with pytest.raises(RequestError) as caught:
        prepare(**fields)
    assert caught.value.param == param
    assert caught.value.message.startswith(param) or "the final message" in caught.value.message


def test_null_is_not_given_and_no_tools_are_none():
    assert prepare(tools=[]).prompts[0].text == "[user]hi[go]"
    request = prepare(tools=[{**TOOL, "type": None, "description": None}])
    assert request.prompts[0].text == "<tool>weather</tool>[user]hi[go]"
    call = {"type": "tool_use", "id": "1", "name": "weather", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "1", "content": None}
    history = [HI, {"role": "assistant", "content": [call]}, {"role": "user", "content": [result]}]
    assert prepare(messages=history).prompts[0].text.endswith("[tool][go]")


def test_thinking_may_be_left_out_of_the_answer():
    for display, shown in ((None, True), ("summarized", True), ("omitted", False)):
        request = prepare(thinking={"type": "adaptive", "display": display})
        assert request.form.message.shows_reasoning is shown


def test_strict_tools_are_bound():
    assert prepare(tools=[TOOL]).prompts[0].params.grammar is None
    request = prepare(tools=[{**TOOL, "strict": True}])
    assert "<tool_call>" in request.prompts[0].params.grammar and request.prompts[0].params.thinking is not None


def test_forced_calls():
    one = {"type": "any", "disable_parallel_tool_use": True}
    for choice, is_one in (({"type": "any"}, False), (one, True), ({"type": "tool", "name": "weather"}, True)):
        request = prepare(tools=[TOOL], tool_choice=choice)
        assert request.prompts[0].params.grammar and request.form.message.tools.bare is is_one
    whole, _ = run('{"name": "weather", "arguments": {"a": 1}}', 3, tools=[TOOL], tool_choice=one)
    assert whole["stop_reason"] == "tool_use" and whole["content"][0]["input"] == {"a": 1}


def run(text: str, size: int, **fields: object) -> tuple[dict, list[dict]]:
    """The whole message and the events of an answer that says ``text``."""
    prepared = prepare(**fields)
    (generation,) = PROCESSOR.generations(prepared.prompts[0], prepared.form)
    shapes = MessageShapes("m", prepared.form.message, generation, prepared.num_prompt_tokens)
    events, ids = [shapes.opening()], BPE.encode(text, False)
    for start in range(0, len(ids), size):
        events += shapes.events(generation.push(TokenDelta("r", 0, ids[start : start + size])))
    events += shapes.events(generation.push(TokenDelta("r", 0, [1], FinishReason.STOP, stop_token_id=1)))
    return shapes.whole(), events


@pytest.mark.parametrize("size", [1, 4, 1000])
def test_events_are_the_message(size):
    text = '<think>hm</think>See. <tool_call>{"name": "weather", "arguments": {"city": "Bern"}}</tool_call>'
    whole, events = run(text, size, tools=[TOOL])
    assert [block["type"] for block in whole["content"]] == ["thinking", "text", "tool_use"]
    assert whole["content"][2]["input"] == {"city": "Bern"} and whole["stop_reason"] == "tool_use"
    kinds = [each["type"] for each in events]
    assert kinds[0] == "message_start" and kinds[-2:] == ["message_delta", "message_stop"]
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 3
    grown: dict[int, str] = {}
    for each in events:
        if each["type"] == "content_block_delta":
            delta = each["delta"]
            piece = delta.get("thinking") or delta.get("text") or delta.get("partial_json")
            grown[each["index"]] = grown.get(each["index"], "") + piece
    assert grown[0] == "hm" and grown[1] == "See." and json.loads(grown[2]) == {"city": "Bern"}
    assert events[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert events[-2]["usage"]["output_tokens"] == whole["usage"]["output_tokens"] == len(BPE.encode(text, False)) + 1


def blocks_of(events: list[dict]) -> list[tuple[str, str]]:
    """Kind and text of each block that the events open."""
    blocks: list[list[str]] = []
    for each in events:
        if each["type"] == "content_block_start":
            blocks.append([each["content_block"]["type"], ""])
        elif each["type"] == "content_block_delta":
            blocks[-1][1] += next(value for name, value in each["delta"].items() if name != "type")
    return [tuple(block) for block in blocks]


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize(
    "text",
    [
        'One. <tool_call>{"name": "weather", "arguments": {"a": 1}}</tool_call> Two.'
        '<tool_call>{"name": "weather", "arguments": {}}</tool_call>Three',
        'One <tool_call>{"name": "weather", "arguments": {"a": <</tool_call> Two',
        '<tool_call>{"name": "weather", "arguments": {"a":',
        "",
    ],
)
def test_a_plain_message_has_the_blocks_of_a_streamed_one(text, size):
    whole, events = run(text, size, tools=[TOOL])
    plain = [(block["type"], block.get("text") or block.get("input")) for block in whole["content"]]
    streamed = blocks_of(events)
    assert [kind for kind, _ in plain] == [kind for kind, _ in streamed]
    for (kind, value), (_, piece) in zip(plain, streamed, strict=True):
        assert value == (piece if kind == "text" else as_object(piece))


def as_object(text: str) -> dict:
    try:
        return json.loads(text)
    except ValueError:
        return {}


def test_reasons_to_stop():
    whole, events = run("Yes END no", 1, stop_sequences=["END"])
    assert (whole["content"], whole["stop_reason"], whole["stop_sequence"]) == (
        [{"type": "text", "text": "Yes "}],
        "stop_sequence",
        "END",
    )
    assert [each["type"] for each in events].count("message_stop") == 1
    assert run("Yes", 1)[0]["stop_reason"] == "end_turn"


def test_errors_and_events_on_the_wire():
    assert error_body("busy", 429) == {"type": "error", "error": {"type": "rate_limit_error", "message": "busy"}}
    assert error_body("x", 500)["error"]["type"] == "api_error" and error_body("x", 415)["error"]["type"]
    assert event({"type": "ping"}) == b'event: ping\ndata: {"type":"ping"}\n\n'
