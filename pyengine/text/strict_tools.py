"""Strict tools when the model may choose: text is free until a call begins, and a call then keeps to its tool's schema.

    text  ... <tool_call>  {"name": ..., "arguments": ...}  </tool_call>  ... text
    free      begin mark   one of the tools, by grammar     end mark        free

The begin mark is looked for in the text as well as among the special tokens, as the parser of calls does, so whatever
that takes for a call has gone through the grammar. Tools that are not strict may have any object for arguments.
"""

from __future__ import annotations

import json
from typing import Any

from pyengine.errors import RequestError
from pyengine.structured.grammar import compile_grammar
from pyengine.structured.whitespace import json_rule
from pyengine.text.call_schemas import compile_calls
from pyengine.text.tokenizer import Tokenizer
from pyengine.text.tool_formats import ToolFormat
from pyengine.text.tools import Offer

_ANY_OBJECT = {"type": "object"}


def strict_grammar(offer: Offer, tool_format: ToolFormat, tokenizer: Tokenizer) -> str:
    """The grammar of an answer that may call the offer's tools. Raises RequestError naming the tool where the model's
    format has no mark that always stands before a call, or a schema cannot be used.
    """
    if tool_format.bare:
        raise RequestError(
            f"strict needs a tool_choice that forces a call: calls of this model ({tool_format.name}) may begin "
            "without a mark, so there is no place where a grammar could begin",
            param=f"tools[{offer.first_strict}].function.strict",
        )
    tools = [_loosened(tool, i in offer.strict) for i, tool in enumerate(offer.tools)]
    schema, _ = compile_calls(tools, tools)  # by itself, which finds what only shows where it is used
    return compile_grammar({"grammar": _lark(json_rule(schema), tool_format, tokenizer)}, "tools")


def _lark(call: str, tool_format: ToolFormat, tokenizer: Tokenizer) -> str:
    begin, end = (special_token(mark, tokenizer) for mark in (tool_format.begin, tool_format.end))
    calls = "one" if not tool_format.is_list else "(one | list)"
    rules = [
        "start: call* TEXT",
        f"call: begin SPACE? {calls}" + (" SPACE? end" if tool_format.end else ""),
        "begin: found" + (f" | TEXT {begin}" if begin else ""),
        f"found[lazy]: TEXT {json.dumps(tool_format.begin)}",
        f"one: {call}",
        r"TEXT: /(?s:.*)/",
        r"SPACE: /[ \t\r\n]+/",
    ]
    if tool_format.end:
        rules.append(f"end: {json.dumps(tool_format.end)}" + (f" | {end}" if end else ""))
    if tool_format.is_list:
        rules.append('list: "[" SPACE? one SPACE? ("," SPACE? one SPACE?)* "]"')
    return "\n".join(rules)


def _loosened(tool: dict[str, Any], is_strict: bool) -> dict[str, Any]:
    """The tool as ``call_schema`` takes it, its arguments any object unless it is strict."""
    return tool if is_strict else {"function": {"name": tool["function"]["name"], "parameters": _ANY_OBJECT}}


def special_token(mark: str, tokenizer: Tokenizer) -> str | None:
    """A mark that is a special token, which no text of the grammar matches, as the grammar names it."""
    token_id = tokenizer.token_to_id(mark) if mark else None
    return f"<[{token_id}]>" if token_id is not None and token_id in tokenizer.special_ids else None
