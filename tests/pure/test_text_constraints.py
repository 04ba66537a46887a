"""response_format and structured_outputs become grammars, or a 400 that names the field."""

from __future__ import annotations

import pytest
from llguidance import LLMatcher, LLTokenizer

from pyengine.errors import RequestError
from pyengine.text.constraints import grammar_of

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


def test_nothing_asked_for_is_no_grammar():
    assert grammar_of(None, None) is None and grammar_of({"type": "text"}, None) is None


def test_both_spellings_of_a_schema_are_one_grammar():
    openai = grammar_of({"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}, None)
    assert openai == grammar_of(None, {"json": SCHEMA}) and "integer" in openai


@pytest.mark.parametrize(
    "spec", [{"regex": "a+"}, {"choice": ["a", "b"]}, {"grammar": 'start: "a"'}, {"json_object": True}]
)
def test_other_kinds(spec):
    assert grammar_of(None, spec)


@pytest.mark.parametrize(
    "response_format, structured, param",
    [
        ({"type": "xml"}, None, "response_format"),
        ({}, None, "response_format"),
        ({"type": "json_schema"}, None, "response_format"),
        ({"type": "json_schema", "json_schema": {"schema": 5}}, None, "response_format"),
        (
            {"type": "json_schema", "json_schema": {"schema": {"type": "nope"}}},
            None,
            "response_format.json_schema.schema",
        ),
        ({"type": "json_object", "extra": 1}, None, "response_format"),
        ({"type": "json_object"}, {"regex": "a"}, "structured_outputs"),
        (None, {}, "structured_outputs"),
        (None, {"json_object": "yes"}, "structured_outputs"),
        (None, {"json_object": 0}, "structured_outputs"),
        (None, {"regex": "(", "choice": ["a"]}, "structured_outputs"),
    ],
)
def test_what_cannot_be_is_named(response_format, structured, param):
    with pytest.raises(RequestError) as caught:
        grammar_of(response_format, structured)
    assert caught.value.param == param


def takes(grammar: str, text: str) -> bool:
    matcher = LLMatcher(LLTokenizer("byte"), grammar, log_level=0)
    assert not matcher.get_error()
    return matcher.try_consume_tokens(list(text.encode())) == len(text) and matcher.is_accepting()


@pytest.mark.parametrize(
    ("asked", "taken", "refused"),
    [
        ({}, ['{"a":1}', '{\n\t"a" : 1 }', "{" + " " * 100 + '"a":1}'], ["{" + " " * 101 + '"a":1}', ' {"a":1}']),
        ({"whitespace_pattern": " ?"}, ['{"a":1}', '{ "a": 1 }'], ['{  "a":1}', '{\n"a":1}']),
        ({"disable_any_whitespace": True}, ['{"a":1}'], ['{"a": 1}']),
        ({"disable_any_whitespace": False}, ['{ "a":1}'], []),
    ],
    ids=str,
)
def test_white_space_between_the_tokens_of_json_has_a_bound(asked, taken, refused):
    grammar = grammar_of(None, {"json": SCHEMA, **asked})
    assert all(takes(grammar, text) for text in taken) and not any(takes(grammar, text) for text in refused)
    grammar = grammar_of(None, {"json_object": True, **asked})
    assert all(takes(grammar, text) for text in taken)


@pytest.mark.parametrize(
    "asked",
    [
        {"json": SCHEMA, "whitespace_pattern": "("},
        {"json": SCHEMA, "whitespace_pattern": ""},
        {"json": SCHEMA, "whitespace_pattern": " " * 257},
        {"json": SCHEMA, "disable_any_whitespace": "yes"},
        {"json": SCHEMA, "disable_any_whitespace": True, "whitespace_pattern": " "},
        {"regex": "a", "disable_any_whitespace": True},
        {"disable_any_whitespace": True},
    ],
    ids=str,
)
def test_white_space_that_cannot_be(asked):
    with pytest.raises(RequestError) as caught:
        grammar_of(None, asked)
    assert caught.value.param == "structured_outputs" and caught.value.status == 400
