"""Captured passes: a step of decodes is replayed instead of issued op by op.

On a GPU a pass is a CUDA graph, captured at a few batch sizes and padded up to them. On a CPU it is a recorded program
of our ops, captured at exactly the size that comes. Both freeze pointers and sizes, so a captured pass reads its
inputs from the persistent buffers of ``DeviceState`` and writes its logits to one of the runner.
Same tokens either way: what is replayed are the very ops that ran when it was captured.
"""

from __future__ import annotations

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
    """GPU: graphs at sizes 1, 2, 4, 8, 16, from there in steps of 16 to 224, and beyond in steps of 128.

    To 224 rows the dense layers stream their weights and take the longer the more rows there are. Beyond, cuBLASLt has
    most of them (csrc/cuda/gemm/stream_plan.h), whose products take as long at 240 rows as at 256.
    """

    STEP, COARSE_STEP = 16, 128
    LARGEST_FINE_SIZE = 224

    def __init__(self, max_num_seqs: int, capture: Capture):
        self._max_num_seqs = max_num_seqs
        self._capture = capture
        self._graphs: dict[int, tuple[Captured, Tensor]] = {}

    def padded_size(self, num_seqs: int) -> int:
        if num_seqs <= self.STEP:
            return min(1 << (num_seqs - 1).bit_length(), self._max_num_seqs)
        step = self.STEP if num_seqs <= self.LARGEST_FINE_SIZE else self.COARSE_STEP
        return min(-(-num_seqs // step) * step, self._max_num_seqs)

    def run(self, batch: InputBatch, forward: Forward) -> Tensor:
        captured = self._graphs.get(batch.num_seqs)
        if captured is None:
            return self._run_and_capture(batch, forward)
        graph, output = captured
        graph.replay()
        return output

    def capture_ahead(self, make_batch: Callable[[int], InputBatch], forward: Forward) -> int:
        sizes = {self.padded_size(n) for n in range(1, self._max_num_seqs + 1)}
        for size in sorted(sizes, reverse=True):  # the largest first: smaller graphs then fit into its memory
            self._run_and_capture(make_batch(size), forward)
        return len(sizes)

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
