"""Bounds-checked reading of numbers, flags and names out of a checkpoint's own description.

A config.json or the metadata of a GGUF file comes from a stranger. Every value that the engine uses passes through one
of these accessors, so that a wrong type, a NaN or an absurd size is one line that names file, key, value and what was
expected.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyengine.errors import ModelError

REQUIRED: Any = object()


class Fields:
    """Typed, bounded access to ``values``; ``where`` names the file in errors, ``prefix`` is put before every key."""

    def __init__(self, values: Mapping[str, Any], where: str, prefix: str = "") -> None:
        self.values = values
        self.where = where
        self.prefix = prefix

    def __contains__(self, key: str) -> bool:
        return self.values.get(self.prefix + key) is not None

    def error(self, key: str, expected: str) -> ModelError:
        shown = repr(self.values.get(self.prefix + key))
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        return ModelError(f"{self.where}: {self.prefix + key} must be {expected}, got {shown}")

    def raw(self, key: str, default: Any = REQUIRED) -> Any:
        """The value itself; null counts as absent. Raises ModelError when it is required and absent."""
        value = self.values.get(self.prefix + key)
        if value is not None:
            return value
        if default is REQUIRED:
            raise ModelError(f"{self.where}: {self.prefix + key} is missing")
        return default

    def integer(self, key: str, low: int, high: int, default: Any = REQUIRED) -> Any:
        value = self.raw(key, default)
        if value is default:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.error(key, f"an integer in [{low}, {high}]")
        return value

    def number(self, key: str, low: float, high: float, default: Any = REQUIRED) -> Any:
        value = self.raw(key, default)
        if value is default:
            return default
        # A comparison is exact for integers beyond any float, and false for NaN.
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise self.error(key, f"a number in [{low:g}, {high:g}]")
        return float(value)

    def boolean(self, key: str, default: Any = REQUIRED) -> Any:
        value = self.raw(key, default)
        if not isinstance(value, bool) and value is not default:
            raise self.error(key, "true or false")
        return value

    def string(self, key: str, default: Any = REQUIRED) -> Any:
        value = self.raw(key, default)
        if not isinstance(value, str) and value is not default:
            raise self.error(key, "a string")
        return value

    def strings(self, key: str, default: Any = REQUIRED) -> Any:
        value = self.raw(key, default)
        if value is not default and not (
            isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value)
        ):
            raise self.error(key, "a list of strings")
        return value

    def token_ids(self, key: str, vocab_size: int) -> tuple[int, ...]:
        """One id, a list of ids or nothing, as a tuple."""
        value = self.raw(key, ())
        ids = tuple(value) if isinstance(value, (list, tuple)) else (value,)
        if not all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i < vocab_size for i in ids):
            raise self.error(key, f"token ids in [0, {vocab_size})")
        return ids

    def section(self, key: str) -> Fields | None:
        """A nested object as Fields of its own, or None when absent."""
        value = self.raw(key, None)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self.error(key, "an object")
        return Fields(value, f"{self.where}: {self.prefix + key}")

    def refuse(self, key: str, harmless: tuple = (None, False)) -> None:
        """Raises when the checkpoint asks for a feature that is not implemented."""
        value = self.values.get(self.prefix + key)
        if value is not None and value not in harmless:
            raise ModelError(f"{self.where}: {self.prefix + key}={' '.join(str(value).split())[:80]} is not supported")
