"""A load client's sockets: many streamed completions at once in one thread, each event timed as it arrives.

Hand-rolled down to the bytes, because the client shares the machine with what it measures and must never be its limit:
non-blocking sockets in one selector, no parser where a search for bytes will do. Speaks just enough HTTP/1.1 for a
``text/event-stream`` answer of any OpenAI-compatible server, chunked or not.
"""

from __future__ import annotations

import heapq
import json
import re
import selectors
import socket
import time
from collections import deque
from dataclasses import dataclass, field

RECV_BYTES = 1 << 18
_NO_TEXT = re.compile(rb'"(?:text|content)": ?""|"delta": ?\{\}').search
_NOT_FINISHED = re.compile(rb'"finish_reason": ?null').search
_NO_CHOICES = re.compile(rb'"choices": ?\[\]').search


@dataclass
class Call:
    """One request to make: the bytes to send, and what a whole answer to it must have."""

    index: int
    wire: bytes
    num_prompt_tokens: int
    max_tokens: int
    arrival_s: float = 0.0
    chained: bool = False


@dataclass
class Outcome:
    """What came of a call, in seconds since the common start. ``error`` is None when the answer was whole."""

    index: int
    due_s: float
    sent_s: float = 0.0  # when its connection was begun; later than due by what the client was late
    event_s: list[float] = field(default_factory=list)  # of each event that brought text
    end_s: float = 0.0
    error: str | None = None


