"""The HTTP layer under Flask: gevent's WSGI server behind limits of our own, and a watch on the client's socket.

Heads and bodies are read by ``http_head`` and ``http_input``, bounded in size and time; ``connections`` bounds how many
clients there are. A client that does not take in what it is sent is cut off, and only its own greenlet has waited for
it. A client that leaves is noticed at once, also while its answer is queued or not streamed and nothing is written:
the handler puts its socket into the WSGI environment, and ``ClientWatch`` waits for it to close.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from http import HTTPStatus
from urllib.parse import unquote_to_bytes

import gevent
from gevent import socket
from gevent.pywsgi import WSGIHandler, WSGIServer
from gevent.socket import wait_read

from pyengine.errors import RequestError
from server.config import ServerConfig
from server.connections import Connections, connection_limit
from server.http_head import Head, HeadLimits, parse_head
from server.http_input import MIN_BYTES_PER_S, Body, BodyBudget, BodyLimits, Inbox
from server.metric_board import Board
from server.openai.errors import CLIENT_GONE, body_of, log_bug
from server.request_id import ENVIRON_KEY, HEADER, request_id

SOCKET_KEY = "pyengine.socket"
PEEK_INTERVAL_S = 1.0
SEND_BUFFER_BYTES = 256 << 10  # kept by the kernel for a client that reads slowly
LINGER_S = 2.0  # for a client to read why its request was refused while it is still sending
GIVE_WAY_S = 0.002  # to a worker with fewer connections; it is late by this when that one is busy
MAX_BODIES_AT_ONCE = 32  # of the largest size, until they are parsed


class Handler(WSGIHandler):
    """One connection: its requests one after another."""

    def __init__(self, client: socket.socket, address: tuple, server: HttpServer):
        self._inbox = Inbox(client, server.client_timeout_s, server.head_limits)
        super().__init__(client, address, server, rfile=self._inbox)
        self._linger = False
        self._request_id = ""

    def handle(self) -> None:
        """Serve until one side is done with the connection."""
        connections = self.server.connections
        if not connections.enter(self):
            self._refuse(RequestError("too many connections; try again", status=503))
            self.socket.close()
            return
        self.server.count()
        try:
            while self._serve_one():
                connections.end(self)
                if self._inbox.pending:
                    gevent.sleep(0)  # however many requests a client pipelines, others have their turn
            if self._linger:
                connections.end(self)
                self.socket.shutdown(socket.SHUT_WR)
                self._inbox.discard(LINGER_S)
        except OSError:
            pass
        finally:
            connections.leave(self)
            self.server.count()
            self._hang_up()

    def _hang_up(self) -> None:
        """Close. The client is told first: where somebody has just watched this socket, gevent closes it only when its
        loop next turns, which on an idle server is seconds away.
        """
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        self.socket.close()

    def cut_off(self) -> None:
        """Close the connection from outside; its greenlet wakes and leaves."""
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def _serve_one(self) -> bool:
        """The next request; whether another may follow."""
        if not self._inbox.wait_for_request(self.server.idle_timeout_s):
            return False
        self.time_start, self.requestline, self._request_id = time.time(), "-", request_id(None)
        try:
            head = parse_head(self._inbox.read_head(), self.server.head_limits)
        except RequestError as error:
            self._linger = True
            self._refuse(error)
            return False
        self.server.connections.begin(self)
        self._respond(head)
        if not self.wsgi_input.at_end:
            self._linger = True
            return False
        return not self.close_connection

    def _respond(self, head: Head) -> None:
        self.command, self.path, self.request_version = head.method, head.target, head.version
        self.requestline = f"{head.method} {head.target} {head.version}"
        self._request_id = request_id(head.headers.get("x-request-id"))
        self.close_connection = not head.keep_alive
        self.status, self.headers_sent, self.result, self.code = None, False, None, 0
        self.response_use_chunked, self.response_length = False, 0
        self.wsgi_input = Body(self._inbox, head, self.socket, self.server.body_limits)
        self.environ = self._environ(head)
        self.application = self.server.application
        try:
            self.run_application()
        except OSError:  # the client left, or did not take in what it was sent
            self.close_connection = True
        except Exception as error:
            self._fail(error)
        finally:
            self.wsgi_input.release()
            self._log()
            self.environ = None

    def _environ(self, head: Head) -> dict:
        """PEP 3333. A header name with an underscore would be taken for its twin with a hyphen, so it is dropped."""
        path, _, query = head.target.partition("?")
        environ = self.server.get_environ()
        for name, value in head.headers.items():
            if "_" not in name:
                environ["HTTP_" + name.replace("-", "_").upper()] = value
        for name in ("CONTENT_TYPE", "CONTENT_LENGTH"):
            if "HTTP_" + name in environ:
                environ[name] = environ.pop("HTTP_" + name)
        environ.update({
            "REQUEST_METHOD": head.method,
            "SCRIPT_NAME": "",
            "PATH_INFO": unquote_to_bytes(path).decode("latin-1"),
            "QUERY_STRING": query,
            "SERVER_PROTOCOL": head.version,
            "REMOTE_ADDR": str(self.client_address[0]),
            "REMOTE_PORT": str(self.client_address[1]),
            "wsgi.input": self.wsgi_input,
            "wsgi.input_terminated": True,
            SOCKET_KEY: self.socket,
            ENVIRON_KEY: self._request_id,
        })  # fmt: skip
        return environ

    def start_response(self, status: str, headers: list[tuple[str, str]], exc_info: object = None) -> Callable:
        """As PEP 3333, with the request's id, and an end to the connection when the client is still sending."""
        self.wsgi_input.release()
        self.wsgi_input.skip()
        self.close_connection = self.close_connection or not self.wsgi_input.at_end
        if status.startswith(CLIENT_GONE):
            self.status = status.encode("ascii")
            raise ConnectionAbortedError("nobody is left to answer")
        headers = [*headers, (HEADER, self._request_id)]
        is_said = any(name == "Connection" for name, _ in headers)
        if self.close_connection and self.request_version == "HTTP/1.1" and not is_said:
            headers.append(("Connection", "close"))
        return super().start_response(status, headers, exc_info)

    def finalize_headers(self) -> None:
        """To a client of HTTP/1.0 only the end of the connection can say where a body of unknown length ends."""
        super().finalize_headers()
        is_known = self.provided_content_length is not None or hasattr(self.result, "__len__")
        if self.request_version == "HTTP/1.0" and not is_known:
            self.close_connection = True
            kept = [header for header in self.response_headers if header[0].lower() != b"connection"]
            self.response_headers = [*kept, (b"Connection", b"close")]

    def _write(self, data: bytes) -> None:
        """A piece of the body; gevent's own takes three copies for a chunk."""
        if data:
            self._sendall(b"%x\r\n%b\r\n" % (len(data), data) if self.response_use_chunked else data)

    def _sendall(self, data: bytes | bytearray) -> None:
        """Send, waiting for the client no longer than the timeout and a second for each MIN_BYTES_PER_S."""
        num_sent = self.socket.send(data)
        if num_sent < len(data):
            self._send_rest(memoryview(data)[num_sent:])
        self.response_length += len(data)

    def _send_rest(self, rest: memoryview) -> None:
        timeout_s = self.server.client_timeout_s
        deadline_s = time.monotonic() + timeout_s + len(rest) / MIN_BYTES_PER_S
        while rest:
            rest = rest[self.socket.send(rest) :]
            if rest and time.monotonic() > deadline_s:
                raise TimeoutError("the client reads too slowly")

    def _refuse(self, error: RequestError) -> None:
        """Answer what never became a request for the application."""
        body, status = body_of(error)
        payload = json.dumps(body).encode()
        lines = [
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
            "Content-Type: application/json",
            f"Content-Length: {len(payload)}",
            f"{HEADER}: {self._request_id or request_id(None)}",
            "Connection: close",
        ]
        self.status, self.response_length = str(status).encode(), len(payload)
        try:
            self.socket.sendall("\r\n".join(lines).encode("ascii") + b"\r\n\r\n" + payload)
        except OSError:
            pass
        self._log()

    def _fail(self, error: Exception) -> None:
        """A bug of ours that not even Flask has caught: the log gets it all, the client a plain 500."""
        log_bug(error, self._request_id)
        self.close_connection = True
        if self.headers_sent:
            return
        payload = json.dumps(body_of(error)[0]).encode()
        try:
            headers = [("Content-Type", "application/json"), ("Content-Length", str(len(payload)))]
            self.start_response("500 Internal Server Error", headers)
            self.write(payload)
        except OSError:
            pass

    def _log(self) -> None:
        """One line of the access log; what it shows of the request line has been checked to be printable."""
        if not self.server.access_log:
            return
        status = (self.status or b"-").split()[0].decode("ascii")
        stamp = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        seconds = time.time() - self.time_start if self.time_start else 0.0
        print(
            f'{stamp} {self.client_address[0]} {self._request_id or "-"} "{self.requestline or "-"}" {status} '
            f"{self.response_length} {seconds:.3f}",
            file=sys.stderr,
        )


