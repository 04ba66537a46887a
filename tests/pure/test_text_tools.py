"""Calls of tools and thinking in an answer's text: every format, cut at every place, broken in every way."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_helpers import bpe_tokenizer

from pyengine.errors import RequestError
from pyengine.protocol import FinishReason, TokenDelta
from pyengine.sampling_params import SamplingParams
from pyengine.text.answer_parts import CallArguments, CallBegin, Content, Reasoning
from pyengine.text.chat_template import ChatTemplate
from pyengine.text.forced_calls import MAX_FORCED_CALLS
from pyengine.text.generation import Generation, TextDelta
from pyengine.text.json_scan import MAX_DEPTH, JsonScanner
from pyengine.text.message import Message, MessageForm
from pyengine.text.processor import ModelText, TextProcessor
from pyengine.text.reasoning import FORMATS as REASONING_FORMATS
from pyengine.text.reasoning import find_reasoning_format
from pyengine.text.tool_formats import FORMATS, find_tool_format
from pyengine.text.tool_parser import MAX_CALL_CHARS, ToolCallParser
from pyengine.text.tools import Offer, check_tools
from pyengine.text.validation import Limits

BPE = bpe_tokenizer()
HERMES, MISTRAL, LLAMA = FORMATS
(THINK, BRACKETS) = REASONING_FORMATS
WEATHER = '{"name": "weather", "arguments": {"city": "Zürich \\"x\\" {", "days": [1, 2.5e3]}}'
CITY = '{"city": "Zürich \\"x\\" {", "days": [1, 2.5e3]}'


def form(tools=HERMES, reasoning=None, **more: object) -> MessageForm:
    return MessageForm(tools, frozenset({"weather", "time"}), reasoning=reasoning, **more)


def read(text: str, cuts: list[int], message_form: MessageForm, reason: str = "stop") -> Message:
    """The message of a text that arrives in pieces of the given sizes."""
    message, start, turn = Message(message_form, Generation(BPE, SamplingParams())), 0, 0
    parts = []
    while start < len(text):
        size = cuts[turn % len(cuts)]
        parts += message.push(TextDelta(text[start : start + size]))
        start, turn = start + size, turn + 1
    parts += message.push(TextDelta("", finish_reason=reason))
    # What was streamed adds up to what the message holds, in OpenAI's order: a call's head, then its arguments.
    assert "".join(part.text for part in parts if isinstance(part, Content)) == message.content
    assert "".join(part.text for part in parts if isinstance(part, Reasoning)) == message.reasoning
    begun: list[int] = []
    for part in parts:
        if isinstance(part, CallBegin):
            assert part.index == len(begun)
            begun.append(part.index)
        elif isinstance(part, CallArguments):
            assert part.index == begun[-1] and part.text
    return message


def seen(message: Message, reason: str = "stop") -> tuple:
    calls = [(call.name, call.arguments) for call in message.calls]
    return message.reasoning, message.content, calls, message.finish_reason(reason)


CASES = [
    (HERMES, f"<tool_call>\n{WEATHER}\n</tool_call>", "", [("weather", CITY)], "tool_calls"),
    (HERMES, f"Let me see.\n<tool_call>{WEATHER}</tool_call>\n", "Let me see.", [("weather", CITY)], "tool_calls"),
    (
        HERMES,
        f'<tool_call>{WEATHER}</tool_call>\n<tool_call>{{"name":"time"}}</tool_call>',
        "",
        [("weather", CITY), ("time", "{}")],
        "tool_calls",
    ),
    (
        HERMES,
        '<tool_call>{"arguments": {"a": 1}, "name": "time"}</tool_call>',
        "",
        [("time", '{"a": 1}')],
        "tool_calls",
    ),
    (HERMES, '<tool_call>{"name": "time", "arguments": null}', "", [("time", "{}")], "tool_calls"),
    (HERMES, '<tool_call>{"name": "time", "arguments": "{\\"a\\": 1}"}', "", [("time", '{"a": 1}')], "tool_calls"),
    (HERMES, '<tool_call>{"id": [{"name": 1}], "name": "time", "arguments": {}}', "", [("time", "{}")], "tool_calls"),
    (HERMES, f"<tool_call>{WEATHER}</tool_call> done", " done", [("weather", CITY)], "tool_calls"),
    (HERMES, f"<tool_call>{WEATHER} then", "then", [("weather", CITY)], "tool_calls"),
    (HERMES, f"<tool_call>{WEATHER}</tool_x", "</tool_x", [("weather", CITY)], "tool_calls"),
    (HERMES, "no call\n", "no call\n", [], "stop"),
    (HERMES, " \n", " \n", [], "stop"),
    (HERMES, "a <tool_cal", "a <tool_cal", [], "stop"),
    (HERMES, "a <tool_call>", "a <tool_call>", [], "stop"),
    (HERMES, "a <tool_call>b", "a <tool_call>b", [], "stop"),
    (HERMES, f"<tool_call><tool_call>{WEATHER}", "<tool_call>", [("weather", CITY)], "tool_calls"),
    (HERMES, '<tool_call>{"name": 5, "arguments": {}}', '<tool_call>{"name": 5, "arguments": {}}', [], "stop"),
    (HERMES, '<tool_call>{"name": "a b"}', '<tool_call>{"name": "a b"}', [], "stop"),
    (HERMES, '<tool_call>{"arguments": {}}x', '<tool_call>{"arguments": {}}x', [], "stop"),
    (
        HERMES,
        '<tool_call>{"name": "time", "arguments": [1]}',
        '<tool_call>{"name": "time", "arguments": [1]}',
        [],
        "stop",
    ),
    (
        HERMES,
        '<tool_call>{"name": "time", "arguments": "{1}"}',
        '<tool_call>{"name": "time", "arguments": "{1}"}',
        [],
        "stop",
    ),
    (HERMES, '<tool_call>{"name": "time", "arguments": {"a": x}}', "x}}", [("time", '{"a": ')], "stop"),
    (HERMES, '<tool_call>{"name": "time", "arguments": {"a": 1', "", [("time", '{"a": 1')], "stop"),
    (HERMES, '<tool_call>{"name": "other", "arguments": {}}', "", [("other", "{}")], "tool_calls"),
    (MISTRAL, f'[TOOL_CALLS] [{WEATHER}, {{"name":"time"}}]', "", [("weather", CITY), ("time", "{}")], "tool_calls"),
    (MISTRAL, f"[TOOL_CALLS]{WEATHER}", "", [("weather", CITY)], "tool_calls"),
    (MISTRAL, f"x [TOOL_CALLS][{WEATHER}] y", "x y", [("weather", CITY)], "tool_calls"),
    (MISTRAL, "[TOOL_CALLS][]", "[TOOL_CALLS][]", [], "stop"),
    (LLAMA, '{"name": "time", "parameters": {"a": 1}}', "", [("time", '{"a": 1}')], "tool_calls"),
    (
        LLAMA,
        '\n{"name": "time", "parameters": {}}; {"name": "time"}',
        "",
        [("time", "{}"), ("time", "{}")],
        "tool_calls",
    ),
    (LLAMA, '<|python_tag|>{"type": "function", "name": "time"}', "", [("time", "{}")], "tool_calls"),
    (LLAMA, '{"name": "Alice", "parameters": {}}', '{"name": "Alice", "parameters": {}}', [], "stop"),
    (LLAMA, '\n{"age": 5, "list": [1]} ', '\n{"age": 5, "list": [1]} ', [], "stop"),
    (LLAMA, "{not json", "{not json", [], "stop"),
    (LLAMA, 'Say {"name": "time"}', 'Say {"name": "time"}', [], "stop"),
]


@pytest.mark.parametrize(("tool_format", "text", "content", "calls", "reason"), CASES, ids=range(len(CASES)))
def test_formats(tool_format, text, content, calls, reason):
    whole = seen(read(text, [len(text)], form(tool_format)))
    assert whole == ("", content, calls, reason)
    for size in (1, 2, 3, 7):
        assert seen(read(text, [size], form(tool_format))) == whole
    for split in range(1, len(text)):
        assert seen(read(text, [split, len(text)], form(tool_format))) == whole
    generation = Generation(BPE, SamplingParams())
    generation.push(TokenDelta("r", 0, BPE.encode(text, False), FinishReason.LENGTH))
    assert seen(Message.whole(form(tool_format), generation))[:3] == whole[:3]


PIECES = [
    "<tool_call>",
    "</tool_call>",
    "[TOOL_CALLS]",
    "<|python_tag|>",
    "<think>",
    "</think>",
    WEATHER,
    '{"name": "time"}',
    '{"name": "time", "arguments": ',
    '"arguments"',
    "{",
    "}",
    "[",
    "]",
    ",",
    ";",
    ":",
    '"',
    "\\",
    "null",
    "1",
    " ",
    "\n",
    "<",
    "a",
    "é",
    "\u2003",
]


@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    pieces=st.lists(st.sampled_from(PIECES), max_size=14),
    cuts=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    tools=st.sampled_from([*FORMATS, None]),
    reasoning=st.sampled_from([THINK, None]),
    inside=st.booleans(),
    parallel=st.booleans(),
)
def test_the_message_does_not_depend_on_the_cuts(pieces, cuts, tools, reasoning, inside, parallel):
    text = "".join(pieces)
    asked = form(tools, reasoning, inside_reasoning=inside and reasoning is not None, parallel_tool_calls=parallel)
    whole = read(text, [max(len(text), 1)], asked)
    assert seen(read(text, cuts, asked)) == seen(whole) == seen(read(text, [1], asked))
    assert len(whole.calls) <= 1 or parallel
    if whole.finish_reason("stop") == "tool_calls":
        assert all(isinstance(json.loads(call.arguments), dict) for call in whole.calls)
    if tools is None and reasoning is None:
        assert whole.content == text
    if not whole.calls and reasoning is None:
        assert whole.content == text  # nothing is lost


def test_length_stays_length():
    text = f"<tool_call>{WEATHER}</tool_call>"
    assert read(text, [5], form()).finish_reason("length") == "length"


def test_only_the_first_call_without_parallel_calls():
    text = f'<tool_call>{WEATHER}</tool_call><tool_call>{{"name": "time", "arguments": {{"a": </tool_call>'
    message = read(text, [3], form(parallel_tool_calls=False))
    assert [call.name for call in message.calls] == ["weather"] and message.finish_reason("stop") == "tool_calls"


def test_arguments_are_streamed_before_the_call_ends():
    parser = ToolCallParser(HERMES, {"time"})
    assert parser.push('<tool_call>{"name": "time", "argum') == []
    assert parser.push('ents": {"a": "on') == [CallBegin(0, "time"), CallArguments(0, '{"a": "on')]
    assert parser.push('e"}') == [CallArguments(0, 'e"}')]
    assert parser.push("}</tool_call>") == []


def test_cost_is_linear_for_hostile_answers():
    start = time.perf_counter()
    for text in (
        '<tool_call>{"a":"' * 4000,
        "<tool_call>" * 8000,
        "<tool_call>{" * 8000,
        '<tool_call>{"name":"time"}' * 3000,
        " " * 60_000,
        '<tool_call>{"name":"time","arguments":{"a":"' + "x" * 60_000,
        "<tool_call>{" + '"a":[' * 9000,
    ):
        parser = ToolCallParser(HERMES, {"time"})
        for i in range(0, len(text), 3):
            parser.push(text[i : i + 3])
        parser.finish()
    assert time.perf_counter() - start < 10


def test_depth_and_size_are_bounded():
    deep = '<tool_call>{"name": "time", "x": ' + "[" * MAX_DEPTH
    message = read(deep, [1000], form())
    assert message.content == deep and not message.calls
    long = '<tool_call>{"name": "time", "x": "' + "y" * MAX_CALL_CHARS
    assert read(long, [len(long)], form()).content == long


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    value=st.lists(JSON, max_size=3) | st.dictionaries(st.text(max_size=4), JSON, max_size=3), ascii_only=st.booleans()
)
def test_the_scanner_takes_json_and_ends_with_it(value, ascii_only):
    text = json.dumps(value, ensure_ascii=ascii_only)
    scanner = JsonScanner()
    for position, char in enumerate(text):
        assert not scanner.done and scanner.feed(char), position
    assert scanner.done and scanner.feed(" ") and not scanner.feed("x")


@settings(max_examples=600, deadline=None, derandomize=True)
@given(text=st.text('{}[]:,"\\ue-+.01tfnrals \n', max_size=12), head=st.sampled_from(["{", "[", '{"', '["\\', "[1"]))
def test_the_scanner_takes_nothing_else(text, head):
    scanner, text = JsonScanner(), head + text
    taken = all(scanner.feed(char) for char in text) and scanner.done
    try:
        valid = isinstance(json.loads(text, parse_constant=lambda name: 1 / 0), (dict, list))
    except (ValueError, ZeroDivisionError):
        valid = False
    assert taken == valid


# ---- thinking --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "inside", "expected"),
    [
        ("<think>\nhm\n</think>\n\nYes\n", False, ("hm", "Yes\n", [], "stop")),
        (" \n<think>hm</think>Yes", False, ("hm", "Yes", [], "stop")),
        ("hm, <b\n</think>\nYes", True, ("hm, <b", "Yes", [], "stop")),
        ("hm, </thin", True, ("hm, </thin", "", [], "stop")),
        ("hm ", True, ("hm", "", [], "stop")),
        ("<think>", False, ("", "", [], "stop")),
        ("<thi", False, ("", "<thi", [], "stop")),
        (" Yes <think>no</think>", False, ("", " Yes <think>no</think>", [], "stop")),
        ("<think></think>Yes", False, ("", "Yes", [], "stop")),
        (f"a</think>\n<tool_call>{WEATHER}</tool_call>", True, ("a", "", [("weather", CITY)], "tool_calls")),
        (f"<tool_call>{WEATHER}</think>b", True, (f"<tool_call>{WEATHER}", "b", [], "stop")),
    ],
)
def test_thinking(text, inside, expected):
    asked = form(HERMES, THINK, inside_reasoning=inside)
    for cuts in ([len(text)], [1], [2], [3], [5]):
        assert seen(read(text, cuts, asked)) == expected


@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_tokens_of_the_thinking_are_counted(size):
    ids = BPE.encode("<think>because it is so</think>Yes, it is", False)
    num_inside = len(BPE.encode("<think>because it is so</think>", False))
    message = Message(form(None, THINK), Generation(BPE, SamplingParams()))
    for start in range(0, len(ids), size):
        part = ids[start : start + size]
        message.push(message.generation.push(TokenDelta("r", 0, part)))
        if start + size < num_inside and message.reasoning:
            assert message.num_reasoning_tokens == start + size
    message.push(message.generation.push(TokenDelta("r", 0, [1], FinishReason.STOP, stop_token_id=1)))
    text = BPE.decode(ids[: message.num_reasoning_tokens])
    assert "</think>" in text and "</think>" not in BPE.decode(ids[: message.num_reasoning_tokens - 1])
    assert (message.reasoning, message.content) == ("because it is so", "Yes, it is")


# ---- what a template says, what a request may ask --------------------------------------------------------------------

TEMPLATE = (
    "{% for t in tools or [] %}<tool>{{ t | tojson }}</tool>{% endfor %}{% for m in messages %}[{{ m.role }}]"
    "{{ m.reasoning_content }}{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.name }}"
    "{{ c.function.arguments | items | list | tojson }}</tool_call>{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{{ '<think>\n' if think else '' }}{% endif %}{# </think> #}"
)
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def processor(template: str = TEMPLATE, **options: bool) -> TextProcessor:
    text = ModelText(BPE, ChatTemplate(template, BPE.facts.named_tokens))
    return TextProcessor(text, Limits(max_model_len=2048, vocab_size=BPE.vocab_size), **options)


def chat(template: str = TEMPLATE, **fields: object):
    body = {"messages": [{"role": "user", "content": "hi"}], **fields}
    return processor(template).chat(json.dumps(body).encode())


_WRONG_SCHEMA = {"type": "function", "function": {"name": "a", "parameters": {"type": "no such type"}}}


def test_formats_are_found_from_the_template():
    assert find_tool_format("{{ tools }} <tool_call> </tool_call>") is HERMES
    assert find_tool_format("{{ tools }} [TOOL_CALLS]") is MISTRAL
    assert find_tool_format('{{ tools }} <|start_header_id|> {"name": .., "parameters": ..}') is LLAMA
    assert find_tool_format("{{ tools }} <tool_call><function=f>") is None
    assert find_tool_format("<tool_call>") is find_tool_format("") is None
    assert find_reasoning_format("x </think>") is THINK and find_reasoning_format("[/THINK]") is BRACKETS
    assert find_reasoning_format("{{ messages }}") is None


def test_tools_reach_template_and_parser():
    request = chat(tools=[TOOL], parallel_tool_calls=False)
    shown = {**TOOL, "function": {"name": "weather", "description": "", "parameters": {"type": "object"}}}
    assert request.prompts[0].text == f"<tool>{json.dumps(shown)}</tool>[user]hi[assistant]"
    message = request.form.message
    assert (message.tools, message.tool_names, message.parallel_tool_calls) == (HERMES, {"weather"}, False)
    for fields in ({}, {"tools": [TOOL], "tool_choice": "none"}, {"tool_choice": "none"}):
        request = chat(**fields)
        assert request.prompts[0].text == "[user]hi[assistant]" and request.form.message.tools is None
    assert chat(tools=[TOOL], tool_choice="auto").form.message.tools is HERMES


def test_history_of_calls_reaches_the_template():
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bern"}'}}
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning": "hm", "refusal": None},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "rain"}]},
    ]
    text = chat(messages=messages).prompts[0].text
    assert text == '[user]hi[assistant]hm<tool_call>weather[["city", "Bern"]]</tool_call>[tool]rain[assistant]'


def test_thinking_is_seen_from_the_prompt():
    assert not chat().form.message.inside_reasoning
    assert chat(chat_template_kwargs={"think": True}).form.message.inside_reasoning
    plain = processor(splits_reasoning=False).chat(b'{"messages":[{"role":"user","content":"hi"}]}')
    assert plain.form.message.reasoning is None


def test_marks_that_are_special_tokens_are_seen():
    template = TEMPLATE.replace("<tool_call>", "[TOOL_CALLS]").replace("</think>", "")
    text_processor = processor(template)
    request = text_processor.chat(
        json.dumps({"messages": [{"role": "user", "content": "x"}], "tools": [TOOL]}).encode()
    )
    (generation,) = text_processor.generations(request.prompts[0], request.form)
    assert generation.shown_ids == frozenset()  # this tokenizer has no such token
    shown = Generation(BPE, SamplingParams(), shown_ids=frozenset({0}))
    assert shown.push(TokenDelta("r", 0, [0, 1])).text == "<|start|>"


@pytest.mark.parametrize(
    ("fields", "param", "text"),
    [
        ({"tools": []}, "tools", "at least one tool"),
        ({"tools": [TOOL] * 257}, "tools", "at most 256 tools are allowed, got 257"),
        ({"tools": [5]}, "tools[0]", "must be an object, got int"),
        ({"tools": [{"type": "retrieval"}]}, "tools[0].type", "must be function"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "must be an object"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", "got 'a b'"),
        ({"tools": [{"type": "function", "function": {"name": "a", "x": 1}}]}, "tools[0].function.x", "unknown field"),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "strict": "yes"}}]},
            "tools[0].function.strict",
            "must be a boolean",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "parameters": 5}}]},
            "tools[0].function.parameters",
            "must be a JSON schema object",
        ),
        ({"tool_choice": "auto"}, "tool_choice", "only allowed with tools"),
        ({"tools": [TOOL], "tool_choice": "any"}, "tool_choice", "must be one of none, auto, required"),
        (
            {"tools": [TOOL], "tool_choice": "required", "response_format": {"type": "json_object"}},
            "tool_choice",
            "cannot force a call",
        ),
        (
            {"tools": [TOOL, _WRONG_SCHEMA], "tool_choice": "required"},
            "tools[1].function.parameters",
            "tools[1].function.parameters cannot be used: Invalid type",
        ),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "time"}}},
            "tool_choice",
            "names 'time', which is not among the tools",
        ),
        ({"tools": [TOOL], "tool_choice": {"type": "function"}}, "tool_choice", "must be {"),
    ],
)
def test_wrong_tools_are_named(fields, param, text):
    with pytest.raises(RequestError) as caught:
        chat(**fields)
    assert caught.value.param == param and text in caught.value.message


@pytest.mark.parametrize(
    ("call", "param", "text"),
    [
        (5, "", "must be an object"),
        ({"id": 1, "function": {"name": "a", "arguments": "{}"}}, ".id", "must be a string"),
        ({"id": "1", "function": {"name": "a", "arguments": "{"}}, ".function.arguments", "not valid JSON"),
        ({"id": "1", "function": {"name": "a", "arguments": "[]"}}, ".function.arguments", "must hold a JSON object"),
        ({"id": "1", "function": {"name": "a", "arguments": 5}}, ".function.arguments", "must be a string of JSON"),
        (
            {"id": "1", "function": {"name": "a", "arguments": '{"a":' + "[" * 70 + "]" * 70 + "}"}},
            ".function.arguments",
            "nested deeper than 64",
        ),
        ({"id": "1", "function": {"arguments": "{}"}}, ".function.name", "must be a string"),
        ({"id": "1", "type": "custom", "function": {}}, ".type", "must be function"),
    ],
)
def test_wrong_calls_in_the_history_are_named(call, param, text):
    with pytest.raises(RequestError) as caught:
        chat(messages=[{"role": "assistant", "tool_calls": [call]}])
    assert caught.value.param == "messages[0].tool_calls[0]" + param and text in caught.value.message


def test_a_template_without_tools_refuses_them():
    with pytest.raises(RequestError, match="tools are not supported by this model's chat template"):
        chat("{{ messages[0].content }}", tools=[TOOL])
    assert check_tools(None, None) == check_tools(None, "none") == Offer()


def accepts(grammar: str, text: str) -> bool:
    """Whether the grammar ends with ``text``: the engine's own matcher over a tokenizer of bytes."""
    from llguidance import LLMatcher, LLTokenizer

    tokenizer = LLTokenizer("byte")
    matcher = LLMatcher(tokenizer, grammar)
    ids = tokenizer.tokenize_str(text)
    return matcher.validate_tokens(ids) == len(ids) and matcher.consume_tokens(ids) and matcher.is_accepting()


