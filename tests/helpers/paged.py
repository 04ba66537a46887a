"""Random paged KV caches with shuffled blocks and NaN in every slot that no sequence owns."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from pyengine import ops
from pyengine.ops import AttentionMetadata


@dataclass(frozen=True)
class PagedCase:
    """One step of attention: caches, queries and metadata, built from query and sequence lengths."""

    q: Tensor
    k_cache: Tensor
    v_cache: Tensor
    meta: AttentionMetadata
    scale: float
    k_scale: Tensor | None = None  # of caches in float8_e4m3fn
    v_scale: Tensor | None = None

    def share_blocks(self, sequences: list[int], num_blocks: int) -> None:
        """Lets the tables of ``sequences`` begin with the same physical blocks, those of the first of them."""
        first, *others = self.meta.table_rows[sequences].tolist()
        for row in others:
            self.meta.block_tables[row, :num_blocks] = self.meta.block_tables[first, :num_blocks]

    def to(self, device: str | torch.device) -> PagedCase:
        return replace(_moved(self, device), meta=_moved(self.meta, device))

    @property
    def num_queries(self) -> int:
        return int(self.meta.query_start[-1])

    def attend(self, window: int = 0) -> Tensor:
        """The op's rows of live tokens."""
        num_heads, head_dim = self.q.shape[1:]
        num_kv_heads, block_size = self.k_cache.shape[1:3]
        ops.attention_plan(self.meta, num_heads, num_kv_heads, head_dim, block_size, window, self.k_cache.dtype)
        scales = {"k_scale": self.k_scale, "v_scale": self.v_scale}
        out = ops.paged_attention(self.q, self.k_cache, self.v_cache, self.meta, self.scale, window, **scales)
        return out[: self.num_queries]


def _moved(holder: Any, device: str | torch.device) -> Any:
    """A dataclass with its tensors on ``device``."""
    tensors = {each.name: getattr(holder, each.name) for each in fields(holder)}
    return replace(holder, **{name: t.to(device) for name, t in tensors.items() if isinstance(t, Tensor)})


@dataclass(frozen=True)
class Heads:
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 64


def empty_caches(
    num_blocks: int, block_size: int, heads: Heads, dtype: torch.dtype, device: str
) -> tuple[Tensor, Tensor]:
    """K and V of NaN, [num_blocks, num_kv_heads, block_size, head_dim], as strided views of one arena."""
    shape = (num_blocks, 2, heads.num_kv_heads, block_size, heads.head_dim)
    arena = torch.full(shape, float("nan"), dtype=dtype, device=device)
    return arena[:, 0], arena[:, 1]


def paged_case(
    lengths: list[tuple[int, int]],
    heads: Heads,
    dtype: torch.dtype,
    device: str,
    block_size: int = 16,
    num_padding: int = 0,
    kv_dtype: torch.dtype | None = None,
) -> PagedCase:
    """``lengths`` holds (num_queries, seq_len) per sequence; ``num_padding`` rows of NaN follow the live queries.

    kv_dtype: of the caches; None: dtype.
    """
    kv_dtype = kv_dtype or dtype
    num_blocks_of = [-(-seq_len // block_size) for _, seq_len in lengths]
    num_blocks = sum(num_blocks_of) + 3
    k_cache, v_cache = empty_caches(num_blocks, block_size, heads, kv_dtype, device)
    ids = torch.randperm(num_blocks).tolist()
    max_blocks = max(num_blocks_of, default=0) + 1
    tables = torch.full(
        (len(lengths) + 1, max_blocks), 2**30, dtype=torch.int32
    )  # an unowned entry must not be followed
    rows = torch.randperm(len(lengths) + 1)[: len(lengths)].to(torch.int32)
    for s, (_, seq_len) in enumerate(lengths):
        blocks = [ids.pop() for _ in range(num_blocks_of[s])]
        tables[rows[s], : len(blocks)] = torch.tensor(blocks, dtype=torch.int32)
        for cache in (k_cache, v_cache):
            for i, block in enumerate(blocks):
                live = min(block_size, seq_len - i * block_size)
                cache[block, :, :live] = torch.randn(heads.num_kv_heads, live, heads.head_dim).to(kv_dtype)
    num_queries = [n for n, _ in lengths]
    num_tokens = sum(num_queries) + num_padding
    width = (heads.num_heads + 2 * heads.num_kv_heads) * heads.head_dim
    qkv = torch.full((num_tokens, width), float("nan"), dtype=dtype, device=device)  # q is a strided view of it
    q = qkv[:, : heads.num_heads * heads.head_dim].view(num_tokens, heads.num_heads, heads.head_dim)
    q[: sum(num_queries)] = torch.randn(sum(num_queries), heads.num_heads, heads.head_dim).to(dtype)
    starts = torch.tensor([0, *num_queries]).cumsum(0).to(torch.int32)
    seq_lens = torch.tensor([n for _, n in lengths], dtype=torch.int32)
    max_seq_len = max_blocks * block_size
    plan, workspace = ops.make_attention_buffers(
        max(1, len(lengths)),
        max(1, num_tokens),
        max_seq_len,
        heads.num_heads,
        heads.num_kv_heads,
        heads.head_dim,
        kv_dtype,
        device,
    )
    meta = AttentionMetadata(
        tables.to(device),
        rows.to(device),
        starts.to(device),
        seq_lens.to(device),
        num_tokens,
        max_seq_len,
        plan,
        workspace,
    )
    return PagedCase(q, k_cache, v_cache, meta, heads.head_dim**-0.5)
