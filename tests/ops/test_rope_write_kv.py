"""rope_write_kv: rotation, QK-norm and the scatter into the paged cache; padding tokens touch nothing."""

from __future__ import annotations

import pytest
import torch
from oracle import Poisoned, assert_accurate, same_bits
from paged import Heads, empty_caches
from rope_cases import step, table

from pyengine import ops
from pyengine.ops import reference


@pytest.mark.parametrize("heads", [Heads(4, 2, 64), Heads(3, 1, 128), Heads(9, 3, 64)])
@pytest.mark.parametrize("has_norm", [False, True])
@pytest.mark.parametrize("rotary_share", [None, 0.5, 1.0])
def test_against_reference(device, dtype, heads, has_norm, rotary_share):
    block_size, num_blocks, num_tokens = 16, 5, 37
    positions, slots = step(num_tokens, num_blocks, block_size, device)
    cos_sin = None if rotary_share is None else table(int(heads.head_dim * rotary_share), device)
    norms = torch.randn(2, heads.head_dim).to(device, dtype) if has_norm else (None, None)
    width = (heads.num_heads + 2 * heads.num_kv_heads) * heads.head_dim
    qkv = Poisoned(torch.randn(num_tokens, width).to(device, dtype))
    before = qkv.view.clone()
    k_cache, v_cache = empty_caches(num_blocks, block_size, heads, dtype, device)
    ops.rope_write_kv(qkv.view, positions, slots, cos_sin, k_cache, v_cache, heads.num_heads, *norms, 1e-6)

    def expected(as_type):
        """The reference in ``as_type``: q, k cache, v cache."""
        row, caches = (
            before.to(as_type),
            [torch.full_like(cache, float("nan"), dtype=as_type) for cache in (k_cache, v_cache)],
        )
        cast = [None if norm is None else norm.to(as_type) for norm in norms]
        reference.rope_write_kv(row, positions, slots, cos_sin, *caches, heads.num_heads, *cast, 1e-6)
        return row, *caches

    (q64, k64, v64), (q16, k16, _) = expected(torch.float64), expected(dtype)
    assert same_bits(qkv.view[slots < 0], before[slots < 0])
    assert_accurate(qkv.view, q64, q16)
    written = ~k64.isnan()
    assert torch.equal(written, ~k_cache.isnan()) and torch.equal(written, ~v_cache.isnan())
    assert_accurate(k_cache[written], k64[written], k16[written])
    assert same_bits(v_cache[written], v64[written].to(dtype))
    qkv.assert_guards_intact()


def test_token_does_not_depend_on_the_batch(device, dtype):
    heads, block_size = Heads(), 16
    positions, slots = step(20, 4, block_size, device)
    qkv = torch.randn(20, 8 * 64).to(device, dtype)
    whole, caches = qkv.clone(), empty_caches(4, block_size, heads, dtype, device)
    ops.rope_write_kv(whole, positions, slots, table(64, device), *caches, 4)
    single, single_caches = qkv.clone(), empty_caches(4, block_size, heads, dtype, device)
    for t in range(20):
        ops.rope_write_kv(
            single[t : t + 1], positions[t : t + 1], slots[t : t + 1], table(64, device), *single_caches, 4
        )
    assert (
        same_bits(single, whole) and same_bits(single_caches[0], caches[0]) and same_bits(single_caches[1], caches[1])
    )


@pytest.mark.parametrize("block_size", [16, 64, 256])
def test_block_sizes_and_head_major_strides(device, dtype, block_size):
    """A cache laid out [num_kv_heads, num_blocks, ...] in memory gives the same contents."""
    heads = Heads()
    positions, slots = step(9, 2, block_size, device)
    qkv = torch.randn(9, 8 * 64).to(device, dtype)
    caches = empty_caches(2, block_size, heads, dtype, device)
    other = [
        torch.full((2, 2, block_size, 64), float("nan"), dtype=dtype, device=device).transpose(0, 1) for _ in range(2)
    ]
    ops.rope_write_kv(qkv.clone(), positions, slots, table(64, device), *caches, 4)
    ops.rope_write_kv(qkv.clone(), positions, slots, table(64, device), *other, 4)
    assert same_bits(caches[0], other[0]) and same_bits(caches[1], other[1])
