"""The head of an HTTP/1.1 request: bytes in, checked values out (RFC 9112, RFC 9110). No I/O.

Strict where leniency has made two parsers disagree about where a request ends: no folded lines, no second length, no
length beside chunks, no coding but ``chunked``. What cannot be parsed is a RequestError with the status to answer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pyengine.errors import RequestError

MAX_REQUEST_LINE_BYTES = 8 << 10

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]"
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb"{1,32}) ([\x21-\x7e]+) HTTP/([0-9])\.([0-9])")
_HEADER = re.compile(rb"(" + _TOKEN + rb"+):([\t\x20-\x7e\x80-\xff]*)")
_ABSOLUTE = re.compile(r"https?://([^/?#]*)(.*)", re.IGNORECASE | re.DOTALL)
_LENGTH = re.compile(r"[0-9]{1,18}")
_ONCE = frozenset(("host", "content-length", "content-type", "transfer-encoding", "authorization"))


@dataclass(frozen=True, slots=True)
class HeadLimits:
    """Headers of one request at most: how many, and bytes of all together."""

    max_headers: int = 64
    max_bytes: int = 16 << 10


DEFAULT_LIMITS = HeadLimits()


@dataclass(frozen=True, slots=True)
class Head:
    """A request line and its headers, names in lower case, repeated ones joined by commas."""

    method: str
    target: str  # path and query
    version: str  # "HTTP/1.1" or "HTTP/1.0"
    headers: dict[str, str]

    @property
    def content_length(self) -> int | None:
        value = self.headers.get("content-length")
        return None if value is None else int(value)

    @property
    def chunked(self) -> bool:
        return "transfer-encoding" in self.headers

    @property
    def has_body(self) -> bool:
        return self.chunked or bool(self.content_length)

    @property
    def content_encoding(self) -> str:
        """Of the body; "" when it is not encoded."""
        value = self.headers.get("content-encoding", "").lower()
        return "" if value == "identity" else value

    @property
    def keep_alive(self) -> bool:
        options = {option.strip().lower() for option in self.headers.get("connection", "").split(",")}
        return "close" not in options if self.version == "HTTP/1.1" else "keep-alive" in options

    @property
    def expects_continue(self) -> bool:
        return self.version == "HTTP/1.1" and self.headers.get("expect", "").lower() == "100-continue"


def parse_head(data: bytes, limits: HeadLimits = DEFAULT_LIMITS) -> Head:
    """The bytes up to the empty line, without it. Raises RequestError with status 400, 414, 431, 501 or 505."""
    first, _, rest = data.partition(b"\n")
    first = first.removesuffix(b"\r")
    if len(first) > MAX_REQUEST_LINE_BYTES:
        raise line_too_long()
    if len(rest) > limits.max_bytes:
        raise headers_too_large(limits)
    method, target, version = _parse_request_line(first)
    headers = _parse_headers(rest, limits)
    _check_framing(headers, version)
    if version == "HTTP/1.1" and "host" not in headers:
        raise RequestError("a request needs a Host header")
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute:  # as sent to proxies; its authority replaces Host
        headers["host"], target = absolute[1], absolute[2] if absolute[2].startswith("/") else "/" + absolute[2]
    return Head(method, target, version, headers)


def line_too_long() -> RequestError:
    return RequestError(f"the request line is longer than {MAX_REQUEST_LINE_BYTES} bytes", status=414)


def headers_too_large(limits: HeadLimits) -> RequestError:
    return RequestError(f"the headers are larger than {limits.max_bytes} bytes (--max-header-size)", status=431)


def _parse_request_line(line: bytes) -> tuple[str, str, str]:
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        raise RequestError("the request line is not METHOD TARGET HTTP/1.1")
    method, target, major, minor = (part.decode("ascii") for part in match.groups())
    if major != "1":
        raise RequestError(f"HTTP/{major}.{minor} is not supported; use HTTP/1.1", status=505)
    return method, target, "HTTP/1.0" if minor == "0" else "HTTP/1.1"


def _parse_headers(data: bytes, limits: HeadLimits) -> dict[str, str]:
    lines = data.split(b"\n") if data else []
    if len(lines) > limits.max_headers:
        text = f"a request may have {limits.max_headers} headers (--max-headers), got {len(lines)}"
        raise RequestError(text, status=431)
    headers: dict[str, str] = {}
    for line in lines:
        match = _HEADER.fullmatch(line.removesuffix(b"\r"))
        if match is None:
            raise RequestError("a header line is not NAME: VALUE")
        name, value = match[1].decode("ascii").lower(), match[2].strip().decode("latin-1")
        if name not in headers:
            headers[name] = value
        elif name in _ONCE:
            raise RequestError(f"the header {name} may be given once only")
        else:
            headers[name] += ", " + value
    return headers


def _check_framing(headers: dict[str, str], version: str) -> None:
    """There is exactly one way to tell where the body ends."""
    coding, length = headers.get("transfer-encoding"), headers.get("content-length")
    if length is not None and not _LENGTH.fullmatch(length):
        raise RequestError("Content-Length must be a number of bytes")
    if coding is None:
        return
    if length is not None:
        raise RequestError("Content-Length and Transfer-Encoding exclude each other")
    if version == "HTTP/1.0":
        raise RequestError("HTTP/1.0 has no Transfer-Encoding")
    if coding.lower() != "chunked":
        raise RequestError("the only Transfer-Encoding is chunked", status=501)
