"""The KV blocks of the host tier: pinned memory beside the device's arena, and the copies between the two."""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor

from pyengine import ops
from pyengine.errors import ConfigError
from pyengine.layers.host_memory import empty_on_huge_pages
from pyengine.sched.step import StepInput

GIB = 1 << 30
NUM_TIMED = 8  # blocks


def plan_host_blocks(cpu_cache_gb: float, block_bytes: int, available_bytes: int) -> int:
    """How many blocks ``--cpu-cache-gb`` holds. Raises ConfigError when the host has not as much memory."""
    wanted = int(cpu_cache_gb * GIB)
    if wanted > available_bytes:
        raise ConfigError(
            f"--cpu-cache-gb {cpu_cache_gb:g} does not fit: {available_bytes / GIB:.1f} GiB of host memory are free"
        )
    return wanted // block_bytes


class HostArena:
    """``num_blocks`` blocks in host memory for those of ``arena`` [num_device_blocks, ...]."""

    def __init__(self, arena: Tensor, num_blocks: int):
        self._device_blocks = arena.view(1, arena.shape[0], -1)
        shape = (1, num_blocks, math.prod(arena.shape[1:]))
        if arena.device.type == "cuda":
            self._host_blocks = torch.empty(shape, dtype=arena.dtype, pin_memory=num_blocks > 0)
        else:
            self._host_blocks = empty_on_huge_pages(math.prod(shape), arena.dtype).view(shape)

    def swap(self, step: StepInput) -> None:
        """The step's copies, in the order that the scheduler relies on: out, then in. Nothing waits for them here."""
        if len(step.swaps_out):
            ops.swap_blocks(self._host_blocks, self._device_blocks, torch.from_numpy(step.swaps_out))
        if len(step.swaps_in):
            ops.swap_blocks(self._device_blocks, self._host_blocks, torch.from_numpy(step.swaps_in))

    def measure_copy_s(self) -> float:
        """Seconds to copy one block in, the best of three tries. Only before the cache holds anything."""
        num = min(NUM_TIMED, self._host_blocks.shape[1], self._device_blocks.shape[1])
        if not num:
            return 0.0
        # Not neighbours on both sides, which would be one large copy.
        pairs = torch.tensor([[i, num - 1 - i] for i in range(num)], dtype=torch.int32)
        return min(self._time(pairs) for _ in range(3)) / num

    def _time(self, pairs: Tensor) -> float:
        self._synchronize()
        begin = time.perf_counter()
        ops.swap_blocks(self._device_blocks, self._host_blocks, pairs)
        self._synchronize()
        return time.perf_counter() - begin

    def _synchronize(self) -> None:
        if self._device_blocks.device.type == "cuda":
            torch.cuda.synchronize()
