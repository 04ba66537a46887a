"""The engine as a process: ``python -m pyengine.engine_proc ADDRESS`` with an EngineConfig as JSON on standard input.

A loop around ``Engine``: drain the socket, step, send one message per server. It speaks token ids only (``protocol``),
over a ZMQ ROUTER socket on a local path that its parent made in a private folder. It blocks on the socket only when
there is nothing to compute, ends with its parent, and tells its parent why when it cannot go on. It can be started by
hand under a debugger or profiler.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
import time
import traceback
from collections import defaultdict
from typing import TYPE_CHECKING

import msgspec
import zmq

from pyengine import bytecode, cuda_driver
from pyengine.admission import DrainRate, QueueFull, QueueLimits, QueueLoad
from pyengine.config import EngineConfig
from pyengine.errors import PyengineError, RequestError
from pyengine.process_age import process_age_s
from pyengine.protocol import (
    Abort,
    AbortSequence,
    Control,
    ControlKind,
    Fatal,
    Hello,
    Progress,
    Ready,
    Rejected,
    Request,
    ServerEnded,
    Stats,
    StepDeltas,
    ToEngine,
    TokenDelta,
    ToServer,
    decode_to_engine,
    encode,
)

if TYPE_CHECKING:
    from pyengine.engine import Engine

STATS_INTERVAL_S = 0.5
PROGRESS_INTERVAL_S = 0.1
IDLE_POLL_MS = 1000  # how soon a dead parent is noticed when idle
PR_SET_PDEATHSIG = 1


class Link:
    """The engine's end of the socket: knows the servers, and which of them each request came from."""

    def __init__(self, address: str):
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(
            zmq.SNDHWM, 0
        )  # a server drains in its own time; its memory is bounded by its live requests
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.setsockopt(zmq.LINGER, 1000)
        self._socket.bind(address)
        self._servers: dict[bytes, None] = {}

    def receive(self, timeout_ms: int) -> list[tuple[bytes, ToEngine]]:
        """Everything that has arrived, waiting up to ``timeout_ms`` for the first message. Foreign bytes are dropped
        with a log line.
        """
        messages = []
        while self._socket.poll(0 if messages else timeout_ms):
            server, data = self._socket.recv_multipart()
            try:
                message = decode_to_engine(data)
            except (msgspec.DecodeError, RequestError) as error:
                print(f"pyengine: dropped a message that is not of the protocol: {error}", file=sys.stderr)
                continue
            self._servers[server] = None
            messages.append((server, message))
        return messages

    def send(self, server: bytes, message: ToServer) -> None:
        self._socket.send_multipart((server, encode(message)))

    @property
    def servers(self) -> list[bytes]:
        return list(self._servers)

    def forget(self, server: bytes) -> None:
        self._servers.pop(server, None)

    def broadcast(self, message: ToServer) -> None:
        for server in self._servers:
            self.send(server, message)

    def close(self) -> None:
        self._socket.close()
        self._context.term()


