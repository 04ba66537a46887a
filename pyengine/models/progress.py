"""How long work reports itself: one callback of (what, done, total), both in bytes, total 0 when not known."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]


def silent(text: str, done: int, total: int) -> None:
    """The Progress that shows nothing."""