def test_a_forced_call_is_a_grammar():
    city = {"$ref": "#/$defs/City"}
    parameters = {"type": "object", "properties": {"city": city}, "required": ["city"], "additionalProperties": False}
    parameters["$defs"] = {"City": {"type": "string", "enum": ["Bern"]}}
    weather = {"type": "function", "function": {"name": "weather", "parameters": parameters, "strict": True}}
    clock = {"type": "function", "function": {"name": "time"}}
    bern = '{"name": "weather", "arguments": {"city": "Bern"}}'
    required = chat(tools=[weather, clock], tool_choice="required", parallel_tool_calls=False)
    grammar = required.prompts[0].params.grammar
    assert accepts(grammar, bern) and accepts(grammar, '{"name": "time", "arguments": {}}')
    for wrong in (
        '{"name": "weather", "arguments": {"city": "Rome"}}',
        '{"name": "x", "arguments": {}}',
        '{"name": "time", "arguments": {"invented": 1}}',
        "Hello",
        "{}",
    ):
        assert not accepts(grammar, wrong)
    named = chat(tools=[weather, clock], tool_choice={"type": "function", "function": {"name": "weather"}})
    assert accepts(named.prompts[0].params.grammar, bern)
    assert not accepts(named.prompts[0].params.grammar, '{"name": "time", "arguments": {}}')
    for request, is_named in ((required, False), (named, True)):
        asked = request.form.message
        assert asked.names_tool is is_named and asked.reasoning is None and "<tool>" in request.prompts[0].text
        for size in (1, 5, 100):
            assert seen(read(bern, [size], asked)) == ("", "", [("weather", '{"city": "Bern"}')], "tool_calls")
    numbered = {**parameters, "$defs": {"City": {"const": 1}}}
    other = {"type": "function", "function": {"name": "b", "parameters": numbered}}
    grammar = chat(tools=[weather, other], tool_choice="required", parallel_tool_calls=False).prompts[0].params.grammar
    assert accepts(grammar, bern) and accepts(grammar, '{"name": "b", "arguments": {"city": 1}}')  # each its own City


