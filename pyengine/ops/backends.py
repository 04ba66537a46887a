"""What the ops run on: recorded programs, threads and instruction sets of the CPU, choices of speed of the GPU.

Part of ``pyengine.ops``, where the ops themselves stand.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_C = torch.ops.pyengine  # loaded by pyengine.ops


class Program:
    """The CPU ops of one recorded block: the CPU's counterpart of a CUDA graph. Made by ``record``.

    ``replay`` runs them again on the very same tensors, which the program keeps alive, without a Python call per op.
    """

    def __init__(self) -> None:
        self._handle = _C.record_begin()

    def replay(self) -> None:
        _replay(self._handle)

    def _end(self) -> None:
        _C.record_end(self._handle)

    def __del__(self) -> None:
        handle = getattr(self, "_handle", None)
        if handle is not None:
            _free(handle)


_replay, _free = _C.record_replay.default, _C.record_free.default


@contextmanager
def record() -> Iterator[Program]:
    """Record every CPU op of this thread inside the block; they also run. Plain torch calls are not recorded.

    >>> with ops.record() as program:
    ...     y = ops.linear(x, weight)
    >>> x.copy_(other); program.replay()   # y is now other's
    """
    program = Program()
    try:
        yield program
    finally:
        program._end()


def set_num_threads(n: int) -> None:
    """Threads of the CPU ops, the calling one included; results do not depend on it."""
    _C.set_num_threads(n)


def num_threads() -> int:
    return _C.num_threads()


def isa() -> str:
    """The CPU instruction set in use: ``amx``, ``avx512bf16``, ``avx2`` or ``generic``."""
    return _C.isa()


def set_isa(name: str) -> None:
    """Force a lesser instruction set (tests); RuntimeError when the machine lacks it."""
    _C.set_isa(name)


def set_tuning(name: str, value: int) -> None:
    """Force a choice of speed among the CUDA kernels, for a benchmark; results do not depend on it.

    Args:
        name: ``overlap`` (0: no kernel starts before its predecessor has ended), ``stream_rows`` (up to so many rows
            every dense layer streams its weights), ``prefetched_stages`` (so many stages of small weights go to the
            L2 while the predecessor runs) or ``suggestion`` (so many of cuBLASLt's algorithms are passed over). To be
            set before anything is captured.

    Raises:
        RuntimeError: another name, or a build without CUDA kernels.
    """
    _C.set_tuning(name, value)
