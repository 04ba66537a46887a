"""Sources of grammars to llguidance's serialised form, each checked as far as it can be without a model.

Every kind goes through the same budgets: nesting, items at a place, and the limits inside llguidance, which bound its
automata by states and fuel, not by a clock.
"""

from __future__ import annotations

import json
from functools import cache

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from pyengine.structured.depth import TooDeep, check_rules_depth, check_schema_depth
from pyengine.structured.schema_width import TooWide, check_width
from pyengine.structured.whitespace import BOUNDED

MAX_ITEMS_IN_ROW = 2000


def compile_source(kind: str, source: str, whitespace: str | None = None) -> tuple[str, str]:
    """(grammar, "") or ("", what is wrong).

    Args:
        kind: json (``source``: a schema), json_object (any; ``source`` is empty), regex, choice (a list of strings in
            JSON) or grammar (Lark).
        whitespace: a pattern of what may stand between the tokens of JSON; "": nothing; None: what the schema's own
            ``x-guidance`` says, else BOUNDED.
    """
    problem = _depth_problem(kind, source)
    if problem:
        return "", problem
    asked = {} if whitespace is None else {"whitespace_pattern": whitespace, "whitespace_flexible": bool(whitespace)}
    try:
        if kind in ("json", "json_object"):
            schema = source or '{"type": "object"}'
            grammar = LLMatcher.grammar_from_json_schema(schema, {"whitespace_pattern": BOUNDED}, asked)
        elif kind == "regex":
            grammar = LLMatcher.grammar_from_regex(source)
        elif kind == "choice":
            # One terminal: an automaton. As rules, more than a few hundred choices are too many for the parser.
            choices = " | ".join(json.dumps(item) for item in json.loads(source))
            grammar = LLMatcher.grammar_from_lark(f"start: CHOICE\nCHOICE: {choices}")
        else:
            grammar = LLMatcher.grammar_from_lark(source)
    except (ValueError, RecursionError) as error:
        return "", str(error)
    problem = _problem(kind, grammar)
    if kind == "json" and not problem:
        problem = _width_problem(source)
    return ("", problem) if problem else (grammar, "")


def _depth_problem(kind: str, source: str) -> str:
    """Why llguidance must not even look at it; "" where it may."""
    try:
        if kind == "json":
            check_schema_depth(json.loads(source))
        elif kind == "grammar":
            check_rules_depth(source)
    except TooDeep as error:
        return str(error)
    except RecursionError:
        return "it is nested too deeply"
    except ValueError as error:
        return f"it is not JSON: {error}"
    return ""


def _problem(kind: str, grammar: str) -> str:
    """Why the grammar cannot be used, "" where it can. It is made, and asked over bytes what may come first and behind
    an opened object or list: a schema may be well formed and yet need more than the limits there, or match nothing.
    """
    if kind == "grammar":  # may name token ids, which only the model's vocabulary has
        problem = LLMatcher.validate_grammar(grammar, limits=parser_limits())
        return "" if problem.startswith("WARNING") else problem
    matcher = LLMatcher(_bytes_as_tokens(), grammar, log_level=0, limits=parser_limits())
    for opening in ("", "{", "["):
        if matcher.get_error():
            break
        if not opening or matcher.try_consume_tokens([ord(opening)]):
            matcher.compute_bitmask()
    problem = matcher.get_error().partition("<state>")[0].strip()
    return "nothing matches it" if problem.startswith("NoExtension") else problem


def _width_problem(schema: str) -> str:
    """Why a well-formed schema could fail further on, where ``_problem`` does not look; "" where it could not."""
    try:
        check_width(json.loads(schema), MAX_ITEMS_IN_ROW)
    except TooWide as error:
        return str(error)
    return ""


@cache
def _bytes_as_tokens() -> LLTokenizer:
    return LLTokenizer("byte")


def parser_limits() -> LLParserLimits:
    """Bounds of the automata, for checking here and for matching in the engine alike."""
    return LLParserLimits(initial_lexer_fuel=1_000_000, step_lexer_fuel=200_000, max_items_in_row=MAX_ITEMS_IN_ROW)
