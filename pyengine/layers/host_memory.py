"""Host memory for what is streamed every step: one private mapping on huge pages.

With 4 KiB pages a pass over the weights of even a small model misses the TLB at every page, which virtual machines pay
for twice; 2 MiB pages read half as fast again there. Linux mostly grants them only to memory that asks (``madvise``
mode), and the allocators behind ``torch.empty`` do not ask. Where the kernel has no huge pages this is ordinary memory.
"""

from __future__ import annotations

import contextlib
import mmap

import torch

_HUGE_PAGE_BYTES = 2 * 2**20


def empty_on_huge_pages(num_elements: int, dtype: torch.dtype) -> torch.Tensor:
    """A CPU tensor [num_elements] of zeros that begins on a 2 MiB boundary; freed with its last view."""
    num_bytes = num_elements * dtype.itemsize
    private = getattr(mmap, "MAP_PRIVATE", 0) | getattr(mmap, "MAP_ANONYMOUS", 0)
    try:
        memory = mmap.mmap(-1, num_bytes + _HUGE_PAGE_BYTES, flags=private)
    except OSError as error:
        raise MemoryError(f"cannot map {num_bytes} bytes of host memory: {error.strerror}") from None
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without transparent huge pages
            memory.madvise(mmap.MADV_HUGEPAGE)
    everything = torch.frombuffer(memory, dtype=torch.uint8)
    begin = -everything.data_ptr() % _HUGE_PAGE_BYTES
    return everything[begin : begin + num_bytes].view(dtype)