class EngineLoop:
    """Serves requests from ``link`` with ``engine`` until told to stop."""

    def __init__(self, engine: Engine, link: Link, queue_limits: QueueLimits):
        self._engine = engine
        self._link = link
        self._queue_limits = queue_limits
        self._drain_rate = DrainRate()
        self._queueing = False  # when the servers were last told
        self.ready: Ready = msgspec.structs.replace(
            engine.facts.ready(), max_queued_requests=queue_limits.max_seqs, max_queued_tokens=queue_limits.max_tokens
        )
        self._arriving: dict[bytes, list[Request]] = defaultdict(list)  # prompts whose siblings are still on the way
        self._num_received: dict[bytes, int] = defaultdict(int)  # requests decided on, by server
        self._server_of: dict[str, bytes] = {}  # live requests
        self._next_stats_s = 0.0
        self._handlers = {
            Hello: self._on_hello,
            Request: self._on_request,
            Abort: self._on_abort,
            AbortSequence: self._on_abort_sequence,
            ServerEnded: self._on_server_ended,
            Control: self._on_control,
        }
        self.stopping = False

    def run(self) -> None:
        while not self.stopping:
            for server, message in self._link.receive(0 if self._engine.has_work else IDLE_POLL_MS):
                self._handlers[type(message)](server, message)
            if self._engine.has_work:
                self._report(self._engine.step())

    def _on_hello(self, server: bytes, message: Hello) -> None:
        self._link.send(server, self.ready)

    def _on_request(self, server: bytes, request: Request) -> None:
        """Decide on the prompts of a client's request together, once the last of them is here."""
        arriving = self._arriving[server]
        arriving.append(request)
        if request.num_more:
            return
        del self._arriving[server]
        self._num_received[server] += len(arriving)
        try:
            self._admit(arriving)
        except RequestError as error:
            self._engine.abort([each.request_id for each in arriving if each.request_id not in self._server_of])
            wait_s = error.retry_after_s if isinstance(error, QueueFull) else 0.0
            refused = Rejected(request.request_id, error.status, error.message, error.param, error.code, wait_s)
            self._link.send(server, refused)
            return
        self._server_of.update((each.request_id, server) for each in arriving)

    def _admit(self, requests: list[Request]) -> None:
        """Queue all of them, or raise RequestError (QueueFull when there is no room now)."""
        num_tokens = sum(each.params.n * len(each.prompt_token_ids) for each in requests)
        new = QueueLoad(sum(each.params.n for each in requests), num_tokens)
        self._queue_limits.check(self._engine.scheduler.queued, new, self._drain_rate.per_s)
        for request in requests:
            self._check(request)
            self._engine.add(request)

    def _check(self, request: Request) -> None:
        """The last line of defence: ids index device memory, so they are checked here whatever the server did."""
        vocab_size = self.ready.vocab_size
        if any(not 0 <= token_id < vocab_size for token_id in request.prompt_token_ids):
            raise RequestError(f"prompt token ids must be in [0, {vocab_size})", param="prompt")

    def _on_abort(self, server: bytes, abort: Abort) -> None:
        self._engine.abort(abort.request_ids)
        for request_id in abort.request_ids:
            self._server_of.pop(request_id, None)
        self._next_stats_s = 0.0  # blocks came back: say so soon
        if not self._engine.has_work:
            self._report([])

    def _on_abort_sequence(self, server: bytes, abort: AbortSequence) -> None:
        self._engine.abort_sequence(abort.request_id, abort.index)
        self._forget_if_done(abort.request_id)

    def _on_server_ended(self, server: bytes, message: ServerEnded) -> None:
        ended = message.name.encode()
        self._link.forget(ended)
        self._arriving.pop(ended, None)
        self._num_received.pop(ended, None)
        self._on_abort(server, Abort([request_id for request_id, owner in self._server_of.items() if owner == ended]))

    def _on_control(self, server: bytes, control: Control) -> None:
        if control.kind is ControlKind.FLUSH_PREFIX_CACHE:
            self._engine.scheduler.blocks.flush_cache()
        self._send(server, [], self._stats())

    def _report(self, deltas: list[TokenDelta]) -> None:
        """One message to each server that has tokens in this step; to all when statistics are due."""
        by_server: dict[bytes, list[TokenDelta]] = defaultdict(list)
        for delta in deltas:
            by_server[self._server_of[delta.request_id]].append(delta)
        for delta in deltas:
            if delta.finish_reason is not None:
                self._forget_if_done(delta.request_id)
        stats = self._stats_if_due()
        for server in self._link.servers if stats else by_server:
            self._send(server, by_server[server], stats)

    def _stats_if_due(self) -> Stats | None:
        """Now and then, and with every step while requests queue up: servers refuse at once what would not fit."""
        scheduler, now = self._engine.scheduler, time.monotonic()
        was_queueing, self._queueing = self._queueing, bool(scheduler.queued.num_seqs)
        self._drain_rate.observe(now, scheduler.dequeued, self._queueing)
        if now < self._next_stats_s and not (self._queueing or was_queueing) and self._engine.has_work:
            return None
        self._next_stats_s = now + STATS_INTERVAL_S
        return self._stats()

    def _send(self, server: bytes, deltas: list[TokenDelta], stats: Stats | None = None) -> None:
        self._link.send(server, StepDeltas(deltas, stats, self._num_received[server]))

    def _stats(self) -> Stats:
        rate = self._drain_rate.per_s
        return msgspec.structs.replace(
            self._engine.stats(), drained_seqs_per_s=rate.num_seqs, drained_tokens_per_s=rate.num_tokens
        )

    def _forget_if_done(self, request_id: str) -> None:
        if not self._engine.scheduler.is_live(request_id):
            self._server_of.pop(request_id, None)


def _progress_reporter(link: Link):
    """Passes start-up progress on to the servers, at most a few times a second, and lets them say hello meanwhile."""
    next_s = 0.0

    def report(text: str, done: int, total: int) -> None:
        nonlocal next_s
        now = time.monotonic()
        if now >= next_s or done == total:
            next_s = now + PROGRESS_INTERVAL_S
            link.receive(0)
            link.broadcast(Progress(text, done / total if total else 0.0))

    return report


def _die_with_parent() -> None:
    """Linux: SIGKILL when the parent ends, however it ends. Nothing of an engine is worth saving without its server."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == 1:
        sys.exit(0)


def main(argv: list[str]) -> int:
    if len(argv) != 2:
        print("usage: python -m pyengine.engine_proc ipc:///path/of/socket < config.json", file=sys.stderr)
        return 2
    _die_with_parent()
    cuda_driver.wake()
    bytecode.keep()
    from pyengine.engine import Engine  # torch: beside the driver

    imported_s = process_age_s()
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # a terminal's Ctrl-C reaches the whole group; the server decides when to stop
    config = msgspec.json.decode(sys.stdin.buffer.read(), type=EngineConfig)
    link = Link(argv[1])
    link.receive(IDLE_POLL_MS)  # the parent says hello, so that it can be told of progress and failure
    try:
        engine = Engine.start(config, _progress_reporter(link))
        loop = EngineLoop(engine, link, QueueLimits(config.max_queued_requests, config.max_queued_tokens))
        startup_s = {"import": imported_s, **loop.ready.startup_s}
        loop.ready = msgspec.structs.replace(loop.ready, startup_s=startup_s)
        link.broadcast(loop.ready)
        gc.collect()
        gc.freeze()  # the modules and the model's graph live as long as the process: never walk them again in a step
        signal.signal(signal.SIGTERM, lambda *_: setattr(loop, "stopping", True))
        loop.run()
        return 0
    except PyengineError as error:
        link.broadcast(Fatal(str(error), error.exit_code))
        return error.exit_code
    except Exception as error:
        traceback.print_exc()
        link.broadcast(Fatal(f"the engine failed: {type(error).__name__}: {error}", 1))
        return 1
    finally:
        link.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv))