def request_bytes(host: str, path: str, body: dict, api_key: str | None = None) -> bytes:
    payload = json.dumps(body, separators=(",", ":")).encode()
    lines = [
        f"POST {path} HTTP/1.1",
        f"Host: {host}",
        "Content-Type: application/json",
        f"Content-Length: {len(payload)}",
        "Connection: close",
    ]
    if api_key:
        lines.append(f"Authorization: Bearer {api_key}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + payload


class EventReader:
    """Bytes of one HTTP response to the payloads of its events. Raises ValueError for what is no event stream."""

    def __init__(self) -> None:
        self._raw = b""
        self._text = b""
        self._in_head = True
        self._chunked = False

    def feed(self, data: bytes) -> list[bytes]:
        self._raw += data
        if self._in_head and not self._read_head():
            return []
        if self._chunked:
            self._read_chunks()
        else:
            self._text, self._raw = self._text + self._raw, b""
        if b"\r" in self._text:
            self._text = self._text.replace(b"\r\n", b"\n")
        *events, self._text = self._text.split(b"\n\n")
        return [event[5:].lstrip() for event in events if event.startswith(b"data:")]

    def _read_head(self) -> bool:
        head, found, rest = self._raw.partition(b"\r\n\r\n")
        if not found:
            return False
        status, *headers = head.lower().split(b"\r\n")
        if status.split(b" ")[1:2] != [b"200"]:
            raise ValueError(f"{head.splitlines()[0].decode('latin-1')}: {rest[:500].decode('utf-8', 'replace')}")
        self._chunked = any(line.startswith(b"transfer-encoding:") and b"chunked" in line for line in headers)
        self._in_head, self._raw = False, rest
        return True

    def _read_chunks(self) -> None:
        raw, at, pieces = self._raw, 0, []
        while (line_end := raw.find(b"\r\n", at)) >= 0:
            size = int(raw[at:line_end].partition(b";")[0], 16)
            begin = line_end + 2
            if len(raw) < begin + size + 2:
                break
            pieces.append(raw[begin : begin + size])
            at = begin + size + 2
        self._raw = raw[at:]
        self._text += b"".join(pieces)


class _Exchange:
    """One call under way."""

    def __init__(self, call: Call, outcome: Outcome, address: tuple, family: int):
        self.call, self.outcome = call, outcome
        self.unsent = memoryview(call.wire)
        self._reader = EventReader()
        self._usage: dict | None = None
        self._done = False
        self.socket = socket.socket(family, socket.SOCK_STREAM)
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.connect_ex(address)

    def send(self) -> bool:
        """Whether all of it is sent. Raises OSError, also when the connection was refused."""
        try:
            self.unsent = self.unsent[self.socket.send(self.unsent) :]
        except BlockingIOError:
            pass
        return not self.unsent

    def receive(self, start_s: float) -> bool:
        """Take in what has arrived; whether the answer has ended. Raises OSError and ValueError."""
        data = self.socket.recv(RECV_BYTES)
        now_s = time.monotonic() - start_s
        for payload in self._reader.feed(data):
            if payload == b"[DONE]":
                self._done = True
            elif payload.startswith(b'{"error"'):
                raise ValueError(payload[:500].decode("utf-8", "replace"))
            elif _NO_CHOICES(payload):
                self._usage = json.loads(payload).get("usage")
            elif not _NO_TEXT(payload) or (_NOT_FINISHED(payload) and b'"role"' not in payload):
                self.outcome.event_s.append(now_s)
        return self._done or not data

    def fault(self) -> str | None:
        """What is wrong with the answer now that it has ended."""
        usage, call = self._usage or {}, self.call
        if not self._done:
            return "the stream ended without [DONE]"
        counts = usage.get("prompt_tokens"), usage.get("completion_tokens")
        if counts != (call.num_prompt_tokens, call.max_tokens):
            return f"{counts} tokens in and out, asked for {(call.num_prompt_tokens, call.max_tokens)}"
        return None if self.outcome.event_s else "no event brought text"


class Client:
    """Runs calls against one address in the calling thread."""

    def __init__(self, host: str, port: int, silence_s: float = 600.0):
        self._family, _, _, _, self._address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        self._silence_s = silence_s  # without a byte from anybody: all that is left has failed
        self._selector = selectors.DefaultSelector()
        self._outcomes: list[Outcome] = []

    def run(self, calls: list[Call], start_s: float) -> list[Outcome]:
        """Outcomes of all calls; ``start_s`` on the monotonic clock, the same for all processes."""
        due = [(call.arrival_s, call.index, call) for call in calls if not call.chained]
        chain = deque(call for call in calls if call.chained)
        if chain:
            due.append((chain[0].arrival_s, chain[0].index, chain.popleft()))
        heapq.heapify(due)
        last_s = max(start_s, time.monotonic())
        while due or self._selector.get_map():
            now_s = time.monotonic() - start_s
            while due and due[0][0] <= now_s:
                due_s, _, call = heapq.heappop(due)
                self._begin(call, due_s, start_s)
            wait_s = due[0][0] - now_s if due else 1.0
            ready = self._selector.select(max(0.0, min(wait_s, 1.0)))
            if ready:
                last_s = time.monotonic()
            elif not due and time.monotonic() - last_s > self._silence_s:
                self._give_up(start_s)
            for key, mask in ready:
                if self._serve(key.data, mask, start_s) and key.data.call.chained and chain:
                    call = chain.popleft()
                    heapq.heappush(due, (max(call.arrival_s, time.monotonic() - start_s), call.index, call))
        return self._outcomes

    def _begin(self, call: Call, due_s: float, start_s: float) -> None:
        outcome = Outcome(call.index, due_s, sent_s=time.monotonic() - start_s)
        self._outcomes.append(outcome)
        exchange = _Exchange(call, outcome, self._address, self._family)
        self._selector.register(exchange.socket, selectors.EVENT_WRITE, exchange)

    def _serve(self, exchange: _Exchange, mask: int, start_s: float) -> bool:
        """Move one exchange on; whether it is over."""
        try:
            if mask & selectors.EVENT_WRITE:
                if exchange.send():
                    self._selector.modify(exchange.socket, selectors.EVENT_READ, exchange)
                return False
            if not exchange.receive(start_s):
                return False
            exchange.outcome.error = exchange.fault()
        except (OSError, ValueError) as error:
            exchange.outcome.error = str(error) or type(error).__name__
        self._end(exchange, start_s)
        return True

    def _end(self, exchange: _Exchange, start_s: float) -> None:
        exchange.outcome.end_s = time.monotonic() - start_s
        self._selector.unregister(exchange.socket)
        exchange.socket.close()

    def _give_up(self, start_s: float) -> None:
        for key in list(self._selector.get_map().values()):
            key.data.outcome.error = f"nothing came for {self._silence_s:g} s"
            self._end(key.data, start_s)
