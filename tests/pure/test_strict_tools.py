"""Strict tools that the model may call: text is free, calls keep to the schema, and what the parser takes for a call
has gone through the grammar.
"""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from text_helpers import bpe_tokenizer

from pyengine.errors import RequestError
from pyengine.structured.matcher import GrammarFactory
from pyengine.text.chat_template import ChatTemplate
from pyengine.text.processor import ModelText, TextProcessor
from pyengine.text.strict_tools import strict_grammar
from pyengine.text.tool_formats import FORMATS
from pyengine.text.tool_parser import ToolCallParser
from pyengine.text.tools import check_tools
from pyengine.text.validation import Limits

BPE = bpe_tokenizer()
START, END = 0, 1  # special tokens; END ends a sequence
HERMES, MISTRAL, LLAMA = FORMATS
SPECIAL = dataclasses.replace(HERMES, begin="<|start|>", end="")  # a mark that is a special token
FACTORY = GrammarFactory(BPE, BPE.vocab_size)

CITY = {"type": "string", "enum": ["Bern", "Rome"]}
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/City"}},
    "required": ["city"],
    "additionalProperties": False,
    "$defs": {"City": CITY},
}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS, "strict": True}}
CLOCK = {"type": "function", "function": {"name": "time", "parameters": {"type": "object"}}}
BERN = '{"name": "weather", "arguments": {"city": "Bern"}}'
NOON = '{"name": "time", "arguments": {"zone": [1, "x"]}}'


def grammar(tool_format=HERMES, tools=(WEATHER, CLOCK)) -> str:
    return strict_grammar(check_tools(list(tools), "auto"), tool_format, BPE)


