"""What the output must match: ``response_format`` (OpenAI) and ``structured_outputs`` (vLLM), both as one grammar."""

from __future__ import annotations

from typing import Any

import msgspec

from pyengine.errors import RequestError
from pyengine.sampling_params import SamplingParams
from pyengine.structured.grammar import FIELDS, compile_grammar
from pyengine.text.unknown_fields import unknown_field


def grammar_of(response_format: dict[str, Any] | None, structured_outputs: dict[str, Any] | None) -> str | None:
    """The grammar that a request asks for, None when it asks for none. Raises RequestError naming the field."""
    spec = _from_response_format(response_format)
    if structured_outputs is None and spec is None:
        return None
    if structured_outputs is not None and spec is not None:
        raise RequestError("give either response_format or structured_outputs, not both", param="structured_outputs")
    if spec is not None:
        return compile_grammar(spec, "response_format", "response_format.json_schema.schema")
    for unknown in structured_outputs.keys() - set(FIELDS):
        text = f"structured_outputs has no field {unknown!r:.80}; it has {', '.join(FIELDS)}"
        unknown_field(f"structured_outputs.{unknown}", text, param="structured_outputs")
    known = {name: structured_outputs[name] for name in FIELDS if name in structured_outputs}
    return compile_grammar(known, "structured_outputs")


def with_grammar(params: SamplingParams) -> SamplingParams:
    """``params`` with its ``structured_outputs`` or ``response_format`` as a grammar. Raises RequestError."""
    if params.response_format is None and params.structured_outputs is None:
        return params
    grammar = grammar_of(params.response_format, params.structured_outputs)
    if params.grammar is not None:
        raise RequestError("grammar is given beside structured_outputs or response_format", param="grammar")
    return msgspec.structs.replace(params, grammar=grammar, structured_outputs=None, response_format=None)


def _from_response_format(value: dict[str, Any] | None) -> dict[str, Any] | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise RequestError(f"response_format must be an object, got {type(value).__name__}", param="response_format")
    kind = value.get("type")
    allowed = {"text": {"type"}, "json_object": {"type"}, "json_schema": {"type", "json_schema"}}
    if not isinstance(kind, str) or kind not in allowed:
        raise RequestError(
            f"response_format.type must be text, json_object or json_schema, got {kind!r:.80}", param="response_format"
        )
    for unknown in value.keys() - allowed[kind]:
        text = f"response_format of type {kind} has no field {unknown!r:.80}"
        unknown_field(f"response_format.{unknown}", text, param="response_format")
    if kind == "text":
        return None
    return {"json_object": True} if kind == "json_object" else {"json": _schema(value.get("json_schema"))}


def _schema(value: object) -> dict[str, Any]:
    """The schema inside ``{"name": ..., "schema": {...}, "strict": ...}``; strict or not, the grammar enforces it."""
    if not isinstance(value, dict) or not isinstance(value.get("schema"), dict):
        raise RequestError("response_format.json_schema needs a schema object", param="response_format")
    for unknown in value.keys() - {"name", "description", "schema", "strict"}:
        text = f"response_format.json_schema has no field {unknown!r:.80}"
        unknown_field(f"response_format.json_schema.{unknown}", text, param="response_format")
    return value["schema"]
