"""The short way of a stream's events says byte for byte what the long way says."""

from __future__ import annotations

import json

import pytest
from text_helpers import bpe_tokenizer

from pyengine.protocol import FinishReason, TokenDelta
from pyengine.text.chat_template import ChatTemplate
from pyengine.text.processor import ModelText, TextProcessor
from pyengine.text.validation import Limits
from server.openai.responses import ChatShapes, CompletionShapes
from server.openai.sse import TextEvents, event

BPE = bpe_tokenizer()
TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"


def processor(template: str) -> TextProcessor:
    text = ModelText(BPE, ChatTemplate(template, BPE.facts.named_tokens))
    return TextProcessor(text, Limits(max_model_len=2048, vocab_size=BPE.vocab_size))


PROCESSOR, TOOLS_PROCESSOR = processor(TEMPLATE), processor("{{ tools }}" + TEMPLATE + "{# <tool_call> #}")
HI = {"messages": [{"role": "user", "content": "hi"}]}
TEXT = 'A "quoted"\nline, \\ a tab\t, ü, 漢, 🎉, <b> and \x00.'


def both_ways(shapes_class: type, parse, fields: dict) -> tuple[list[bytes], list[bytes], int]:
    """Events by chunks alone, events with the short way where it offers itself, and how often it did."""
    prepared = parse(json.dumps(fields).encode())
    long, short = (shapes_class("m", prepared, PROCESSOR) for _ in range(2))
    short.head = long.head
    first, second = (PROCESSOR.generations(prepared.prompts[0], prepared.form)[0] for _ in range(2))
    deltas = [TokenDelta("r", 0, [i]) for i in BPE.encode(TEXT, False)]
    deltas.append(TokenDelta("r", 0, [1], FinishReason.STOP, stop_token_id=1))
    write = TextEvents(lambda text: short.text_chunk(0, text))
    expected, got, num_short = [], [], 0
    for delta in deltas:
        expected += map(event, long.chunks(0, first, first.push(delta)))
        text_delta = second.push(delta)
        text = short.text_alone(0, second, text_delta)
        num_short += text is not None
        got += map(event, short.chunks(0, second, text_delta)) if text is None else [write(text)]
    return expected, got, num_short


@pytest.mark.parametrize("fields", [{}, {"stop": ["line!", "\n\n"]}])
def test_equal_bytes(fields):
    for shapes_class, parse, more in (
        (ChatShapes, PROCESSOR.chat, HI),
        (CompletionShapes, PROCESSOR.completion, {"prompt": "hello"}),
    ):
        expected, got, num_short = both_ways(shapes_class, parse, {**more, **fields})
        assert got == expected
        assert num_short >= len(expected) - 2  # all but the end


def test_answers_that_are_taken_apart_go_the_long_way():
    tools = [{"type": "function", "function": {"name": "weather"}}]
    expected, got, num_short = both_ways(ChatShapes, TOOLS_PROCESSOR.chat, {**HI, "tools": tools})
    assert got == expected
    assert num_short == 0
    _, _, num_short = both_ways(CompletionShapes, PROCESSOR.completion, {"prompt": "hello", "return_token_ids": True})
    assert num_short == 0
