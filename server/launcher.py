"""Start, supervise, stop: the port first, then the engine, then requests; the reverse on SIGTERM.

The server process outlives its engine. An engine that dies while serving is replaced and its open streams end with an
error event; one that cannot start (bad flags, bad model, too little memory) ends the server with the engine's own
words and exit code.
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
from pyengine.process_age import process_age_s
from pyengine.protocol import Progress, Ready
from server import console
from server.app import create_app
from server.config import ServerConfig
from server.engine_client import EngineClient
from server.engine_process import EngineProcess
from server.http import make_server
from server.service import Service, load_text, make_service
from server.state import ServerState, ServerStopping
from server.threads import Computation

RESTART_DELAYS_S = (0.0, 1.0, 5.0, 15.0)  # between an engine's death and its successor, by deaths in a row
STABLE_S = 60.0  # an engine that served so long did not die of its start
END_OF_STREAMS_S = 2.0  # for the last error events to be written


class Launcher:
    """Runs one server in the calling thread until it is told to stop."""

    def __init__(self, config: ServerConfig, engine_config: EngineConfig, process: EngineProcess | None = None):
        self._config = config
        self._engine_config = engine_config
        self._state = ServerState()
        self._service: Service | None = None
        self._stop = Event()
        self._exit_code = 0
        self._port = config.port
        self._deaths_in_a_row = 0
        self._ready_s = 0.0  # when the current engine became ready
        self._bar = console.ProgressBar()
        self._process = process or EngineProcess()
        self._resolved: EngineConfig | None = None  # with the model's local path
        self._text: Computation | None = None  # the model's text side, loading on a thread while the engine starts
        self._client = EngineClient(self._on_ready, self._on_progress)

    def run(self) -> int:
        """Serve; returns the exit code: 0 after SIGTERM or Ctrl-C."""
        process = self._process
        try:
            app = create_app(self._state, lambda: self._service, self._config)
            listener = bind(self._config.host, self._config.port)
        except ConfigError:
            process.remove_folder()
            raise
        gevent.signal_handler(signal.SIGTERM, self._on_signal)
        gevent.signal_handler(signal.SIGINT, self._on_signal)
        self._port = listener.getsockname()[1]
        http = make_server(listener, app, self._config)
        try:
            http.start()
            supervisor = gevent.spawn(self._supervise, process)
            self._stop.wait()
            self._drain()
            supervisor.kill()
            http.stop(timeout=1)
        finally:
            process.stop()
            process.remove_folder()
            self._client.close()
            self._bar.close()
        return self._exit_code

    # ------------------------------------------------------------------ the engine

    def _supervise(self, process: EngineProcess) -> None:
        self._state.imported_s = process_age_s()
        while True:
            process.start()
            self._client.connect(process.address)
            try:
                self._resolve()
            except PyengineError as error:
                self._fail(str(error), error.exit_code)
                return
            process.configure(self._resolved)
            exit_code = process.wait()
            gevent.sleep(0.2)  # its last words may still be on the way
            self._state.ready = None
            fatal = self._client.fatal
            if self._service is not None:
                self._service.metrics.engine_ended()
            self._client.engine_died()
            if (
                self._service is None
            ):  # it never served: the flags or the model are wrong, and another try would not mend them
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
            self._state.progress = Progress("restarting the engine")
            gevent.sleep(delay_s)

    def _resolve(self) -> None:
        """Find the model (downloading it if need be) and begin to load its text side; once."""
        if self._resolved is not None:
            return
        wanted = self._engine_config

        def report(text: str, done: int, total: int) -> None:
            self._on_progress(Progress(text, done / total if total else 0.0))

        path = resolve_model(wanted.model, wanted.revision, report)
        self._resolved = wanted.replace(model=str(path))
        self._text = Computation(load_text, self._config, wanted, path)

    def _on_progress(self, progress: Progress) -> None:
        self._state.progress = progress
        self._bar.show(progress.text, progress.fraction)

    def _on_ready(self, ready: Ready) -> None:
        self._bar.close()
        try:
            if self._service is None:
                text = self._text.wait()
                self._service = make_service(
                    self._config, self._engine_config.model, text, ready, self._client, self._port
                )
                self._client.on_step = self._service.metrics.update_engine
                startup_s = {"server": self._state.imported_s, **ready.startup_s, "ready": process_age_s()}
                self._service.metrics.set_startup(startup_s)
                console.print_summary(ready, self._config, self._service, self._state.started_s)
        except PyengineError as error:
            self._fail(str(error), error.exit_code)
            return
        self._ready_s = time.monotonic()
        self._state.ready = ready

    def _fail(self, text: str, exit_code: int) -> None:
        self._bar.close()
        print(f"pyengine: {text}", file=sys.stderr)
        self._exit_code = exit_code
        self._stop.set()

    # ------------------------------------------------------------------ the end

    def _on_signal(self) -> None:
        if self._state.draining:
            console.say("stopping at once")
            self._process.kill()
            self._process.remove_folder()
            os._exit(0)
        self._state.draining = True
        self._stop.set()

    def _drain(self) -> None:
        """Let running requests finish, up to --shutdown-timeout; then end what is left with an error event."""
        if self._exit_code or not self._client.num_live:
            return
        console.say(
            f"finishing {self._client.num_live} running requests (at most {self._config.shutdown_timeout:g} s; "
            "once more to stop at once)"
        )
        with gevent.Timeout(self._config.shutdown_timeout, False):
            while self._client.num_live:
                gevent.sleep(0.05)
        if self._client.num_live:
            self._client.fail_all(ServerStopping())
        with gevent.Timeout(END_OF_STREAMS_S, False):
            while self._service.num_open:
                gevent.sleep(0.02)


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
