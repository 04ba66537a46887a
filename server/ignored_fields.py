"""``--unknown-fields=warn``: a client that cannot be changed is served, and told what it was served without.

The header goes out before the first byte of the answer, plain or streamed; the operator gets a line in the log.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar
from urllib.parse import quote

from flask import Flask, Response, g, request

from pyengine.text.unknown_fields import MORE, ignoring
from server import console
from server.request_id import ENVIRON_KEY

HEADER = "X-Ignored-Fields"
MAX_HEADER_CHARS = 1000
_PLAIN = "[]._-$@!*+/() "  # what a name in the header may have besides letters and digits; the rest is %-encoded

Prepared = TypeVar("Prepared")


def lenient(parse: Callable[[bytes], Prepared]) -> Callable[[bytes], tuple[Prepared, Sequence[str]]]:
    """``parse`` that takes unknown fields for none, and says which there were. May run in any thread."""

    def parse_and_list(body: bytes) -> tuple[Prepared, Sequence[str]]:
        with ignoring() as names:
            return parse(body), names

    return parse_and_list


def note(names: Sequence[str]) -> None:
    """Tell the operator now and the client with the answer to the current request."""
    if names:
        g.ignored_fields = _listed(names)
        console.say(f"request {request.environ.get(ENVIRON_KEY, '-')}: ignored unknown fields {g.ignored_fields}")


def _listed(names: Sequence[str]) -> str:
    """The names as a header value: ASCII, no commas within a name, cut between names where it grows too long."""
    listed, length = [], 0
    for name in names:
        shown = quote(name, safe=_PLAIN, errors="replace")
        length += len(shown) + 2
        if length > MAX_HEADER_CHARS:
            return ", ".join([*listed, MORE])
        listed.append(shown)
    return ", ".join(listed)


def install(app: Flask) -> None:
    @app.after_request
    def name_them(response: Response) -> Response:
        if "ignored_fields" in g:
            response.headers[HEADER] = g.ignored_fields
        return response
