"""Tools as a request offers them: checked, and brought to what chat templates take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyengine.errors import RequestError
from pyengine.text.json_body import parse_text_object
from pyengine.text.tokenizer import check_encodable
from pyengine.text.tool_parser import TOOL_NAME
from pyengine.text.unknown_fields import known_only

MAX_TOOLS = 256
CHOICES = ("none", "auto", "required")


@dataclass(frozen=True)
class Offer:
    """The tools that the model is shown, and those of which it must call one: none of them, one by name, or any.

    ``strict``: the places in ``tools`` of those whose schema binds a call that the model chose to make.
    """

    tools: tuple[dict[str, Any], ...] = ()
    forced: tuple[dict[str, Any], ...] = ()
    is_named: bool = False
    strict: frozenset[int] = frozenset()

    @property
    def first_strict(self) -> int:
        return min(self.strict)

    @property
    def names(self) -> frozenset[str]:
        return frozenset(tool["function"]["name"] for tool in self.tools)


def check_tools(tools: object, choice: object) -> Offer:
    """What ``tools`` and ``tool_choice`` ask for; each None where the request does not have it. Raises RequestError."""
    if tools is None:
        if choice not in (None, "none"):
            raise RequestError("tool_choice is only allowed with tools", param="tool_choice")
        return Offer()
    if not isinstance(tools, list) or not tools:
        raise RequestError("tools must be a list of at least one tool", param="tools")
    if len(tools) > MAX_TOOLS:
        raise RequestError(f"at most {MAX_TOOLS} tools are allowed, got {len(tools)}", param="tools")
    checked = tuple(_check_tool(tool, f"tools[{i}]") for i, tool in enumerate(tools))
    if isinstance(choice, dict):
        return Offer(checked, (_named(choice, checked),), is_named=True)
    if choice is not None and choice not in CHOICES:
        raise RequestError(
            f"tool_choice must be one of {', '.join(CHOICES)} or name a tool, got {choice!r:.80}", param="tool_choice"
        )
    if choice == "none":
        return Offer()
    if choice == "required":
        return Offer(checked, checked)
    return Offer(checked, strict=frozenset(i for i, tool in enumerate(tools) if tool["function"].get("strict")))


def _named(choice: dict[str, Any], tools: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    known_only(choice, ("type", "function"), "tool_choice", param="tool_choice")
    function = choice.get("function")
    if isinstance(function, dict):
        known_only(function, ("name",), "tool_choice.function", param="tool_choice")
    name = function.get("name") if isinstance(function, dict) else None
    if choice.get("type") != "function" or not isinstance(name, str):
        raise RequestError('tool_choice must be {"type": "function", "function": {"name": ...}}', param="tool_choice")
    tool = next((tool for tool in tools if tool["function"]["name"] == name), None)
    if tool is None:
        raise RequestError(f"tool_choice names {name!r:.80}, which is not among the tools", param="tool_choice")
    return tool


def _check_tool(tool: object, where: str) -> dict[str, Any]:
    tool = _object(tool, where, ("type", "function"))
    if tool.get("type") != "function":
        raise RequestError(f"{where}.type must be function, got {tool.get('type')!r:.80}", param=f"{where}.type")
    function = _object(tool.get("function"), f"{where}.function", ("name", "description", "parameters", "strict"))
    name = function.get("name")
    if not isinstance(name, str) or not TOOL_NAME.fullmatch(name):
        raise RequestError(
            f"{where}.function.name must be 1 to 64 letters, digits, dots, dashes or underscores, got {name!r:.80}",
            param=f"{where}.function.name",
        )
    if not isinstance(function.get("strict"), (bool, type(None))):
        raise RequestError(f"{where}.function.strict must be a boolean", param=f"{where}.function.strict")
    description, parameters = function.get("description"), function.get("parameters")
    if description is not None and not isinstance(description, str):
        raise RequestError(f"{where}.function.description must be a string", param=f"{where}.function.description")
    if parameters is not None and not isinstance(parameters, dict):
        raise RequestError(
            f"{where}.function.parameters must be a JSON schema object", param=f"{where}.function.parameters"
        )
    shown = {"name": name, "description": description or "", "parameters": parameters or NO_PARAMETERS}
    return {"type": "function", "function": shown}


NO_PARAMETERS = {"type": "object", "properties": {}}


def check_tool_calls(calls: object, where: str) -> list[dict[str, Any]]:
    """``tool_calls`` of an assistant message in the history, with arguments as objects, as templates expect them."""
    if not isinstance(calls, list):
        raise RequestError(f"{where} must be a list", param=where)
    return [_check_call(call, f"{where}[{i}]") for i, call in enumerate(calls)]


def _check_call(call: object, where: str) -> dict[str, Any]:
    call = _object(call, where, ("id", "type", "function", "index"))
    if call.get("type", "function") != "function":
        raise RequestError(f"{where}.type must be function, got {call.get('type')!r:.80}", param=f"{where}.type")
    function = _object(call.get("function"), f"{where}.function", ("name", "arguments"))
    call_id, name, arguments = call.get("id"), function.get("name"), function.get("arguments")
    if not isinstance(call_id, str):
        raise RequestError(f"{where}.id must be a string", param=f"{where}.id")
    if not isinstance(name, str):
        raise RequestError(f"{where}.function.name must be a string", param=f"{where}.function.name")
    check_encodable(call_id, f"{where}.id")
    check_encodable(name, f"{where}.function.name")
    if isinstance(arguments, str):
        arguments = parse_text_object(arguments or "{}", f"{where}.function.arguments")
    elif not isinstance(arguments, dict):
        raise RequestError(f"{where}.function.arguments must be a string of JSON", param=f"{where}.function.arguments")
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _object(value: object, where: str, known: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RequestError(f"{where} must be an object, got {type(value).__name__}", param=where)
    return known_only(value, known, where)
