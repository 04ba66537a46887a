"""The server's end of the socket: requests out, token deltas in, one stream per live request.

One greenlet reads the socket; every request waits on its own ``TokenStream``. A stream merges what its reader has not
fetched yet, so a slow client costs memory by its tokens, not by its messages, and never slows others. Streams keep the
request and all tokens received, which is what it would take to continue them on a restarted engine.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import gevent
import msgspec
import zmq.green as zmq
from gevent.event import Event

from pyengine.admission import QueueFull
from pyengine.errors import RequestError
from pyengine.protocol import (
    Abort,
    AbortSequence,
    Fatal,
    Hello,
    Progress,
    Ready,
    Rejected,
    Request,
    ServerEnded,
    Stats,
    StepDeltas,
    TokenDelta,
    decode_to_server,
    encode,
)
from server.load import Backlog, load_of
from server.wakeup import Wakeup


class EngineDead(Exception):
    """The engine process ended while this request was live."""


class SequenceFailed(Exception):
    """The engine ended a sequence with an error of its own (logits that are not finite)."""


class TokenStream:
    """The tokens of one client's request (which may be several prompts) as they arrive. One reader."""

    def __init__(self, requests: list[Request]):
        self.requests = {request.request_id: request for request in requests}
        # All tokens received so far: with the requests, what it takes to go on where a dead engine stopped.
        self.token_ids: dict[tuple[str, int], list[int]] = {
            (r.request_id, i): [] for r in requests for i in range(r.params.n)
        }
        self.unfinished = set(self.token_ids)
        self._pending: list[TokenDelta] = []
        self._error: Exception | None = None
        self._wake = Wakeup()
        self._taken = Event()

    def wait_until_taken(self, timeout_s: float) -> None:
        """Until the engine has queued the request, or for ``timeout_s``. Raises what ``get`` would when it refused."""
        self._taken.wait(timeout_s)
        if self._error is not None and not self._pending:
            raise self._error

    def taken(self) -> None:
        self._taken.set()

    def get(self, timeout_s: float | None = None) -> list[TokenDelta]:
        """The deltas since the last call, waiting for at least one; [] after ``timeout_s``.

        Raises RequestError when the engine refused the request, EngineDead when it died.
        """
        if not self._wake.wait(timeout_s):
            return []
        pending, self._pending = self._pending, []
        if self._error is None:
            self._wake.clear()
        elif not pending:
            raise self._error
        return pending

    def put(self, delta: TokenDelta) -> None:
        """Take a delta of the engine; one of a sequence that the text side has ended adds nothing."""
        key = (delta.request_id, delta.index)
        if key not in self.unfinished:
            return
        self.token_ids[key] += delta.token_ids
        if delta.finish_reason is not None:
            self.unfinished.discard(key)
        self._pending.append(delta)
        self._wake.set()

    def fail(self, error: Exception) -> None:
        self._error = error
        self._wake.set()
        self._taken.set()

    def close(self) -> None:
        """Nobody reads it any more."""
        self._wake.close()


