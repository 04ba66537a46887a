"""Captured passes: a step of decodes is replayed instead of issued op by op.

On a GPU a pass is a CUDA graph, captured at a few batch sizes and padded up to them. On a CPU it is a recorded program
of our ops, captured at exactly the size that comes. Both freeze pointers and sizes, so a captured pass reads its
inputs from the persistent buffers of ``DeviceState``.
Same tokens either way: what is replayed are the very ops that ran when it was captured.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyengine import ops
from pyengine.runner.device_state import InputBatch

Forward = Callable[[InputBatch], Tensor]


class EagerPass:
    """No capture: every size runs as it is, op by op."""

    def padded_size(self, num_seqs: int) -> int:
        return num_seqs

    def run(self, batch: InputBatch, forward: Forward) -> Tensor:
        return forward(batch)

    def capture_ahead(self, make_batch: Callable[[int], InputBatch], forward: Forward) -> int:
        """Capture the sizes that should be ready before the first request; returns how many."""
        return 0

    def capture_next(self, make_batch: Callable[[int], InputBatch], forward: Forward) -> bool:
        """Capture one more size, for a moment without work; returns whether it did."""
        return False


class RecordedPass(EagerPass):
    """CPU: a program per batch size, recorded the first time a size comes. Sizes are few (up to max_num_seqs) and
    programs small.
    """

    def __init__(self) -> None:
        self._programs: dict[int, tuple[ops.Program, Tensor]] = {}

    def run(self, batch: InputBatch, forward: Forward) -> Tensor:
        captured = self._programs.get(batch.num_seqs)
        if captured is None:
            with ops.record() as program:
                output = forward(batch)
            self._programs[batch.num_seqs] = (program, output)
            return output
        program, output = captured
        program.replay()
        return output


class CudaGraphPass(EagerPass):
    """GPU: CUDA graphs at sizes 1, 2, 4, 8, 16, ... in steps of 16: a few captured before the start, the others when
    there is nothing to do, or at first use.
    """

    SMALL = (1, 2, 4, 8)
    STEP = 16
    AHEAD = (1, 2, 4, 8, 16, 32, 64, 128, 256)

    def __init__(self, max_num_seqs: int):
        self._max_num_seqs = max_num_seqs
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def padded_size(self, num_seqs: int) -> int:
        for size in self.SMALL:
            if num_seqs <= size:
                return min(size, self._max_num_seqs)
        return min(-(-num_seqs // self.STEP) * self.STEP, self._max_num_seqs)

    def run(self, batch: InputBatch, forward: Forward) -> Tensor:
        if batch.num_seqs not in self._graphs:
            self._graphs[batch.num_seqs] = self._capture(batch, forward)
        graph, output = self._graphs[batch.num_seqs]
        graph.replay()
        return output

    def capture_ahead(self, make_batch: Callable[[int], InputBatch], forward: Forward) -> int:
        sizes = [size for size in self.AHEAD if size <= self._max_num_seqs]
        for size in reversed(sizes):  # the largest first: smaller graphs then fit into the pool it made
            self._graphs[size] = self._capture(make_batch(size), forward)
        return len(sizes)

    def capture_next(self, make_batch: Callable[[int], InputBatch], forward: Forward) -> bool:
        largest = -(-self._max_num_seqs // self.STEP) * self.STEP
        sizes = {self.padded_size(size) for size in (*self.SMALL, *range(self.STEP, largest + 1, self.STEP))}
        missing = sizes - self._graphs.keys()
        if missing:
            self._graphs[max(missing)] = self._capture(make_batch(max(missing)), forward)
        return bool(missing)

    def _capture(self, batch: InputBatch, forward: Forward) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        forward(batch)  # outside the graph once: algorithm choices and lazy initialisation must not happen inside
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            output = forward(batch)
        return graph, output


def make_graph_pass(device_kind: str, max_num_seqs: int, enforce_eager: bool) -> EagerPass:
    if enforce_eager:
        return EagerPass()
    return CudaGraphPass(max_num_seqs) if device_kind == "cuda" else RecordedPass()
