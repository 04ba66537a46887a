"""Steps of attention worth testing, what they must give, and parts of them as steps of their own."""

from __future__ import annotations

import os
from dataclasses import replace

import torch
from paged import PagedCase

from pyengine import ops
from pyengine.ops import AttentionMetadata, reference

BS = 16
RAGGED = [1, BS - 1, BS, BS + 1, 2 * BS + 3]
DECODES = [(1, n) for n in [*RAGGED, 255, 256, 257, 700]]
PREFILLS = [(n, n) for n in RAGGED]
CHUNKS = [(7, 20), (16, 300), (33, 280), (2, 2), (70, 513)]  # later chunks of a prompt
CASES = {
    "decodes": DECODES,
    "prefills": PREFILLS,
    "chunks": CHUNKS,
    "mixed": [*CHUNKS[:3], *DECODES[:5], *PREFILLS[:2]],
    "one": [(1, 1)],
}
RAGGED_PROMPTS = [(33, 33), (64, 64), (65, 300), (130, 257), (129, 577)]  # beside the borders of 64 and 256 keys


def truth_and_plain(case: PagedCase, window: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The float64 result of the same inputs, and what plain torch makes of them in their own dtype.

    Computed on PE_ORACLE_DEVICE where that is set: cuBLAS beside our kernels is too much for some tools.
    """
    device = case.q.device
    truth, plain = _truth_and_plain(case.to(os.environ.get("PE_ORACLE_DEVICE", device)), window)
    return truth.to(device), plain.to(device)


def _truth_and_plain(case: PagedCase, window: int) -> tuple[torch.Tensor, torch.Tensor]:
    live = case.num_queries
    truth = reference.paged_attention(
        case.q.double(), case.k_cache.double(), case.v_cache.double(), case.meta, case.scale, window
    )[:live]
    return truth, plain_attention(case, window)


def plain_attention(case: PagedCase, window: int) -> torch.Tensor:
    """Dense attention per sequence with every intermediate result in the tensors' dtype."""
    meta, rows = case.meta, []
    group = case.q.shape[1] // case.k_cache.shape[1]
    for s, seq_len in enumerate(meta.seq_lens.tolist()):
        begin, end = meta.query_start[s : s + 2].tolist()
        blocks = meta.block_tables[meta.table_rows[s]][: -(-seq_len // case.k_cache.shape[2])].long()
        k, v = (
            c[blocks].transpose(1, 2).flatten(0, 1)[:seq_len].repeat_interleave(group, 1)
            for c in (case.k_cache, case.v_cache)
        )
        scores = torch.einsum("qhd,khd->hqk", case.q[begin:end], k) * case.scale
        at, key = (
            torch.arange(seq_len - end + begin, seq_len, device=k.device)[:, None],
            torch.arange(seq_len, device=k.device),
        )
        hidden = (key > at) | ((key <= at - window) if window else False)
        rows.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, float("-inf")).softmax(-1), v))
    return torch.cat(rows)


def alone(case: PagedCase, s: int, first: int, last: int, device: str) -> PagedCase:
    """Queries [first, last) of sequence ``s`` as a step of its own; the cache is the same."""
    meta = case.meta
    begin, end = meta.query_start[s : s + 2].tolist()
    seq_len = int(meta.seq_lens[s]) - (end - begin) + last
    heads, head_dim = case.q.shape[1:]
    starts = torch.tensor([0, last - first], dtype=torch.int32, device=device)
    seq_lens = torch.tensor([seq_len], dtype=torch.int32, device=device)
    buffers = ops.make_attention_buffers(
        1, last - first, meta.max_seq_len, heads, case.k_cache.shape[1], head_dim, case.k_cache.dtype, device
    )
    single = AttentionMetadata(
        meta.block_tables,
        meta.table_rows[s : s + 1].contiguous(),
        starts,
        seq_lens,
        last - first,
        meta.max_seq_len,
        *buffers,
    )
    return replace(case, q=case.q[begin + first : begin + last], meta=single)
