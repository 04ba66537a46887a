"""Grammars that lead so deep that llguidance would overflow its stack are refused, by name, before it sees them. Each
runs in a process of its own: it would take this one along.
"""

from __future__ import annotations

import json
import time

import pytest

from pyengine.errors import RequestError
from pyengine.structured.depth import MAX_CONTAINERS, MAX_RULES, TooDeep, check_rules_depth, check_schema_depth
from pyengine.structured.grammar import compile_grammar

STRING = {"type": "string"}


def chain(count: int, link) -> dict:
    """Definitions of which each leads to the next."""
    definitions = {f"d{i}": link({"$ref": f"#/$defs/d{i + 1}"}) for i in range(count)}
    return {"$defs": {**definitions, f"d{count}": STRING}, "$ref": "#/$defs/d0"}


def rules(count: int, body: str, last: str, name: str = "r") -> str:
    lines = [body.format(this=f"{name}{i}", next=f"{name}{i + 1}") for i in range(count)]
    return "\n".join([f"start: {name}0", *lines, f"{name}{count}: {last}"])


def in_an_object(ref: dict) -> dict:
    return {"type": "object", "properties": {"a": ref}, "required": ["a"]}


DEEP = {
    "objects": {"json": chain(1100, in_an_object)},
    "aliases": {"json": chain(5000, lambda ref: ref)},
    "unions": {"json": chain(3500, lambda ref: {"anyOf": [ref, {"type": "null"}]})},
    "a schema as text": {"json": json.dumps(chain(5000, lambda ref: ref))},
    "rules": {"grammar": rules(3000, '{this}: "y" {next}', '"x"')},
    "a ring of rules": {"grammar": rules(3000, '{this}: "x" | "y" {next}', '"x" | r0')},
    "a schema in a grammar": {"grammar": f"start: a\na: %json {json.dumps(chain(1500, in_an_object))}"},
    "behind a comment": {"grammar": f"start: a\na: %json // {{}}\n {json.dumps(chain(1500, in_an_object))}"},
    "terminals": {"grammar": rules(9000, '{this}: "y" {next}', '"x"', name="T")},
}  # fmt: skip


@pytest.mark.parametrize("spec", DEEP.values(), ids=DEEP)
def test_what_leads_too_deep_is_refused(spec):
    with pytest.raises(RequestError, match=r"in a row|right behind %json"):  # not: ends the process that checks it
        compile_grammar(spec)


def test_what_is_deep_and_works():
    nested = chain(300, in_an_object)
    for spec in (
        {"json": nested},
        {"grammar": rules(900, '{this}: "y" {next}', '"x"')},
        {"grammar": rules(900, '{this}: "y" {next}', f"%json {json.dumps(nested)}")},
        {"grammar": 'start: "%json" a\na: %json {"type": "integer"}'},
    ):
        assert compile_grammar(spec)


def test_rings_on_a_long_way_are_found_in_no_time():
    pairs = "\n".join(f"a{i}: b{i}\nb{i}: a{i} | a{i + 1}" for i in range(8000))
    begin = time.monotonic()
    with pytest.raises(TooDeep):
        check_rules_depth(f'start: a0\n{pairs}\na8000: "x"')
    assert time.monotonic() - begin < 1.0


@pytest.mark.parametrize("schema", [True, [], {}, {"$ref": 5}, {"$ref": "#"}, {"$ref": "#/a/b"}, {"items": [{}, 3]}])
def test_odd_schemas_are_left_to_others(schema):
    check_schema_depth(schema)


def test_a_way_counts_once_however_often_it_is_met():
    wide = {"$defs": {"leaf": {"type": "object"}}, "anyOf": [{"$ref": "#/$defs/leaf"}] * 5000}
    check_schema_depth(wide)
    check_rules_depth("\n".join(f"r{i}: leaf" for i in range(5000)) + '\nleaf: "x"')
    ladder = {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(200)}  # 2^200 ways
    check_schema_depth({"$defs": {**ladder, "d200": STRING}, "$ref": "#/$defs/d0"})


def test_rings_count_with_all_they_hold():
    ring = {f"d{i}": {"items": {"$ref": f"#/$defs/d{(i + 1) % MAX_CONTAINERS}"}} for i in range(MAX_CONTAINERS)}
    with pytest.raises(TooDeep, match="objects and lists"):
        check_schema_depth({"$defs": ring, "$ref": "#/$defs/d7"})


def test_names_in_texts_and_comments_lead_nowhere():
    lines = [f'r{i}: "r{i + 1}" /r{i + 1}/ // r{i + 1}' for i in range(2 * MAX_RULES)]
    check_rules_depth("start: r0\n" + "\n".join(lines))
    with pytest.raises(TooDeep):
        check_rules_depth("start: r0\n" + "\n".join(f"?r{i}.2: r{i + 1}" for i in range(2 * MAX_RULES)))
