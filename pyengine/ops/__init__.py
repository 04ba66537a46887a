"""The engine's tensor operations: one function per op, the same on CPU and CUDA, chosen by where the tensors are.

Importing this module loads the compiled extension and raises ``BuildError`` when it is missing or does not fit. The
functions are thin: they allocate the result and call ``torch.ops.pyengine``, which checks every argument and raises
RuntimeError with the op, what was expected and what came. ``pyengine.ops.reference`` has the same functions in plain
torch: the specification.

Common contract: floating tensors are bfloat16, float16 or float32 and of one dtype within a call; "row tensors"
[rows, cols] may have any row stride, their columns are contiguous; computation is in fp32 with one rounding at the
end; index tensors are int32. Nothing synchronises with the device, so that every call may be captured in a CUDA graph
or recorded (``record``).
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyengine.errors import BuildError
from pyengine.ops import library
from pyengine.ops.types import AttentionMetadata, PackedWeight, StepTensors

__all__ = [
    "AttentionMetadata",
    "PackedWeight",
    "Program",
    "StepTensors",
    "apply_bias",
    "apply_mask",
    "apply_penalties",
    "attention_buffer_bytes",
    "attention_plan",
    "check_device",
    "copy_blocks",
    "count_tokens",
    "embedding",
    "empty_packed_weight",
    "gather_rows",
    "has_cuda_kernels",
    "isa",
    "linear",
    "linear_silu_mul",
    "logprobs",
    "make_attention_buffers",
    "num_threads",
    "pack_rows",
    "pack_weight",
    "paged_attention",
    "record",
    "reset_history",
    "rms_norm",
    "rope_write_kv",
    "sample",
    "set_isa",
    "set_num_threads",
    "set_tuning",
    "silu_mul",
    "step_inputs",
    "store_tokens",
    "swap_blocks",
    "update_block_tables",
]

BUILD_INFO = library.load()

from pyengine.ops.backends import (  # noqa: E402 - these look ops up, which only now exist
    Program,
    isa,
    num_threads,
    record,
    set_isa,
    set_num_threads,
    set_tuning,
)
from pyengine.ops.logits import (  # noqa: E402
    apply_bias,
    apply_mask,
    apply_penalties,
    count_tokens,
    logprobs,
    reset_history,
)

_C = torch.ops.pyengine
_DTYPE_CODES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}  # pe::DType
_KV_DTYPE_CODES = {**_DTYPE_CODES, torch.float8_e4m3fn: 3}

# Bound once: looking an overload up costs more than some of the ops.
_rms_norm, _silu_mul = _C.rms_norm.default, _C.silu_mul.default
_linear, _linear_silu_mul = _C.linear.default, _C.linear_silu_mul.default
_embedding, _pack_weight = _C.embedding.default, _C.pack_weight.default
_rope_write_kv, _copy_blocks, _swap_blocks = _C.rope_write_kv.default, _C.copy_blocks.default, _C.swap_blocks.default
_paged_attention, _attention_plan = _C.paged_attention.default, _C.attention_plan.default
_sample, _sample_workspace_bytes = _C.sample.default, _C.sample_workspace_bytes.default
_step_inputs, _store_tokens = _C.step_inputs.default, _C.store_tokens.default
_update_block_tables, _gather_rows = _C.update_block_tables.default, _C.gather_rows.default
_LINEAR_WORKSPACE_BYTES = _C.linear_workspace_bytes.default()


# ---- dense layers
#     --------------------------------------------------------------------------------------------------------


def rms_norm(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> Tensor:
    """RMSNorm (arXiv 1910.07467), optionally after a residual addition.

    Without ``residual``: ``x / rms(x) * weight``. With it: ``residual`` becomes ``x + residual`` (rounded to its
    dtype) in place and is what gets normalised.

    Args:
        x, residual: row tensors [rows, cols], cols % 8 == 0.
        weight: [cols].

    Returns:
        [rows, cols], contiguous.
    """
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _rms_norm(out, x, weight, eps, residual)
    return out


def silu_mul(gate_up: Tensor) -> Tensor:
    """SwiGLU's gate (arXiv 2002.05202): ``silu(gate_up[:, :cols]) * gate_up[:, cols:]``.

    Args:
        gate_up: row tensor [rows, 2 * cols], cols % 8 == 0.

    Returns:
        [rows, cols], contiguous.
    """
    out = torch.empty((gate_up.shape[0], gate_up.shape[1] // 2), dtype=gate_up.dtype, device=gate_up.device)
    _silu_mul(out, gate_up)
    return out


def pack_weight(weight: Tensor) -> PackedWeight:
    """A weight [n, k] in its backend's layout. On CUDA this is ``weight`` itself; on the CPU a copy of the same size.

    Raises:
        RuntimeError: on the CPU, k is not a multiple of 32 (bfloat16) or 8 (float32).
    """
    if weight.is_cuda:
        return PackedWeight(weight.contiguous(), *weight.shape)
    packed = empty_packed_weight(*weight.shape, weight.dtype, weight.device)
    pack_rows(packed, 0, weight)
    return packed


def empty_packed_weight(n: int, k: int, dtype: torch.dtype, device: torch.device | str) -> PackedWeight:
    """An uninitialised packed weight [n, k], to be filled by ``pack_rows``."""
    if torch.device(device).type == "cuda":
        return PackedWeight(torch.empty((n, k), dtype=dtype, device=device), n, k)
    num_elements = _C.packed_bytes(n, k, _dtype_code(dtype)) // dtype.itemsize
    return PackedWeight(torch.empty(num_elements, dtype=dtype, device=device), n, k)


def pack_rows(packed: PackedWeight, row_offset: int, weight_rows: Tensor) -> None:
    """Write ``weight_rows`` [rows, k] as the rows [row_offset, row_offset + rows) of ``packed``.

    So the loader puts the shards of a fused projection (q, k, v) side by side without a second copy of the whole.

    Raises:
        RuntimeError: the rows do not fit, or on the CPU row_offset is not a multiple of 16 (a panel of the layout).
    """
    if packed.data.is_cuda:
        packed.data[row_offset : row_offset + weight_rows.shape[0]].copy_(weight_rows)
    else:
        _pack_weight(packed.data, weight_rows, packed.n, row_offset)


def linear(
    x: Tensor,
    weight: PackedWeight,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """``x @ W.T + bias``, accumulated in fp32 in an order that depends on k alone, never on the batch.

    Args:
        x: row tensor [m, k].
        bias: [n] of x's dtype; only where the result has that dtype too.
        out_dtype: x's dtype (default) or float32 (logits).
        out: row tensor [m, n] of either dtype to write to, instead of a new one.

    Returns:
        ``out``, or a new tensor [m, n], contiguous.
    """
    if out is None:
        out = torch.empty((x.shape[0], weight.n), dtype=out_dtype or x.dtype, device=x.device)
    workspace = None
    if _LINEAR_WORKSPACE_BYTES and x.is_cuda:
        workspace = torch.empty(_LINEAR_WORKSPACE_BYTES, dtype=torch.uint8, device=x.device)
    _linear(out, x, weight.data, bias, workspace)
    return out


def linear_silu_mul(x: Tensor, weight: PackedWeight) -> Tensor:
    """``silu_mul(linear(x, weight))``, to the bit; on CUDA in one kernel where the rows are few.

    Args:
        x: row tensor [m, k].
        weight: [2 * cols, k], the rows of gate first; cols % 8 == 0.

    Returns:
        [m, cols], contiguous.

    Raises:
        RuntimeError: cols is not a multiple of 8, or x and weight do not fit together.
    """
    gate_up = torch.empty((x.shape[0], weight.n), dtype=x.dtype, device=x.device)
    out = torch.empty((x.shape[0], weight.n // 2), dtype=x.dtype, device=x.device)
    _linear_silu_mul(out, x, weight.data, gate_up)
    return out


def embedding(ids: Tensor, weight: PackedWeight) -> Tensor:
    """The rows ``ids`` [num_tokens] int32 of ``weight`` [vocab_size, dim], zeros for an id outside it."""
    out = torch.empty((ids.shape[0], weight.k), dtype=weight.dtype, device=ids.device)
    _embedding(out, ids, weight.data, weight.n)
    return out


# ---- the KV cache
#     --------------------------------------------------------------------------------------------------------


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
    """QK-norm, RoPE (arXiv 2104.09864, half-split pairing) and the write to the paged cache, in one pass over ``qkv``.

    q is rotated in place; k and v go to the cache at ``slot_mapping[t] = block * block_size + offset``. A token with
    slot -1 is
    padding: neither its q nor the cache is touched.

    Args:
        qkv: row tensor [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim].
        positions: [num_tokens] absolute positions, below max_position.
        slot_mapping: [num_tokens] int64.
        cos_sin: [max_position, rotary_dim] float32, cos in the first half and sin in the second; None: no rotation.
        k_cache, v_cache: [num_blocks, num_kv_heads, block_size, head_dim], equal strides, last dimension contiguous;
            of qkv's dtype or float8_e4m3fn, which saturates at 448.
        q_norm, k_norm: [head_dim] weights of a per-head RMSNorm before the rotation (Qwen3), or None.
        k_scale, v_scale: [num_kv_heads] float32, where the caches are float8_e4m3fn: what they hold is k / k_scale and
            v / v_scale. None: 1.
    """
    _rope_write_kv(
        qkv,
        positions,
        slot_mapping,
        cos_sin,
        k_cache,
        v_cache,
        num_heads,
        q_norm,
        k_norm,
        norm_eps,
        k_scale,
        v_scale,
    )


def copy_blocks(arena: Tensor, pairs: Tensor) -> None:
    """Copy whole blocks inside ``arena`` (copy-on-write).

    Args:
        arena: [num_parts, num_blocks, ...], contiguous inside a block; blocks of a multiple of 16 bytes.
        pairs: [num_pairs, 2] source and destination; a negative destination is padding. No block is both.
    """
    _copy_blocks(arena, pairs)


def swap_blocks(dst: Tensor, src: Tensor, pairs_host: Tensor) -> None:
    """Copy whole blocks between a device arena and a pinned host arena, either way, ordered with the current stream.

    Args:
        dst, src: [num_parts, num_blocks, ...], equal parts and blocks; their strides and numbers of blocks may differ.
        pairs_host: [num_pairs, 2] source block and destination block, in host memory.
    """
    _swap_blocks(dst, src, pairs_host)


# ---- attention
#     -----------------------------------------------------------------------------------------------------------


def attention_buffer_bytes(
    max_num_seqs: int,
    max_num_tokens: int,
    max_seq_len: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    kv_dtype: torch.dtype,
    device: torch.device | str,
) -> tuple[int, int]:
    """Bytes of the plan and of the workspace that ``make_attention_buffers`` would allocate; (0, 0) on the CPU."""
    if torch.device(device).type != "cuda":
        return 0, 0
    return tuple(
        _C.attention_buffer_bytes(
            max_num_seqs, max_num_tokens, max_seq_len, num_heads, num_kv_heads, head_dim, _kv_dtype_code(kv_dtype)
        )
    )


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
    """Plan and workspace of paged attention for steps up to these bounds: uint8 tensors, empty ones on the CPU.

    kv_dtype: of the caches.
    """
    plan_bytes, workspace_bytes = attention_buffer_bytes(
        max_num_seqs, max_num_tokens, max_seq_len, num_heads, num_kv_heads, head_dim, kv_dtype, device
    )
    return (
        torch.empty(plan_bytes, dtype=torch.uint8, device=device),
        torch.empty(workspace_bytes, dtype=torch.uint8, device=device),
    )


def attention_plan(
    meta: AttentionMetadata,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    block_size: int,
    window: int,
    kv_dtype: torch.dtype,
) -> None:
    """Fill ``meta.plan`` on the device: which CTA takes which chunks, and which chunks are read for many sequences at
    once because their block tables begin with the same blocks. Once per step, after its block tables are written; a
    no-op on the CPU.

    kv_dtype: of the caches.
    """
    if meta.query_start.is_cuda:
        _attention_plan(
            meta.plan,
            meta.block_tables,
            meta.table_rows,
            meta.query_start,
            meta.seq_lens,
            block_size,
            meta.num_tokens,
            meta.max_seq_len,
            num_heads,
            num_kv_heads,
            head_dim,
            window,
            _kv_dtype_code(kv_dtype),
        )


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
    """Causal attention of any mix of prefill chunks and decodes over the paged cache (arXiv 2309.06180),
    batch-invariant.

    A query at absolute position p sees the keys at (p - window, p], all up to p when window is 0. K and V of this
    step are already in the cache. The rows of padding tokens hold nothing of meaning.

    Args:
        q: [num_tokens, num_heads, head_dim], any token and head stride.
        k_cache, v_cache: [num_blocks, num_kv_heads, block_size, head_dim], equal strides, last dimension contiguous;
            of q's dtype or float8_e4m3fn (on CUDA with a head_dim of 64 or 128).
        meta: on CUDA with plan and workspace, the plan filled by ``attention_plan`` for these head counts, this window
            and the caches' dtype.
        settled: ``meta`` and its plan were complete before the op in front of this one, which is ``rope_write_kv``;
            on CUDA they are then read while that one still runs.
        turn: 0, 1, 0, 1, ... for the calls with one plan, from ``attention_plan`` on. On CUDA a call out of turn is an
            error of the device, which nothing survives.
        k_scale, v_scale: [num_kv_heads] float32, where the caches are float8_e4m3fn: they hold k / k_scale and
            v / v_scale. None: 1.

    Returns:
        [num_tokens, num_heads, head_dim], contiguous.
    """
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    _paged_attention(
        out,
        q,
        k_cache,
        v_cache,
        meta.block_tables,
        meta.table_rows,
        meta.query_start,
        meta.seq_lens,
        meta.max_seq_len,
        scale,
        window,
        meta.plan,
        meta.workspace,
        settled,
        turn,
        k_scale,
        v_scale,
    )
    return out


# ---- sampling and the step
#     -----------------------------------------------------------------------------------------------


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
    """Draw one token per row; a draw depends on its row's logits, parameters, seed and position and on nothing else.

    Temperature 0 is greedy (lowest id among equals). Else min-p, top-k, top-p in this order, then Gumbel-max with a
    counter-based generator; csrc/include/pe/sampling.h is the full definition. A row with a NaN, +inf or no finite
    logit gets -1.

    Args:
        logits: row tensor [num_rows, vocab_size] float32.
        temperature, top_p, min_p: [*] float32; top_k: [*] int32; seeds: [*] int64 (the bits of a uint64).
        positions: [num_rows] absolute position that the sampled token will have.
        param_rows: [num_rows] which element of the parameters row b uses; None: b; -1: padding, its result is
            undefined.

    Returns:
        token ids, [num_rows] int32.
    """
    num_rows, vocab_size = logits.shape
    token_ids = torch.empty(num_rows, dtype=torch.int32, device=logits.device)
    workspace = None
    if logits.is_cuda:
        workspace = torch.empty(_sample_workspace_bytes(num_rows, vocab_size), dtype=torch.uint8, device=logits.device)
    _sample(token_ids, logits, temperature, top_k, top_p, min_p, seeds, positions, param_rows, workspace)
    return token_ids


def step_inputs(tensors: StepTensors) -> None:
    """Build the inputs of one forward pass from the device rows; see csrc/include/pe/step_inputs.h."""
    t = tensors
    _step_inputs(
        t.last_tokens,
        t.block_tables,
        t.block_size,
        t.rows,
        t.num_new_tokens,
        t.num_computed,
        t.prompt_offsets,
        t.prompt_ids,
        t.query_start,
        t.seq_lens,
        t.input_ids,
        t.positions,
        t.slot_mapping,
        t.last_indices,
    )


def store_tokens(last_tokens: Tensor, rows: Tensor, token_ids: Tensor) -> None:
    """``last_tokens[rows[i]] = token_ids[i]`` where neither is negative."""
    _store_tokens(last_tokens, rows, token_ids)


def update_block_tables(block_tables: Tensor, entries: Tensor) -> None:
    """``block_tables[row, index] = block`` for each (row, index, block) of ``entries``; a negative row is padding."""
    _update_block_tables(block_tables, entries)


def gather_rows(x: Tensor, indices: Tensor) -> Tensor:
    """``x[indices]`` for a row tensor [*, cols] and indices [num_indices]: the rows whose logits are wanted."""
    out = torch.empty((indices.shape[0], x.shape[1]), dtype=x.dtype, device=x.device)
    _gather_rows(out, x, indices)
    return out


# ---- the build
#     --------------------------------------------------------------------------------------------------------


def has_cuda_kernels() -> bool:
    return BUILD_INFO.cuda is not None


def check_device(device: torch.device | str) -> None:
    """Raise BuildError, in one line with the remedy, when the ops cannot run on ``device``."""
    if torch.device(device).type != "cuda" or has_cuda_kernels():
        return
    raise BuildError(
        f"there is a GPU, but pyengine was built with CPU kernels only; with nvcc in PATH, run: {library.REBUILD}; "
        "or use --device cpu"
    )


def _dtype_code(dtype: torch.dtype) -> int:
    try:
        return _DTYPE_CODES[dtype]
    except KeyError:
        raise ValueError(f"dtype must be float32, float16 or bfloat16, got {dtype}") from None


def _kv_dtype_code(dtype: torch.dtype) -> int:
    try:
        return _KV_DTYPE_CODES[dtype]
    except KeyError:
        raise ValueError(f"kv_dtype must be float32, float16, bfloat16 or float8_e4m3fn, got {dtype}") from None
