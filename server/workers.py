"""Several API workers on one port, as the launcher sees them: started, told what happens, replaced when they die.

The launcher has bound the port; the workers inherit its listening socket and take turns in accepting. Each speaks to
the engine by itself, which alone owns the queue. The launcher serves no HTTP; it listens to the engine for what happens
and for its statistics, which it writes on the metric board for all.
"""

from __future__ import annotations

import secrets
import subprocess
import sys
import time
from pathlib import Path
from socket import socket

import gevent
import msgspec

from pyengine.config import EngineConfig
from pyengine.protocol import Progress, Ready
from server import console
from server.app import create_app
from server.config import ServerConfig
from server.engine_client import EngineClient
from server.http_side import END_OF_STREAMS_S, Events, StartTimes
from server.metric_board import Board
from server.metrics import Metrics
from server.state import ServerState
from server.worker_messages import (
    Connect,
    Doing,
    Drain,
    EngineDied,
    Failed,
    Load,
    Open,
    Serving,
    Setup,
    ToWorker,
    decode_to_launcher,
    encode,
)

RESTART_DELAY_S = 1.0  # between two starts of one worker
END_S = 3.0  # for a process to end once its requests have


class Workers:
    """All of them. Has the same methods as ``HttpSide``."""

    def __init__(
        self, config: ServerConfig, engine_config: EngineConfig, events: Events, times: StartTimes, folder: Path
    ):
        create_app(ServerState(), lambda: None, config)  # options that do not work show here, not in a worker
        self._config = config
        self._engine_config = engine_config
        self._events = events
        self._times = times
        self._num = config.api_workers
        self._board = folder / "metrics"
        Board.create(self._board, self._num + 1)  # the last row is the launcher's own
        self._metrics: Metrics | None = None
        self.client = EngineClient(self._on_ready, events.progress)
        self._children: list[subprocess.Popen | None] = [None] * self._num
        self._keepers: list[gevent.Greenlet] = []
        self._listener: socket | None = None
        self._ready: Ready | None = None  # of the current engine
        self._path: Path | None = None
        self._address: str | None = None
        self._ending = False
        self._ready_places: set[int] = set()
        self._last_served: Serving | None = None
        self._is_open = False  # all of them were ready once
        self.served = False

    def start(self, listener: socket) -> None:
        self._listener = listener
        self._keepers = [gevent.spawn(self._keep, index) for index in range(self._num)]

    def load(self, path: Path) -> None:
        self._path = path
        self._tell_all(Load(str(path)))

    def connect(self, address: str) -> None:
        self._address = address
        self.client.connect(address)
        self._tell_all(Connect(address))

    def report(self, progress: Progress) -> None:
        self._events.progress(progress)
        self._tell_all(Doing(progress.text, progress.fraction))

    def engine_died(self) -> None:
        self._ready = self._address = None
        if self._metrics is not None:
            self._metrics.engine_ended()
        self.client.engine_died()
        self._tell_all(EngineDied())

    def refuse_new(self) -> None:
        self._ending = True
        self._tell_all(Drain())

    def drain(self) -> None:
        """Until all workers have finished what they ran and ended, or their time is over."""
        with gevent.Timeout(self._config.shutdown_timeout + END_OF_STREAMS_S + END_S, False):
            gevent.joinall(self._keepers)

    def stop(self) -> None:
        self._ending = True
        self.kill()
        gevent.joinall(self._keepers, timeout=END_S)
        self.client.close()

    def kill(self) -> None:
        for child in self._children:
            if child is not None and child.poll() is None:
                child.kill()

    # ------------------------------------------------------------------ one worker

    def _keep(self, index: int) -> None:
        """Run a worker in this place until the end; a worker that dies is replaced."""
        while not self._ending:
            started_s = time.monotonic()
            name = f"worker-{index}-{secrets.token_hex(4)}"
            child = self._children[index] = self._start(index, name)
            has_served = self._listen(index, child)
            code = child.wait()
            self._ready_places.discard(index)
            self.client.server_ended(name)
            if self._ending:
                return
            if not has_served and not self.served:
                self._events.failed(f"an API worker ended with code {code} while it started", 1)
                return
            console.say(f"API worker {index} ended with code {code}; starting a new one")
            gevent.sleep(max(0.0, started_s + RESTART_DELAY_S - time.monotonic()))

    def _start(self, index: int, name: str) -> subprocess.Popen:
        listener_fd = self._listener.fileno()
        child = subprocess.Popen(
            [sys.executable, "-m", "server.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(listener_fd,),
        )
        times = self._times
        setup = Setup(
            self._config,
            self._engine_config,
            name,
            listener_fd,
            str(self._board),
            self._num + 1,
            index,
            self._is_open,
            times.began_s,
            times.engine_started_s,
        )
        _tell(child, setup)
        if self._path is not None:
            _tell(child, Load(str(self._path)))
        if self._address is not None:
            _tell(child, Connect(self._address))
        return child

    def _listen(self, index: int, child: subprocess.Popen) -> bool:
        """To what a worker says until it has ended; whether it has served."""
        has_served = False
        for line in child.stdout:
            try:
                message = decode_to_launcher(line)
            except msgspec.DecodeError:
                sys.stderr.write(line.decode("utf-8", "replace"))
                continue
            match message:
                case Serving():
                    has_served = self.served = True
                    self._serves(index, message)
                case Failed(text, exit_code):
                    self._events.failed(text, exit_code)
        child.stdout.close()
        return has_served

    def _serves(self, index: int, message: Serving) -> None:
        """The first time, clients are let in when the last worker is ready: whoever they reach then will answer."""
        self._ready_places.add(index)
        if not self._is_open and len(self._ready_places) == self._num:
            self._is_open = True
            self._tell_all(Open())
        self._last_served = message
        self._tell_ready()

    def _tell_ready(self) -> None:
        """The engine's word to the launcher may come before the last worker's or after it."""
        if self._is_open and self._ready is not None:
            self._events.ready(self._ready, self._last_served)

    def _tell_all(self, message: ToWorker) -> None:
        for child in self._children:
            if child is not None:
                _tell(child, message)

    # ------------------------------------------------------------------ the engine

    def _on_ready(self, ready: Ready) -> None:
        self._ready = ready
        if self._metrics is None:
            board = Board.open(self._board, self._num + 1, self._num)
            board.put_load(float("inf"))  # this process takes no connections
            self._metrics = Metrics(self._config.served_model_name or "", ready.max_model_len, board)
            self.client.on_step = self._metrics.update_engine
        self._tell_ready()


def _tell(child: subprocess.Popen, message: ToWorker) -> None:
    try:
        child.stdin.write(encode(message))
        child.stdin.flush()
    except (OSError, ValueError):
        pass  # it has ended; its keeper knows
