"""Calls of tools as one JSON schema, and as a grammar."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pyengine.errors import RequestError
from pyengine.structured.grammar import compile_grammar
from pyengine.text.tools import NO_PARAMETERS


def compile_calls(tools: Sequence[dict[str, Any]], offered: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], str]:
    """The schema of a call of one of ``tools``, and its grammar. Raises RequestError naming the tool whose own schema
    cannot be used, by its place among those ``offered``.
    """
    schema = call_schema(tools)
    try:
        return schema, compile_grammar({"json": schema}, "tools")
    except RequestError:
        names = [tool["function"]["name"] for tool in offered]
        for tool in tools:
            where = f"tools[{names.index(tool['function']['name'])}].function.parameters"
            compile_grammar({"json": call_schema([tool])}, "tools", where)
        raise


def call_schema(tools: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The JSON schema of a call of one of ``tools``. Each tool's own schema is a definition of it, and its references
    lead there.
    """
    definitions, calls = {}, []
    for tool in tools:
        name, place = tool["function"]["name"], f"tool{len(calls)}"
        parameters = _moved(tool["function"]["parameters"], f"#/$defs/{place}")
        if parameters == NO_PARAMETERS:  # a model that may write more invents some
            parameters = {**parameters, "additionalProperties": False}
        kind = parameters.get("type", "object")
        if isinstance(kind, list) and "object" in kind:
            kind = "object"
        definitions[place] = {**parameters, "type": kind}
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"const": name}, "arguments": {"$ref": f"#/$defs/{place}"}},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    return {"anyOf": calls, "$defs": definitions} if len(calls) > 1 else {**calls[0], "$defs": definitions}


_DATA = frozenset(("const", "enum", "default", "examples"))  # what they hold is no schema


def _moved(schema: Any, place: str) -> Any:
    """A schema that lies at ``place`` (a pointer) of a larger one: its references, which begin at its own root, too."""
    if isinstance(schema, list):
        return [_moved(item, place) for item in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {key: value if key in _DATA else _moved(value, place) for key, value in schema.items()}
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        moved["$ref"] = place + reference[1:]
    return moved
