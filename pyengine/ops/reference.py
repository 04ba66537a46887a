"""The ops in plain torch: what ``pyengine.ops`` must compute, written to be read.

Same names, same arguments, same meaning. Everything is computed in float32 and rounded once, in the order that the C++
contracts in csrc/include/pe state; given float64 tensors it computes in float64, which is how the tests get at the
truth. Loops over sequences and rows are deliberate: this file is the specification and the tests' oracle, not a
backend.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyengine.ops.reference_logits import (  # noqa: F401
    apply_bias,
    apply_mask,
    apply_penalties,
    count_tokens,
    logprobs,
    reset_history,
)
from pyengine.ops.types import AttentionMetadata, PackedWeight, StepTensors

E4M3_MAX = 448.0  # the largest finite float8_e4m3fn


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def rms_norm(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> Tensor:
    if residual is not None:
        residual.copy_((_wide(x) + _wide(residual)).to(x.dtype))
        x = residual
    values = _wide(x)
    scale = torch.rsqrt(values.square().mean(dim=-1, keepdim=True) + eps)
    return (values * scale * _wide(weight)).to(x.dtype)


def silu_mul(gate_up: Tensor) -> Tensor:
    gate, up = _wide(gate_up).chunk(2, dim=-1)
    return (gate * torch.sigmoid(gate) * up).to(gate_up.dtype)


def pack_weight(weight: Tensor) -> PackedWeight:
    """The reference keeps weights row-major."""
    return PackedWeight(weight.clone(), *weight.shape)


def empty_packed_weight(n: int, k: int, dtype: torch.dtype, device: torch.device | str) -> PackedWeight:
    return PackedWeight(torch.empty((n, k), dtype=dtype, device=device), n, k)


def pack_rows(packed: PackedWeight, row_offset: int, weight_rows: Tensor) -> None:
    packed.data[row_offset : row_offset + weight_rows.shape[0]] = weight_rows


def linear(
    x: Tensor,
    weight: PackedWeight,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    out: Tensor | None = None,
) -> Tensor:
    y = _wide(x) @ _wide(weight.data).T
    if bias is not None:
        y = y + _wide(bias)
    return y.to(out_dtype or x.dtype) if out is None else out.copy_(y)


def linear_silu_mul(x: Tensor, weight: PackedWeight) -> Tensor:
    return silu_mul(linear(x, weight))


def embedding(ids: Tensor, weight: PackedWeight) -> Tensor:
    known = (ids >= 0) & (ids < weight.n)
    rows = weight.data[torch.where(known, ids, 0).long()]
    return torch.where(known[:, None], rows, torch.zeros_like(rows))


def rope_write_kv(
    qkv: Tensor,
    positions: Tensor,
    slot_mapping: Tensor,
    cos_sin: Tensor | None,
    k_cache: Tensor,
    v_cache: Tensor,
    num_heads: int,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    norm_eps: float = 0.0,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> None:
    _, num_kv_heads, block_size, head_dim = k_cache.shape
    for token, slot in enumerate(slot_mapping.tolist()):
        if slot < 0:
            continue
        heads = qkv[token].view(num_heads + 2 * num_kv_heads, head_dim)
        q, k, v = _wide(heads).split((num_heads, num_kv_heads, num_kv_heads))
        if q_norm is not None:
            q = _normalise(q, q_norm, norm_eps)
        if k_norm is not None:
            k = _normalise(k, k_norm, norm_eps)
        if cos_sin is not None:
            q, k = _rotate(q, cos_sin[positions[token]]), _rotate(k, cos_sin[positions[token]])
        heads[:num_heads] = q.to(qkv.dtype)
        block, offset = divmod(slot, block_size)
        k_cache[block, :, offset] = _stored(k, k_scale, k_cache.dtype)
        v_cache[block, :, offset] = _stored(v, v_scale, v_cache.dtype)


def _stored(heads: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """``heads`` [num_kv_heads, head_dim] as a cache of ``dtype`` holds them: float8_e4m3fn saturates, NaN stays NaN."""
    if scale is not None:
        heads = heads / scale[:, None]
    if dtype == torch.float8_e4m3fn:
        heads = heads.float().clamp(-E4M3_MAX, E4M3_MAX)
    return heads.to(dtype)


def _normalise(heads: Tensor, weight: Tensor, eps: float) -> Tensor:
    return heads * torch.rsqrt(heads.square().mean(dim=-1, keepdim=True) + eps) * _wide(weight)


def _rotate(heads: Tensor, cos_sin: Tensor) -> Tensor:
    cos, sin = _wide(cos_sin).chunk(2)
    half = cos.shape[0]
    a, b, rest = heads[:, :half], heads[:, half : 2 * half], heads[:, 2 * half :]
    return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), dim=-1)


def copy_blocks(arena: Tensor, pairs: Tensor) -> None:
    for src, dst in pairs.tolist():
        if dst >= 0:
            arena[:, dst] = arena[:, src]


def swap_blocks(dst: Tensor, src: Tensor, pairs_host: Tensor) -> None:
    for source, target in pairs_host.tolist():
        dst[:, target] = src[:, source].to(dst.device)


def make_attention_buffers(
    max_num_seqs: int,
    max_num_tokens: int,
    max_seq_len: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    kv_dtype: torch.dtype,
    device: torch.device | str,
) -> tuple[Tensor, Tensor]:
    empty = torch.empty(0, dtype=torch.uint8, device=device)
    return empty, empty


def attention_plan(
    meta: AttentionMetadata,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    block_size: int,
    window: int,
    kv_dtype: torch.dtype,
) -> None:
    """The reference plans nothing."""


def paged_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    meta: AttentionMetadata,
    scale: float,
    window: int = 0,
    settled: bool = False,
    turn: int = 0,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> Tensor:
    """Rows of padding tokens are zeros here; the ops leave them undefined."""
    out = torch.zeros_like(q, memory_format=torch.contiguous_format)
    starts = meta.query_start.tolist()
    for s, seq_len in enumerate(meta.seq_lens.tolist()):
        begin, end = starts[s], starts[s + 1]
        if end > begin:
            row = s if meta.table_rows is None else int(meta.table_rows[s])
            keys = _gather_sequence(k_cache, k_scale, meta.block_tables[row], seq_len)
            values = _gather_sequence(v_cache, v_scale, meta.block_tables[row], seq_len)
            out[begin:end] = _attend(q[begin:end], keys, values, scale, window).to(q.dtype)
    return out


def _gather_sequence(cache: Tensor, scale: Tensor | None, block_table: Tensor, seq_len: int) -> Tensor:
    """The first ``seq_len`` tokens of a sequence, [seq_len, num_kv_heads, head_dim], as they are meant: times scale."""
    num_blocks = math.ceil(seq_len / cache.shape[2])
    blocks = cache[block_table[:num_blocks].long()]  # [num_blocks, num_kv_heads, block_size, head_dim]
    tokens = _wide(blocks.transpose(1, 2).flatten(0, 1)[:seq_len])
    return tokens if scale is None else tokens * scale[:, None]


def _attend(q: Tensor, keys: Tensor, values: Tensor, scale: float, window: int) -> Tensor:
    num_queries, num_heads, _ = q.shape
    seq_len, num_kv_heads, _ = keys.shape
    group = num_heads // num_kv_heads  # query heads that share a KV head
    keys, values = keys.repeat_interleave(group, dim=1), values.repeat_interleave(group, dim=1)
    scores = torch.einsum("qhd,khd->hqk", _wide(q), keys) * scale
    query_at = torch.arange(seq_len - num_queries, seq_len, device=q.device)[:, None]
    key_at = torch.arange(seq_len, device=q.device)[None, :]
    visible = key_at <= query_at
    if window > 0:
        visible &= key_at > query_at - window
    weights = torch.softmax(scores.masked_fill(~visible, -math.inf), dim=-1)
    return torch.einsum("hqk,khd->qhd", weights, values)


def sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seeds: Tensor,
    positions: Tensor,
    param_rows: Tensor | None = None,
) -> Tensor:
    """Rows with param_rows -1 are -1 here; the op leaves them undefined."""
    token_ids = torch.full((logits.shape[0],), -1, dtype=torch.int32, device=logits.device)
    rows = range(logits.shape[0]) if param_rows is None else param_rows.tolist()
    for b, r in enumerate(rows):
        row = logits[b].cpu()
        if r < 0 or row.isnan().any() or (row == math.inf).any() or (row == -math.inf).all():
            continue
        if temperature[r] == 0:
            token_ids[b] = int(row.argmax())
            continue
        scores = row / temperature[r].cpu()
        survivors = _survivors(scores, int(top_k[r]), float(top_p[r]), float(min_p[r]))
        keys = scores.double() - exponential(int(seeds[r]), int(positions[b]), row.shape[0]).log()
        token_ids[b] = int(keys.masked_fill(~survivors, -math.inf).argmax())
    return token_ids


def _survivors(scores: Tensor, top_k: int, top_p: float, min_p: float) -> Tensor:
    """Which tokens min-p, top-k and top-p, in this order, leave; equal scores share their fate.

    Each filter is a threshold, so whatever is larger than a survivor survived too: "survivors strictly larger" is
    "tokens strictly larger", and one sort answers for all three.
    """
    top = scores.max()
    order = scores.sort(descending=True)
    num_larger = torch.searchsorted(-order.values, -scores)
    keep = scores > -math.inf
    if min_p > 0:
        keep &= scores >= top + math.log(min_p)
    if top_k > 0:
        keep &= num_larger < top_k
    if top_p < 1:
        mass = torch.where(keep, torch.exp((scores - top).double()), 0.0)
        mass_before = torch.cat((mass.new_zeros(1), mass[order.indices].cumsum(0)))
        keep &= mass_before[num_larger] < top_p * mass.sum()
    return keep


def exponential(seed: int, position: int, num_tokens: int) -> Tensor:
    """The draws E(token), token < num_tokens, of csrc/include/pe/sampling.h: exponential with rate 1, float64."""
    token = torch.arange(num_tokens, dtype=torch.int64)
    low, high = seed & _U32, (seed >> 32) & _U32
    key = _mix_int(_mix_int(_mix_int((low + 0x9E3779B9) & _U32) ^ high) + position & _U32)
    h = _mix((_mix(key ^ token) + key) & _U32).double()
    return torch.where(h >= 2**31, -torch.log1p(-(2.0**32 - h - 0.5) * 2.0**-32), -torch.log((h + 0.5) * 2.0**-32))


_U32 = 0xFFFFFFFF


def _mix(h: Tensor) -> Tensor:
    """murmur3's finaliser on uint32 values held in int64 (their product wraps mod 2^64, whose low half is right)."""
    h = h ^ (h >> 16)
    h = (h * 0x85EBCA6B) & _U32
    h = h ^ (h >> 13)
    h = (h * 0xC2B2AE35) & _U32
    return h ^ (h >> 16)


