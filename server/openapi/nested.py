"""What is inside of request fields that are objects, from the constants of the modules that check them."""

from __future__ import annotations

from typing import Any

import msgspec

from pyengine.sampling_params import TOKEN_ID
from pyengine.structured import grammar
from pyengine.text import anthropic, messages, responses, tools
from pyengine.text.anthropic import CountRequest, MessagesRequest
from pyengine.text.fields import ChatRequest, CompletionRequest, EmbeddingRequest, StreamOptions, TokenizeRequest
from pyengine.text.responses import ResponsesRequest
from pyengine.text.tool_parser import TOOL_NAME

Schema = dict[str, Any]
STRING: Schema = {"type": "string"}
OBJECT: Schema = {"type": "object"}
ANY: Schema = {}
NOTHING: Schema = {"enum": [None, False, 0, "", [], {}]}  # a field that may be there as long as it says nothing


def nullable(schema: Schema) -> Schema:
    """``null`` always means not given."""
    if not schema or None in schema.get("enum", ()):
        return schema
    if isinstance(schema.get("type"), str) and "enum" not in schema and "const" not in schema:
        return {**schema, "type": [schema["type"], "null"]}
    if "anyOf" in schema and len(schema) == 1:
        return {"anyOf": [*schema["anyOf"], {"type": "null"}]}
    return {"anyOf": [schema, {"type": "null"}]}


def obj(required: dict[str, Schema], optional: dict[str, Schema] | None = None) -> Schema:
    """An object of these fields and no others; optional ones may be null."""
    properties = {**required, **{name: nullable(schema) for name, schema in (optional or {}).items()}}
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def array(items: Schema, least: int = 0, most: int | None = None) -> Schema:
    limits = {**({"minItems": least} if least else {}), **({"maxItems": most} if most is not None else {})}
    return {"type": "array", "items": items, **limits}


def either(*schemas: Schema) -> Schema:
    return {"anyOf": list(schemas)}


def field(struct: type[msgspec.Struct], name: str) -> Schema | None:
    """The schema of a field of ``struct``; None where the field's type says all there is to say."""
    for owner in (struct, *_LIKE.get(struct, ())):
        if (owner, name) in _FIELDS:
            return _FIELDS[owner, name]()
    return None


_LIKE = {TokenizeRequest: (ChatRequest,), CompletionRequest: (ChatRequest,), MessagesRequest: (CountRequest,)}


# ---------------------------------------------------------------------- chat


def _chat_messages() -> Schema:
    part = obj({"type": {"const": "text"}, "text": STRING})
    return array(either(*(_chat_message(role, either(STRING, array(part))) for role in messages.ROLES)), least=1)


def _chat_message(role: str, content: Schema) -> Schema:
    own = {name: _OWN.get(name, STRING) for name in messages.OWN_FIELDS.get(role, ())}
    required = {"role": {"const": role}}
    optional = {"name": STRING, **own, **dict.fromkeys(messages.EMPTY_ONLY, NOTHING)}
    if role == "assistant":
        return obj(required, {"content": content, **optional})
    needed = {"tool_call_id": optional.pop("tool_call_id")} if role == "tool" else {}
    return obj({**required, "content": content, **needed}, optional)


def _call() -> Schema:
    function = obj({"name": STRING, "arguments": either(STRING, OBJECT)})
    return {
        "type": "object",
        "properties": {"id": STRING, "type": {"const": "function"}, "function": function, "index": ANY},
        "required": ["id", "function"],
        "additionalProperties": False,
    }


_OWN: dict[str, Schema] = {"tool_calls": array(_call())}


def _function(wrapped: bool) -> Schema:
    """A tool; chat has its function in an object of its own, the Responses API does not."""
    name = {"type": "string", "pattern": f"^{TOOL_NAME.pattern}$"}
    function = ({"name": name}, {"description": STRING, "parameters": OBJECT, "strict": {"type": "boolean"}})
    kind = {"type": {"const": "function"}}
    return obj({**kind, "function": obj(*function)}) if wrapped else obj({**kind, **function[0]}, function[1])


def _tools() -> Schema:
    return array(_function(wrapped=True), least=1, most=tools.MAX_TOOLS)


def _tool_choice() -> Schema:
    named = obj({"type": {"const": "function"}, "function": obj({"name": STRING})})
    return either({"enum": list(tools.CHOICES)}, named)


def _response_format() -> Schema:
    schema = obj({"schema": OBJECT}, {"name": ANY, "description": ANY, "strict": ANY})
    plain = [obj({"type": {"const": kind}}) for kind in ("text", "json_object")]
    return either(*plain, obj({"type": {"const": "json_schema"}, "json_schema": schema}))


def _structured_outputs() -> Schema:
    schemas = {
        "json": either(OBJECT, STRING),
        "json_object": {"type": "boolean"},
        "choice": array({"type": "string", "minLength": 1}, least=1, most=grammar.MAX_CHOICES),
        "whitespace_pattern": {"type": "string", "minLength": 1, "maxLength": grammar.MAX_WHITESPACE_CHARS},
        "disable_any_whitespace": {"type": "boolean"},
    }
    return obj({}, {name: schemas.get(name, STRING) for name in grammar.FIELDS})


