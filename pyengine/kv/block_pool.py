"""The pool of KV blocks: reference counts and the order in which free blocks are handed out.

A block is live (reference count > 0), cached (count 0, but its contents may be asked for again) or empty. Empty blocks
are handed out first, then the least recently used cached one. All operations are O(1).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable


class BlockPool:
    """``num_blocks`` blocks with ids 0 .. num_blocks - 1.

    Args:
        num_blocks: size of the pool.
        on_evict: called with the id of a cached block just before it is handed out again.
    """

    def __init__(self, num_blocks: int, on_evict: Callable[[int], None]):
        self.num_blocks = num_blocks
        self.ref_counts = [0] * num_blocks
        self._on_evict = on_evict
        self._empty = list(range(num_blocks - 1, -1, -1))  # a stack: block 0 is handed out first
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently used first

    @property
    def num_free(self) -> int:
        """Blocks that an allocation may take, cached ones included."""
        return len(self._empty) + len(self._cached)

    @property
    def num_cached(self) -> int:
        return len(self._cached)

    def allocate(self) -> int:
        """A block with reference count 1, contents undefined. The caller has checked ``num_free``."""
        if self._empty:
            block = self._empty.pop()
        else:
            block, _ = self._cached.popitem(last=False)
            self._on_evict(block)
        self.ref_counts[block] = 1
        return block

    def share(self, block: int) -> None:
        """One more holder of a live or cached block."""
        if self.ref_counts[block] == 0:
            del self._cached[block]
        self.ref_counts[block] += 1

    def release(self, block: int, keep: bool) -> None:
        """One holder less; the last one leaves the block cached when ``keep``, else empty."""
        count = self.ref_counts[block] - 1
        assert count >= 0, f"block {block} released more often than shared"
        self.ref_counts[block] = count
        if count == 0:
            if keep:
                self._cached[block] = None
            else:
                self._empty.append(block)

    def forget(self, block: int) -> None:
        """A cached block's contents are no longer wanted."""
        if block in self._cached:
            del self._cached[block]
            self._empty.append(block)

    def check_integrity(self) -> None:
        """Every block is exactly one of live, cached, empty."""
        empty, cached = set(self._empty), set(self._cached)
        live = {block for block, count in enumerate(self.ref_counts) if count > 0}
        assert len(empty) == len(self._empty), "a block is twice on the empty stack"
        assert not empty & cached and not (empty | cached) & live, "a block is in two states"
        assert len(empty) + len(cached) + len(live) == self.num_blocks, "a block is lost"
