"""An API worker, ``python -m server.worker``: one of several processes that serve HTTP on one port.

Started by ``workers.Workers`` and told everything through standard input (``worker_messages``). It ends with its
launcher, however that ends; on SIGTERM it finishes what it runs.
"""

from gevent import monkey

monkey.patch_all()

import ctypes  # noqa: E402
import os  # noqa: E402
import signal  # noqa: E402
import socket  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

import gevent  # noqa: E402
from gevent.event import Event  # noqa: E402
from gevent.fileobject import FileObject  # noqa: E402

from pyengine.protocol import Progress, Ready  # noqa: E402
from server.http_side import Events, HttpSide, StartTimes  # noqa: E402
from server.metric_board import Board  # noqa: E402
from server.service import Service  # noqa: E402
from server.worker_messages import (  # noqa: E402
    Connect,
    Doing,
    Drain,
    EngineDied,
    Failed,
    Load,
    Open,
    Serving,
    Setup,
    ToLauncher,
    decode_to_worker,
    encode,
)

PR_SET_PDEATHSIG = 1


class Worker:
    """Does what the launcher says until it is told to end."""

    def __init__(self) -> None:
        self._input = FileObject(sys.stdin.fileno(), "rb", close=False)
        self._output = os.dup(sys.stdout.fileno())
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what is printed goes to the log
        self._ending = Event()
        self._is_listening = False
        self._setup = decode_to_worker(self._input.readline())
        self._side = self._make_side(self._setup)

    def run(self) -> int:
        gevent.signal_handler(signal.SIGTERM, self._end)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C reaches all; the launcher decides
        if not self._setup.is_open:
            self._listen()
        gevent.spawn(self._obey)
        self._ending.wait()
        self._side.drain()
        self._side.stop()
        return 0

    def _make_side(self, setup: Setup) -> HttpSide:
        board = Board.open(Path(setup.board), setup.num_rows, setup.row)
        times = StartTimes(setup.began_s, setup.engine_started_s)
        events = Events(self._on_ready, self._on_failure, stats=lambda stats: None)
        side = HttpSide(setup.config, setup.engine_config, events, times, board, setup.name)
        side.held = not setup.is_open
        return side

    def _listen(self) -> None:
        self._is_listening = True
        os.set_inheritable(self._setup.listener_fd, False)
        self._side.start(socket.socket(fileno=self._setup.listener_fd))

    def _obey(self) -> None:
        for line in self._input:
            match decode_to_worker(line):
                case Load(path):
                    self._side.load(Path(path))
                case Connect(address):
                    self._side.connect(address)
                case Doing(text, fraction):
                    self._side.report(Progress(text, fraction))
                case Open():
                    self._side.release()
                case EngineDied():
                    self._side.engine_died()
                case Drain():
                    self._end()
        os._exit(0)  # the launcher is gone, and the engine with it

    def _end(self) -> None:
        self._side.refuse_new()
        self._ending.set()

    def _on_ready(self, ready: Ready, service: Service) -> None:
        if not self._is_listening:
            self._listen()
        self._tell(Serving(service.model_name, list(service.notes)))

    def _on_failure(self, text: str, exit_code: int) -> None:
        self._tell(Failed(text, exit_code))

    def _tell(self, message: ToLauncher) -> None:
        os.write(self._output, encode(message))


def main() -> int:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    return Worker().run()


if __name__ == "__main__":
    sys.exit(main())