def _mix_int(h: int) -> int:
    return int(_mix(torch.tensor(h, dtype=torch.int64)))


def step_inputs(tensors: StepTensors) -> None:
    t = tensors
    t.input_ids.zero_()
    t.positions.zero_()
    t.slot_mapping.fill_(-1)
    at = 0
    for i, row in enumerate(t.rows.tolist()):
        t.query_start[i] = at
        num_new = int(t.num_new_tokens[i]) if row >= 0 else 0
        first, offset = int(t.num_computed[i]), int(t.prompt_offsets[i])
        t.seq_lens[i] = first + num_new if row >= 0 else 0
        for j in range(num_new):
            position = first + j
            t.input_ids[at + j] = t.last_tokens[row] if offset < 0 else t.prompt_ids[offset + j]
            t.positions[at + j] = position
            block = int(t.block_tables[row, position // t.block_size])
            t.slot_mapping[at + j] = block * t.block_size + position % t.block_size
        at += num_new
        t.last_indices[i] = at - 1 if row >= 0 else 0
    t.query_start[len(t.rows)] = at


def store_tokens(last_tokens: Tensor, rows: Tensor, token_ids: Tensor) -> None:
    live = (rows >= 0) & (token_ids >= 0)
    last_tokens[rows[live].long()] = token_ids[live]


def update_block_tables(block_tables: Tensor, entries: Tensor) -> None:
    for row, index, block in entries.tolist():
        if row >= 0:
            block_tables[row, index] = block


def gather_rows(x: Tensor, indices: Tensor) -> Tensor:
    return x[indices.long()]
