"""Numbers that several processes count: a row of doubles for each process, all rows readable by all.

A process writes its own row and nothing else, without locks; what is told to the world is the sum over the rows,
whichever process is asked. With several API workers the rows are one file in shared memory, and a worker that takes a
dead one's place goes on with its row, so that counters never fall. What only one process may know (the engine's
statistics) is written by that process and is 0 in all other rows.

The first number of a row is not told to the world: how many connections the process has, so that workers can share them
out evenly.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from pathlib import Path

ROW_NUMBERS = 4096


class Cells:
    """A few numbers in every row: ``add`` and ``put`` change this process's, ``totals`` sums over all."""

    def __init__(self, own: memoryview, rows: Sequence[memoryview]):
        self._own = own
        self._rows = rows

    def add(self, index: int, value: float) -> None:
        self._own[index] += value

    def put(self, index: int, value: float) -> None:
        self._own[index] = value

    def totals(self) -> list[float]:
        return [sum(column) for column in zip(*self._rows, strict=True)]


class Board:
    """Gives out cells. All processes must ask for the same ones in the same order."""

    def __init__(self, rows: Sequence[memoryview] | None = None, own: int = 0):
        self._rows = rows or [memoryview(bytearray(8 * ROW_NUMBERS)).cast("d")]
        self._own = self._rows[own]
        self._own[0] = 0.0
        self._num_given = 1

    def put_load(self, load: float) -> None:
        self._own[0] = load

    @property
    def is_least_loaded(self) -> bool:
        """Whether no other process has less to do."""
        return self._own[0] <= min(row[0] for row in self._rows)

    @classmethod
    def create(cls, path: Path, num_rows: int) -> None:
        """All zeros, in a file that the processes ``open``."""
        with path.open("xb") as file:
            file.truncate(8 * ROW_NUMBERS * num_rows)

    @classmethod
    def open(cls, path: Path, num_rows: int, own: int) -> Board:
        with path.open("r+b") as file:
            shared = memoryview(mmap.mmap(file.fileno(), 8 * ROW_NUMBERS * num_rows)).cast("d")
        return cls([shared[i * ROW_NUMBERS : (i + 1) * ROW_NUMBERS] for i in range(num_rows)], own)

    def cells(self, count: int) -> Cells:
        begin, end = self._num_given, self._num_given + count
        assert end <= ROW_NUMBERS, "a row of the metric board is full"
        self._num_given = end
        return Cells(self._own[begin:end], [row[begin:end] for row in self._rows])
