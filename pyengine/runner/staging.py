"""Host arrays to the device, without waiting for it, and as few copies as possible: one for a step of decodes.

What a step sends is packed into pinned memory first and copied in one piece by ``flush``:

    buffer   [ slots: arrays that every step sends, at fixed addresses | what else this step sends .... | free ]

The device has one such buffer, since its copies and kernels run in order; the host has a ring of them, because the copy
of a step may still wait in the stream while the next step is packed. A pinned buffer comes round again only after its
step has been waited for. Slots never move, so a captured pass may read them. On the CPU the buffer is the device's.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

RING = 3  # one more than the steps that may be in flight
ALIGNMENT = 4  # elements: 16 bytes
_DTYPES = {np.dtype(np.int32): torch.int32, np.dtype(np.float32): torch.float32, np.dtype(np.int64): torch.int64}


class Slot:
    """A fixed place of int32 in every step's buffer: ``device`` is what kernels read once the step is flushed."""

    def __init__(self, device: Tensor, staging: Staging, begin: int):
        self.device = device
        self._staging = staging
        self._begin = begin

    def write(self, array: np.ndarray, size: int, fill: int = 0) -> Tensor:
        """Send ``array`` int32, filled up to ``size``, with this step; returns the device's view of that size."""
        words, end = self._staging.slot_words(), self._begin + len(array)
        words[self._begin : end] = array
        words[end : self._begin + size] = fill
        return self.device[:size]


class Staging:
    """``begin`` a step; write slots and ``put`` arrays; ``flush`` before a kernel reads them. All valid for this step.

    Args:
        capacity: words of a buffer, slots included; what a step sends beyond that is copied by itself.
    """

    def __init__(self, device: torch.device, capacity: int = 1 << 16):
        self._on_gpu = device.type == "cuda"
        self._capacity = capacity
        self._on_device = torch.empty(capacity, dtype=torch.int32, device=device)
        self._hosts = [self._on_device]
        if self._on_gpu:
            self._hosts = [torch.empty(capacity, dtype=torch.int32, pin_memory=True) for _ in range(RING)]
        self._words = [host.numpy() for host in self._hosts]
        self._turn = 0
        self._slots_end = self._used = self._copied = 0
        self._slots_written = False

    def slot(self, size: int) -> Slot:
        """Reserve a place of ``size`` words; only before the first step."""
        begin = self._slots_end
        self._slots_end = self._used = self._copied = begin + _aligned(size)
        assert self._slots_end <= self._capacity, f"staging: slots of {self._slots_end} words in {self._capacity}"
        return Slot(self._on_device[begin : begin + size], self, begin)

    def begin(self) -> None:
        """A new step: everything sent RING steps ago has been used."""
        self._turn = (self._turn + 1) % len(self._hosts)
        self._used = self._copied = self._slots_end
        self._slots_written = False

    def put(self, array: np.ndarray) -> Tensor:
        """``array`` (int32, float32 or int64) as a device tensor of the same shape, to be read after ``flush``."""
        array = np.ascontiguousarray(array)
        if not self._on_gpu:
            return torch.from_numpy(array)
        words = array.view(np.int32).reshape(-1) if array.size else np.zeros(0, np.int32)
        begin, end = self._used, self._used + words.size
        if end > self._capacity:  # rare: a long history, or many long cached prefixes at once
            return torch.from_numpy(array).pin_memory().to(self._on_device.device, non_blocking=True)
        self._used = begin + _aligned(words.size)
        self._words[self._turn][begin:end] = words
        return self._on_device[begin:end].view(_DTYPES[array.dtype]).view(array.shape)

    def upload(self, array: np.ndarray) -> Tensor:
        """``put`` and ``flush``: for what is rare, or known only after the step's flush."""
        tensor = self.put(array)
        self.flush()
        return tensor

    def flush(self) -> None:
        """Copy what was written since the last flush, in one piece."""
        begin, end = 0 if self._slots_written else self._copied, min(self._used, self._capacity)
        if self._on_gpu and end > begin:
            self._on_device[begin:end].copy_(self._hosts[self._turn][begin:end], non_blocking=True)
        self._copied, self._slots_written = end, False

    def slot_words(self) -> np.ndarray:
        """This step's buffer on the host; for ``Slot``."""
        self._slots_written = True
        return self._words[self._turn]


def _aligned(num_words: int) -> int:
    return -(-num_words // ALIGNMENT) * ALIGNMENT
