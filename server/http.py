"""The HTTP layer under Flask: gevent's WSGI server with limits, and a watch on the client's socket.

A client that leaves is noticed at once, also while its answer is queued or not streamed and nothing is written: the
handler puts its socket into the WSGI environment, and ``ClientWatch`` waits for it to close.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable

import gevent
from gevent.pywsgi import WSGIHandler, WSGIServer
from gevent.socket import wait_read

SOCKET_KEY = "pyengine.socket"
PEEK_INTERVAL_S = 1.0


class Handler(WSGIHandler):
    """One connection."""

    def get_environ(self) -> dict:
        environ = super().get_environ()
        environ[SOCKET_KEY] = self.socket
        return environ

    def handle_error(self, t: type, v: BaseException, tb: object) -> None:
        """A client that hung up is no error of ours; anything else is printed and answered with a 500 by the base
        class.
        """
        if isinstance(v, (ConnectionError, BrokenPipeError)):
            self.close_connection = True
            return
        super().handle_error(t, v, tb)


def make_server(listener: socket.socket, app: Callable, access_log: bool) -> WSGIServer:
    return WSGIServer(
        listener, app, handler_class=Handler, log=sys.stderr if access_log else None, error_log=sys.stderr
    )


class ClientWatch:
    """Calls ``on_gone`` once when the peer of a socket closes; a context manager for the time of one answer."""

    def __init__(self, client: socket.socket | None, on_gone: Callable[[], None]):
        self._client = client
        self._on_gone = on_gone
        self._greenlet: gevent.Greenlet | None = None

    def __enter__(self) -> ClientWatch:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        if self._client is not None:
            self._greenlet = gevent.spawn(self._watch)

    def stop(self) -> None:
        if self._greenlet is not None:
            self._greenlet.kill(block=False)
            self._greenlet = None

    def _watch(self) -> None:
        while True:
            try:
                wait_read(self._client.fileno())
                if not self._client.recv(1, socket.MSG_PEEK):
                    break
            except OSError:
                break
            gevent.sleep(PEEK_INTERVAL_S)  # a pipelined request waits: the client is there, its socket stays readable
        self._on_gone()
