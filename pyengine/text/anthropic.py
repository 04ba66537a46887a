"""Anthropic's Messages API as a chat request: the same fields under other names, content in blocks.

Only the shapes are translated here; ranges, tools and lengths are checked where every chat's are.
"""

from __future__ import annotations

from types import NoneType
from typing import Any

import msgspec

from pyengine.errors import RequestError
from pyengine.sampling_params import MAX_TOKENS, Range
from pyengine.text.effort import check_effort
from pyengine.text.fields import ChatRequest, select
from pyengine.text.json_body import parse_object, shape
from pyengine.text.unknown_fields import known_only
from pyengine.text.validation import Limits


class CountRequest(msgspec.Struct, kw_only=True):
    """The body of /v1/messages/count_tokens: what becomes the prompt."""

    messages: list[dict[str, Any]]
    model: str | None = None
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None


class MessagesRequest(CountRequest, kw_only=True):
    """The body of /v1/messages."""

    max_tokens: int
    stop_sequences: list[str] | None = None
    stream: bool = False
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None


# Chat's names to those of this endpoint.
NAMES = {
    "stop": "stop_sequences",
    r"response_format\.json_schema": "output_config.format",
    "response_format": "output_config.format",
    "reasoning_effort": "output_config.effort",
    "thinking_token_budget": "thinking.budget_tokens",
    "continue_final_message": "messages",
    r"tools\[(\d+)\]\.function\.parameters": r"tools[\1].input_schema",
    r"tools\[(\d+)\]\.function": r"tools[\1]",
}
# Anthropic's own service is meant by these.
IGNORED = frozenset("metadata service_tier cache_control inference_geo user_profile_id workspace_id".split())
COUNT_IGNORED = frozenset(("cache_control", "user_profile_id", "workspace_id"))
# Field to the values that ask for nothing.
COUNT_REFUSED: dict[str, tuple[Any, ...]] = {"speed": ("standard",)}
REFUSED: dict[str, tuple[Any, ...]] = {"container": (), "diagnostics": (), **COUNT_REFUSED}


def parse_messages(body: bytes, limits: Limits) -> ChatRequest:
    """A /v1/messages body. Raises RequestError."""
    given = select(parse_object(body, limits.max_body_bytes), MessagesRequest, REFUSED, IGNORED, "is not supported")
    request = shape(given, MessagesRequest)
    chat = _chat(request)
    for name in ("stream", "temperature", "top_p", "top_k", "max_tokens"):
        setattr(chat, name, getattr(request, name))
    chat.stop = request.stop_sequences
    return chat


def parse_count(body: bytes, limits: Limits) -> ChatRequest:
    """A /v1/messages/count_tokens body. Raises RequestError."""
    body_given = parse_object(body, limits.max_body_bytes)
    given = select(body_given, CountRequest, COUNT_REFUSED, COUNT_IGNORED, "is not supported")
    return _chat(shape(given, CountRequest))


def _chat(request: CountRequest) -> ChatRequest:
    messages = []
    if request.system is not None:
        messages.append({"role": "system", "content": _text(request.system, "system")})
    for i, message in enumerate(request.messages):
        messages += _messages_of(message, f"messages[{i}]")
    choice = request.tool_choice or {}
    return ChatRequest(
        messages=messages,
        model=request.model,
        tools=[_tool(tool, f"tools[{i}]") for i, tool in enumerate(request.tools)] if request.tools else None,
        tool_choice=_choice(choice) if request.tool_choice is not None else None,
        parallel_tool_calls=not _flag(choice, "disable_parallel_tool_use", "tool_choice"),
        continue_final_message=bool(messages) and messages[-1]["role"] == "assistant",
        chat_template_kwargs=_thinking(request.thinking),
        include_reasoning=(request.thinking or {}).get("display") != "omitted",
        thinking_token_budget=_budget(request.thinking or {}),
        response_format=_format(request.output_config or {}),
        reasoning_effort=check_effort((request.output_config or {}).get("effort"), "output_config.effort"),
    )


def _thinking(value: dict[str, Any] | None) -> dict[str, bool] | None:
    """Variables of the chat template: thinking can be left out where it knows how."""
    if value is None:
        return None
    _check_known(value, "thinking", ("type", "budget_tokens", "display"))
    if value.get("type") not in ("enabled", "disabled", "adaptive"):
        text = f"thinking.type must be enabled, disabled or adaptive, got {value.get('type')!r:.80}"
        raise RequestError(text, param="thinking.type")
    if value.get("display") not in (None, "summarized", "omitted"):
        text = f"thinking.display must be summarized or omitted, got {value['display']!r:.80}"
        raise RequestError(text, param="thinking.display")
    return {"enable_thinking": False} if value["type"] == "disabled" else None


def _budget(thinking: dict[str, Any]) -> int | None:
    """``thinking.budget_tokens``, which only enabled thinking has."""
    budget = thinking.get("budget_tokens")
    if budget is None:
        return None
    if thinking["type"] != "enabled":
        text = f"thinking.budget_tokens goes with type enabled, got type {thinking['type']}"
        raise RequestError(text, param="thinking.budget_tokens")
    Range(1, MAX_TOKENS, is_int=True).check("thinking.budget_tokens", budget)
    return budget


def _format(config: dict[str, Any]) -> dict[str, Any] | None:
    """``output_config.format`` as chat's ``response_format``."""
    _check_known(config, "output_config", ("format", "effort"))
    wanted = config.get("format")
    if wanted is None:
        return None
    if not isinstance(wanted, dict) or wanted.get("type") != "json_schema":
        raise RequestError("output_config.format must be of type json_schema", param="output_config.format")
    _check_known(wanted, "output_config.format", ("type", "schema"))
    return {"type": "json_schema", "json_schema": {"schema": wanted.get("schema")}}


