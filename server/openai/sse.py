"""Server-sent events as OpenAI sends them: ``data: <json>`` and a blank line; ``data: [DONE]`` ends the stream.

(WHATWG HTML, section 9.2. A line that begins with a colon is a comment: it keeps proxies from closing a quiet stream.)
"""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"

_encode = msgspec.json.Encoder().encode


class KeepAlive:
    """What a stream sends: its events, or ``comment`` where it has sent nothing for ``interval_s`` (None: never)."""

    def __init__(self, interval_s: float | None, comment: bytes = KEEP_ALIVE):
        self._interval_s = interval_s
        self._comment = comment
        self._sent_s = time.monotonic()

    def __call__(self, data: bytes) -> bytes:
        now_s = time.monotonic()  # a wait of the interval may have ended a moment early
        if not data and (self._interval_s is None or now_s - self._sent_s < 0.9 * self._interval_s):
            return b""
        self._sent_s = now_s
        return data or self._comment



def event(payload: dict) -> bytes:
    return b"data: " + _encode(payload) + b"\n\n"


_MARK = "\ue000the text of this event\ue000"  # private use: in no model's name


class TextEvents:
    """Events that differ in one string alone: the JSON around it is made once, so that a token costs its own text.

    ``payload`` makes the whole object for a text; bytes are the same as ``event`` would make of it.
    """

    def __init__(self, payload: Callable[[str], dict]):
        self._before, self._after = event(payload(_MARK)).split(_encode(_MARK))

    def __call__(self, text: str) -> bytes:
        return b"%b%b%b" % (self._before, _encode(text), self._after)
