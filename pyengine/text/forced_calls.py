"""Calls that must be: the answer is one call, or several, by grammar, and nothing else.

    one call      {"name": ..., "arguments": ...}                     its JSON alone, without the marks of the format
    several       <tool_call> {...} </tool_call> <tool_call> ...      as the model writes them, 1 to MAX_FORCED_CALLS
                  [TOOL_CALLS] [{...}, {...}]

With several the model decides behind each call whether another follows, so it sees the marks that it was taught; the
bound is for a model that never stops.
"""

from __future__ import annotations

import dataclasses
import json

from pyengine.structured.grammar import compile_grammar
from pyengine.structured.whitespace import json_rule
from pyengine.text.call_schemas import compile_calls
from pyengine.text.strict_tools import special_token
from pyengine.text.tokenizer import Tokenizer
from pyengine.text.tool_formats import ToolFormat
from pyengine.text.tools import Offer

MAX_FORCED_CALLS = 16


def forces_several(offer: Offer, tool_format: ToolFormat, parallel: bool) -> bool:
    """Whether more than one call may be made where one must be: not of a tool that the request names."""
    return parallel and not offer.is_named and tool_format.holds_several


def forced_format(offer: Offer, tool_format: ToolFormat, parallel: bool) -> ToolFormat:
    """How the calls of ``forced_grammar`` are to be read."""
    return tool_format if forces_several(offer, tool_format, parallel) else dataclasses.replace(tool_format, bare=True)


def forced_grammar(offer: Offer, tool_format: ToolFormat, parallel: bool, tokenizer: Tokenizer) -> str:
    """The grammar of an answer that calls the offer's forced tools. Raises RequestError for a schema that cannot be."""
    schema, one = compile_calls(offer.forced, offer.tools)
    if not forces_several(offer, tool_format, parallel):
        return one
    return compile_grammar({"grammar": _lark(json_rule(schema), tool_format, tokenizer)}, "tools")


def _lark(call: str, tool_format: ToolFormat, tokenizer: Tokenizer) -> str:
    more = f"{{0,{MAX_FORCED_CALLS - 1}}}"
    rules = [
        f"begin: {_mark(tool_format.begin, tokenizer)}",
        f"one: {call}",
        r"SPACE: /[ \n]{1,2}/",  # what models put between; more would be a place to linger at
    ]
    if tool_format.is_list:
        return "\n".join(['start: begin SPACE? "[" SPACE? one next' + more + ' "]"', 'next: "," SPACE? one', *rules])
    end = f"end: {_mark(tool_format.end, tokenizer)}"
    return "\n".join([f"start: call next{more}", "next: SPACE? call", "call: begin SPACE? one SPACE? end", end, *rules])


def _mark(mark: str, tokenizer: Tokenizer) -> str:
    """A mark in either of its forms: its special token, where it has one, or its text."""
    return " | ".join(filter(None, (special_token(mark, tokenizer), json.dumps(mark))))
