"""Bytes of files straight to where a GPU keeps its weights.

Copying from a mapped file makes the driver stage every byte through buffers of its own, one copy at a time, at a tenth
of what the bus can do. Here each of several threads has a lane: two pinned pieces and a stream. It reads the file into
one piece while the other is on its way, and nothing is as large as a tensor but the tensors themselves, so a head of a
gigabyte is shared out like everything else.

    file ──pread──▶ pinned piece ──stream──▶ its place           (element types equal)
                                 ──stream──▶ device piece ──converted──▶ its place
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import torch

from pyengine.errors import ModelError

PIECE_BYTES = 8 << 20  # 0.2 ms of a bus that does 40 GB/s, many times what issuing a copy costs
MAX_LANES = 8  # reads from memory at 5 to 10 GB/s each
_PIECES_PER_LANE = 2


@dataclass(frozen=True, slots=True)
class FileBytes:
    """Where a tensor lies in a file as it is: ``num_bytes`` from ``begin``, row by row, elements of ``dtype``."""

    file: Path
    begin: int
    num_bytes: int
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a tensor: ``source`` becomes ``target``, flat, with the same number of elements of its own type."""

    source: FileBytes
    target: torch.Tensor


def upload(jobs: list[tuple[FileBytes, torch.Tensor]], device: torch.device) -> Iterator[int]:
    """Copy each of the ``jobs``, a tensor in a file and its contiguous place on ``device``, converting its element
    type. Yields the bytes of each piece that is read, so that the caller can tell how far it is.

    Raises:
        ModelError: a file cannot be read, or ends early.
    """
    with ExitStack() as stack:
        files = {path: stack.enter_context(_Opened(path)).fd for path in {source.file for source, _ in jobs}}
        pieces = [piece for source, target in jobs for piece in _cut(source, target)]
        num_lanes = max(1, min(MAX_LANES, len(os.sched_getaffinity(0)), len(pieces)))
        pool = stack.enter_context(ThreadPoolExecutor(num_lanes, thread_name_prefix="upload"))
        lanes: SimpleQueue[_Lane] = SimpleQueue()
        made = list(pool.map(lambda _: _Lane(device), range(num_lanes)))  # pinning takes time: all at once
        for lane in made:
            lanes.put(lane)

        def run(piece: Piece) -> int:
            lane = lanes.get()
            try:
                return lane.send(piece, files[piece.source.file])
            finally:
                lanes.put(lane)

        futures = [pool.submit(run, piece) for piece in pieces]
        try:
            for future in futures:
                yield future.result()
        finally:
            for future in futures:
                future.cancel()
        for lane in made:
            lane.finish()


def _cut(source: FileBytes, target: torch.Tensor) -> Iterator[Piece]:
    flat, width = target.view(-1), source.dtype.itemsize
    assert source.num_bytes == flat.numel() * width, "shapes have been compared"
    step = PIECE_BYTES // width
    for first in range(0, flat.numel(), step):
        part = flat[first : first + step]
        yield Piece(FileBytes(source.file, source.begin + first * width, part.numel() * width, source.dtype), part)


class _Opened:
    """A file's descriptor while it is needed."""

    def __init__(self, path: Path):
        self._path = path

    def __enter__(self) -> _Opened:
        try:
            self.fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise ModelError(f"{self._path}: {error.strerror}") from None
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


class _Lane:
    """One thread's buffers at a time; on a CPU, which only tests use, without a stream and nothing pinned."""

    def __init__(self, device: torch.device):
        self._on_gpu = device.type == "cuda"
        self._device = device
        self._host = [
            torch.empty(PIECE_BYTES, dtype=torch.uint8, pin_memory=self._on_gpu) for _ in range(_PIECES_PER_LANE)
        ]
        self._turn = 0
        self._converted: torch.Tensor | None = None
        if self._on_gpu:
            self._stream = torch.cuda.Stream(device)
            self._copied = [torch.cuda.Event() for _ in self._host]

    def send(self, piece: Piece, fd: int) -> int:
        turn = self._turn = (self._turn + 1) % len(self._host)
        if self._on_gpu:
            self._copied[turn].synchronize()  # the copy that last read this piece; at once before the first
        host = self._host[turn][: piece.source.num_bytes]
        _read(fd, piece.source, memoryview(host.numpy()))
        if not self._on_gpu:
            self._place(piece, host)
            return piece.source.num_bytes
        with torch.cuda.stream(self._stream):
            self._place(piece, host)
            self._copied[turn].record(self._stream)
        return piece.source.num_bytes

    def _place(self, piece: Piece, host: torch.Tensor) -> None:
        if piece.source.dtype == piece.target.dtype:
            piece.target.view(torch.uint8).copy_(host, non_blocking=True)
            return
        if self._converted is None:
            self._converted = torch.empty(PIECE_BYTES, dtype=torch.uint8, device=self._device)
        raw = self._converted[: len(host)]
        raw.copy_(host, non_blocking=True)
        piece.target.copy_(raw.view(piece.source.dtype))

    def finish(self) -> None:
        if self._on_gpu:
            self._stream.synchronize()


def _read(fd: int, source: FileBytes, into: memoryview) -> None:
    done = 0
    while done < source.num_bytes:
        try:
            count = os.preadv(fd, [into[done:]], source.begin + done)
        except OSError as error:
            raise ModelError(f"{source.file}: {error.strerror} at byte {source.begin + done}") from None
        if not count:
            raise ModelError(f"{source.file}: ended at byte {source.begin + done} while it was being read")
        done += count
