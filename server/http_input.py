"""What a client sends, read with a bound on size and time: ``Inbox`` on one connection, ``Body`` of one request.

A client that sends slowly holds nothing but its own socket, and not for long: a head must be complete within the
client timeout, a body may take that long and a second more for each ``MIN_BYTES_PER_S`` of it.
"""

from __future__ import annotations

import io
import re
import time
from dataclasses import dataclass

import gevent
from gevent import socket

from pyengine.errors import RequestError
from server.http_head import (
    DEFAULT_LIMITS,
    MAX_REQUEST_LINE_BYTES,
    Head,
    HeadLimits,
    headers_too_large,
    line_too_long,
)

RECEIVE_BYTES = 64 << 10
MIN_BYTES_PER_S = 16 << 10  # a client slower than this, in either direction, is cut off in the end
MAX_CHUNK_LINE_BYTES = 256
MAX_TRAILERS = 64
MAX_CHUNKS = 16 << 10  # of one body: a flood of tiny ones costs more time than it carries data
_END_OF_HEAD = re.compile(rb"\n\r?\n")
_CHUNK_SIZE = re.compile(rb"([0-9a-fA-F]{1,8})[ \t]*(?:;[\t\x20-\x7e]*)?")


class Inbox:
    """Buffered reading from a client's socket. A closed connection is a ConnectionError, a slow client a TimeoutError.

    Holds no memory while it waits for a request.
    """

    def __init__(self, client: socket.socket, timeout_s: float, limits: HeadLimits = DEFAULT_LIMITS):
        self._socket = client
        self._timeout_s = timeout_s
        self._limits = limits
        self._buffer = bytearray()

    @property
    def pending(self) -> bool:
        """Something has been received that nobody has read: a pipelined request."""
        return bool(self._buffer)

    def wait_for_request(self, timeout_s: float) -> bool:
        """Whether a request begins within the time; False when the client closes the connection or stays silent."""
        try:
            self._skip_empty_line()
            while not self._buffer:
                self._receive(timeout_s)
                self._skip_empty_line()
        except OSError:
            return False
        return True

    def _skip_empty_line(self) -> None:
        """Some clients send one behind a body (RFC 9112, section 2.2)."""
        if self._buffer.startswith(b"\r\n"):
            del self._buffer[:2]

    def read_head(self) -> bytes:
        """A request's head without its empty line. Raises RequestError (400, 408, 414, 431)."""
        deadline_s = time.monotonic() + self._timeout_s
        searched = 0
        while True:
            end = _END_OF_HEAD.search(self._buffer, max(0, searched - 2))
            if end:
                head = bytes(self._buffer[: end.start()])
                del self._buffer[: end.end()]
                return head.removesuffix(b"\r")
            self._check_partial_head()
            searched = len(self._buffer)
            self._receive_by(deadline_s, "the request's headers")

    def _check_partial_head(self) -> None:
        """Refuse what can no longer become a good head, without waiting for the rest."""
        if not self._buffer[:1].isalpha():
            raise RequestError("this is not an HTTP request (the server does not speak TLS)")
        if self._buffer.find(b"\n", 0, MAX_REQUEST_LINE_BYTES + 2) < 0:
            if len(self._buffer) > MAX_REQUEST_LINE_BYTES + 1:
                raise line_too_long()
        elif len(self._buffer) > MAX_REQUEST_LINE_BYTES + self._limits.max_bytes + 4:
            raise headers_too_large(self._limits)

    def read_line(self, deadline_s: float) -> bytes:
        """A line of a chunked body, without its end."""
        while True:
            end = self._buffer.find(b"\n", 0, MAX_CHUNK_LINE_BYTES)
            if end >= 0:
                line = bytes(self._buffer[:end])
                del self._buffer[: end + 1]
                return line.removesuffix(b"\r")
            if len(self._buffer) >= MAX_CHUNK_LINE_BYTES:
                raise RequestError("the chunked body has a line that is too long")
            self._receive_by(deadline_s, "the request's body")

    def read_some(self, max_bytes: int, deadline_s: float) -> bytes:
        """At least one byte, at most ``max_bytes``."""
        if not self._buffer:
            self._receive_by(deadline_s, "the request's body")
        data = bytes(self._buffer[:max_bytes])
        del self._buffer[:max_bytes]
        return data

    def drop(self, count: int) -> bool:
        """Forget ``count`` bytes if all of them are here already."""
        if len(self._buffer) < count:
            return False
        del self._buffer[:count]
        return True

    def discard(self, timeout_s: float) -> None:
        """Take in and drop what the client still sends, until it closes the connection."""
        self._buffer.clear()
        deadline_s = time.monotonic() + timeout_s
        try:
            while time.monotonic() < deadline_s:
                self._receive(deadline_s - time.monotonic())
                self._buffer.clear()
                gevent.sleep(0)  # a client that sends without pause must not keep others waiting
        except OSError:
            pass

    def _receive_by(self, deadline_s: float, what: str) -> None:
        left_s = deadline_s - time.monotonic()
        try:
            if left_s <= 0:
                raise TimeoutError
            self._receive(left_s)
        except TimeoutError:
            raise RequestError(f"{what} did not arrive in time (--client-timeout)", status=408) from None
        except ConnectionError:
            raise RequestError(f"the connection was closed before {what} had arrived") from None

    def _receive(self, timeout_s: float) -> None:
        self._socket.settimeout(max(timeout_s, 0.001))
        try:
            data = self._socket.recv(RECEIVE_BYTES)
        finally:
            self._socket.settimeout(self._timeout_s)
        if not data:
            raise ConnectionAbortedError("the client closed the connection")
        self._buffer += data


