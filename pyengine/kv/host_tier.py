"""The host tier: blocks that the device's prefix cache gives up live on in host memory and come back when they match.

    device block b, about to be overwritten   ── swap out ──▶  host block, under b's key
    host block, its key asked for             ── swap in  ──▶  fresh device block; the host keeps its copy

Copies are only noted here; the device makes them before the next pass, those out before those in. So a host block may
be written and read in one step, but one that is read in this step must not be given away in it. A preempted sequence
needs nothing of its own: its full blocks stay in the prefix cache, and whichever of them are evicted come here.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from pyengine.kv.prefix_cache import BlockKey, PrefixCache


@dataclass(slots=True)
class Swaps:
    """Copies before the next pass: ``outs`` (device block, host block), then ``ins`` (host block, device block)."""

    outs: list[tuple[int, int]]
    ins: list[tuple[int, int]]


def _always(num_blocks: int, num_tokens_before: int) -> bool:
    return True


class HostTier:
    """``num_blocks`` host blocks, least recently used ones overwritten first; with none it remembers nothing.

    Args:
        is_worth: whether copying so many blocks in is cheaper than computing them after so many tokens.
    """

    def __init__(self, num_blocks: int = 0, is_worth: Callable[[int, int], bool] = _always):
        self.num_blocks = num_blocks
        self.is_worth = is_worth
        self.num_swapped_out = self.num_swapped_in = 0
        self._keys = PrefixCache()
        self._empty = list(range(num_blocks - 1, -1, -1))
        self._used: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self._outs: dict[int, int] = {}  # host block -> device block, of the step in the making
        self._ins: list[tuple[int, int]] = []
        self._reading: set[int] = set()

    def save(self, key: BlockKey, block: int) -> None:
        """Device block ``block``, which holds ``key``, is about to be overwritten."""
        known = self._keys.find(key)
        if known is not None:
            self._used.move_to_end(known)
            return
        host = self._place()
        if host is None:
            return
        if not self._keys.insert(key, host):  # another key of the same digest
            self._empty.append(host)
            return
        self._used[host] = None
        self._outs[host] = block

    def find(self, key: BlockKey) -> int | None:
        """The host block that holds ``key``, or None."""
        return self._keys.find(key)

    def hold(self, hosts: list[int]) -> None:
        """These will be loaded in this step: none of them is given away before."""
        self._reading.update(hosts)

    def load(self, host: int, block: int) -> None:
        """Have device block ``block`` filled from ``host``, which is held."""
        self._used.move_to_end(host)
        self._ins.append((host, block))

    def take_swaps(self) -> Swaps:
        """The copies noted since the last call."""
        swaps = Swaps([(block, host) for host, block in self._outs.items()], self._ins)
        self.num_swapped_out += len(swaps.outs)
        self.num_swapped_in += len(swaps.ins)
        self._outs, self._ins = {}, []
        self._reading.clear()
        return swaps

    def clear(self) -> None:
        """Forget everything that no copy in the making reads."""
        for host in [host for host in self._used if host not in self._reading]:
            self._forget(host)

    def _place(self) -> int | None:
        """An empty host block; None when all are about to be read."""
        if not self._empty:
            oldest = next((host for host in self._used if host not in self._reading), None)
            if oldest is None:
                return None
            self._forget(oldest)
        return self._empty.pop()

    def _forget(self, host: int) -> None:
        self._keys.remove(host)
        del self._used[host]
        self._outs.pop(host, None)  # nobody would read what it brings
        self._empty.append(host)

    def check_integrity(self) -> None:
        """Every host block is either empty or holds exactly one key."""
        assert len(set(self._empty)) == len(self._empty) and not set(self._empty) & set(self._used)
        assert len(self._empty) + len(self._used) == self.num_blocks, "a host block is lost"
        assert len(self._keys) == len(self._used) and all(host in self._keys for host in self._used)
        assert set(self._outs) <= set(self._used) and self._reading <= set(self._used)
