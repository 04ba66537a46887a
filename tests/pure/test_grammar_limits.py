"""What is asked for is a grammar that works, or refused soon and with a reason: never an error while it generates."""

from __future__ import annotations

import time

import numpy as np
import pytest
from text_helpers import bpe_tokenizer

from pyengine.errors import RequestError
from pyengine.structured.grammar import MAX_CHOICES, compile_grammar
from pyengine.structured.matcher import GrammarFactory

FACTORY = GrammarFactory(bpe_tokenizer(), bpe_tokenizer().vocab_size)
STRING = {"type": "string"}
BUDGET_S = 2.0


def an_object(count: int, name: str = "p", **more: object) -> dict:
    return {"type": "object", "properties": {f"{name}{i}": STRING for i in range(count)}, **more}


def a_list(items: dict) -> dict:
    return {"type": "array", "items": items, "minItems": 1000}


def deep(levels: int) -> dict:
    schema = STRING
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


LARGE = {
    "nested repetitions": {"regex": "((a{1,1000}){1,1000}){1,1000}b"},
    "a long repetition": {"regex": "(a|b|c){1,100000}d"},
    "many alternatives": {"regex": "(" + "|".join(f"x{i}[a-z]{{0,50}}" for i in range(3000)) + ")"},
    "much to remember": {"regex": ".*a.{18}"},
    "all choices": {"choice": [f"{'x' * 40}{i}" for i in range(MAX_CHOICES)]},
    "choices with signs": {"choice": ['a "quoted" one', "back\\slash", "line\nbreak", "ü / ✓"]},
    "a large enum": {"json": {"enum": [f"value {i} {'x' * 30}" for i in range(3000)]}},
    "deep": {"json": deep(60)},
    "long lists": {"json": a_list(a_list(STRING))},
    "a long text": {"json": {"type": "string", "minLength": 10**6}},
    "required fields": {"json": an_object(300, required=[f"p{i}" for i in range(300)])},
    "optional fields": {"json": an_object(200)},
}  # fmt: skip


@pytest.mark.parametrize("spec", LARGE.values(), ids=LARGE)
def test_what_works(spec):
    begin = time.monotonic()
    source = compile_grammar(spec)
    assert time.monotonic() - begin < BUDGET_S
    matcher, masks, rng = FACTORY.make(source), FACTORY.masks(1), np.random.default_rng(0)
    for _ in range(30):
        matcher.fill_mask(masks, 0)
        allowed = np.flatnonzero(np.unpackbits(masks.view(np.uint8), bitorder="little"))
        assert len(allowed) and matcher.accept(int(rng.choice(allowed))) and not matcher.error
        if matcher.complete:
            break


REFUSED = {
    "too many optional fields": ({"json": an_object(1500)}, "items"),
    "too many objects": ({"json": {"anyOf": [an_object(20, f"p{i}_") for i in range(150)]}}, "items"),
    "a product of unions": (
        {"json": {"allOf": [{"anyOf": [an_object(1, f"a{i}{j}") for j in range(8)]} for i in range(8)]}},
        "too large",
    ),
    "itself and nothing else": (
        {"json": {"$defs": {"n": {"$ref": "#/$defs/n"}}, "$ref": "#/$defs/n"}},
        "nothing matches it",
    ),
    "a number beyond all": ({"json": {"type": "integer", "minimum": -(10**300)}}, "range"),
}


@pytest.mark.parametrize(("spec", "text"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(spec, text):
    begin = time.monotonic()
    with pytest.raises(RequestError, match=r"^structured_outputs\.json cannot be used: ") as caught:
        compile_grammar(spec)
    assert text in caught.value.message and time.monotonic() - begin < BUDGET_S