@dataclass
class BodyBudget:
    """Bytes that all unfinished bodies of the server may hold together."""

    max_bytes: int
    num_bytes: int = 0

    def take(self, num_bytes: int) -> None:
        if self.num_bytes + num_bytes > self.max_bytes:
            raise RequestError("too many large request bodies at once; try again", status=503)
        self.num_bytes += num_bytes

    def give_back(self, num_bytes: int) -> None:
        self.num_bytes -= num_bytes


@dataclass(frozen=True)
class BodyLimits:
    max_bytes: int
    timeout_s: float
    budget: BodyBudget


class Body:
    """``wsgi.input``: read whole on first use, then a file in memory. A request that nobody reads costs nothing.

    Reading raises RequestError: 400 (malformed), 408, 413, 415 (encoded), 503. Another request can follow on the
    connection only when ``at_end``.
    """

    def __init__(self, inbox: Inbox, head: Head, client: socket.socket, limits: BodyLimits):
        self._inbox = inbox
        self._head = head
        self._client = client
        self._limits = limits
        self._file: io.BytesIO | None = None
        self._num_held = 0
        self._started = False
        self.at_end = not head.has_body

    def read(self, size: int | None = -1) -> bytes:
        return self._loaded().read(size)

    def readline(self, size: int | None = -1) -> bytes:
        return self._loaded().readline(size)

    def readlines(self, hint: int = -1) -> list[bytes]:
        return self._loaded().readlines(hint)

    def __iter__(self) -> io.BytesIO:
        return iter(self._loaded())

    def skip(self) -> None:
        """Get past a body that nobody wants, if that takes no waiting."""
        if not self.at_end and not self._started and not self._head.chunked:
            self.at_end = self._inbox.drop(self._head.content_length)

    def release(self) -> None:
        """The request has been taken in or is over: its body no longer counts."""
        self._limits.budget.give_back(self._num_held)
        self._num_held = 0

    def _loaded(self) -> io.BytesIO:
        if self._file is None:
            self._file = io.BytesIO(b"".join(self._load()))
        return self._file

    def _load(self) -> list[bytes]:
        if self.at_end:
            return []
        head, max_bytes = self._head, self._limits.max_bytes
        if head.content_encoding:
            raise RequestError(f"Content-Encoding {head.content_encoding[:40]!r} is not supported", status=415)
        if (head.content_length or 0) > max_bytes:
            raise self._too_large()
        if head.expects_continue:
            self._client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._started = True
        self._deadline_s = time.monotonic() + self._limits.timeout_s
        parts: list[bytes] = []
        if head.chunked:
            self._load_chunks(parts)
        else:
            self._load_bytes(head.content_length, parts)
        self.at_end = True
        return parts

    def _load_chunks(self, parts: list[bytes]) -> None:
        for _ in range(MAX_CHUNKS):
            match = _CHUNK_SIZE.fullmatch(self._inbox.read_line(self._deadline_s))
            if match is None:
                raise RequestError("the chunked body has no chunk size where one is due")
            size = int(match[1], 16)
            if self._num_held + size > self._limits.max_bytes:
                raise self._too_large()
            if not size:
                self._skip_trailers()
                return
            self._load_bytes(size, parts)
            if self._inbox.read_line(self._deadline_s):
                raise RequestError("a chunk is longer than its size")
        raise RequestError(f"the body has more than {MAX_CHUNKS} chunks")

    def _load_bytes(self, count: int, parts: list[bytes]) -> None:
        while count:
            data = self._inbox.read_some(count, self._deadline_s)
            self._limits.budget.take(len(data))
            self._num_held += len(data)
            self._deadline_s += len(data) / MIN_BYTES_PER_S
            count -= len(data)
            parts.append(data)

    def _skip_trailers(self) -> None:
        for _ in range(MAX_TRAILERS):
            if not self._inbox.read_line(self._deadline_s):
                return
        raise RequestError("the chunked body has too many trailers")

    def _too_large(self) -> RequestError:
        return RequestError(
            f"the request body is larger than {self._limits.max_bytes} bytes (--max-body-size)", status=413
        )
