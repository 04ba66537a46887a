"""Host arrays to the device, one copy a step.

A step's integers are packed into one pinned buffer and sent by one asynchronous copy. The buffers form a ring, because
the copy of a step may still be waiting in the stream when the next step is packed; a buffer comes round again only
after its step has been waited for.
On the CPU nothing is copied: the arrays are wrapped.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

RING = 3  # one more than the steps that may be in flight


class Staging:
    """``upload`` turns int32 arrays into device tensors that stay valid until RING - 1 further uploads."""

    def __init__(self, device: torch.device, capacity: int = 1 << 16):
        self._device = device
        self._turn = 0
        self._pinned: list[Tensor] = []
        self._on_device: list[Tensor] = []
        if device.type == "cuda":
            for _ in range(RING):
                self._pinned.append(torch.empty(capacity, dtype=torch.int32, pin_memory=True))
                self._on_device.append(torch.empty(capacity, dtype=torch.int32, device=device))

    def upload(self, arrays: Sequence[np.ndarray]) -> list[Tensor]:
        """Device copies of contiguous int32 arrays, each 16-byte aligned, in order."""
        if self._device.type == "cpu":
            return [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]
        starts, total = [], 0
        for array in arrays:
            starts.append(total)
            total += -(-array.size // 4) * 4
        pinned, on_device = self._buffers(total)
        host = pinned.numpy()
        for start, array in zip(starts, arrays, strict=True):
            host[start : start + array.size] = array.reshape(-1)
        on_device[:total].copy_(pinned[:total], non_blocking=True)
        return [
            on_device[start : start + array.size].view(array.shape) for start, array in zip(starts, arrays, strict=True)
        ]

    def _buffers(self, total: int) -> tuple[Tensor, Tensor]:
        self._turn = (self._turn + 1) % RING
        if total > self._pinned[self._turn].numel():
            # Rare: many long cached prefixes at once. The old pinned buffer is idle (see above), the device one is
            # kept alive by the allocator's stream order.
            size = 2 * total
            self._pinned[self._turn] = torch.empty(size, dtype=torch.int32, pin_memory=True)
            self._on_device[self._turn] = torch.empty(size, dtype=torch.int32, device=self._device)
        return self._pinned[self._turn], self._on_device[self._turn]
