"""What an answer's text consists of: thinking, content, calls of tools. The pieces that parsers make of it."""

from __future__ import annotations

import msgspec


class Content(msgspec.Struct, frozen=True):
    text: str


class Reasoning(msgspec.Struct, frozen=True):
    text: str


class CallBegin(msgspec.Struct, frozen=True):
    """The ``index``-th call of the answer begins; its arguments follow."""

    index: int
    name: str


class CallArguments(msgspec.Struct, frozen=True):
    """More of the JSON text of a call's arguments."""

    index: int
    text: str


Part = Content | Reasoning | CallBegin | CallArguments


def append(parts: list[Part], part: Part) -> None:
    """Add a part; text of the same kind as the last part's joins it."""
    last = parts[-1] if parts else None
    if isinstance(part, CallBegin):
        parts.append(part)
    elif not part.text:
        return
    elif isinstance(part, CallArguments):
        joins = isinstance(last, CallArguments) and last.index == part.index
        parts[-1 if joins else len(parts) :] = [CallArguments(part.index, (last.text if joins else "") + part.text)]
    else:
        joins = type(last) is type(part)
        parts[-1 if joins else len(parts) :] = [type(part)((last.text if joins else "") + part.text)]
