"""Request bodies as JSON schemas, from the structs, ranges and tables that validate them.

A struct gives names and types, ``RANGES`` and ``MAX_ENTRIES`` the numbers, a table of refused and ignored fields the
rest; ``nested`` says what is inside of the fields that are objects. What holds between two fields (``stream_options``
needs ``stream``) no schema says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any, NamedTuple

import msgspec

from pyengine.sampling_params import BIAS, MAX_ENTRIES, MAX_TOKENS, RANGES, TOKEN_ID, Range
from pyengine.text import anthropic, fields, responses, validation
from pyengine.text.anthropic import CountRequest, MessagesRequest
from pyengine.text.fields import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    StreamOptions,
    TokenizeRequest,
)
from pyengine.text.responses import ResponsesRequest
from server.openapi import nested

Schema = dict[str, Any]


class Table(NamedTuple):
    """Fields beside those of a struct: refused ones with the values that ask for nothing, and ignored ones."""

    refused: Mapping[str, tuple[Any, ...]]
    ignored: Set[str]


TABLES: dict[type[msgspec.Struct], Table] = {
    **{struct: Table(refused, fields.IGNORED) for struct, refused in fields.NOT_YET.items()},
    ResponsesRequest: Table(responses.REFUSED, responses.IGNORED),
    MessagesRequest: Table(anthropic.REFUSED, anthropic.IGNORED),
    CountRequest: Table(anthropic.COUNT_REFUSED, anthropic.COUNT_IGNORED),
}

# Fields that other endpoints take under a name of their own.
SAME_AS = {
    "max_completion_tokens": "max_tokens",
    "max_output_tokens": "max_tokens",
    "stop_sequences": "stop",
}
_RANGES: dict[str, Range] = {**RANGES, **validation.RANGES, "min_tokens": Range(0, MAX_TOKENS, is_int=True)}
_NO_MAXIMUM = ("max_tokens",)  # more than the context is no error


def schema_of(struct: type[msgspec.Struct], takes_unknown: bool, models: Sequence[str] = ()) -> Schema:
    """The JSON schema of a request body.

    Args:
        takes_unknown: as --unknown-fields=warn does.
        models: served names, where they are known already.
    """
    table = TABLES[struct]
    properties = {field.name: _property(struct, field) for field in msgspec.structs.fields(struct)}
    properties.update((name, _refused(neutral)) for name, neutral in sorted(table.refused.items()))
    ignored = {"description": "Accepted without effect."}
    if models:
        properties["model"] = {"enum": [*models, None]}
    properties.update((name, ignored) for name in sorted(table.ignored))
    return {
        "type": "object",
        "title": struct.__name__,
        "description": (struct.__doc__ or "").split("\n", 1)[0],
        "properties": properties,
        "required": [field.name for field in msgspec.structs.fields(struct) if field.required],
        "additionalProperties": takes_unknown,
    }


def _property(struct: type[msgspec.Struct], field: msgspec.structs.FieldInfo) -> Schema:
    schema = nested.field(struct, field.name) or _number_or_list(struct, field.name) or _plain(field.type)
    return schema if field.required else nested.nullable(schema)


def _plain(hint: Any) -> Schema:
    """What msgspec says of a type, without its null: that goes for all optional fields alike."""
    (schema,), _ = msgspec.json.schema_components([hint], ref_template="#/components/schemas/{name}")
    kinds = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
    if not kinds:
        return schema
    return kinds[0] if len(kinds) == 1 else {"anyOf": kinds}


def _number_or_list(struct: type[msgspec.Struct], name: str) -> Schema | None:
    """The schema of a field that has a range or a greatest number of entries."""
    key = SAME_AS.get(name, name)
    if key == "logprobs" and struct is ChatRequest:  # a switch there
        return None
    if key in _RANGES:
        return number(_RANGES[key], has_maximum=key not in _NO_MAXIMUM)
    if struct is DetokenizeRequest and key == "tokens":
        return {"type": "array", "items": number(TOKEN_ID)}
    if key not in MAX_ENTRIES:
        return {"type": "string", "maxLength": _limit("max_cache_salt_chars")} if key == "cache_salt" else None
    if key == "bad_words":
        return {"type": "array", "items": {"type": "string", "minLength": 1}, "maxItems": MAX_ENTRIES[key]}
    if key == "stop":
        text = {"type": "string", "minLength": 1, "maxLength": _limit("max_stop_chars")}
        many = {"type": "array", "items": text, "maxItems": MAX_ENTRIES[key]}
        return many if name == "stop_sequences" else {"anyOf": [text, many]}
    if key == "logit_bias":
        keys = {"pattern": "^[0-9]{1,10}$"}
        most = MAX_ENTRIES[key]
        return {"type": "object", "propertyNames": keys, "additionalProperties": number(BIAS), "maxProperties": most}
    least = {"minItems": 1} if key == "allowed_token_ids" else {}
    return {"type": "array", "items": number(TOKEN_ID), **least, "maxItems": MAX_ENTRIES[key]}


def number(allowed: Range, has_maximum: bool = True) -> Schema:
    """A range as JSON schema."""
    low = {"exclusiveMinimum" if allowed.open_low else "minimum": allowed.low}
    high = {"maximum": allowed.high} if has_maximum else {}
    return {"type": "integer" if allowed.is_int else "number", **low, **high}


def _limit(name: str) -> int:
    return next(field.default for field in validation.Limits.__dataclass_fields__.values() if field.name == name)


def _refused(neutral: tuple[Any, ...]) -> Schema:
    return {"enum": [None, *neutral], "description": "Refused, but for values that ask for nothing."}


BODIES = (
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    ResponsesRequest,
    MessagesRequest,
    CountRequest,
    TokenizeRequest,
    DetokenizeRequest,
)
__all__ = ["BODIES", "SAME_AS", "TABLES", "StreamOptions", "Table", "number", "schema_of"]
