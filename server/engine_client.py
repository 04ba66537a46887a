"""The server's end of the socket: requests out, token deltas in, one stream per live request.

One greenlet reads the socket; every request waits on its own ``TokenStream``. A stream merges what its reader has not fetched yet, so a slow client costs
memory by its tokens, not by its messages, and never slows others. Streams keep the request and all tokens received, which is what it
would take to continue them on a restarted engine.
"""

from __future__ import annotations

from collections.abc import Callable

import gevent
import zmq.green as zmq
from gevent.event import Event

from pyengine.errors import RequestError
from pyengine.protocol import (
    Abort,
    Fatal,
    Hello,
    Progress,
    Ready,
    Rejected,
    Request,
    Stats,
    StepDeltas,
    TokenDelta,
    decode_to_server,
    encode,
)


class EngineDead(Exception):
    """The engine process ended while this request was live."""


class TokenStream:
    """The tokens of one request as they arrive. One reader."""

    def __init__(self, request: Request):
        self.request = request
        self.token_ids: list[list[int]] = [[] for _ in range(request.params.n)]  # all received so far, by index
        self.num_unfinished = request.params.n
        self._pending: list[TokenDelta] = []
        self._error: Exception | None = None
        self._wake = Event()

    def get(self, timeout_s: float | None = None) -> list[TokenDelta]:
        """The deltas since the last call, waiting for at least one; [] after ``timeout_s``.

        Raises RequestError when the engine refused the request, EngineDead when it died.
        """
        if not self._wake.wait(timeout_s):
            return []
        self._wake.clear()
        pending, self._pending = self._pending, []
        if self._error is not None and not pending:
            raise self._error
        if self._error is not None:
            self._wake.set()  # the next call raises
        return pending

    def put(self, delta: TokenDelta) -> None:
        self.token_ids[delta.index] += delta.token_ids
        if delta.finish_reason is not None:
            self.num_unfinished -= 1
        self._pending.append(delta)
        self._wake.set()

    def fail(self, error: Exception) -> None:
        self._error = error
        self._wake.set()


class EngineClient:
    """Speaks to the current engine process. ``on_ready`` and ``on_progress`` are called from the reading greenlet."""

    def __init__(self, on_ready: Callable[[Ready], None], on_progress: Callable[[Progress], None]):
        self.stats = Stats()
        self.on_step: Callable[[Stats], None] | None = None
        self.fatal: Fatal | None = None
        self._on_ready = on_ready
        self._on_progress = on_progress
        self._streams: dict[str, TokenStream] = {}
        self._context = zmq.Context()
        self._socket = None
        self._reader = None

    @property
    def num_live(self) -> int:
        return len(self._streams)

    def connect(self, address: str) -> None:
        """Speak to a (new) engine; what is left of the old connection is dropped."""
        self._disconnect()
        self.fatal = None
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(address)
        self._socket.send(encode(Hello()))
        self._reader = gevent.spawn(self._read, self._socket)

    def submit(self, request: Request) -> TokenStream:
        stream = self._streams[request.request_id] = TokenStream(request)
        self._socket.send(encode(request))
        return stream

    def forget(self, stream: TokenStream) -> None:
        """The reader is gone or satisfied: abort what is still running. Safe to call twice."""
        if self._streams.pop(stream.request.request_id, None) is not None and stream.num_unfinished:
            self._socket.send(encode(Abort([stream.request.request_id])))

    def engine_died(self) -> None:
        """Fail every live stream; a new engine knows nothing of them."""
        self._disconnect()
        streams, self._streams = self._streams, {}
        self.stats = Stats()
        for stream in streams.values():
            stream.fail(EngineDead("the engine process ended unexpectedly and is being restarted; please send the request again"))

    def fail_all(self, error: Exception) -> None:
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.fail(error)

    def close(self) -> None:
        self._disconnect()
        self._context.term()

    def _disconnect(self) -> None:
        if self._reader is not None:
            self._reader.kill()
            self._reader = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _read(self, socket: zmq.Socket) -> None:
        handlers = {StepDeltas: self._on_deltas, Ready: self._on_ready, Progress: self._on_progress, Rejected: self._on_rejected, Fatal: self._on_fatal}
        while True:
            message = decode_to_server(socket.recv())
            handlers[type(message)](message)

    def _on_deltas(self, message: StepDeltas) -> None:
        for delta in message.deltas:
            stream = self._streams.get(delta.request_id)
            if stream is None:
                continue  # aborted a moment ago
            stream.put(delta)
            if delta.finish_reason is not None and not stream.num_unfinished:
                del self._streams[delta.request_id]
        if message.stats is not None:
            self.stats = message.stats
            if self.on_step is not None:
                self.on_step(message.stats)

    def _on_rejected(self, message: Rejected) -> None:
        stream = self._streams.pop(message.request_id, None)
        if stream is not None:
            stream.num_unfinished = 0
            stream.fail(RequestError(message.text, status=message.status))

    def _on_fatal(self, message: Fatal) -> None:
        self.fatal = message


