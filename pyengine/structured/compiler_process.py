"""Compiling in processes of their own: what takes one down, or takes too long, is the client's mistake and no more.

llguidance recurses over what it is given, and a stack that overflows ends its process with all its streams; the limits
of compiler.py keep away what is known to do that, this what is not. A process serves one source after the other:

    parent  -> length, [kind, source, whitespace]      4 bytes, then msgpack
    child   -> length, ""                              once, when it has imported what it needs
            -> length, [grammar, problem]

It ends with its parent, whose end of the socket is its standard input.
"""

from __future__ import annotations

import _socket
import os
import posix
import resource
import signal
import struct
import sys
import time
from collections import deque

import msgspec

from pyengine.errors import RequestError

MAX_CPU_S = 2  # for one source; counted by the kernel in whole seconds, so it may be one less
MAX_WAIT_S = 20  # for one on a machine that is busy with other things, and for a process to start
MAX_MEMORY_BYTES = 1 << 30  # of addresses
MAX_IDLE = 4  # processes kept for the next source
MAX_MESSAGE_BYTES = 64 << 20
_TIMEOUT = struct.pack("ll", MAX_WAIT_S, 0)
# With its parent's way to modules, as any import there has, and not the working directory's.
_CODE = "import sys; sys.path[:] = sys.argv[1:]; from pyengine.structured.compiler_process import main; main()"

Result = tuple[str, str]  # grammar, problem; one of them is ""


class CompilerEnded(Exception):
    """A process has ended over a source; says how."""


class CompilerProcesses:
    """As many processes as threads ask at a time. May be called from any thread."""

    def __init__(self) -> None:
        self._idle: deque[_Process] = deque()  # its ends are taken and given atomically
        os.register_at_fork(after_in_child=self._forget)

    def compile(self, kind: str, source: str, whitespace: str | None) -> Result:
        """``compiler.compile_source``, apart. Raises CompilerEnded, or RequestError (503) when there is no time or no
        process for it.
        """
        process = self._take()
        begin_s = time.monotonic()
        try:
            result = process.ask(kind, source, whitespace)
        except BaseException:
            process.end()
            raise
        if result is None:
            raise CompilerEnded(_reason(process.end(), time.monotonic() - begin_s))
        if len(self._idle) < MAX_IDLE:
            self._idle.append(process)
        else:
            process.end()
        return result

    def _take(self) -> _Process:
        while True:
            try:
                process = self._idle.pop()
            except IndexError:
                return _Process()
            if process.is_there():
                return process
            process.end()

    def _forget(self) -> None:
        """Of a fork: the processes are its parent's."""
        while self._idle:
            self._idle.pop().hang_up()


class _Process:
    """A child, by the bare modules: in the server ``os`` and ``socket`` are gevent's, which watches children and
    sockets for one thread alone.
    """

    def __init__(self) -> None:
        self._socket, theirs = _socket.socketpair()
        for option in (_socket.SO_RCVTIMEO, _socket.SO_SNDTIMEO):
            self._socket.setsockopt(_socket.SOL_SOCKET, option, _TIMEOUT)
        actions = [(os.POSIX_SPAWN_DUP2, theirs.fileno(), 0), (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
        command = [sys.executable, "-c", _CODE, *sys.path]
        try:
            self._pid = posix.posix_spawn(sys.executable, command, os.environ, file_actions=actions)
        except OSError as error:
            self.hang_up()
            raise _unavailable(f"no process to check it in: {error}") from None
        finally:
            theirs.close()
        try:
            is_ready = self._receive() is not None
        except BaseException:
            self.end()
            raise
        if not is_ready:
            raise _unavailable(f"the process to check it in does not start (exit code {self.end()})")

    def is_there(self) -> bool:
        """Whether nothing has ended it since its last answer."""
        try:
            return self._socket.recv(1, _socket.MSG_PEEK | _socket.MSG_DONTWAIT) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False

    def ask(self, kind: str, source: str, whitespace: str | None) -> Result | None:
        """None when the child has ended over it. Raises RequestError."""
        try:
            _send(self._socket, msgspec.msgpack.encode((kind, source, whitespace)))
        except BlockingIOError:
            raise _unavailable("the machine is too busy to check it") from None
        except OSError:
            return None
        answer = self._receive()
        return None if answer is None else msgspec.msgpack.decode(answer, type=Result)

    def hang_up(self) -> None:
        self._socket.close()

    def end(self) -> int | None:
        """End the child. Its exit code, negative for a signal; None where somebody else waits for all children."""
        self.hang_up()
        try:
            pid, status = posix.waitpid(self._pid, os.WNOHANG)
            if pid == 0:
                os.kill(self._pid, signal.SIGKILL)  # says nothing to one that is ending already
                _, status = posix.waitpid(self._pid, 0)
        except (ChildProcessError, ProcessLookupError):
            return None
        return os.waitstatus_to_exitcode(status)

    def _receive(self) -> bytes | None:
        try:
            return _receive(self._socket)
        except BlockingIOError:
            raise _unavailable(f"it could not be checked within {MAX_WAIT_S} seconds") from None
        except OSError:
            return None


def _reason(exit_code: int | None, took_s: float) -> str:
    if exit_code == -signal.SIGXCPU or (exit_code is None and took_s > MAX_CPU_S - 1):
        return f"checking it takes more than {MAX_CPU_S} seconds"
    return "it ends the process that checks it"


def _unavailable(reason: str) -> RequestError:
    return RequestError(f"the grammar cannot be used now: {reason}", status=503)


def _send(to: _socket.socket, message: bytes) -> None:
    to.sendall(struct.pack("<I", len(message)) + message)


def _receive(source: _socket.socket) -> bytes | None:
    """The next message; None when the other side is gone."""
    head = _read(source, 4)
    if head is None:
        return None
    (length,) = struct.unpack("<I", head)
    return _read(source, length) if length <= MAX_MESSAGE_BYTES else None


def _read(source: _socket.socket, size: int) -> bytes | None:
    parts, missing = [], size
    while missing:
        part = source.recv(min(missing, 1 << 20))
        if not part:
            return None
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def main() -> None:
    """The child."""
    from pyengine.structured.compiler import compile_source

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal, meant for the parent
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    parent = _socket.socket(fileno=0)
    _send(parent, b"")
    while (message := _receive(parent)) is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + MAX_CPU_S, hard))
        kind, source, whitespace = msgspec.msgpack.decode(message, type=tuple[str, str, str | None])
        _send(parent, msgspec.msgpack.encode(compile_source(kind, source, whitespace)))
