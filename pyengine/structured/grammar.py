"""What a client asks for, as one serialised grammar; or a RequestError that says why it cannot be.

Every kind goes through the same budgets: characters of source, nesting, and the limits inside llguidance, which bound
its automata by states and fuel, not by a clock. The result is a string, so it travels to the engine as any parameter
does.
"""

from __future__ import annotations

import json
from functools import cache, lru_cache
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from pyengine.errors import RequestError
from pyengine.structured.depth import TooDeep, check_rules_depth, check_schema_depth
from pyengine.structured.schema_width import TooWide, check_width

MAX_SOURCE_CHARS = 1 << 18
MAX_CHOICES = 4096
MAX_ITEMS_IN_ROW = 2000
KINDS = ("json", "json_object", "regex", "choice", "grammar")


def compile_grammar(spec: dict[str, Any], param: str = "structured_outputs") -> str:
    """The grammar for a specification with exactly one of: json (a schema as object or text), json_object (true),
    regex, choice (a list of strings), grammar (Lark). Raises RequestError naming what is wrong with it.
    """
    given = [kind for kind in KINDS if spec.get(kind) not in (None, False)]
    unknown = next((key for key in spec if key not in KINDS), None)
    if unknown is not None:
        raise RequestError(f"{param} has no field {unknown[:80]!r}; it has {', '.join(KINDS)}", param=param)
    if len(given) != 1:
        raise RequestError(f"{param} needs exactly one of {', '.join(KINDS)}, got {len(given)}", param=param)
    kind = given[0]
    source = _source_text(kind, spec[kind], param)
    if len(source) > MAX_SOURCE_CHARS:
        raise RequestError(f"{param}.{kind} may have {MAX_SOURCE_CHARS} characters, got {len(source)}", param=param)
    grammar, problem = _compile(kind, source)
    if problem:
        raise RequestError(f"{param}.{kind} cannot be used: {' '.join(problem.split())[:500]}", param=param)
    return grammar


def _source_text(kind: str, value: Any, param: str) -> str:
    """Every kind as text, so that equal specifications meet in the cache."""
    if kind == "json":
        return value if isinstance(value, str) else _dump(value, param)
    if kind == "json_object":
        return ""
    if kind == "choice":
        if not isinstance(value, list) or not value or not all(isinstance(item, str) and item for item in value):
            raise RequestError(f"{param}.choice must be a list of non-empty strings", param=param)
        if len(value) > MAX_CHOICES:
            raise RequestError(f"{param}.choice may have {MAX_CHOICES} entries, got {len(value)}", param=param)
        return _dump(value, param)
    if not isinstance(value, str):
        raise RequestError(f"{param}.{kind} must be a string, got {type(value).__name__}", param=param)
    return value


def _dump(value: Any, param: str) -> str:
    try:
        return json.dumps(value, sort_keys=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise RequestError(f"{param} holds something that is not JSON", param=param) from None


@lru_cache(maxsize=256)
def _compile(kind: str, source: str) -> tuple[str, str]:
    """(grammar, "") or ("", what is wrong). Cached by content: agents send the same schema with every request."""
    problem = _depth_problem(kind, source)
    if problem:
        return "", problem
    try:
        if kind in ("json", "json_object"):
            schema = source or '{"type": "object"}'
            grammar = LLMatcher.grammar_from_json_schema(schema)
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
