"""Thinking with a budget: what may be drawn, token by token, and which requests have one."""

from __future__ import annotations

import json

import numpy as np
import pytest
from text_helpers import bpe_tokenizer

from pyengine.errors import RequestError
from pyengine.protocol import Request, decode_to_engine, encode
from pyengine.sampling_params import SamplingParams, Thinking
from pyengine.structured.grammar import compile_grammar
from pyengine.structured.matcher import GrammarFactory
from pyengine.structured.thinking_budget import spelling
from pyengine.text.chat_template import ChatTemplate
from pyengine.text.processor import ModelText, TextProcessor
from pyengine.text.reasoning import FORMATS
from pyengine.text.validation import Limits

BPE = bpe_tokenizer()
FACTORY = GrammarFactory(BPE, BPE.vocab_size)
THINK = FORMATS[0]
MARK = BPE.encode("</think>", False)
ANSWER = compile_grammar({"regex": "[a-c]{2}"})


def make(budget: int, inside: bool = True, grammar: str | None = None):
    made = FACTORY.make(grammar, Thinking(THINK.begin, THINK.end, inside, budget))
    made._marks.result()
    while not made.ready:
        pass
    assert not made.error
    return made


def draw(grammar, token_ids: list[int]) -> None:
    for token_id in token_ids:
        assert token_id in grammar.allowed_ids()
        assert grammar.accept(token_id)


@pytest.mark.parametrize("budget", [0, 1, 5])
def test_the_mark_is_forced_as_the_tokenizer_writes_it(budget):
    grammar = make(budget)
    for _ in range(budget):
        assert not grammar.constrains
        draw(grammar, BPE.encode("x", False))
    for token_id in MARK:
        assert grammar.constrains and grammar.allowed_ids() == {token_id}
        assert grammar.accept(token_id)
    assert not grammar.constrains and not grammar.complete
    draw(grammar, BPE.encode("Whatever <think> it says", False))


def test_what_the_model_has_begun_of_the_mark_it_ends():
    letters = [BPE.encode(letter, False)[0] for letter in "</think>"]
    grammar = make(3)
    draw(grammar, letters[:3])  # not as the tokenizer would write it
    while grammar.constrains:
        allowed = grammar.allowed_ids()
        rest = b"</think>"[grammar._num_drawn :]
        assert allowed and all(rest.startswith(BPE.id_to_bytes(token_id)) for token_id in allowed)
        draw(grammar, [min(allowed)])
    assert not grammar._thinks


def test_thinking_that_ends_in_time_and_thinking_that_the_model_opens():
    early, late, silent = make(50), make(2, inside=False), make(0, inside=False)
    draw(early, [*BPE.encode("so", False), *MARK, *BPE.encode("x" * 100, False)])
    draw(late, BPE.encode("<think>", False))
    draw(late, BPE.encode("x", False) * 2)
    assert late.allowed_ids() == {MARK[0]}
    draw(silent, BPE.encode("No thinking here, none at all", False))
    assert not any(each.constrains for each in (early, silent))


def test_the_answer_behind_it_is_bound_by_its_grammar():
    grammar = make(2, grammar=ANSWER)
    draw(grammar, [*BPE.encode("x", False) * 2, *MARK])
    assert BPE.encode("x", False)[0] not in grammar.allowed_ids()
    draw(grammar, BPE.encode("ab", False))
    assert grammar.complete


def test_random_draws_end_the_thinking_in_time():
    rng = np.random.default_rng(0)
    for budget in range(12):
        grammar, drawn = make(budget), 0
        while grammar._thinks:
            assert grammar.accept(int(rng.choice(sorted(grammar.allowed_ids()))))
            drawn += 1
        assert drawn <= budget + len("</think>")


def test_a_mark_that_the_tokenizer_writes_with_something_before_it_has_no_spelling():
    class Prefixing:
        def encode(self, text: str, special: bool) -> list[int]:
            return BPE.encode(f" {text}", special)

        id_to_bytes = BPE.id_to_bytes

    assert spelling(b"</think>", Prefixing(), BPE.vocab_size) == {}
    assert list(spelling(b"</think>", BPE, BPE.vocab_size).values()) == MARK


# ---- requests --------------------------------------------------------------------------------------------------------

