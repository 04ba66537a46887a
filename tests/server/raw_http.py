"""HTTP by hand over a plain socket, for everything that no well-behaved client would send."""

from __future__ import annotations

import json
import socket
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict:
        """The body, checked to have OpenAI's error shape."""
        assert self.headers["content-type"] == "application/json"
        error = json.loads(self.body)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return error


class Raw:
    """One connection. ``timeout_s`` bounds every wait."""

    def __init__(self, port: int, timeout_s: float = 15.0, receive_buffer: int | None = None):
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(timeout_s)
        self.socket.connect(("127.0.0.1", port))
        self._buffer = b""

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> Raw:
        """Send what the server still takes: it may refuse and close before it has read all."""
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            pass
        return self

    def answer(self) -> Answer:
        """The next answer on the connection; it must have a Content-Length."""
        head = self._read_until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
        length = int(headers["content-length"])
        while len(self._buffer) < length:
            self._buffer += self._receive()
        body, self._buffer = self._buffer[:length], self._buffer[length:]
        return Answer(int(head[0].split()[1]), headers, body)

    def rest(self) -> bytes:
        """Everything until the server closes the connection."""
        rest, self._buffer = self._buffer, b""
        while data := self.socket.recv(65536):
            rest += data
        return rest

    def closed_within(self, seconds: float) -> float:
        """Wait for the server to close the connection; returns the seconds it took."""
        begin = time.monotonic()
        self.socket.settimeout(seconds)
        try:
            while self.socket.recv(65536):
                pass
        except ConnectionResetError:
            pass
        except TimeoutError:
            raise AssertionError(f"the connection is still open after {seconds} s") from None
        return time.monotonic() - begin

    def _read_until(self, mark: bytes) -> bytes:
        while mark not in self._buffer:
            self._buffer += self._receive()
        head, _, self._buffer = self._buffer.partition(mark)
        return head

    def _receive(self) -> bytes:
        data = self.socket.recv(65536)
        if not data:
            raise AssertionError(f"the server closed the connection after {self._buffer!r:.200}")
        return data


def exchange(port: int, data: bytes) -> Answer:
    """Send bytes on a new connection, take one answer."""
    with Raw(port) as raw:
        return raw.send(data).answer()


def get(path: str, *headers: str) -> bytes:
    """A request without a body, as bytes."""
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode("latin-1")


def post(path: str, body: bytes, *headers: str) -> bytes:
    head = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(head).encode("latin-1") + body
