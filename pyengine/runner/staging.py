"""Host arrays to the device, without waiting for it.

What a step sends is packed into pinned memory and copied asynchronously. The buffers form a ring, one per step,
because the copies of a step may still wait in the stream while the next step is packed; a buffer comes round again
only after its step has been waited for. On the CPU nothing is copied: the arrays are wrapped.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

RING = 3  # one more than the steps that may be in flight
ALIGNMENT = 4  # elements: 16 bytes
_DTYPES = {np.dtype(np.int32): torch.int32, np.dtype(np.float32): torch.float32, np.dtype(np.int64): torch.int64}


class Staging:
    """``begin`` a step, then ``upload`` any number of arrays; the tensors stay valid for RING - 1 further steps."""

    def __init__(self, device: torch.device, capacity: int = 1 << 16):
        self._device = device
        self._turn = 0
        self._used = 0
        self._pinned: list[Tensor] = []
        self._on_device: list[Tensor] = []
        if device.type == "cuda":
            for _ in range(RING):
                self._pinned.append(torch.empty(capacity, dtype=torch.int32, pin_memory=True))
                self._on_device.append(torch.empty(capacity, dtype=torch.int32, device=device))

    def begin(self) -> None:
        """A new step: everything uploaded RING steps ago has been used."""
        self._turn = (self._turn + 1) % RING
        self._used = 0

    def upload(self, array: np.ndarray) -> Tensor:
        """``array`` (int32, float32 or int64) on the device, of the same shape."""
        array = np.ascontiguousarray(array)
        if self._device.type == "cpu":
            return torch.from_numpy(array)
        words = array.view(np.int32).reshape(-1) if array.size else np.zeros(0, np.int32)
        begin, end = self._reserve(words.size)
        pinned, on_device = self._pinned[self._turn], self._on_device[self._turn]
        pinned.numpy()[begin:end] = words
        on_device[begin:end].copy_(pinned[begin:end], non_blocking=True)
        return on_device[begin:end].view(_DTYPES[array.dtype]).view(array.shape)

    def _reserve(self, num_words: int) -> tuple[int, int]:
        begin, self._used = self._used, self._used + -(-num_words // ALIGNMENT) * ALIGNMENT
        if self._used > self._pinned[self._turn].numel():
            # Rare: a long history or many long cached prefixes at once. Views of the old buffers keep those alive.
            capacity = 2 * self._used
            self._pinned[self._turn] = torch.empty(capacity, dtype=torch.int32, pin_memory=True)
            self._on_device[self._turn] = torch.empty(capacity, dtype=torch.int32, device=self._device)
            begin, self._used = 0, -(-num_words // ALIGNMENT) * ALIGNMENT
        return begin, begin + num_words