BODY = "{{ messages[0].content }}{{ tools }}{# <tool_call> #}{% if think %}<think>\n{% endif %}"
THINKS = BODY + "{# </think> #}"
ALL = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{# </think> #}"
TOOL = {"type": "function", "function": {"name": "weather"}}


def processor(template: str, **options: bool) -> TextProcessor:
    text = ModelText(BPE, ChatTemplate(template, BPE.facts.named_tokens))
    return TextProcessor(text, Limits(max_model_len=512, vocab_size=BPE.vocab_size), **options)


def thinking(template: str = THINKS, endpoint: str = "chat", splits: bool = True, **fields: object) -> Thinking | None:
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, **fields}
    prepared = getattr(processor(template, splits_reasoning=splits), endpoint)(json.dumps(body).encode())
    params = prepared.prompts[0].params
    request = Request("r", [1], params)
    assert decode_to_engine(encode(request)) == request
    assert params.needs_matcher == (params.grammar is not None or params.thinking is not None)
    return params.thinking


def test_requests_with_a_budget():
    expected = Thinking("<think>", "</think>", False, 7)
    opened = {"chat_template_kwargs": {"think": True}}
    assert thinking(thinking_token_budget=7) == thinking(thinking_token_budget=7, splits=False) == expected
    assert thinking(thinking_token_budget=0, **opened) == Thinking("<think>", "</think>", True, 0)
    assert thinking(thinking_token_budget=7, response_format={"type": "json_object"}) == expected
    assert thinking(thinking_token_budget=-1) is thinking() is None
    assert thinking(thinking_token_budget=7, tools=[TOOL], tool_choice="required") is None, "no thinking before a call"
    enabled = {"type": "enabled", "budget_tokens": 7}
    assert thinking(endpoint="anthropic", thinking=enabled) == expected
    assert thinking(BODY, "anthropic", thinking=enabled) is None, "whether a model thinks is up to its template"
    assert thinking(endpoint="anthropic", thinking={"type": "enabled"}) is None


INSIDE = Thinking("<think>", "</think>", True, 7)


@pytest.mark.parametrize(
    ("continued", "expected"),
    [
        ("<think>\nOkay", INSIDE),
        ("<think>\n", INSIDE),
        ("<think>a</think>b<think>c", INSIDE),
        ("<think>a</think>\n\nSo", None),
        ("<think>a</think>", None),
        ("So", None),
        ([{"type": "text", "text": "<think>"}, {"type": "text", "text": "a"}], INSIDE),
    ],
)  # fmt: skip
def test_a_message_that_goes_on(continued, expected):
    """Where its thinking has not ended it goes on; behind it, or without any, there is none to come."""
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": continued}]
    for fields in ({}, {"structured_outputs": {"choice": ["a"]}}):
        wanted = {"messages": messages, "continue_final_message": True, "thinking_token_budget": 7, **fields}
        assert thinking(ALL, **wanted) == expected
    form = processor(ALL).chat(json.dumps(wanted).encode()).form.message
    assert form.inside_reasoning == (expected is not None) and (form.reasoning is None) == (expected is None)


def test_a_budget_offline():
    def prepare(template: str, budget: int | None, **variables: object) -> Thinking | None:
        messages, params = [{"role": "user", "content": "hi"}], SamplingParams(max_tokens=4)
        return processor(template).prepare_messages(messages, params, None, budget, **variables).params.thinking

    assert prepare(THINKS, 7) == Thinking("<think>", "</think>", False, 7)
    assert prepare(THINKS, 7, think=True) == Thinking("<think>", "</think>", True, 7)
    assert prepare(THINKS, None) is prepare(THINKS, -1) is prepare(BODY, None) is None
    with pytest.raises(RequestError, match="marks its thinking"):
        prepare(BODY, 7)


@pytest.mark.parametrize(
    ("template", "endpoint", "fields", "param", "text"),
    [
        (BODY, "chat", {"thinking_token_budget": 7}, "thinking_token_budget", "chat template marks its thinking"),
        (THINKS, "chat", {"thinking_token_budget": -2}, "thinking_token_budget", "must be in [-1, "),
        (THINKS, "anthropic", {"thinking": {"type": "enabled", "budget_tokens": 0}}, "thinking.budget_tokens", "[1, "),
        (
            THINKS,
            "anthropic",
            {"thinking": {"type": "enabled", "budget_tokens": "x"}},
            "thinking.budget_tokens",
            "must be an integer",
        ),
        (
            THINKS,
            "anthropic",
            {"thinking": {"type": "adaptive", "budget_tokens": 9}},
            "thinking.budget_tokens",
            "goes with type enabled",
        ),
    ],
)
def test_refusals(template, endpoint, fields, param, text):
    with pytest.raises(RequestError) as caught:
        thinking(template, endpoint, **fields)
    assert caught.value.param == param and text in caught.value.message


def test_a_budget_out_of_range_cannot_be_built():
    for budget in (-1, 1.5, True):
        with pytest.raises(RequestError, match=r"thinking\.budget must be"):
            SamplingParams(thinking=Thinking("<think>", "</think>", budget=budget))
