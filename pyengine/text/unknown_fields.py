"""Fields that no API of ours knows: refused by name, or left out and remembered where the operator wants it so.

Every check of an object's fields ends here. What to do is a matter of the server and not of the field, so it is not
passed down through all of them: ``ignoring`` holds for what is called inside it, in its thread or greenlet alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from pyengine.errors import RequestError

POLICIES = ("error", "warn")
MAX_NOTED = 100  # further ones are left out as well, and stand as MORE at the end
MORE = "..."

_noted: ContextVar[list[str] | None] = ContextVar("ignored_fields", default=None)


@contextmanager
def ignoring() -> Iterator[list[str]]:
    """Unknown fields are no errors inside; yields the list that their paths are added to."""
    names: list[str] = []
    token = _noted.set(names)
    try:
        yield names
    finally:
        _noted.reset(token)


def unknown_field(path: str, message: str, param: str | None = None) -> None:
    """The field at ``path`` is known to nobody. Raises RequestError, or notes it for ``ignoring``.

    Args:
        path: dotted, as ``messages[0].wat``.
        param: what an error says in its ``param``; the path when not given.
    """
    names = _noted.get()
    if names is None:
        raise RequestError(message, param=(param or path)[:120])
    shown = path[:200]
    if len(names) <= MAX_NOTED and shown not in names:
        names.append(shown if len(names) < MAX_NOTED else MORE)


def known_only(value: dict[str, Any], known: Collection[str], where: str, param: str | None = None) -> dict[str, Any]:
    """``value`` without fields outside ``known``. Raises RequestError for those, or notes them for ``ignoring``."""
    unknown = [key for key in value if key not in known]
    if not unknown:
        return value
    for key in unknown:
        unknown_field(f"{where}.{key}", f"{where} has an unknown field {key!r:.80}", param)
    return {key: value[key] for key in value if key in known}
