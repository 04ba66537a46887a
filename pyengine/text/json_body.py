"""JSON request bodies: one strict parse, bounded in size and depth, every failure a RequestError.

NaN, Infinity, numbers beyond a double, lone surrogates and invalid UTF-8 are refused by the decoder; of a repeated key
the last value is the only one anybody ever sees. ``shape`` then turns the object into a typed struct and names the
field that does not fit.
"""

from __future__ import annotations

import codecs
import json
import re
from typing import Any, TypeVar

import msgspec

from pyengine.errors import RequestError

Struct = TypeVar("Struct", bound=msgspec.Struct)
MAX_DEPTH = 64
MAX_SHOWN = 80  # characters of a value in an error
BEYOND = 1 << 1024  # any double

_decoder = msgspec.json.Decoder()
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_LONG_NUMBER = re.compile(rb"(?<!\d)\d{309}")  # as 2^1024 has; a text may hold it as well
_BYTE = re.compile(r"\(byte (\d+)\)")
_STEP = re.compile(r"([^.\[\]]+)|\[(\d*)")  # of a path; "[...]" is the value of some key
_AT = re.compile(r" - at `\$\.?(.*)`$")


def parse_object(body: bytes, max_bytes: int) -> dict[str, Any]:
    """The JSON object of a body."""
    if len(body) > max_bytes:
        raise RequestError(f"the request body has {len(body)} bytes, the limit is {max_bytes}", status=413)
    try:
        value = _decoder.decode(body)
    except (msgspec.DecodeError, ValueError) as error:
        if "UTF-8" in str(error) or isinstance(error, UnicodeDecodeError):
            _check_utf8(body)
        raise RequestError(f"the request body is not valid JSON: {error}{_hint(body, str(error))}") from None
    except RecursionError:
        raise RequestError("the request body is nested too deeply") from None
    if not isinstance(value, dict):
        raise RequestError(f"the request body must be a JSON object, got {_json_name(value)}")
    _check_depth(value)
    if _LONG_NUMBER.search(body):
        _check_integers(value)
    return value


def _check_utf8(body: bytes) -> None:
    """The decoder's own words for this differ from version to version, and not all of them say where."""
    try:
        body.decode()
    except UnicodeDecodeError as error:
        raise RequestError(f"the request body is not UTF-8: {error.reason} at byte {error.start}") from None


def _hint(body: bytes, error: str) -> str:
    """What stands where the decoder gave up; of surrogates it only says that something is missing."""
    if body.startswith(codecs.BOM_UTF8):
        return "; it begins with a byte order mark"
    if _SURROGATE.search(body):
        return "; is there a lone surrogate, half of a \\ud83d\\ude00 pair?"
    place = _BYTE.search(error)
    if place is None:
        return ""
    start = int(place.group(1))
    return f", at {body[start : start + 12].decode('utf-8', 'replace')!r}"


def parse_text_object(text: str, where: str) -> dict[str, Any]:
    """The JSON object in a string of a request, held to the same rules."""
    try:
        value = _decoder.decode(text)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise RequestError(f"{where} is not valid JSON: {error}", param=where) from None
    if not isinstance(value, dict):
        raise RequestError(f"{where} must hold a JSON object, got {_json_name(value)}", param=where)
    _check_depth(value, where)
    _check_integers({where: value}, where)
    return value


def shape(value: dict[str, Any], struct: type[Struct]) -> Struct:
    """The object as a struct, without conversions between types; RequestError names what does not fit.

    JSON knows no integers: 16.0 is 16, and some clients write it so.
    """
    try:
        return msgspec.convert(value, struct)
    except msgspec.ValidationError as error:
        text = str(error)
        if "got `float`" in text:
            whole = {name: with_integers(field) for name, field in value.items()}
            if any(whole[name] is not value[name] for name in value):
                return shape(whole, struct)
        where = _AT.search(text)
        path = where.group(1) if where else None
        message = text[: where.start()] if where else text
        shown = f"{path}: {message}{_shown(value, path)}" if path else message
        raise RequestError(shown, param=path or _missing(message)) from None


def _shown(value: Any, path: str) -> str:
    """What stands at the path of an error, as " (...)"; nothing where that does not lead there (a key of an object)."""
    try:
        for name, index in _STEP.findall(path):
            value = value[name] if name else value[int(index)]
        text = json.dumps(value, ensure_ascii=False)
    except (KeyError, IndexError, TypeError, ValueError):  # also an integer of thousands of digits
        return ""
    return f" ({text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + '...'})"


def with_integers(value: Any) -> Any:
    """Whole numbers as int, in lists too; ``value`` itself where there are none to change."""
    if type(value) is float and value.is_integer():
        return int(value)
    if not isinstance(value, (list, tuple)):
        return value
    whole = [with_integers(item) for item in value]
    return whole if any(new is not old for new, old in zip(whole, value, strict=True)) else value


def _missing(message: str) -> str | None:
    match = re.search(r"missing required field `(.*)`", message)
    return match.group(1) if match else None


def _check_integers(value: dict[str, Any], param: str | None = None) -> None:
    """Integers beyond any double are refused inside of any field, as the decoder refuses such fractions. A field that
    is one has a range of its own.
    """
    for name, field in value.items():
        todo: list[Any] = [field] if isinstance(field, (dict, list)) else []
        while todo:
            item = todo.pop()
            if isinstance(item, (dict, list)):
                todo += item.values() if isinstance(item, dict) else item
            elif isinstance(item, int) and abs(item) >= BEYOND:
                raise RequestError(f"{param or name}: a number is out of range", param=param or name)


def _check_depth(value: dict[str, Any], param: str | None = None) -> None:
    """Breadth first, so that the check itself needs no recursion."""
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [
            item
            for outer in level
            for item in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(item, (dict, list))
        ]
        if not level:
            return
    what = param or "the request body"
    raise RequestError(f"{what} is nested deeper than {MAX_DEPTH} levels", param=param)


def _json_name(value: object) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), "null")
