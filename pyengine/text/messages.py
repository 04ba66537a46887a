"""Chat messages as clients send them, checked and brought to plain dictionaries.

Text only: content is a string or a list of text parts; every other kind of part is refused by name, and nothing is ever
fetched. Calls of tools in the history reach the template with their arguments as objects. Fields of an assistant's
message that clients echo back (``refusal``, ``annotations``, ...) pass when empty.
"""

from __future__ import annotations

from typing import Any

from pyengine.errors import RequestError
from pyengine.text.tokenizer import check_encodable
from pyengine.text.tools import check_tool_calls
from pyengine.text.unknown_fields import known_only, unknown_field

ROLES = ("system", "developer", "user", "assistant", "tool")
MAX_MESSAGES = 1 << 16

# Known to OpenAI's API, and harmless while they say nothing.
EMPTY_ONLY = ("function_call", "refusal", "annotations", "audio")


def check_messages(messages: object) -> list[dict[str, Any]]:
    """Messages with ``role``, ``content`` (a string, or a list of text parts) and perhaps ``name``.

    Raises RequestError naming the message and field that is wrong.
    """
    if not isinstance(messages, (list, tuple)) or not messages:
        raise RequestError("messages must be a list of at least one message", param="messages")
    if len(messages) > MAX_MESSAGES:
        raise RequestError(f"at most {MAX_MESSAGES} messages are allowed, got {len(messages)}", param="messages")
    return [_check_message(message, f"messages[{i}]") for i, message in enumerate(messages)]


def _check_message(message: object, where: str) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise RequestError(f"{where} must be an object, got {type(message).__name__}", param=where)
    role = message.get("role")
    if role == "function":
        raise RequestError(f"{where}.role: function messages are not supported yet, use tool", param=f"{where}.role")
    if role not in ROLES:
        raise RequestError(f"{where}.role must be one of {', '.join(ROLES)}, got {role!r:.80}", param=f"{where}.role")
    checked = {"role": role, "content": _check_content(message.get("content"), role, f"{where}.content")}
    own = OWN_FIELDS.get(role, ())
    if role == "tool" and message.get("tool_call_id") is None:
        raise RequestError(f"{where}.tool_call_id is missing", param=f"{where}.tool_call_id")
    for key, value in message.items():
        if key in ("name", *own):
            checked.update(_check_own(key, value, f"{where}.{key}") if value is not None else {})
        elif key in EMPTY_ONLY and value:
            raise RequestError(f"{where}.{key} is not supported yet", param=f"{where}.{key}")
        elif key not in ("role", "content", "name", *EMPTY_ONLY):
            unknown_field(f"{where}.{key}", f"{where} has an unknown field {key!r:.80}")
    return checked


OWN_FIELDS = {"tool": ("tool_call_id",), "assistant": ("tool_calls", "reasoning", "reasoning_content")}


def _check_own(key: str, value: object, where: str) -> dict[str, Any]:
    """A field as templates know it; thinking has two names among clients and one among templates."""
    if key == "tool_calls":
        calls = check_tool_calls(value, where)
        return {"tool_calls": calls} if calls else {}
    return {"reasoning_content" if key == "reasoning" else key: _check_text(value, where)}


def _check_content(content: object, role: str, where: str) -> str | list[dict[str, str]]:
    if content is None and role == "assistant":
        return ""
    if isinstance(content, (list, tuple)):
        return [_check_part(part, f"{where}[{i}]") for i, part in enumerate(content)]
    return _check_text(content, where)


def _check_part(part: object, where: str) -> dict[str, str]:
    if not isinstance(part, dict):
        raise RequestError(f"{where} must be an object, got {type(part).__name__}", param=where)
    kind = part.get("type")
    if kind != "text":
        raise RequestError(f"{where}: parts of type {kind!r:.80} are not supported, only text", param=f"{where}.type")
    known_only(part, ("type", "text", "prompt_cache_breakpoint"), where, param=where)  # prefixes are cached in any case
    return {"type": "text", "text": _check_text(part.get("text"), f"{where}.text")}


def _check_text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise RequestError(f"{where} must be a string, got {type(value).__name__}", param=where)
    check_encodable(value, where)
    return value
