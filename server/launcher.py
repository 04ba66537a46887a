"""Start, supervise, stop: the port first, then the engine, then requests; the reverse on SIGTERM. An engine process may
have been started before, to import what it needs meanwhile; it learns its task only when the port is there.

The server process outlives its engine. An engine that dies while serving is replaced and its open streams end with an
error event; one that cannot start (bad flags, bad model, too little memory) ends the server with the engine's own
words and exit code. HTTP is served by this process, or by ``--api-workers`` processes of their own that share its port.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time

import gevent
from gevent.event import Event

from pyengine.config import EngineConfig
from pyengine.errors import ConfigError, PyengineError
from pyengine.models.resolve import resolve_model
from pyengine.protocol import Progress, Ready
from server import console
from server.config import ServerConfig
from server.engine_process import EngineProcess
from server.http_side import Events, HttpSide, StartTimes
from server.workers import Workers

RESTART_DELAYS_S = (0.0, 1.0, 5.0, 15.0)  # between an engine's death and its successor, by deaths in a row
STABLE_S = 60.0  # an engine that served so long did not die of its start


class Launcher:
    """Runs one server in the calling thread until it is told to stop."""

    def __init__(self, config: ServerConfig, engine_config: EngineConfig, process: EngineProcess | None = None):
        self._config = config
        self._engine_config = engine_config
        self._stop = Event()
        self._stopping = False
        self._exit_code = 0
        self._port = config.port
        self._deaths_in_a_row = 0
        self._ready_s = 0.0  # when the current engine became ready
        self._said_ready = False
        self._bar = console.ProgressBar()
        self._times = StartTimes.of_this_process()
        self._process = process or EngineProcess()
        self._resolved: EngineConfig | None = None  # with the model's local path
        self._front: HttpSide | Workers | None = None

    def run(self) -> int:
        """Serve; returns the exit code: 0 after SIGTERM or Ctrl-C."""
        process = self._process
        try:
            front = self._front = self._make_front()
            listener = bind(self._config.host, self._config.port)
        except ConfigError:
            process.kill()
            process.remove_folder()
            raise
        gevent.signal_handler(signal.SIGTERM, self._on_signal)
        gevent.signal_handler(signal.SIGINT, self._on_signal)
        self._port = listener.getsockname()[1]
        try:
            front.start(listener)
            supervisor = gevent.spawn(self._supervise, process)
            self._stop.wait()
            if not self._exit_code:
                front.drain()
            supervisor.kill()
        finally:
            front.stop()
            process.stop()
            process.remove_folder()
            self._bar.close()
        return self._exit_code

    def _make_front(self) -> HttpSide | Workers:
        events = Events(self._on_ready, self._fail, self._on_progress)
        if self._config.api_workers == 1:
            return HttpSide(self._config, self._engine_config, events, self._times)
        return Workers(self._config, self._engine_config, events, self._times, self._process.folder)

    # ------------------------------------------------------------------ the engine

    def _supervise(self, process: EngineProcess) -> None:
        front = self._front
        while True:
            if not process.is_waiting:
                process.start()
            self._times.engine_started_s = process.started_s
            front.connect(process.address)
            try:
                self._resolve()
            except PyengineError as error:
                self._fail(str(error), error.exit_code)
                return
            process.configure(self._resolved)
            exit_code = process.wait()
            gevent.sleep(0.2)  # its last words may still be on the way
            fatal = front.client.fatal
            front.engine_died()
            if not front.served:  # the flags or the model are wrong, and another try would not mend them
                self._fail(
                    fatal.text if fatal else f"the engine ended with code {exit_code} while it started",
                    fatal.exit_code if fatal else 1,
                )
                return
            if time.monotonic() - self._ready_s > STABLE_S:
                self._deaths_in_a_row = 0
            delay_s = RESTART_DELAYS_S[min(self._deaths_in_a_row, len(RESTART_DELAYS_S) - 1)]
            self._deaths_in_a_row += 1
            console.say(
                f"the engine ended with code {exit_code}{': ' + fatal.text if fatal else ''}; starting a new one"
            )
            gevent.sleep(delay_s)

    def _resolve(self) -> None:
        """Find the model (downloading it if need be) and begin to load its text side; once."""
        if self._resolved is not None:
            return
        wanted = self._engine_config

        def report(text: str, done: int, total: int) -> None:
            self._front.report(Progress(text, done / total if total else 0.0))

        path = resolve_model(wanted.model, wanted.revision, report)
        self._resolved = wanted.replace(model=str(path))
        self._front.load(path)

    def _on_progress(self, progress: Progress) -> None:
        self._bar.show(progress.text, progress.fraction)

    def _on_ready(self, ready: Ready, served: console.Served) -> None:
        self._bar.close()
        self._ready_s = time.monotonic()
        if not self._said_ready:
            self._said_ready = True
            console.print_summary(ready, self._config, served, self._port, self._times.began_s)

    def _fail(self, text: str, exit_code: int) -> None:
        self._bar.close()
        print(f"pyengine: {text}", file=sys.stderr)
        self._exit_code = exit_code
        self._stop.set()

    # ------------------------------------------------------------------ the end

    def _on_signal(self) -> None:
        if self._stopping:
            console.say("stopping at once")
            self._front.kill()
            self._process.kill()
            self._process.remove_folder()
            os._exit(0)
        self._stopping = True
        self._front.refuse_new()
        self._stop.set()


def bind(host: str, port: int) -> socket.socket:
    """A listening socket, taken before anything slow happens. Raises ConfigError in one line when it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror} (choose another with --host and --port)"
        ) from None
    return listener
