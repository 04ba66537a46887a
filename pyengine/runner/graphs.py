"""Captured passes: a step of decodes is replayed instead of issued op by op.

On a GPU a pass is a CUDA graph, captured at a few batch sizes and padded up to them. On a CPU it is a recorded program
of our ops, captured at exactly the size that comes. Both freeze pointers and sizes, so a captured pass reads its
inputs from the persistent buffers of ``DeviceState`` and writes its logits to one of the runner.
Same tokens either way: what is replayed are the very ops that ran when it was captured.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from pyengine import ops
from pyengine.runner.device_state import InputBatch

Forward = Callable[[InputBatch], Tensor]


class Captured(Protocol):
    def replay(self) -> None: ...


# Captures a pass without running it; returns it with its output.
Capture = Callable[[InputBatch, Forward], tuple[Captured, Tensor]]


class EagerPass:
    """No capture: every size runs as it is, op by op."""

    def padded_size(self, num_seqs: int) -> int:
        """What a batch of ``num_seqs`` is padded to before ``run``."""
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


class GraphPass(EagerPass):
    """GPU: graphs at sizes 1, 2, 4, 8, 16 and from there in steps of 16.

    The powers of two and the largest size are captured before the start, the others while the engine has nothing to do.
    Whatever is not ready when it is wanted runs in the next larger graph, padded, until it has been wanted ``OFTEN``
    times: a capture holds the host up for longer than many padded steps cost.
    """

    STEP = 16
    OFTEN = 64

    def __init__(self, max_num_seqs: int, capture: Capture):
        self._max_num_seqs = max_num_seqs
        self._capture = capture
        self._graphs: dict[int, tuple[Captured, Tensor]] = {}
        self._wanted: Counter[int] = Counter()

    def padded_size(self, num_seqs: int) -> int:
        size = self._size_for(num_seqs)
        larger = [other for other in self._graphs if other >= size]
        if size in self._graphs or not larger:
            return size
        self._wanted[size] += 1
        return size if self._wanted[size] >= self.OFTEN else min(larger)

    def run(self, batch: InputBatch, forward: Forward) -> Tensor:
        captured = self._graphs.get(batch.num_seqs)
        if captured is None:
            return self._run_and_capture(batch, forward)
        graph, output = captured
        graph.replay()
        return output

    def capture_ahead(self, make_batch: Callable[[int], InputBatch], forward: Forward) -> int:
        first = {size for size in self._sizes() if size & (size - 1) == 0} | {self._max_num_seqs}
        for size in sorted(first, reverse=True):  # the largest first: smaller graphs then fit into its memory
            self._run_and_capture(make_batch(size), forward)
        return len(self._graphs)

    def capture_next(self, make_batch: Callable[[int], InputBatch], forward: Forward) -> bool:
        missing = self._sizes() - self._graphs.keys()
        if missing:
            self._run_and_capture(make_batch(max(missing)), forward)
        return bool(missing)

    def _sizes(self) -> set[int]:
        return {self._size_for(n) for n in range(1, self._max_num_seqs + 1)}

    def _size_for(self, num_seqs: int) -> int:
        """Of the graph that fits best."""
        size = 1 << (num_seqs - 1).bit_length() if num_seqs <= self.STEP else -(-num_seqs // self.STEP) * self.STEP
        return min(size, self._max_num_seqs)

    def _run_and_capture(self, batch: InputBatch, forward: Forward) -> Tensor:
        output = forward(batch)  # first: algorithm choices and lazy initialisation must not happen in a capture
        self._graphs[batch.num_seqs] = self._capture(batch, forward)
        return output


class CudaCapture:
    """Captures CUDA graphs that share one memory pool, since they run one after another.

    Unlike ``torch.cuda.graph`` it waits for nothing and leaves the allocator's cache alone: the GPU computes meanwhile.
    """

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()

    def __call__(self, batch: InputBatch, forward: Forward) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self._stream):
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                output = forward(batch)
            finally:
                graph.capture_end()
        return graph, output


def make_graph_pass(device_kind: str, max_num_seqs: int, enforce_eager: bool) -> EagerPass:
    if enforce_eager:
        return EagerPass()
    return GraphPass(max_num_seqs, CudaCapture()) if device_kind == "cuda" else RecordedPass()
