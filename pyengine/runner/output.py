"""Sampled tokens back to the host: the only wait of the loop.

On a GPU the copies run on a stream of their own into pinned memory, so that the next step is already computing when the
host reads the last one's tokens. On a CPU the tokens are simply there.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pyengine.protocol import TokenLogprob
from pyengine.runner.prompt_reader import PromptTensors
from pyengine.runner.staging import RING
from pyengine.sampling.sampler import LogprobTensors, Sampled
from pyengine.sched.step import StepInput, StepOutput


class PendingOutput:
    """A step's tokens on their way. ``wait`` blocks until they are on the host."""

    def __init__(self, step: StepInput, sampled: Sampled, read: PromptTensors | None, event: torch.cuda.Event | None):
        self._step_id = step.step_id
        self._samples = step.samples
        self._sampled = sampled
        self._read = read
        self._event = event

    def wait(self) -> StepOutput:
        if self._event is not None:
            self._event.synchronize()
        tokens = self._sampled.token_ids.numpy()[: len(self._samples)][self._samples].copy()
        logprobs = {}
        if self._sampled.logprobs is not None:
            place = np.cumsum(self._samples) - 1  # batch row -> index among the sampled
            logprobs = _logprobs(self._sampled.logprobs, place)
        if self._read is None:
            return StepOutput(self._step_id, tokens, logprobs)
        pooled = None if self._read.pooled is None else self._read.pooled.numpy()
        return StepOutput(self._step_id, tokens, logprobs, self._read.prompt_scores(), pooled)


def _logprobs(tensors: LogprobTensors, place: np.ndarray) -> dict[int, TokenLogprob]:
    logprobs, ranks = tensors.target_logprobs.tolist(), tensors.target_ranks.tolist()
    ids, tops = tensors.top_ids.tolist(), tensors.top_logprobs.tolist()
    return {
        int(place[row]): TokenLogprob(logprobs[i], ranks[i], ids[i][:count], tops[i][:count])
        for i, (row, count) in enumerate(zip(tensors.indices.tolist(), tensors.counts.tolist(), strict=True))
    }


class OutputCopies:
    """Starts the copies; owns the ring of pinned buffers."""

    def __init__(self, device: torch.device, max_num_seqs: int):
        self._on_gpu = device.type == "cuda"
        self._turn = 0
        if self._on_gpu:
            self._stream = torch.cuda.Stream(device)
            self._pinned = [torch.empty(max_num_seqs, dtype=torch.int32, pin_memory=True) for _ in range(RING)]

    def start(self, step: StepInput, sampled: Sampled, read: PromptTensors | None = None) -> PendingOutput:
        """``sampled`` has a row for each sequence of ``step`` and perhaps padding; ``step.samples`` tells which
        count.
        """
        if not self._on_gpu:
            return PendingOutput(step, sampled, read, None)
        self._turn = (self._turn + 1) % RING
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            token_ids = self._to_host(sampled.token_ids, self._pinned[self._turn][: sampled.token_ids.numel()])
            logprobs = None if sampled.logprobs is None else sampled.logprobs.map(self._to_host)
            read = None if read is None else read.map(self._to_host)
            event = torch.cuda.Event()
            event.record(self._stream)
        return PendingOutput(step, Sampled(token_ids, logprobs), read, event)

    def _to_host(self, tensor: Tensor, target: Tensor | None = None) -> Tensor:
        if target is None:
            target = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        target.copy_(tensor, non_blocking=True)
        tensor.record_stream(self._stream)
        return target
