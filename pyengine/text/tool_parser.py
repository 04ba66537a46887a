"""Calls of tools out of an answer's text, while it arrives.

One state machine for every format and for plain and streamed answers: the parts depend on the text alone, not on how
it was cut. A call is announced once its name and the beginning of its arguments are there and fit; from then on its
arguments are passed on as they come. Text that looks like a call and turns out to be none before that is content, all
of it, and so is what follows the place where an announced call stops being JSON. Cost per character is constant:
nothing is read twice but the one character that broke a call.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection

from pyengine.errors import RequestError
from pyengine.text.answer_parts import CallArguments, CallBegin, Content, Part, append
from pyengine.text.json_scan import SPACE, Expect, JsonScanner
from pyengine.text.stop_strings import StopAutomaton
from pyengine.text.tokenizer import check_encodable
from pyengine.text.tool_formats import ToolFormat

MAX_CALL_CHARS = 1 << 20
TOOL_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}")


class CallReader:
    """The JSON object of one call: its name, and its arguments as they come."""

    def __init__(self, arguments_keys: Collection[str]):
        self.name: str | None = None
        self.has_arguments = False  # they have begun
        self._keys = arguments_keys
        self._scanner = JsonScanner()
        self._key = ""
        self._piece: list[str] | None = None  # a key or a value of the object itself, so far
        self._piece_kind = ""
        self._arguments: list[str] = []  # not yet taken

    @property
    def done(self) -> bool:
        return self._scanner.done

    def take_arguments(self) -> str:
        text, self._arguments = "".join(self._arguments), []
        return text

    def feed(self, char: str) -> bool:
        """Take a character; False when this is no call."""
        scanner = self._scanner
        expected, is_outer = scanner.expect, scanner.depth == 1
        if not scanner.feed(char):
            return False
        if self._piece is not None:
            return self._continue_piece(char)
        if is_outer and char not in SPACE:
            if expected in (Expect.FIRST_KEY, Expect.KEY) and char == '"':
                self._piece, self._piece_kind = [char], "key"
            elif expected is Expect.VALUE:
                return self._begin_value(char)
        return True

    def _begin_value(self, char: str) -> bool:
        self._piece, self._piece_kind = [char], "value"
        if self._key in self._keys:
            if self.has_arguments or char not in '{"n':
                return False
            if char == "{":
                self._piece_kind = "arguments"
                self._arguments.append(char)
                self.has_arguments = True
        return True

    def _continue_piece(self, char: str) -> bool:
        scanner = self._scanner
        if scanner.expect is Expect.SCALAR and scanner.depth == 1:
            self._piece.append(char)
            return True
        is_scalar = self._piece[0] not in '{["'
        if not is_scalar:
            (self._arguments if self._piece_kind == "arguments" else self._piece).append(char)
        if self._piece_kind == "key":
            if scanner.expect is Expect.COLON:
                self._key = json.loads("".join(self._piece))
                self._piece = None
        elif is_scalar or (scanner.depth == 1 and scanner.expect is Expect.NEXT):
            return self._end_value()
        return True

    def _end_value(self) -> bool:
        raw, kind, self._piece = "".join(self._piece), self._piece_kind, None
        if self._key == "name":
            if self.name is not None or raw[0] != '"':
                return False
            self.name = json.loads(raw)
            return TOOL_NAME.fullmatch(self.name) is not None
        if self._key in self._keys and kind == "value":
            arguments = "{}" if raw == "null" else _object_in(raw)
            self._arguments.append(arguments or "")
            self.has_arguments = True
            return arguments is not None
        return True


def _object_in(raw: str) -> str | None:
    """Arguments that a model wrote as a string of JSON; None when it holds no object."""
    text, scanner = json.loads(raw), JsonScanner()
    if not text.lstrip().startswith("{") or not all(scanner.feed(char) for char in text.strip()) or not scanner.done:
        return None
    try:
        check_encodable(text)
    except RequestError:
        return None
    return text.strip()


class ToolCallParser:
    """``push`` text, then ``finish`` once. ``num_calls``: announced so far; ``is_whole``: none of them broke off."""

    def __init__(self, tool_format: ToolFormat, names: Collection[str], parallel: bool = True):
        self.num_calls = 0
        self.is_whole = True
        self._format = tool_format
        self._names = names
        self._parallel = parallel
        self._parts: list[Part] = []
        self._text = ""  # being read
        self._position = 0
        self._space = ""  # white space that may prove to stand beside a call, and then is nothing
        self._held = ""  # of the current state: the beginning of a mark, or the text of a call not announced yet
        self._in_list = False
        self._is_bare = False
        self._announced = False
        self._marks = StopAutomaton((tool_format.begin,))
        self._reader = CallReader(())
        self._state: Callable[[], None] = self._at_start if tool_format.bare else self._in_content

    def push(self, text: str) -> list[Part]:
        self._text, self._position = text, 0
        while self._position < len(self._text):
            self._state()
        return self._take_parts()

    def finish(self) -> list[Part]:
        """What was still held back, now that nothing follows."""
        if self._state == self._after_call:
            self._held = ""  # the beginning of a mark that ends a call
        elif self._state == self._in_call and self._announced:
            self.is_whole = self._is_muted and self.is_whole
        self._say(self._held)
        if not self.num_calls:
            append(self._parts, Content(self._space))
        self._held = self._space = ""
        return self._take_parts()

    def _take_parts(self) -> list[Part]:
        parts, self._parts = self._parts, []
        return parts

    # ---- states: each reads at least one character, or changes the state

    def _at_start(self) -> None:
        """Before anything but white space, where a bare call may begin."""
        char = self._text[self._position]
        if char in SPACE:
            self._held += char
            self._position += 1
        elif char == "{":
            self._is_bare = True
            self._begin_call()
        else:
            self._to_content()

    def _in_content(self) -> None:
        rest = self._text[self._position :]
        found = self._marks.feed(rest)
        if found is None:
            self._position = len(self._text)
            text = self._held + rest
            split = len(text) - self._marks.num_pending
            self._held = text[split:]
            self._say(text[:split])
            return
        mark, end = found
        self._position += end
        self._say((self._held + rest[:end])[: -len(mark)])
        self._held, self._in_list, self._is_bare = mark, False, False
        self._state = self._before_call

    def _before_call(self) -> None:
        """After the mark that announces calls, or after a comma of their list."""
        char = self._text[self._position]
        if char == "{":
            self._begin_call()
        elif char in SPACE or (char == "[" and self._format.is_list and not self._in_list):
            self._in_list = self._in_list or char == "["
            self._held += char
            self._position += 1
        else:
            self._to_content()

    def _begin_call(self) -> None:
        self._reader = CallReader(self._format.arguments_keys)
        self._announced = False
        self._state = self._in_call

    def _in_call(self) -> None:
        text, reader = self._text, self._reader
        while self._position < len(text):
            char = text[self._position]
            if len(self._held) >= MAX_CALL_CHARS or not reader.feed(char):
                self._break_off()
                return
            self._position += 1
            if not self._announced:
                self._held += char
                if reader.name is not None and (reader.has_arguments or reader.done):
                    if self._is_bare and reader.name not in self._names:
                        self._break_off()
                        return
                    self._announce()
            if reader.done:
                self._end_call()
                return
        if self._announced:
            self._pass_on(reader.take_arguments())

    @property
    def _is_muted(self) -> bool:
        """The current call is one too many."""
        return not self._parallel and self.num_calls > 1

    def _announce(self) -> None:
        self._announced = True
        self._held = self._space = ""
        self.num_calls += 1
        if not self._is_muted:
            append(self._parts, CallBegin(self.num_calls - 1, self._reader.name))

    def _pass_on(self, arguments: str) -> None:
        if not self._is_muted:
            append(self._parts, CallArguments(self.num_calls - 1, arguments))

    def _end_call(self) -> None:
        if not self._announced:  # an object without a name
            self._break_off()
            return
        self._pass_on(self._reader.take_arguments() if self._reader.has_arguments else "{}")
        self._state = self._after_call

    def _break_off(self) -> None:
        """This is no call, or no longer one."""
        if self._announced:
            self._pass_on(self._reader.take_arguments())
            self.is_whole = self._is_muted and self.is_whole
        self._to_content()

    def _after_call(self) -> None:
        """Behind the JSON: the mark that ends a call, or what leads to the next one. The call stands in any case."""
        char = self._text[self._position]
        held = self._held + char
        if self._in_list:
            self._after_item(char)
        elif not self._held and (char in SPACE or (self._is_bare and char == self._format.separator)):
            self._position += 1
        elif self._is_bare and char == "{":
            self._begin_call()
        elif self._format.end.startswith(held):
            self._position += 1
            self._held = "" if held == self._format.end else held
            if not self._held:
                self._to_content()
        else:
            self._reread_as_content()

    def _after_item(self, char: str) -> None:
        self._position += char in SPACE or char in ",]"
        if char == ",":
            self._held = ""
            self._state = self._before_call
        elif char not in SPACE:
            self._to_content()

    def _reread_as_content(self) -> None:
        """What was held back for an end mark is content, and may begin the mark of another call."""
        self._text, self._position = self._held + self._text[self._position :], 0
        self._held = ""
        self._to_content()

    def _to_content(self) -> None:
        self._say(self._held)
        self._held = ""
        self._marks = StopAutomaton((self._format.begin,))
        self._state = self._in_content

    def _say(self, text: str) -> None:
        """Content; white space waits for what comes behind it."""
        text = self._space + text
        said = text.rstrip()
        self._space = text[len(said) :]
        append(self._parts, Content(said))
