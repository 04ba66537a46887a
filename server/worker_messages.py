"""What the launcher and its API workers say to each other: a line of JSON each, over the worker's standard input and
output.

    launcher -> worker: Setup once, then Load, Connect, Doing, Open, EngineDied, Drain; end of input: end at once
    worker -> launcher: Serving, Failed
"""

from __future__ import annotations

import msgspec

from pyengine.config import EngineConfig
from server.config import ServerConfig


class _Message(msgspec.Struct, frozen=True, tag=True):
    pass


class Setup(_Message):
    """What a worker is.

    Attributes:
        name: its name on the engine's socket.
        listener_fd: the listening socket, inherited.
        board, num_rows, row: its place for counting (see ``metric_board``).
        is_open: the server serves already; it must not notice a worker that is not ready.
        began_s, engine_started_s: of the launcher (see ``StartTimes``).
    """

    config: ServerConfig
    engine_config: EngineConfig
    name: str
    listener_fd: int
    board: str
    num_rows: int
    row: int
    is_open: bool
    began_s: float
    engine_started_s: float


class Load(_Message):
    """The model has been found at ``path``."""

    path: str


class Connect(_Message):
    """A (new) engine listens at ``address``."""

    address: str


class Doing(_Message):
    """What the launcher does before an engine can tell."""

    text: str
    fraction: float


class Open(_Message):
    """All workers are ready: say so to clients."""


class EngineDied(_Message):
    pass


class Drain(_Message):
    """Take no more requests, finish those that run, end."""


class Serving(_Message):
    """The worker takes requests; ``notes`` for the operator."""

    model_name: str
    notes: list[str]


class Failed(_Message):
    """The worker cannot serve, and another one could not either."""

    text: str
    exit_code: int


ToWorker = Setup | Load | Connect | Doing | Open | EngineDied | Drain
ToLauncher = Serving | Failed

_to_worker = msgspec.json.Decoder(ToWorker)
_to_launcher = msgspec.json.Decoder(ToLauncher)


def encode(message: _Message) -> bytes:
    return msgspec.json.encode(message) + b"\n"


def decode_to_worker(line: bytes) -> ToWorker:
    return _to_worker.decode(line)


def decode_to_launcher(line: bytes) -> ToLauncher:
    """Raises msgspec.DecodeError for what is no message (a library that prints)."""
    return _to_launcher.decode(line)
