"""Server-sent events as OpenAI sends them: ``data: <json>`` and a blank line; ``data: [DONE]`` ends the stream.

(WHATWG HTML, section 9.2. A line that begins with a colon is a comment: it keeps proxies from closing a quiet stream.)
"""

from __future__ import annotations

import msgspec

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"

_encode = msgspec.json.Encoder().encode


def event(payload: dict) -> bytes:
    return b"data: " + _encode(payload) + b"\n\n"
