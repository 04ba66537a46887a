"""Block tables of sequences: matching cached prefixes, growing, forking, freeing.

    block_table of a sequence, block_size 4:     [ b7 | b2 | b9 ]
    tokens                                        0..3 4..7 8..         token t lives in slot table[t // 4] * 4 + t % 4
                                                  cached    computed

A block is written only by a sequence that holds it alone: before a shared block is written (after a fork) it is
copied, and the copy is reported to the caller, who has the device do it before the next pass. Full blocks enter the
prefix cache once their tokens are known and computed; those that the device needs for others go on to the host tier.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pyengine.kv.block_pool import BlockPool
from pyengine.kv.host_tier import HostTier
from pyengine.kv.prefix_cache import PrefixCache, make_key, root_digest

if TYPE_CHECKING:
    from pyengine.sched.sequence import Sequence


@dataclass(slots=True)
class Growth:
    """What the device must learn after an allocation: table entries (row, index, block) and block copies (src, dst)."""

    entries: list[tuple[int, int, int]] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)


class BlockManager:
    """Owns every block. ``num_blocks`` blocks of ``block_size`` tokens; ``prefix_caching`` switches reuse between
    sequences, of which ``tier`` is a part.
    """

    def __init__(self, num_blocks: int, block_size: int, prefix_caching: bool = True, tier: HostTier | None = None):
        self.block_size = block_size
        self.prefix_caching = prefix_caching
        self.cache = PrefixCache()
        self.tier = tier or HostTier()
        self.pool = BlockPool(num_blocks, on_evict=self._evict)
        self.num_query_tokens = 0  # prompt tokens looked up in the cache
        self.num_hit_tokens = 0

    def num_blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def match(self, seq: Sequence) -> list[int]:
        """The longest run of cached blocks that begins ``seq``'s tokens; always leaves at least one token to compute.

        A block of the host tier is given as ~its number, which is negative. Takes no reference: hand the result to
        ``adopt`` in the same scheduling round.
        """
        if not self.prefix_caching:
            return []
        blocks = []
        self._extend_keys(seq, (seq.num_tokens - 1) // self.block_size)
        for key in seq.block_keys[: (seq.num_tokens - 1) // self.block_size]:
            block = self.cache.find(key)
            if block is None:
                host = self.tier.find(key)
                if host is None:
                    break
                block = ~host
            blocks.append(block)
        return self._worth_copying(blocks)

    def _worth_copying(self, blocks: list[int]) -> list[int]:
        """``blocks``, ended before the first one of the host if computing those is faster."""
        num_hosted = sum(block < 0 for block in blocks)
        if not num_hosted:
            return blocks
        first = next(i for i, block in enumerate(blocks) if block < 0)
        return blocks if self.tier.is_worth(num_hosted, first * self.block_size) else blocks[:first]

    def can_admit(self, seq: Sequence, cached: list[int], reserve: int) -> bool:
        """Whether all of ``seq``'s known tokens fit beside ``reserve`` further blocks, given its cached blocks."""
        on_device = [block for block in cached if block >= 0]
        num_reclaimed = sum(1 for block in on_device if self.pool.ref_counts[block] == 0)
        needed = self.num_blocks_for(seq.num_tokens) - len(on_device)
        return needed + num_reclaimed + reserve <= self.pool.num_free

    def adopt(self, seq: Sequence, cached: list[int]) -> None:
        """Start ``seq``'s empty block table with the blocks that ``match`` found."""
        assert not seq.block_table and seq.num_computed_tokens == 0
        self.tier.hold([~block for block in cached if block < 0])
        for block in cached:  # all of them held before any is allocated, which evicts others
            if block >= 0:
                self.pool.share(block)
        seq.block_table = [block if block >= 0 else self._load(~block) for block in cached]
        seq.num_computed_tokens = len(cached) * self.block_size
        self.num_query_tokens += seq.num_tokens
        self.num_hit_tokens += seq.num_computed_tokens

    def extend(self, seq: Sequence, num_tokens: int, growth: Growth) -> bool:
        """Make the block table hold ``num_tokens`` tokens, all writable from ``seq.num_computed_tokens`` on.

        Appends what changed to ``growth``. Returns False, having changed nothing, when blocks run out.
        """
        table = seq.block_table
        first_written = seq.num_computed_tokens // self.block_size
        fits = num_tokens <= len(table) * self.block_size
        if fits and first_written == len(table) - 1 and self.pool.ref_counts[table[-1]] == 1:
            return True  # fifteen of sixteen decodes
        shared = [i for i in range(first_written, len(table)) if self.pool.ref_counts[table[i]] > 1]
        num_new = self.num_blocks_for(num_tokens) - len(table)
        if len(shared) + max(num_new, 0) > self.pool.num_free:
            return False
        for i in shared:
            growth.copies.append((table[i], self._replace(seq, i)))
            growth.entries.append((seq.row, i, table[i]))
        for i in range(len(table), len(table) + num_new):
            table.append(self.pool.allocate())
            growth.entries.append((seq.row, i, table[i]))
        return True

    def fork(self, parent: Sequence, child: Sequence, num_tokens: int) -> None:
        """Let ``child`` share the blocks that hold ``parent``'s first ``num_tokens`` tokens (copy-on-write)."""
        assert not child.block_table and num_tokens <= parent.num_computed_tokens
        child.block_table = parent.block_table[: self.num_blocks_for(num_tokens)]
        for block in child.block_table:
            self.pool.share(block)
        child.num_computed_tokens = num_tokens

    def commit(self, seq: Sequence) -> None:
        """Enter ``seq``'s full, computed blocks of known tokens into the prefix cache."""
        if not self.prefix_caching:
            return
        num_full = min(seq.num_computed_tokens, seq.num_tokens) // self.block_size
        if num_full <= seq.num_committed_blocks:
            return
        self._extend_keys(seq, num_full)
        for i in range(seq.num_committed_blocks, num_full):
            self.cache.insert(seq.block_keys[i], seq.block_table[i])
        seq.num_committed_blocks = num_full

    def free(self, seq: Sequence, forget: bool = False) -> None:
        """Give back ``seq``'s blocks, last first, so that a prefix's end is evicted before its beginning.

        ``forget`` also drops what it alone holds from the prefix cache (its contents are suspect).
        """
        for block in reversed(seq.block_table):
            if forget and self.pool.ref_counts[block] == 1:
                self.cache.remove(block)
            self.pool.release(block, keep=block in self.cache)
        seq.block_table = []
        seq.num_computed_tokens = 0
        seq.num_committed_blocks = 0

    def flush_cache(self) -> None:
        """Forget every cached prefix; live sequences keep their blocks."""
        for block in range(self.pool.num_blocks):
            self.cache.remove(block)
            self.pool.forget(block)
        self.tier.clear()

    def check_integrity(self, live: list[Sequence]) -> None:
        """free + used = total, and each reference count equals the number of tables that name the block."""
        self.pool.check_integrity()
        self.tier.check_integrity()
        counts = [0] * self.pool.num_blocks
        for seq in live:
            for block in seq.block_table:
                counts[block] += 1
        assert counts == self.pool.ref_counts, "reference counts differ from the block tables"
        for block in self.pool._cached:
            assert block in self.cache, f"block {block} is kept for the cache but has no key"

    def _evict(self, block: int) -> None:
        self.tier.save(self.cache.key_of(block), block)
        self.cache.remove(block)

    def _load(self, host: int) -> int:
        block = self.pool.allocate()
        self.tier.load(host, block)
        return block

    def _replace(self, seq: Sequence, index: int) -> int:
        """Swap a shared block of the table for a fresh one (the copy's destination); returns the new id."""
        new = self.pool.allocate()
        self.pool.release(seq.block_table[index], keep=False)
        seq.block_table[index] = new
        return new

    def _extend_keys(self, seq: Sequence, num_blocks: int) -> None:
        keys, size = seq.block_keys, self.block_size
        while len(keys) < num_blocks:
            parent = keys[-1].digest if keys else root_digest(seq.cache_salt)
            keys.append(make_key(parent, seq.token_ids[len(keys) * size : (len(keys) + 1) * size]))
