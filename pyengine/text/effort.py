"""``reasoning_effort``: how much a model is to think, as far as its chat template has a say in it.

A template with a variable of that name gets the level. One with ``enable_thinking`` can only leave thinking out, so
``none`` works and the level that asks for nothing does. Anything else would be a promise that nobody keeps.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, get_args

from pyengine.errors import RequestError

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
_USUAL = "medium"  # OpenAI's default


def check_effort(value: object, name: str) -> Effort | None:
    """A level that arrives inside another field, ``name`` to its client. Raises RequestError."""
    if value is not None and value not in get_args(Effort):
        raise RequestError(f"{name} must be one of {', '.join(get_args(Effort))}, got {value!r:.80}", param=name)
    return value


def effort_variables(effort: Effort | None, known: Collection[str], thinks: bool) -> dict[str, bool | str]:
    """Variables for the chat template, which looks at those ``known``; ``thinks``: its answers may have thinking in
    front. Raises RequestError for a level that would have no effect.
    """
    if effort is None:
        return {}
    if "reasoning_effort" in known:
        return {"reasoning_effort": effort}
    if "enable_thinking" in known and effort == "none":
        return {"enable_thinking": False}
    if effort == (_USUAL if thinks else "none"):
        return {}
    works = "none, medium" if "enable_thinking" in known else _USUAL if thinks else "none"
    text = f"reasoning_effort {effort} has no effect on this model, whose chat template has no place for it"
    raise RequestError(f"{text} (has: {works})", param="reasoning_effort")