class HttpServer(WSGIServer):
    """gevent's server with what all its connections share."""

    def __init__(self, listener: socket.socket, app: Callable, config: ServerConfig, board: Board | None = None):
        super().__init__(listener, app, handler_class=Handler, log=None, error_log=sys.stderr)
        self._board = board
        self._gave_way = False
        if board is not None:
            self.max_accept = 1  # the next connection may be another worker's
        self.access_log = config.access_log
        self.client_timeout_s = config.client_timeout
        self.idle_timeout_s = config.idle_timeout
        self.connections = Connections(connection_limit(config.max_connections), Handler.cut_off)
        self.head_limits = HeadLimits(config.max_headers, config.max_header_size)
        budget = BodyBudget(MAX_BODIES_AT_ONCE * config.max_body_size)
        self.body_limits = BodyLimits(config.max_body_size, config.client_timeout, budget)

    def count(self) -> None:
        """The number of connections has changed."""
        if self._board is not None:
            self._board.put_load(len(self.connections))

    def _do_read(self) -> None:
        """A client knocks. The kernel wakes all workers that share the socket, and the same one is always first; so one
        that has more connections than another lets that one have it, and takes it itself when it does not.
        """
        if self._board is None or self._gave_way or self._board.is_least_loaded:
            self._gave_way = False
            super()._do_read()
            return
        self._gave_way = True
        self.stop_accepting()
        self._timer = self.loop.timer(GIVE_WAY_S)
        self._timer.start(self._start_accepting_if_started)


def make_server(listener: socket.socket, app: Callable, config: ServerConfig, board: Board | None = None) -> HttpServer:
    """A server for a listening socket, whose options its connections inherit."""
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # an event is sent when it is there
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    return HttpServer(listener, app, config, board)


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
