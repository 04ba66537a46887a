"""OpenAI's Responses API as a chat request, without state: the input holds all of the conversation.

Nothing is stored, so what would need a store (``store: true``, ``previous_response_id``, ``background``) is refused by
name. Only the shapes are translated here; the rest is checked where every chat's is.
"""

from __future__ import annotations

from typing import Any

import msgspec

from pyengine.errors import RequestError
from pyengine.text.effort import Effort, check_effort
from pyengine.text.fields import ChatRequest, select
from pyengine.text.json_body import parse_object, parse_text_object, shape
from pyengine.text.unknown_fields import known_only
from pyengine.text.validation import Limits


class ResponsesRequest(msgspec.Struct, kw_only=True):
    """The body of /v1/responses."""

    input: str | list[Any]
    model: str | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stream: bool = False
    text: dict[str, Any] | None = None
    tools: list[Any] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool = True
    reasoning: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None


# Chat's names to those of this endpoint.
NAMES = {
    "max_completion_tokens": "max_output_tokens",
    r"response_format\.json_schema": "text.format",
    "response_format": "text.format",
    "messages": "input",
    "reasoning_effort": "reasoning.effort",
    r"tools\[(\d+)\]\.function": r"tools[\1]",
}
IGNORED = frozenset(
    "user service_tier safety_identifier prompt_cache_key prompt_cache_options prompt_cache_retention".split()
)
# Field to the values that ask for nothing.
REFUSED: dict[str, tuple[Any, ...]] = {
    "store": (False,),
    "previous_response_id": (),
    "conversation": (),
    "prompt": (),
    "background": (False,),
    "include": ([],),
    "max_tool_calls": (),
    "stream_options": ({}, {"include_obfuscation": False}),
    "top_logprobs": (0,),
    "truncation": ("disabled",),
    "access_programs": (),
    "background_options": (),
    "context_management": (),
    "image": (),
    "moderation": (),
}


def parse_responses(body: bytes, limits: Limits) -> tuple[ResponsesRequest, ChatRequest]:
    """A body and the chat that it asks for. Raises RequestError."""
    given = parse_object(body, limits.max_body_bytes)
    request = shape(select(given, ResponsesRequest, REFUSED, IGNORED, "is not supported"), ResponsesRequest)
    chat = ChatRequest(
        messages=_messages(request),
        model=request.model,
        max_completion_tokens=request.max_output_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        stream=request.stream,
        response_format=_format(request.text),
        tools=[_tool(tool, f"tools[{i}]") for i, tool in enumerate(request.tools)] if request.tools else None,
        tool_choice=_choice(request.tool_choice, bool(request.tools)),
        parallel_tool_calls=request.parallel_tool_calls,
        reasoning_effort=_effort(request.reasoning),
    )
    return request, chat


def _messages(request: ResponsesRequest) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if request.instructions:
        messages.append({"role": "system", "content": request.instructions})
    if isinstance(request.input, str):
        return [*messages, {"role": "user", "content": request.input}]
    for i, item in enumerate(request.input):
        message = _message(item, f"input[{i}]")
        last = messages[-1] if messages else {}
        if message["role"] == "assistant" == last.get("role") and not (message.get("content") and last["content"]):
            last["content"] += message["content"]  # thinking, text and calls are items of their own here
            last.update({key: last.get(key, value[:0]) + value for key, value in message.items() if key in _GROWING})
        else:
            messages.append(message)
    return messages


_GROWING = ("tool_calls", "reasoning")