@pytest.mark.parametrize(
    ("parameters", "taken", "refused"),
    [
        (
            {"properties": {"v": {"type": "integer"}, "next": {"$ref": "#"}}, "additionalProperties": False},
            ['{"v": 1, "next": {"v": 2, "next": {}}}', "{}"],
            ['{"v": 1, "next": {"name": "f", "arguments": {}}}', "5"],
        ),
        (
            {
                "type": ["object", "null"],
                "properties": {"a": {"type": "integer"}, "b": {"items": {"$ref": "#/properties/a"}, "type": "array"}},
            },
            ['{"a": 1, "b": [2, 3]}'],
            ['{"a": 1, "b": ["x"]}', "null"],
        ),
        (
            {"type": "object", "properties": {"$ref": {"const": {"$ref": "#/x"}}}, "additionalProperties": False},
            ['{"$ref": {"$ref": "#/x"}}'],
            ['{"$ref": 1}'],
        ),
    ],
    ids=["to its root", "to a property", "no reference"],
)
def test_references_of_a_tool_lead_into_its_own_schema(parameters, taken, refused):
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    forced = chat(tools=[TOOL, tool], tool_choice={"type": "function", "function": {"name": "f"}})
    several = chat(tools=[TOOL, tool], tool_choice="required", parallel_tool_calls=False)
    for grammar in (forced.prompts[0].params.grammar, several.prompts[0].params.grammar):
        assert all(accepts(grammar, f'{{"name": "f", "arguments": {text}}}') for text in taken)
        assert not any(accepts(grammar, f'{{"name": "f", "arguments": {text}}}') for text in refused)