class EngineClient:
    """Speaks to the current engine process. ``on_ready`` and ``on_progress`` are called from the reading greenlet.

    ``name``: by which another process can tell the engine that this one has ended.
    """

    def __init__(
        self, on_ready: Callable[[Ready], None], on_progress: Callable[[Progress], None], name: str | None = None
    ):
        self._name = name
        self.stats = Stats()
        self.on_step: Callable[[Stats], None] | None = None
        self.fatal: Fatal | None = None
        self._on_ready = on_ready
        self._on_progress = on_progress
        self._streams: dict[str, TokenStream] = {}
        self._backlog: Backlog | None = None  # of the connected engine, once it is ready
        self._undecided: deque[tuple[int, TokenStream]] = deque()  # (requests sent so far, stream), oldest first
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
        if self._name is not None:
            self._socket.setsockopt(zmq.IDENTITY, self._name.encode())
        self._socket.connect(address)
        self._socket.send(encode(Hello()))
        self._reader = gevent.spawn(self._read, self._socket)

    def submit(self, requests: list[Request]) -> TokenStream:
        """Send requests of new ids to the engine, which takes all or none; their tokens come out of one stream.

        Raises QueueFull when the engine has already said that there is no room, EngineDead when it has gone since the
        request was read.
        """
        if self._backlog is None:
            raise EngineDead("the engine is being restarted; please send the request again")
        load = load_of(requests)
        self._backlog.check(load)
        stream = TokenStream(requests)
        self._undecided.append((self._backlog.sent(len(requests), load), stream))
        for num_more, request in zip(reversed(range(len(requests))), requests, strict=True):
            self._streams[request.request_id] = stream
            self._socket.send(encode(msgspec.structs.replace(request, num_more=num_more)))
        return stream

    def end_sequence(self, stream: TokenStream, request_id: str, index: int) -> None:
        """The text side has seen enough of one sequence (a stop string)."""
        if (request_id, index) in stream.unfinished:
            stream.unfinished.discard((request_id, index))
            self._socket.send(encode(AbortSequence(request_id, index)))
            self._drop_if_done(stream, request_id)

    def forget(self, stream: TokenStream) -> None:
        """The reader is gone or satisfied: abort what is still running. Safe to call twice."""
        stream.close()
        running = [request_id for request_id in stream.requests if self._streams.pop(request_id, None) is not None]
        if running and self._socket is not None:
            self._socket.send(encode(Abort(running)))

    def server_ended(self, name: str) -> None:
        """Another server of this engine is no more: nobody waits for its requests."""
        if self._socket is not None:
            self._socket.send(encode(ServerEnded(name)))

    def _drop_if_done(self, stream: TokenStream, request_id: str) -> None:
        if not any(owner == request_id for owner, _ in stream.unfinished):
            self._streams.pop(request_id, None)

    def engine_died(self) -> None:
        """Fail every live stream; a new engine knows nothing of them."""
        self._disconnect()
        self.stats = Stats()
        self.fail_all(
            EngineDead("the engine process ended unexpectedly and is being restarted; please send the request again")
        )

    def fail_all(self, error: Exception) -> None:
        """End every live stream with ``error``."""
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.fail(error)

    def close(self) -> None:
        self._disconnect()
        self._context.term()

    def _disconnect(self) -> None:
        self._backlog = None
        self._undecided.clear()
        if self._reader is not None:
            self._reader.kill()
            self._reader = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _read(self, socket: zmq.Socket) -> None:
        handlers = {
            StepDeltas: self._on_deltas,
            Ready: self._on_engine_ready,
            Progress: self._on_progress,
            Rejected: self._on_rejected,
            Fatal: self._on_fatal,
        }
        while True:
            message = decode_to_server(socket.recv())
            handlers[type(message)](message)

    def _on_engine_ready(self, ready: Ready) -> None:
        self._backlog = self._backlog or Backlog(ready)
        self._on_ready(ready)

    def _on_deltas(self, message: StepDeltas) -> None:
        for delta in message.deltas:
            stream = self._streams.get(delta.request_id)
            if stream is None:
                continue  # aborted a moment ago
            stream.put(delta)
            if delta.finish_reason is not None:
                self._drop_if_done(stream, delta.request_id)
        if self._backlog is not None:
            self._backlog.reported(message.stats, message.num_received)
        while self._undecided and self._undecided[0][0] <= message.num_received:
            self._undecided.popleft()[1].taken()
        if message.stats is not None:
            self.stats = message.stats
            if self.on_step is not None:
                self.on_step(message.stats)

    def _on_rejected(self, message: Rejected) -> None:
        stream = self._streams.pop(message.request_id, None)
        if stream is None:
            return
        if message.status == 429:
            stream.fail(QueueFull(message.text, message.code, message.retry_after_s))
        else:
            stream.fail(RequestError(message.text, param=message.param, status=message.status, code=message.code))

    def _on_fatal(self, message: Fatal) -> None:
        self.fatal = message