def _message(item: object, where: str) -> dict[str, Any]:
    """An item of the input as a message, or as a part of the assistant's."""
    if not isinstance(item, dict):
        raise RequestError(f"{where} must be an object, got {type(item).__name__}", param=where)
    kind = item.get("type") or "message"
    if kind == "message":
        _check_known(item, where, ("type", "role", "content", "id", "status"))
        role = item.get("role")
        if role not in ROLES:
            text = f"{where}.role must be one of {', '.join(ROLES)}, got {role!r:.80}"
            raise RequestError(text, param=f"{where}.role")
        return {"role": role, "content": _text(item.get("content"), f"{where}.content")}
    if kind == "function_call":
        _check_known(item, where, ("type", "call_id", "name", "arguments", "id", "status"))
        call = {"id": _string(item, "call_id", where), "type": "function"}
        arguments = parse_text_object(_string(item, "arguments", where) or "{}", f"{where}.arguments")
        function = {"name": _string(item, "name", where), "arguments": arguments}
        return {"role": "assistant", "content": "", "tool_calls": [{**call, "function": function}]}
    if kind == "function_call_output":
        _check_known(item, where, ("type", "call_id", "output", "id", "status"))
        output = _text(item.get("output"), f"{where}.output")
        return {"role": "tool", "tool_call_id": _string(item, "call_id", where), "content": output}
    if kind == "reasoning":
        _check_known(item, where, ("type", "id", "summary", "content", "encrypted_content", "status"))
        return {"role": "assistant", "content": "", "reasoning": _text(item.get("content") or "", f"{where}.content")}
    raise RequestError(f"{where}: items of type {kind!r:.80} are not supported", param=f"{where}.type")


ROLES = ("user", "assistant", "system", "developer")


def _string(item: dict[str, Any], name: str, where: str) -> str:
    value = item.get(name)
    if not isinstance(value, str):
        text = f"{where}.{name} must be a string, got {type(value).__name__}"
        raise RequestError(text, param=f"{where}.{name}")
    return value


TEXT_PARTS = ("input_text", "output_text", "reasoning_text", "text")


def _text(content: object, where: str) -> str:
    if isinstance(content, list):
        for i, part in enumerate(content):
            if not isinstance(part, dict) or part.get("type") not in TEXT_PARTS:
                kind = part.get("type") if isinstance(part, dict) else type(part).__name__
                raise RequestError(f"{where}[{i}]: parts of type {kind!r:.80} are not supported", param=f"{where}[{i}]")
            _check_known(part, f"{where}[{i}]", ("type", "text", "annotations", "logprobs"))
            if not isinstance(part.get("text"), str):
                raise RequestError(f"{where}[{i}].text must be a string", param=f"{where}[{i}].text")
        return "\n".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise RequestError(f"{where} must be a string or text parts, got {type(content).__name__}", param=where)
    return content


def _check_known(value: dict[str, Any], where: str, known: tuple[str, ...]) -> None:
    known_only(value, known, where, param=where)


def _tool(tool: object, where: str) -> dict[str, Any]:
    if not isinstance(tool, dict) or tool.get("type") != "function":
        kind = tool.get("type") if isinstance(tool, dict) else type(tool).__name__
        raise RequestError(f"{where}: tools of type {kind!r:.80} are not supported", param=f"{where}.type")
    return {"type": "function", "function": {key: value for key, value in tool.items() if key != "type"}}


def _choice(choice: str | dict[str, Any] | None, has_tools: bool) -> object:
    """``tool_choice`` as chat knows it; clients send "auto" without tools too."""
    if not isinstance(choice, dict):
        return None if choice == "auto" and not has_tools else choice
    _check_known(choice, "tool_choice", ("type", "name"))
    return {"type": choice.get("type"), "function": {"name": choice.get("name")}}


def _effort(reasoning: dict[str, Any] | None) -> Effort | None:
    """``reasoning.effort``; a summary is more than a model writes by itself."""
    for name in ("summary", "generate_summary"):
        if reasoning and reasoning.get(name) is not None:
            raise RequestError(f"reasoning.{name} is not supported", param=f"reasoning.{name}")
    known_only(reasoning or {}, ("effort", "summary", "generate_summary"), "reasoning", param="reasoning")
    return check_effort((reasoning or {}).get("effort"), "reasoning.effort")


def _format(text: dict[str, Any] | None) -> dict[str, Any] | None:
    """``text.format`` as chat's ``response_format``."""
    if not text:
        return None
    given = {key: value for key, value in text.items() if value is not None and (key, value) != ("verbosity", "medium")}
    unknown = next((key for key in given if key != "format"), None)
    if unknown is not None:
        raise RequestError(f"text.{unknown} is not supported"[:120], param="text")
    wanted = text.get("format")
    if not isinstance(wanted, dict) or wanted.get("type") != "json_schema":
        return wanted
    return {"type": "json_schema", "json_schema": {key: value for key, value in wanted.items() if key != "type"}}