def _stream_options() -> Schema:
    flags = {each.name: {"type": "boolean"} for each in msgspec.structs.fields(StreamOptions)}
    return {"type": "object", "properties": flags, "additionalProperties": False}


def _prompt() -> Schema:
    text = {"type": "string", "minLength": 1}
    ids = array({"type": "integer", "minimum": TOKEN_ID.low, "maximum": TOKEN_ID.high}, least=1)
    return either(text, ids, array(text, least=1), array(ids, least=1))


# ---------------------------------------------------------------------- Anthropic


def _blocks(*kinds: str) -> Schema:
    """A string or blocks of these kinds."""
    return either(STRING, array(either(*(_block(kind) for kind in kinds))))


def _block(kind: str) -> Schema:
    inside = {"text": ("text",), "thinking": ("thinking",), "tool_use": ("id", "name"), "tool_result": ("tool_use_id",)}
    required = dict.fromkeys(inside[kind], STRING)
    special = {"input": OBJECT, "content": _blocks("text") if kind == "tool_result" else ANY}
    others = {name: special.get(name, ANY) for name in anthropic.BLOCK_FIELDS[kind] if name not in required}
    properties = {"type": {"const": kind}, **required, **others, "cache_control": ANY}
    needed = ["type", *required]
    return {"type": "object", "properties": properties, "required": needed, "additionalProperties": False}


def _anthropic_messages() -> Schema:
    by_role = {"user": ("text", "tool_result"), "assistant": ("text", "thinking", "tool_use")}
    forms = (obj({"role": {"const": role}, "content": _blocks(*kinds)}) for role, kinds in by_role.items())
    return array(either(*forms), least=1)


def _anthropic_tools() -> Schema:
    name = {"type": "string", "pattern": f"^{TOOL_NAME.pattern}$"}
    optional = {"description": STRING, "input_schema": OBJECT, "strict": {"type": "boolean"}, "cache_control": ANY}
    tool = obj({"name": name}, optional)
    tool["properties"]["type"] = {"const": "custom"}
    return array(tool, least=1, most=tools.MAX_TOOLS)


def _anthropic_choice() -> Schema:
    flag = {"disable_parallel_tool_use": {"type": "boolean"}}
    return either(
        obj({"type": {"enum": ["auto", "none", "any"]}}, flag), obj({"type": {"const": "tool"}, "name": STRING}, flag)
    )


def _output_config() -> Schema:
    return obj({}, {"format": obj({"type": {"const": "json_schema"}, "schema": OBJECT})})


# ---------------------------------------------------------------------- Responses


def _input() -> Schema:
    kind = {"enum": list(responses.TEXT_PARTS)}
    text = either(STRING, array(obj({"type": kind, "text": STRING}, {"annotations": ANY, "logprobs": ANY})))
    about = {"id": ANY, "status": ANY}
    item = obj({"role": {"enum": list(messages.ROLES)}, "content": text}, about)
    item["properties"]["type"] = {"const": "message"}
    call = obj({"type": {"const": "function_call"}, "call_id": STRING, "name": STRING, "arguments": STRING}, about)
    output = obj({"type": {"const": "function_call_output"}, "call_id": STRING, "output": text}, about)
    hidden = {"summary": ANY, "encrypted_content": ANY, "content": text}
    thought = obj({"type": {"const": "reasoning"}}, {**about, **hidden})
    return either(STRING, array(either(item, call, output, thought), least=1))


def _text_options() -> Schema:
    schema = obj(
        {"type": {"const": "json_schema"}, "schema": OBJECT}, {"name": ANY, "description": ANY, "strict": ANY}
    )
    return obj({}, {"format": either(*(obj({"type": {"const": kind}}) for kind in ("text", "json_object")), schema)})


def _responses_choice() -> Schema:
    return either({"enum": list(tools.CHOICES)}, obj({"type": {"const": "function"}, "name": STRING}))


_SCALAR: Schema = {"anyOf": [{"type": "boolean"}, {"type": "number"}, STRING]}

_FIELDS = {
    (ChatRequest, "messages"): _chat_messages,
    (ChatRequest, "tools"): _tools,
    (ChatRequest, "tool_choice"): _tool_choice,
    (ChatRequest, "response_format"): _response_format,
    (ChatRequest, "structured_outputs"): _structured_outputs,
    (ChatRequest, "stream_options"): _stream_options,
    (ChatRequest, "chat_template_kwargs"): lambda: {"type": "object", "additionalProperties": nullable(_SCALAR)},
    (CompletionRequest, "prompt"): _prompt,
    (EmbeddingRequest, "input"): _prompt,
    (EmbeddingRequest, "dimensions"): lambda: {"type": "integer", "minimum": 1},
    (CountRequest, "messages"): _anthropic_messages,
    (CountRequest, "system"): lambda: _blocks("text"),
    (CountRequest, "tools"): _anthropic_tools,
    (CountRequest, "tool_choice"): _anthropic_choice,
    (MessagesRequest, "output_config"): _output_config,
    (ResponsesRequest, "input"): _input,
    (ResponsesRequest, "text"): _text_options,
    (ResponsesRequest, "tools"): lambda: array(_function(wrapped=False), most=tools.MAX_TOOLS),
    (ResponsesRequest, "tool_choice"): _responses_choice,
}
