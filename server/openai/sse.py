"""Server-sent events as OpenAI sends them: ``data: <json>`` and a blank line; ``data: [DONE]`` ends the stream.

(WHATWG HTML, section 9.2. A line that begins with a colon is a comment: it keeps proxies from closing a quiet stream.)
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"

_encode = msgspec.json.Encoder().encode


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