def _messages_of(message: dict[str, Any], where: str) -> list[dict[str, Any]]:
    """One message as the several that chat templates know: each tool's result is one of its own."""
    role, content = message.get("role"), message.get("content")
    if role not in ("user", "assistant"):
        raise RequestError(f"{where}.role must be user or assistant, got {role!r:.80}", param=f"{where}.role")
    _check_known(message, where, ("role", "content"))
    if not isinstance(content, list):
        return [{"role": role, "content": _text(content, f"{where}.content")}]
    blocks = [_block(block, f"{where}.content[{i}]") for i, block in enumerate(content)]
    return _assistant(blocks, where) if role == "assistant" else _user(blocks, where)


def _assistant(blocks: list[dict[str, Any]], where: str) -> list[dict[str, Any]]:
    texts, calls, thoughts = [], [], []
    for i, block in enumerate(blocks):
        at = f"{where}.content[{i}]"
        if block["type"] == "text":
            texts.append(_string(block.get("text"), at))
        elif block["type"] == "thinking":
            thoughts.append(_string(block.get("thinking"), at))
        elif block["type"] == "tool_use":
            function = {"name": _string(block.get("name"), f"{at}.name"), "arguments": _input(block, f"{at}.input")}
            calls.append({"id": _string(block.get("id"), f"{at}.id"), "type": "function", "function": function})
        else:
            raise _no_place(block, at)
    message: dict[str, Any] = {"role": "assistant", "content": "\n".join(texts)}
    if calls:
        message["tool_calls"] = calls
    if thoughts:
        message["reasoning"] = "\n".join(thoughts)
    return [message]


def _user(blocks: list[dict[str, Any]], where: str) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for i, block in enumerate(blocks):
        at = f"{where}.content[{i}]"
        if block["type"] == "tool_result":
            content = _text(block.get("content") or "", f"{at}.content")
            tool_call_id = _string(block.get("tool_use_id"), f"{at}.tool_use_id")
            messages.append({"role": "tool", "tool_call_id": tool_call_id, "content": content})
        elif block["type"] != "text":
            raise _no_place(block, at)
        elif messages and messages[-1]["role"] == "user":
            messages[-1]["content"] += "\n" + _string(block.get("text"), at)
        else:
            messages.append({"role": "user", "content": _string(block.get("text"), at)})
    return messages or [{"role": "user", "content": ""}]


def _input(block: dict[str, Any], where: str) -> dict[str, Any]:
    value = block.get("input")
    if not isinstance(value, (dict, NoneType)):
        raise RequestError(f"{where} must be an object, got {type(value).__name__}", param=where)
    return value or {}


def _flag(value: dict[str, Any], name: str, where: str) -> bool:
    flag = value.get(name)
    if not isinstance(flag, (bool, NoneType)):
        raise RequestError(f"{where}.{name} must be a boolean, got {flag!r:.80}", param=f"{where}.{name}")
    return bool(flag)


def _no_place(block: dict[str, Any], where: str) -> RequestError:
    return RequestError(f"{where}: blocks of type {block['type']!r:.80} are not supported here", param=where)


BLOCK_FIELDS = {
    "text": ("text", "citations"),
    "thinking": ("thinking", "signature"),
    "tool_use": ("id", "name", "input"),
    "tool_result": ("tool_use_id", "content", "is_error"),
}


def _block(block: object, where: str) -> dict[str, Any]:
    if not isinstance(block, dict):
        raise RequestError(f"{where} must be an object, got {type(block).__name__}", param=where)
    kind = block.get("type")
    if not isinstance(kind, str) or kind not in BLOCK_FIELDS:
        raise RequestError(f"{where}: blocks of type {kind!r:.80} are not supported", param=f"{where}.type")
    _check_known(block, where, ("type", "cache_control", *BLOCK_FIELDS[kind]))
    return block


def _check_known(value: dict[str, Any], where: str, known: tuple[str, ...]) -> None:
    known_only(value, known, where, param=where)


def _text(content: object, where: str) -> str:
    """A string, or text blocks as one."""
    if isinstance(content, list):
        blocks = [_block(block, f"{where}[{i}]") for i, block in enumerate(content)]
        wrong = next((i for i, block in enumerate(blocks) if block["type"] != "text"), None)
        if wrong is not None:
            raise _no_place(blocks[wrong], f"{where}[{wrong}]")
        return "\n".join(_string(block.get("text"), where) for block in blocks)
    if not isinstance(content, str):
        raise RequestError(f"{where} must be a string or text blocks, got {type(content).__name__}", param=where)
    return content


def _string(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise RequestError(f"{where} must be a string, got {type(value).__name__}", param=where)
    return value


def _tool(tool: dict[str, Any], where: str) -> dict[str, Any]:
    if tool.get("type") not in (None, "custom"):
        raise RequestError(f"{where}: tools of type {tool['type']!r:.80} are not supported", param=f"{where}.type")
    _check_known(tool, where, ("type", "name", "description", "input_schema", "strict", "cache_control"))
    function = {key: tool.get(key) for key in ("name", "description", "strict")}
    return {"type": "function", "function": {**function, "parameters": tool.get("input_schema")}}


def _choice(choice: dict[str, Any]) -> object:
    """``tool_choice`` as chat knows it."""
    _check_known(choice, "tool_choice", ("type", "name", "disable_parallel_tool_use"))
    kind = choice.get("type") or "auto"
    if kind == "tool":
        return {"type": "function", "function": {"name": _string(choice.get("name"), "tool_choice.name")}}
    if kind not in ("auto", "none", "any"):
        raise RequestError(f"tool_choice.type must be auto, any, tool or none, got {kind!r:.80}", param="tool_choice")
    return "required" if kind == "any" else kind