def drawn(source: str, token_ids: list[int]) -> tuple[int, bool]:
    """How many of the tokens the masks let through, and whether the answer may end there."""
    matcher, masks = FACTORY.make(source), FACTORY.masks(1)
    for place, token_id in enumerate(token_ids):
        matcher.fill_mask(masks, 0)
        allowed = masks[0, token_id // 32] >> (token_id % 32) & 1
        if not allowed:
            return place, False
        assert matcher.accept(token_id)
    matcher.fill_mask(masks, 0)
    return len(token_ids), bool(masks[0, END // 32] >> END & 1)


def accepts(source: str, text: str | list[int]) -> bool:
    ids = BPE.encode(text, add_special_tokens=False) if isinstance(text, str) else text
    return drawn(source, ids) == (len(ids), True)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "There is no call in this, though < and <tool and </tool_call> are.",
        f"<tool_call>{BERN}</tool_call>",
        f"Let me see.\n<tool_call>\n{BERN}\n</tool_call>\n<tool_call>{NOON}</tool_call> That is all.",
        '<tool_call>{"name":"time","arguments":{}}</tool_call>',
    ],
)
def test_what_may_be_said(text):
    assert accepts(grammar(), text)


@pytest.mark.parametrize(
    ("begin", "rest"),
    [
        ("Well <tool_call>", "Hello"),
        ('<tool_call>{"name": "', "other"),
        ('<tool_call>{"name": "weather", "arguments": {"', "town"),
        ('<tool_call>{"name": "weather", "arguments": {"city": "', "Oslo"),
        ('<tool_call>{"name": "weather", "arguments": {', "}"),
        (f"<tool_call>{BERN}", " and more"),
        (f"<tool_call>{BERN}</tool_call> now <tool_call>", "5"),
    ],
)
def test_what_may_not(begin, rest):
    source, ids = grammar(), BPE.encode(begin, add_special_tokens=False)
    assert drawn(source, ids) == (len(ids), False), "an answer must not end within a call"
    more = BPE.encode(begin + rest, add_special_tokens=False)
    assert drawn(source, more)[0] < len(more)


def test_lists_of_calls():
    source = grammar(MISTRAL)
    assert accepts(source, f"I call [TOOL_CALLS][{BERN}, {NOON}]") and accepts(source, f"[TOOL_CALLS]{BERN}")
    for wrong in (f"[TOOL_CALLS][{BERN}", "[TOOL_CALLS][]", f"[TOOL_CALLS][{BERN}, 5]"):
        assert not accepts(source, wrong)


def test_a_mark_that_is_a_special_token():
    source = grammar(SPECIAL)
    call, text = (BPE.encode(each, add_special_tokens=False) for each in (BERN, "I call "))
    assert accepts(source, [*text, START, *call]) and accepts(source, text)
    assert not accepts(source, [*text, START, *text])
    spelled = [BPE.token_to_id(char) for char in "<|start|>"]  # the parser would take it for the mark
    assert accepts(source, [*text, *spelled, *call]) and not accepts(source, [*text, *spelled, *text])


@pytest.mark.parametrize("tool_format", [HERMES, MISTRAL], ids=lambda each: each.name)
def test_random_answers_hold_no_wrong_call(tool_format):
    """Drawn at random from the masks, with the mark put in front, until calls have been made."""
    source, rng, calls = grammar(tool_format), np.random.default_rng(0), 0
    for _ in range(40):
        matcher, masks = FACTORY.make(source), FACTORY.masks(1)
        ids = BPE.encode(f"x {tool_format.begin}", add_special_tokens=False)
        for token_id in ids:
            assert matcher.accept(token_id)
        while len(ids) < 400:
            matcher.fill_mask(masks, 0)
            allowed = np.flatnonzero(np.unpackbits(masks.view(np.uint8), bitorder="little"))
            ids.append(int(rng.choice(allowed)))
            assert matcher.accept(ids[-1])
            if ids[-1] == END:
                break
        if ids[-1] != END:
            continue
        parser = ToolCallParser(tool_format, {"weather", "time"})
        parts = parser.push(BPE.decode(ids, skip_special_tokens=True)) + parser.finish()
        assert parser.num_calls and parser.is_whole
        calls += parser.num_calls
        names = [part.name for part in parts if hasattr(part, "name")]
        arguments: dict[int, str] = {}
        for part in parts:
            if hasattr(part, "index") and hasattr(part, "text"):
                arguments[part.index] = arguments.get(part.index, "") + part.text
        for index, name in enumerate(names):
            value = json.loads(arguments[index])
            assert isinstance(value, dict) and (name == "time" or value in ({"city": "Bern"}, {"city": "Rome"}))
    assert calls >= 10


def test_a_model_with_several_ends_may_use_each():
    tokenizer = dataclasses.replace(BPE.facts, eos_token_ids=(END, START))
    factory = GrammarFactory(type(BPE)(BPE._backend, tokenizer), BPE.vocab_size)
    for end in (END, START):
        matcher, masks = factory.make(grammar()), factory.masks(1)
        matcher.fill_mask(masks, 0)
        assert masks[0, 0] >> end & 1 and matcher.accept(end) and matcher.complete


# ---- requests --------------------------------------------------------------------------------------------------------


def chat(template_mark: str = "<tool_call>", **fields: object):
    source = (
        f"{{{{ messages[0].content }}}}{{% for t in tools or [] %}}{{{{ t }}}}{{% endfor %}}{{# {template_mark} #}}"
    )
    text = ModelText(BPE, ChatTemplate(source, BPE.facts.named_tokens))
    body = {"messages": [{"role": "user", "content": "hi"}], **fields}
    return TextProcessor(text, Limits(max_model_len=512, vocab_size=BPE.vocab_size)).chat(json.dumps(body).encode())


def test_requests():
    assert chat(tools=[CLOCK]).prompts[0].params.grammar is None, "nothing is strict, nothing is bound"
    assert chat(tools=[WEATHER], tool_choice="none").prompts[0].params.grammar is None
    for choice in ({}, {"tool_choice": "auto"}):
        request = chat(tools=[WEATHER, CLOCK], **choice)
        assert request.prompts[0].params.grammar == grammar() and request.form.message.tools == HERMES


def test_refusals():
    llama = "<|start_header_id|> parameters"
    with pytest.raises(RequestError, match=r"llama3_json.* may begin without a mark") as caught:
        chat(llama, tools=[CLOCK, WEATHER])
    assert caught.value.param == "tools[1].function.strict"
    assert chat(llama, tools=[WEATHER], tool_choice="required").prompts[0].params.grammar
    with pytest.raises(RequestError, match="beside an answer of another format"):
        chat(tools=[WEATHER], response_format={"type": "json_object"})
    wrong = {"type": "function", "function": {"name": "a", "parameters": {"type": "no such type"}, "strict": True}}
    with pytest.raises(RequestError, match=r"tools\[0\]\.function\.parameters cannot be used"):
        chat(tools=[wrong])
