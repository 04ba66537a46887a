"""Automatic prefix caching: full blocks found again by what they hold.

A block's key is the chained hash of its tokens and its predecessor's key (so a key names a whole prefix), begun with
the request's salt. A hit is believed only when the stored tokens and the stored predecessor are equal, so that a
collision can never serve foreign contents (the weakness behind CVE-2025-25183). 16 bytes of BLAKE2b make one unlikely,
the comparison makes it harmless.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b


@dataclass(frozen=True, slots=True)
class BlockKey:
    """Identity of a full block: the digest of its prefix and, to verify a hit, what went into it."""

    digest: bytes
    parent: bytes
    tokens: bytes


def root_digest(salt: str) -> bytes:
    """The predecessor of a sequence's first block; different salts never share a block."""
    return blake2b(salt.encode("utf-8", "surrogatepass"), digest_size=16, person=b"pyengine-root").digest()


def make_key(parent: bytes, tokens: Sequence[int]) -> BlockKey:
    """The key of a block that holds ``tokens`` after the prefix ``parent``."""
    packed = array("i", tokens).tobytes()
    return BlockKey(blake2b(packed, digest_size=16, key=parent).digest(), parent, packed)


class PrefixCache:
    """Map from block keys to block ids and back. Knows nothing of reference counts."""

    def __init__(self) -> None:
        self._block_by_digest: dict[bytes, int] = {}
        self._key_by_block: dict[int, BlockKey] = {}

    def __len__(self) -> int:
        return len(self._key_by_block)

    def __contains__(self, block: int) -> bool:
        return block in self._key_by_block

    def find(self, key: BlockKey) -> int | None:
        """The block that holds exactly this prefix, or None."""
        block = self._block_by_digest.get(key.digest)
        if block is None:
            return None
        stored = self._key_by_block[block]
        return block if stored.tokens == key.tokens and stored.parent == key.parent else None

    def key_of(self, block: int) -> BlockKey:
        return self._key_by_block[block]

    def insert(self, key: BlockKey, block: int) -> bool:
        """Remember the block; False when an equal (or colliding) one is known already, which then stays."""
        if key.digest in self._block_by_digest or block in self._key_by_block:
            return False
        self._block_by_digest[key.digest] = block
        self._key_by_block[block] = key
        return True

    def remove(self, block: int) -> None:
        key = self._key_by_block.pop(block, None)
        if key is not None:
            del self._block_by_digest[key.digest]
