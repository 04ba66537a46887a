"""Captured passes: a step of decodes, and a small one with prompts, is replayed instead of issued op by op.

On a GPU a pass is a CUDA graph, captured at a few sizes and padded up to them. On a CPU it is a recorded program of our
ops, of decodes alone, captured at exactly the size that comes. Both freeze pointers and sizes, so a captured pass reads
its inputs from the persistent buffers of ``DeviceState`` and writes its logits to one of the runner. Same tokens either
way: what is replayed are the very ops that ran when it was captured.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from pyengine import ops
from pyengine.runner.device_state import InputBatch, PassSize

Forward = Callable[[InputBatch], Tensor]

# What more rows must spare, of the seconds of all products: below that it is scatter.
LEAST_GAIN, LEAST_GAIN_S = 0.03, 1e-4


class Captured(Protocol):
    def replay(self) -> None: ...


# Captures a pass without running it; returns it with its output.
Capture = Callable[[InputBatch, Forward], tuple[Captured, Tensor]]


class EagerPass:
    """No capture: every size runs as it is, op by op."""

    def padded_size(self, size: PassSize) -> PassSize:
        """What a batch of ``size`` is padded to before ``run``."""
        return size

    def run(self, batch: InputBatch, forward: Forward) -> Tensor:
        return forward(batch)

    def prefer(self, product_times: Sequence[tuple[int, float]]) -> None:
        """Pad by what was measured: (rows, seconds of all layers' products). Before ``capture_ahead``."""

    def capture_ahead(self, make_batch: Callable[[PassSize], InputBatch], forward: Forward) -> int:
        """Capture the sizes that should be ready before the first request; returns how many."""
        return 0


class RecordedPass(EagerPass):
    """CPU: a program per number of decodes, recorded the first time it comes. They are few (up to max_num_seqs) and
    programs small.
    """

    def __init__(self) -> None:
        self._programs: dict[int, tuple[ops.Program, Tensor]] = {}

    def run(self, batch: InputBatch, forward: Forward) -> Tensor:
        if not batch.size.decodes:
            return forward(batch)
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
    """GPU: graphs of 1, 2, 4, 8, 16 decodes, from there in steps of 16, and beyond 224 in steps of 128; and of steps
    with prompts up to 512 tokens.

    To 224 rows the dense layers stream their weights and take the longer the more rows there are. Beyond, cuBLASLt has
    most of them (csrc/cuda/gemm/stream_plan.h), whose products take as long at 240 rows as at 256. Issuing a pass op by
    op takes the host 3 to 5 ms, longer than a GPU takes for a small model or a few tokens; not for more than 512.

    A product is not always the faster for having fewer rows, and where that is so depends on the GPU: sizes that were
    measured to be slower than a larger one are left out.
    """

    STEP, COARSE_STEP, FINE_END = 16, 128, 224
    MIXED = (16, 32, 64, 96, 128, 160, 192, 224, 256, 320, 384, 512)  # tokens: classes of the products

    def __init__(self, max_num_seqs: int, max_num_tokens: int, capture: Capture):
        self._max_num_seqs = max_num_seqs
        self._mixed = [num_tokens for num_tokens in self.MIXED if num_tokens <= max_num_tokens]
        self._capture = capture
        self._graphs: dict[PassSize, tuple[Captured, Tensor]] = {}
        self._measured: list[int] = []  # numbers of rows, ascending
        self._faster: dict[int, int] = {}  # for some of them, the larger one to take instead

    def prefer(self, product_times: Sequence[tuple[int, float]]) -> None:
        seconds = dict(product_times)
        self._measured = sorted(seconds)
        for size, own_s in seconds.items():
            best = min((larger for larger in self._measured if larger >= size), key=seconds.__getitem__)
            if own_s - seconds[best] > max(LEAST_GAIN_S, LEAST_GAIN * own_s):
                self._faster[size] = best

    def padded_size(self, size: PassSize) -> PassSize:
        if size.decodes:
            return self._decodes(size.num_seqs)
        larger = (num_tokens for num_tokens in self._mixed if num_tokens >= size.num_tokens)
        num_tokens = next(larger, None)
        return size if num_tokens is None else self._with_prompts(num_tokens)

    def run(self, batch: InputBatch, forward: Forward) -> Tensor:
        captured = self._graphs.get(batch.size)
        if captured is None:
            return forward(batch) if self._is_large(batch.size) else self._run_and_capture(batch, forward)
        graph, output = captured
        graph.replay()
        return output

    def capture_ahead(self, make_batch: Callable[[PassSize], InputBatch], forward: Forward) -> int:
        sizes = {self._decodes(n) for n in range(1, self._max_num_seqs + 1)} | set(map(self._with_prompts, self._mixed))
        # The largest first: smaller graphs then fit into its memory.
        for size in sorted(sizes, key=lambda size: size.num_tokens, reverse=True):
            self._run_and_capture(make_batch(size), forward)
        return len(sizes)

    def _decodes(self, num_seqs: int) -> PassSize:
        if num_seqs <= self.STEP:
            padded = 1 << (num_seqs - 1).bit_length()
        else:
            step = self.STEP if num_seqs <= self.FINE_END else self.COARSE_STEP
            padded = -(-num_seqs // step) * step
        padded = min(self._fastest(padded), self._max_num_seqs)
        return PassSize(padded, padded, decodes=True)

    def _with_prompts(self, num_tokens: int) -> PassSize:
        """Room for as many sequences as such a step may have."""
        num_tokens = min(self._fastest(num_tokens), self._mixed[-1])
        return PassSize(min(num_tokens, self._max_num_seqs), num_tokens, decodes=False)

    def _fastest(self, num_rows: int) -> int:
        """``num_rows`` or more."""
        at = bisect_left(self._measured, num_rows)
        return self._faster.get(self._measured[at], num_rows) if at < len(self._measured) else num_rows

    def _is_large(self, size: PassSize) -> bool:
        return not size.decodes and size.num_tokens > (self._mixed[-1] if self._mixed else 0)

    def _run_and_capture(self, batch: InputBatch, forward: Forward) -> Tensor:
        output = forward(batch)  # first: algorithm choices and lazy initialisation must not happen in a capture
        self._graphs[batch.size] = self._capture(batch, forward)
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


def make_graph_pass(device_kind: str, max_num_seqs: int, max_num_tokens: int, enforce_eager: bool) -> EagerPass:
    if enforce_eager:
        return EagerPass()
    return GraphPass(max_num_seqs, max_num_tokens, CudaCapture()) if device_kind == "cuda" else RecordedPass()
