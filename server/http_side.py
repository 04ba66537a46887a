"""HTTP in one process: the application and its sockets, the connection to the engine, the text side of the model.

The launcher has one of its own, or each of its API workers has one; who starts the engine tells it where the engine is
(``load``, ``connect``), that it died, and when to end.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from socket import socket

import gevent

from pyengine.config import EngineConfig
from pyengine.errors import PyengineError
from pyengine.process_age import process_age_s
from pyengine.protocol import Progress, Ready, Stats
from server import console
from server.app import create_app
from server.config import ServerConfig
from server.engine_client import EngineClient
from server.http import make_server
from server.metric_board import Board
from server.service import Service, load_text, make_service
from server.state import ServerState, ServerStopping
from server.threads import Computation

END_OF_STREAMS_S = 2.0  # for the last error events to be written


@dataclass
class StartTimes:
    """When the server's first process began (monotonic clock), and how long it took to start the engine."""

    began_s: float
    engine_started_s: float = 0.0

    @classmethod
    def of_this_process(cls) -> StartTimes:
        return cls(time.monotonic() - process_age_s())


@dataclass
class Events:
    """Whom to tell."""

    ready: Callable[[Ready, Service], None]
    failed: Callable[[str, int], None]  # text, exit code
    progress: Callable[[Progress], None] = lambda progress: None
    stats: Callable[[Stats], None] | None = None  # None: they go into this process's own metrics


class HttpSide:
    """See above. Raises ConfigError when the options do not work."""

    def __init__(
        self,
        config: ServerConfig,
        engine_config: EngineConfig,
        events: Events,
        times: StartTimes,
        board: Board | None = None,
        name: str | None = None,
    ):
        self._config = config
        self._engine_config = engine_config
        self._events = events
        self._times = times
        self._board = board
        self.state = ServerState()
        self.service: Service | None = None
        self.held = False  # ready or not, it says that it is not: others on this port may not be ready yet
        self._ready: Ready | None = None  # of the current engine
        self.client = EngineClient(self._on_ready, self._on_progress, name)
        self._app = create_app(self.state, lambda: self.service, config)
        self._text: Computation | None = None  # loading on a thread while the engine starts
        self._http = None

    @property
    def served(self) -> bool:
        """Whether it has ever been ready."""
        return self.service is not None

    def start(self, listener: socket) -> None:
        self._http = make_server(listener, self._app, self._config, self._board)
        self._http.start()

    def load(self, path: Path) -> None:
        """The model has been found."""
        self._text = Computation(load_text, self._config, self._engine_config, path)

    def connect(self, address: str) -> None:
        self.client.connect(address)

    def release(self) -> None:
        self.held = False
        self.state.ready = self._ready

    def engine_died(self) -> None:
        self.state.ready = self._ready = None
        self.state.progress = Progress("restarting the engine")
        if self.service is not None and self._events.stats is None:
            self.service.metrics.engine_ended()
        self.client.engine_died()

    def report(self, progress: Progress) -> None:
        """What is being done before an engine can tell."""
        self._on_progress(progress)

    def refuse_new(self) -> None:
        """Requests that come from now on; the end is near."""
        self.state.draining = True

    def drain(self) -> None:
        """Let running requests finish, up to --shutdown-timeout; then end what is left with an error event."""
        if not self._num_running:
            return
        console.say(
            f"finishing {self._num_running} running requests (at most {self._config.shutdown_timeout:g} s; "
            "once more to stop at once)"
        )
        with gevent.Timeout(self._config.shutdown_timeout, False):
            while self._num_running:
                gevent.sleep(0.05)
        if self.client.num_live:
            self.client.fail_all(ServerStopping())
        with gevent.Timeout(END_OF_STREAMS_S, False):
            while self._num_running:
                gevent.sleep(0.02)

    @property
    def _num_running(self) -> int:
        """Requests that somebody waits for: those of the engine, and those that are still read or prepared."""
        return max(self.client.num_live, self._http.connections.num_busy if self._http is not None else 0)

    def stop(self) -> None:
        if self._http is not None:
            self._http.stop(timeout=1)
        self.client.close()

    def kill(self) -> None:
        """Nothing outlives this process."""

    def _on_progress(self, progress: Progress) -> None:
        self.state.progress = progress
        self._events.progress(progress)

    def _on_ready(self, ready: Ready) -> None:
        try:
            if self.service is None:
                self._make_service(ready)
        except PyengineError as error:
            self._events.failed(str(error), error.exit_code)
            return
        self._ready = ready
        self.state.ready = None if self.held else ready
        self._events.ready(ready, self.service)

    def _make_service(self, ready: Ready) -> None:
        text, model = self._text.wait(), self._engine_config.model
        self.service = make_service(self._config, model, text, ready, self.client, self._board)
        self.client.on_step = self._events.stats or self.service.metrics.update_engine
        ready_s = time.monotonic() - self._times.began_s
        self.service.metrics.set_startup({"server": self._times.engine_started_s, **ready.startup_s, "ready": ready_s})
