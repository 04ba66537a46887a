"""JSON read one character at a time, checked as it arrives.

A model writes a tool call in hundreds of small pieces, and its arguments are passed on while they come: what is passed
on must be known to be JSON so far. (RFC 8259; depth is bounded, values are never built.)
"""

from __future__ import annotations

import enum
import re

MAX_DEPTH = 64
MAX_SCALAR_CHARS = 400
SPACE = frozenset(" \t\n\r")
_ESCAPED = frozenset('"\\/bfnrt')
_HEX = frozenset("0123456789abcdefABCDEF")
_SCALAR_BEGIN = frozenset("-0123456789tfn")
_SCALAR_END = frozenset(",]}") | SPACE
_SCALAR = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?|true|false|null")


class Expect(enum.Enum):
    """What the next character may be or belong to."""

    VALUE = enum.auto()
    FIRST_ITEM = enum.auto()  # a value or ]
    FIRST_KEY = enum.auto()  # a key or }
    KEY = enum.auto()
    COLON = enum.auto()
    NEXT = enum.auto()  # a comma, or the end of the container
    STRING = enum.auto()
    ESCAPE = enum.auto()
    HEX = enum.auto()
    SCALAR = enum.auto()  # a number, true, false or null
    NOTHING = enum.auto()


class JsonScanner:
    """One object or array. ``depth``: containers that are open; ``done``: the outermost has ended."""

    def __init__(self) -> None:
        self.expect = Expect.VALUE
        self._open: list[str] = []
        self._in_key = False
        self._num_hex = 0
        self._scalar = ""

    @property
    def depth(self) -> int:
        return len(self._open)

    @property
    def done(self) -> bool:
        return self.expect is Expect.NOTHING

    def feed(self, char: str) -> bool:
        """Take a character; False when it cannot follow, and then the scanner is of no more use."""
        expect = self.expect
        if expect is Expect.STRING:
            return self._feed_string(char)
        if expect is Expect.ESCAPE or expect is Expect.HEX:
            return self._feed_escape(char)
        if expect is Expect.SCALAR:
            if char not in _SCALAR_END:
                self._scalar += char
                return len(self._scalar) <= MAX_SCALAR_CHARS
            if not _SCALAR.fullmatch(self._scalar):
                return False
            self.expect = Expect.NEXT
        return char in SPACE or self._feed_structure(char)

    def _feed_string(self, char: str) -> bool:
        if char == '"':
            self.expect = Expect.COLON if self._in_key else Expect.NEXT
        elif char == "\\":
            self.expect = Expect.ESCAPE
        return char >= " "

    def _feed_escape(self, char: str) -> bool:
        if self.expect is Expect.HEX:
            self._num_hex += 1
            self.expect = Expect.STRING if self._num_hex == 4 else Expect.HEX
            return char in _HEX
        self._num_hex = 0
        self.expect = Expect.HEX if char == "u" else Expect.STRING
        return char == "u" or char in _ESCAPED

    def _feed_structure(self, char: str) -> bool:
        expect = self.expect
        if expect in (Expect.FIRST_KEY, Expect.KEY) and char == '"':
            self._in_key, self.expect = True, Expect.STRING
        elif expect is Expect.COLON and char == ":":
            self.expect = Expect.VALUE
        elif expect is Expect.NEXT and char == ",":
            self.expect = Expect.KEY if self._open[-1] == "{" else Expect.VALUE
        elif expect in (Expect.FIRST_KEY, Expect.NEXT) and char == "}":
            return self._close("{")
        elif expect in (Expect.FIRST_ITEM, Expect.NEXT) and char == "]":
            return self._close("[")
        elif expect in (Expect.VALUE, Expect.FIRST_ITEM):
            return self._begin_value(char)
        else:
            return False
        return True

    def _begin_value(self, char: str) -> bool:
        if char in "{[":
            self._open.append(char)
            self.expect = Expect.FIRST_KEY if char == "{" else Expect.FIRST_ITEM
            return len(self._open) <= MAX_DEPTH
        if char == '"' and self._open:
            self._in_key, self.expect = False, Expect.STRING
            return True
        self.expect, self._scalar = Expect.SCALAR, char
        return char in _SCALAR_BEGIN and bool(self._open)

    def _close(self, opened: str) -> bool:
        if self._open.pop() != opened:
            return False
        self.expect = Expect.NEXT if self._open else Expect.NOTHING
        return True
