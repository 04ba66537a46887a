"""What is asked for is a grammar that works, or refused soon and with a reason: never an error while it generates."""

from __future__ import annotations

import json
import time
from itertools import pairwise

import numpy as np
import pytest
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from text_helpers import bpe_tokenizer

from pyengine.errors import RequestError
from pyengine.structured.grammar import MAX_CHOICES, compile_grammar
from pyengine.structured.matcher import GrammarFactory
from pyengine.structured.schema_width import TooWide, check_width
from pyengine.text.call_schemas import call_schema

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


def inside(*values: dict) -> dict:
    """An object in which each of ``values`` stands by itself, the last of them in a list."""
    properties = {f"k{i}": value for i, value in enumerate(values[:-1])}
    return {"type": "object", "properties": {**properties, "last": {"type": "array", "items": values[-1]}}}


def product(factors: int, terms: int, size: int = 3) -> dict:
    unions = ([an_object(size, f"q{i}{j}_") for j in range(terms)] for i in range(factors))
    return {"allOf": [{"anyOf": union} for union in unions]}


def kind(name: object, value: dict, **more: object) -> dict:
    properties = {"kind": {"const": name, **more}, "value": value}
    return {"type": "object", "properties": properties, "required": ["kind", "value"], "additionalProperties": False}


def tool(i: int, parameters: dict) -> dict:
    return {"function": {"name": f"tool{i}", "parameters": parameters}}


def linked(schema: dict) -> dict:
    return {"$defs": {"n": schema}, "type": "array", "items": {"$ref": "#/$defs/n"}}


TREE = linked({"type": "object", "properties": {"children": {"type": "array", "items": {"$ref": "#/$defs/n"}}}})


def crosswise(count: int) -> dict:
    """Definitions of which each has any two others behind each of its properties."""

    def union(*targets: int) -> dict:
        return {"anyOf": [{"$ref": f"#/$defs/d{target % count}"} for target in targets]}

    nodes = ({f"c{j}": union(i + 3 * j, i + 5 * j) for j in range(5)} for i in range(count))
    definitions = {f"d{i}": {"type": "object", "properties": node} for i, node in enumerate(nodes)}
    return {"$defs": definitions, "$ref": "#/$defs/d0"}


WIDE = an_object(600)
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
    "large objects apart": {"json": inside(*(an_object(400, f"p{i}_") for i in range(8)))},
    "a tree": {"json": TREE},
    "told apart by the first": {"json": {"anyOf": [kind(i, an_object(100)) for i in range(20)]}},
    "kinds that are open": {"json": {"anyOf": [kind(i, STRING) | {"additionalProperties": True} for i in range(230)]}},
    "references crosswise": {"json": crosswise(40)},
    "many tools": {"json": call_schema([tool(i, an_object(20)) for i in range(150)])},
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
        {"json": product(8, 8, 1)},
        "too large",
    ),
    "itself and nothing else": (
        {"json": {"$defs": {"n": {"$ref": "#/$defs/n"}}, "$ref": "#/$defs/n"}},
        "nothing matches it",
    ),
    "inside of a property": ({"json": inside(WIDE, STRING)}, r"$.k0 needs 2407 items"),
    "in a list": ({"json": inside(STRING, WIDE)}, r"$.last[*] needs 2407 items"),
    "under any name": ({"json": {"type": "object", "additionalProperties": {"anyOf": [STRING, WIDE]}}}, r"$.* needs"),
    "behind a reference": ({"json": linked(inside(WIDE, STRING))}, r"$[*].k0 needs 2407 items"),
    "behind a required one": ({"json": an_object(1100, required=["p0"])}, "$ needs 2210 items"),
    "alternatives together": (
        {"json": {"anyOf": [kind("same", an_object(50)) for _ in range(20)]}},
        "$.value needs 4140 items",
    ),
    "a product inside": (
        {"json": inside(product(4, 4), STRING)},
        "$.k0 needs 14080 items",
    ),
    "a number beyond all": ({"json": {"type": "integer", "minimum": -(10**300)}}, "range"),
}


@pytest.mark.parametrize(("spec", "text"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(spec, text):
    begin = time.monotonic()
    with pytest.raises(RequestError, match=r"^structured_outputs\.json cannot be used: ") as caught:
        compile_grammar(spec)
    assert text in caught.value.message, caught.value.message
    assert time.monotonic() - begin < BUDGET_S


ROWS = {
    "optional": (an_object(30), "{"),
    "one by one": ({"anyOf": [an_object(20, f"q{i}_") for i in range(10)]}, "{"),
    "in a list": ({"type": "array", "items": {"anyOf": [an_object(20, f"q{i}_") for i in range(5)]}}, "[{"),
    "behind a required one": (an_object(101, required=["p0"]), '{"p0":"a",'),
    "before a required one": (an_object(101, required=["p50"]), "{"),
    "a product": (product(3, 3), "{"),
    "with what all have": ({**an_object(10), "anyOf": [an_object(3, f"q{j}_") for j in range(3)]}, "{"),
    "the same twice": ({"$defs": {"m": an_object(40)}, "anyOf": [{"$ref": "#/$defs/m"}] * 3}, "{"),
    "alternatives together": ({"anyOf": [kind("same", an_object(5)) for _ in range(9)]}, '{"kind":"same","value":{'),
    "under any name": (
        {"anyOf": [inside(an_object(9), STRING), {"type": "object", "additionalProperties": an_object(9, "q")}]},
        '{"k0":{',
    ),
    "patterns": ({"type": "object", "patternProperties": {f"^p{i}_": STRING for i in range(50)}}, "{"),
}  # fmt: skip


@pytest.mark.parametrize(("schema", "begin"), ROWS.values(), ids=ROWS)
def test_the_width_is_what_the_parser_needs(schema, begin):
    """Where the parser has room for what was counted it gets through, and little was counted in vain."""
    tokenizer, grammar = LLTokenizer("byte"), LLMatcher.grammar_from_json_schema(json.dumps(schema))

    def works(limit: int) -> bool:
        matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=LLParserLimits(max_items_in_row=limit))
        for byte in begin.encode() if not matcher.get_error() else b"":
            assert matcher.try_consume_tokens([byte]) or matcher.get_error()
            matcher.compute_bitmask()
        return not matcher.get_error()

    counted = next(limit for limit in range(1, 5000) if fits(schema, limit))
    assert works(counted) and not works(counted // 2), counted


def fits(schema: dict, limit: int) -> bool:
    try:
        check_width(schema, limit)
    except TooWide:
        return False
    return True


def test_hostile_schemas_are_counted_soon():
    names = [f"d{i}" for i in range(3000)]
    chain = {name: {"anyOf": [{"$ref": f"#/$defs/{after}"}] * 2} for name, after in pairwise(names)}
    crossed = {name: {"properties": {n: {"$ref": f"#/$defs/{n}"} for n in names[:60]}} for name in names[:60]}
    for definitions in (chain | {names[-1]: STRING}, crossed):
        begin = time.monotonic()
        union = [{"$ref": f"#/$defs/d{i}"} for i in range(60)]
        fits({"$defs": definitions, "$ref": "#/$defs/d0", "anyOf": union}, 2000)
        assert time.monotonic() - begin < BUDGET_S
