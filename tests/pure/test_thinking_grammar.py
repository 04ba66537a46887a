"""A grammar behind thinking: what may be drawn, token by token, and what the text side then makes of it."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_helpers import bpe_tokenizer

from pyengine.protocol import Request, decode_to_engine, encode
from pyengine.sampling_params import SamplingParams, Thinking
from pyengine.structured.grammar import compile_grammar
from pyengine.structured.matcher import GrammarFactory
from pyengine.structured.thinking import MarkTokens
from pyengine.text.answer_parts import Content, Reasoning
from pyengine.text.chat_template import ChatTemplate
from pyengine.text.processor import ModelText, TextProcessor
from pyengine.text.reasoning import FORMATS, ReasoningSplitter, thinking_before
from pyengine.text.validation import Limits

BPE = bpe_tokenizer()
FACTORY = GrammarFactory(BPE, BPE.vocab_size)
PATTERN = r"[a-c]{2}(<d|e)?"
GRAMMAR = compile_grammar({"regex": PATTERN})
THINK = FORMATS[0]


def make(inside: bool, grammar: str = GRAMMAR):
    made = FACTORY.make(grammar, Thinking(THINK.begin, THINK.end, inside))
    made._grammar._matcher.result(), made._marks.result()
    assert made.ready and not made.error
    return made


def allowed(grammar) -> set[int]:
    told = grammar.allowed_ids() & set(range(BPE.vocab_size))
    if not grammar.constrains:
        assert told == set(range(BPE.vocab_size))
        return told
    masks = FACTORY.masks(2)
    masks[:] = 0
    grammar.fill_mask(masks, 1)
    bits = np.unpackbits(masks[1].view(np.uint8), bitorder="little")
    ids = set(np.flatnonzero(bits[: BPE.vocab_size]).tolist())
    assert ids == told
    return ids


def say(grammar, text: str) -> None:
    for token_id in BPE.encode(text, False):
        assert token_id in allowed(grammar), (text, BPE.id_to_bytes(token_id))
        assert grammar.accept(token_id)


def cannot_say(grammar, text: str) -> bool:
    return BPE.encode(text, False)[0] not in allowed(grammar)


def test_thinking_is_free_and_the_answer_is_bound():
    grammar = make(inside=True)
    assert not grammar.constrains
    say(grammar, "I will say xyz or <abc>, 日本 </thin")
    say(grammar, " </think>\n")
    assert grammar.constrains and cannot_say(grammar, "x") and cannot_say(grammar, "\n") and not grammar.complete
    say(grammar, "abe")
    assert grammar.complete


def test_the_model_may_open_its_thinking_or_answer_at_once():
    silent, loud = make(inside=False), make(inside=False)
    assert cannot_say(silent, "x")
    say(silent, "ab")
    assert not silent._may_open
    say(silent, "e")
    assert silent.complete
    say(loud, "<think>")
    assert not loud.constrains
    say(loud, "xyz</think>")
    assert cannot_say(loud, "<think") and cannot_say(loud, "x")
    say(loud, "ba<d")
    assert loud.complete


def test_what_begins_like_a_mark_may_still_be_an_answer():
    grammar = make(inside=False, grammar=compile_grammar({"regex": "<t[a-c]x"}))
    say(grammar, "<t")
    say(grammar, "ax")
    assert grammar.complete
    other = make(inside=False, grammar=compile_grammar({"regex": "<t[a-c]x"}))
    say(other, "<th")
    assert cannot_say(other, "a")
    say(other, "ink>")
    say(other, "</think>")
    say(other, "<tbx")
    assert other.complete


def test_a_token_that_ends_the_thinking_does_not_begin_the_answer():
    class Tokenizer:
        pieces = tuple(b"</|think|>|>\n|>{|</think>|</think>x|a| ||<|a</think> b".split(b"|"))

        def id_to_bytes(self, token_id: int) -> bytes:
            return self.pieces[token_id]

        def encode(self, text: str, add_special_tokens: bool) -> list[int]:
            return [self.pieces.index(text.encode())]

    marks = MarkTokens.find(b"<think>", b"</think>", Tokenizer(), len(Tokenizer.pieces))

    def bits(mask: np.ndarray) -> set[int]:
        return set(np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist())

    everything = set(range(len(Tokenizer.pieces)))
    assert bits(marks.thinkers[0]) & everything == everything - {6, 11}
    assert bits(marks.thinkers[7]) & everything == everything - {4, 11}
    assert bits(marks.blanks) == {8}
    assert {drawn: bits(mask) for drawn, mask in marks.closers.items()} == {0: {5}, 2: {1}, 7: {2, 3}}
    assert {drawn: bits(mask) for drawn, mask in marks.openers.items()} == {0: {10}, 1: {1}, 6: {2, 3, 4}}


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    inside=st.booleans(),
    choices=st.lists(st.integers(0, 1 << 30), max_size=60),
    script=st.lists(
        st.sampled_from(["<think>", "</think>", "\n", "</", "think", ">", "ab", "e", "<d", "c", " xyz ", "<"]),
        max_size=25,
    ),
)
def test_whatever_is_drawn_the_answer_matches(inside, choices, script):
    """Tokens of the script where they are allowed, others at random; the text side finds an answer that matches."""
    grammar = make(inside)
    wanted = [token_id for text in script for token_id in BPE.encode(text, False)]
    splitter, parts = ReasoningSplitter(THINK, inside), []
    for turn, choice in enumerate([*choices, *range(60)]):
        if grammar.complete:
            break
        tokens = sorted(allowed(grammar) - {1})
        if not tokens:
            break
        draw = wanted[turn] if turn < len(wanted) and wanted[turn] in tokens else tokens[choice % len(tokens)]
        assert grammar.accept(draw), grammar.error
        parts += splitter.push(BPE.id_to_bytes(draw).decode("utf-8", "replace"))
    parts += splitter.finish()
    answer = "".join(part.text for part in parts if isinstance(part, Content))
    if grammar.complete:
        assert re.fullmatch(PATTERN, answer), parts
    elif grammar._thinks:
        assert not answer and all(isinstance(part, Reasoning) for part in parts)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("...assistant\n", Thinking("<think>", "</think>", False)),
        ("...assistant\n<think>\n", Thinking("<think>", "</think>", True)),
        ("...assistant\n<think>\n\n</think>\n\n", None),
    ],
)
def test_what_the_prompt_says_about_thinking(prompt, expected):
    assert thinking_before(THINK, prompt) == expected and thinking_before(None, prompt) is None
    request = Request("r", [1], SamplingParams(grammar=GRAMMAR, thinking=expected))
    assert decode_to_engine(encode(request)) == request


def test_only_a_chat_of_a_model_that_thinks_has_thinking_before_its_form():
    template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{{ tools }}{# <tool_call> </think> #}"
    limits = Limits(max_model_len=256, vocab_size=BPE.vocab_size)

    def params(source: str = template, splits: bool = True, **fields: object) -> SamplingParams:
        text = ModelText(BPE, ChatTemplate(source, BPE.facts.named_tokens))
        body = {"messages": [{"role": "user", "content": "hi"}], **fields}
        return TextProcessor(text, limits, splits_reasoning=splits).chat(json.dumps(body).encode()).prompts[0].params

    form = {"response_format": {"type": "json_object"}}
    assert params(**form).thinking == Thinking("<think>", "</think>", False)
    assert params(template + "<think>\n", **form).thinking.inside
    assert params(template + "<think></think>\n", **form).thinking is None
    assert params(splits=False, **form).thinking is None
    assert params("{{ messages[0].content }}", **form).thinking is None
    assert params().thinking is None
    tool = {"type": "function", "function": {"name": "weather"}}
    forced = params(tools=[tool], tool_choice="required")
    assert forced.grammar is not None and forced.thinking is None