def test_one_call_or_several_may_be_forced():
    noon, moon = (json.dumps({"name": "time", "arguments": {"at": at}}) for at in ("noon", "moon"))
    clock = {"type": "function", "function": {"name": "time", "parameters": {"type": "object"}}}
    asked = {"tools": [TOOL, clock], "tool_choice": "required"}

    def forced(mark: str = "<tool_call>", **more: object):
        request = chat(TEMPLATE.replace("<tool_call>", mark), **asked | more)
        return request.prompts[0].params.grammar, request.form.message

    hermes, message = forced()
    mistral, list_message = forced("[TOOL_CALLS]")
    block = f"<tool_call>\n{noon}\n</tool_call>"
    several = {
        f"{block}\n<tool_call>{moon}</tool_call>": (hermes, message),
        f"[TOOL_CALLS] [{noon}, {moon}]": (mistral, list_message),
    }
    for text, (grammar, form_) in several.items():
        assert accepts(grammar, text) and form_.reasoning is None
        for size in (1, 4, 100):
            read_calls = [("time", '{"at": "noon"}'), ("time", '{"at": "moon"}')]
            assert seen(read(text, [size], form_)) == ("", "", read_calls, "tool_calls")
    assert accepts(hermes, block) and accepts(mistral, f"[TOOL_CALLS][{noon}]")
    assert accepts(hermes, block * MAX_FORCED_CALLS) and not accepts(hermes, block * (MAX_FORCED_CALLS + 1))
    many = [f"[TOOL_CALLS][{','.join([noon] * count)}]" for count in (MAX_FORCED_CALLS, MAX_FORCED_CALLS + 1)]
    assert [accepts(mistral, text) for text in many] == [True, False]
    for wrong in ("", noon, f"Well, {block}", f"{block} so", f"{block}<tool_call>5</tool_call>"):
        assert not accepts(hermes, wrong)
    for wrong in ("[TOOL_CALLS][]", noon, f"[TOOL_CALLS]{noon}", f"[TOOL_CALLS][{noon},]"):
        assert not accepts(mistral, wrong)
    named = {"type": "function", "function": {"name": "time"}}
    llama = forced("<|start_header_id|> parameters")
    for alone in (forced(parallel_tool_calls=False), forced(tool_choice=named), llama):
        assert accepts(alone[0], noon) and not accepts(alone[0], block) and not accepts(alone[0], noon + noon)
        assert seen(read(noon, [3], alone[1])) == ("", "", [("time", '{"at": "noon"}')], "tool_calls")
