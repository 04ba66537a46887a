"""Sampled tokens back to the host: the only wait of the loop.

On a GPU the copy runs on a stream of its own into pinned memory, so that the next step is already computing when the
host reads the last one's tokens. On a CPU the tokens are simply there.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pyengine.runner.staging import RING
from pyengine.sched.step import StepOutput


class PendingOutput:
    """A step's tokens on their way. ``wait`` blocks until they are on the host."""

    def __init__(self, step_id: int, samples: np.ndarray, host_tokens: Tensor, event: torch.cuda.Event | None):
        self._step_id = step_id
        self._samples = samples
        self._host_tokens = host_tokens
        self._event = event

    def wait(self) -> StepOutput:
        if self._event is not None:
            self._event.synchronize()
        return StepOutput(self._step_id, self._host_tokens.numpy()[: len(self._samples)][self._samples].copy())


class OutputCopies:
    """Starts the copies; owns the ring of pinned buffers."""

    def __init__(self, device: torch.device, max_num_seqs: int):
        self._on_gpu = device.type == "cuda"
        self._turn = 0
        if self._on_gpu:
            self._stream = torch.cuda.Stream(device)
            self._pinned = [torch.empty(max_num_seqs, dtype=torch.int32, pin_memory=True) for _ in range(RING)]

    def start(self, step_id: int, samples: np.ndarray, token_ids: Tensor) -> PendingOutput:
        """``token_ids`` int32 [>= num_seqs] on the device, row i for sequence i; ``samples`` bool [num_seqs] tells
        which count.
        """
        if not self._on_gpu:
            return PendingOutput(step_id, samples, token_ids, None)
        self._turn = (self._turn + 1) % RING
        host = self._pinned[self._turn]
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            host[: token_ids.numel()].copy_(token_ids, non_blocking=True)
            token_ids.record_stream(self._stream)
            event = torch.cuda.Event()
            event.record(self._stream)
        return PendingOutput(step_id, samples, host, event)
