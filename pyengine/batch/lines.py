"""The two files of a batch, in OpenAI's format: one request a line in, one answer a line out, in any order.

The output file is also the memory of what is done. Every line is written whole and at once, so after a crash at most
the last one is incomplete: it is cut off, and its request runs again.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from pyengine.errors import ConfigError

Identity = str | int  # a custom_id, or the number of a line that is no request


class Line(msgspec.Struct, forbid_unknown_fields=True):
    """A request: ``body`` goes to the endpoint ``url`` as it stands."""

    custom_id: str
    method: str
    url: str
    body: msgspec.Raw


class BadLine(Exception):
    """What is wrong with a line that is no request; ``custom_id`` when it can be told."""

    def __init__(self, code: str, message: str, custom_id: str | None = None):
        super().__init__(message)
        self.code = code
        self.custom_id = custom_id


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(number, text) of all lines that are not empty, counted from 1. Raises ConfigError."""
    try:
        with path.open("rb") as file:
            for number, text in enumerate(file, 1):
                if text.strip():
                    yield number, text.strip()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None


def parse_line(text: bytes) -> Line:
    """Raises BadLine."""
    try:
        return msgspec.json.decode(text, type=Line)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise BadLine("invalid_line", f"not a request line: {error}", _custom_id(text)) from None


def _custom_id(text: bytes) -> str | None:
    try:
        found = msgspec.json.decode(text)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
    custom_id = found.get("custom_id") if isinstance(found, dict) else None
    return custom_id if isinstance(custom_id, str) else None


class OutputFile:
    """The output, opened for adding to what it has. ``done`` tells which lines have been answered before.

    Raises ConfigError when the file cannot be had, is being written by somebody else, or is no output of a batch.
    """

    def __init__(self, path: Path):
        self.done: set[Identity] = set()
        self.num_failed_before = 0
        try:
            self._file: BinaryIO = path.open("a+b")
        except OSError as error:
            raise ConfigError(f"cannot write {path}: {error.strerror}") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"{path} is being written by another batch") from None
        self._resume(path)

    def _resume(self, path: Path) -> None:
        """Read what is done; cut off a last line that was not finished."""
        self._file.seek(0)
        end = 0
        for number, text in enumerate(self._file, 1):
            answer = _decoded(text)
            if answer is None and not text.endswith(b"\n"):
                break
            if answer is None:
                raise ConfigError(f"{path}, line {number}: not an answer of a batch; choose another output file")
            end += len(text)
            self.done.add(_identity(answer))
            self.num_failed_before += not succeeded(answer)
            if not text.endswith(b"\n"):  # whole but for its end
                self._file.write(b"\n")
                self._file.flush()
                end += 1
        self._file.truncate(end)

    def write(self, answer: dict[str, Any]) -> None:
        """Add an answer; it survives the end of this process at any later moment."""
        self._file.write(msgspec.json.encode(answer) + b"\n")
        self._file.flush()

    def close(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


def _decoded(text: bytes) -> dict[str, Any] | None:
    """An output line, or None when it is none or only half of one."""
    try:
        answer = msgspec.json.decode(text)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
    return answer if isinstance(answer, dict) and {"custom_id", "response", "error"} <= answer.keys() else None


def _identity(answer: dict[str, Any]) -> Identity:
    """Of a line that is no request its number, whatever custom_id it has: another line may have it by right."""
    line = (answer["error"] or {}).get("line")
    return answer["custom_id"] if line is None and answer["custom_id"] is not None else line or 0


def succeeded(answer: dict[str, Any]) -> bool:
    response = answer["response"]
    return response is not None and response.get("status_code") == 200
