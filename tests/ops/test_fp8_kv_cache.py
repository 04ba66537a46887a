"""KV caches in float8_e4m3fn: what rope_write_kv stores, what paged_attention makes of it, bit for bit where bits are
promised.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from attention_cases import CASES, RAGGED_PROMPTS, alone, truth_and_plain
from oracle import Poisoned, assert_accurate, same_bits
from paged import Heads, PagedCase, empty_caches, paged_case
from rope_cases import step, table

from pyengine import ops
from pyengine.ops import reference

F8 = torch.float8_e4m3fn


def scales_of(num_kv_heads: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Different for K and V and for every head; no powers of two."""
    k, v = torch.rand(2, num_kv_heads).add(0.3).float()
    return k.to(device), v.to(device)


# ---- what is stored -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("heads", [Heads(4, 2, 64), Heads(3, 1, 128), Heads(9, 3, 64)], ids=str)
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("has_norm", [False, True])
def test_written_values_are_the_nearest(device, dtype, heads, scaled, has_norm):
    """Within fp32's own error of a tie either neighbour will do; q and all untouched bytes are as ever."""
    block_size, num_blocks, num_tokens = 16, 5, 37
    positions, slots = step(num_tokens, num_blocks, block_size, device)
    scales = scales_of(heads.num_kv_heads, device) if scaled else (None, None)
    norms = torch.randn(2, heads.head_dim).to(device, dtype) if has_norm else (None, None)
    width = (heads.num_heads + 2 * heads.num_kv_heads) * heads.head_dim
    qkv = Poisoned(torch.randn(num_tokens, width).mul(3).to(device, dtype))
    before, as_ever = qkv.view.clone(), qkv.view.clone()
    caches = empty_caches(num_blocks, block_size, heads, F8, device)
    cos_sin = table(heads.head_dim, device)
    ops.rope_write_kv(qkv.view, positions, slots, cos_sin, *caches, heads.num_heads, *norms, 1e-6, *scales)

    plain = empty_caches(num_blocks, block_size, heads, dtype, device)
    ops.rope_write_kv(as_ever, positions, slots, cos_sin, *plain, heads.num_heads, *norms, 1e-6)
    assert same_bits(qkv.view, as_ever)
    qkv.assert_guards_intact()

    truth = [torch.full_like(cache, float("nan"), dtype=torch.float64) for cache in caches]
    cast = [None if norm is None else norm.double() for norm in norms]
    reference.rope_write_kv(before.double(), positions, slots, cos_sin, *truth, heads.num_heads, *cast, 1e-6, *scales)
    for cache, exact in zip(caches, truth, strict=True):
        assert torch.equal(cache.isnan(), exact.isnan())
        live = ~exact.isnan()
        stored, nearest = cache[live].double(), exact[live].float().to(F8).double()
        error, least = (stored - exact[live]).abs(), (nearest - exact[live]).abs()
        assert (error <= least + 1e-5 * exact[live].abs()).all()
        assert (stored == nearest).double().mean() > 0.999


# Value -> what is stored of it. Ties go to the even neighbour; 2^-9 is the smallest.
STORED = {
    447.0: 448.0,
    470.0: 448.0,
    1e4: 448.0,
    float("inf"): 448.0,
    float("nan"): float("nan"),
    17.0: 16.0,
    19.0: 20.0,
    0.75 * 2**-9: 2**-9,
    1.5 * 2**-9: 2 * 2**-9,
    2**-10: 0.0,
    0.0: 0.0,
}


def test_values_beyond_the_range_saturate(device, dtype):
    values, wanted = torch.tensor([*STORED, *(-x for x in STORED)]), torch.tensor([*STORED.values()])
    wanted = torch.cat((wanted, -wanted))
    row = torch.zeros(1, 3 * 64)
    row[0, 64 : 64 + len(values)] = row[0, 128 : 128 + len(values)] = values
    caches = empty_caches(1, 16, Heads(1, 1, 64), F8, device)
    index = torch.zeros(1, dtype=torch.int32, device=device)
    ops.rope_write_kv(row.to(device, dtype), index, index.long(), None, *caches, 1)
    for cache in caches:
        stored = cache[0, 0, 0, : len(values)].float().cpu()
        torch.testing.assert_close(stored, wanted, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(stored.signbit()[~wanted.isnan()], wanted.signbit()[~wanted.isnan()])


def test_written_token_does_not_depend_on_the_batch(device, dtype):
    heads, block_size = Heads(), 16
    positions, slots = step(20, 4, block_size, device)
    qkv, scales = torch.randn(20, 8 * 64).to(device, dtype), scales_of(2, device)
    whole, single = (empty_caches(4, block_size, heads, F8, device) for _ in range(2))
    cos_sin = table(64, device)
    ops.rope_write_kv(qkv.clone(), positions, slots, cos_sin, *whole, 4, k_scale=scales[0], v_scale=scales[1])
    for t in range(20):
        one = (x[t : t + 1] for x in (qkv.clone(), positions, slots))
        ops.rope_write_kv(*one, cos_sin, *single, 4, k_scale=scales[0], v_scale=scales[1])
    assert same_bits(single[0], whole[0]) and same_bits(single[1], whole[1])


# ---- what is read ---------------------------------------------------------------------------------------------------


def fp8_case(lengths, heads, dtype, device, scaled=True, **kwargs) -> PagedCase:
    case = paged_case(lengths, heads, dtype, device, kv_dtype=F8, **kwargs)
    k_scale, v_scale = scales_of(heads.num_kv_heads, device) if scaled else (None, None)
    return replace(case, k_scale=k_scale, v_scale=v_scale)


def widened(case: PagedCase, dtype: torch.dtype) -> PagedCase:
    """The keys and values that an fp8 case stands for, in ``dtype``."""
    caches = []
    for cache, scale in ((case.k_cache, case.k_scale), (case.v_cache, case.v_scale)):
        wide = cache.to(dtype)
        caches.append(wide if scale is None else wide * scale[:, None, None].to(dtype))
    return replace(case, k_cache=caches[0], v_cache=caches[1], k_scale=None, v_scale=None)


def truth_and_plain_of(case: PagedCase, window: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    truth, _ = truth_and_plain(replace(widened(case, torch.float64), q=case.q.double()), window)
    return truth, truth_and_plain(widened(case, case.q.dtype), window)[1]


HEADS = [Heads(4, 2, 64), Heads(8, 2, 128), Heads(3, 3, 64), Heads(9, 3, 64)]


@pytest.mark.parametrize("lengths", CASES.values(), ids=CASES)
@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("scaled", [False, True])
def test_attention_against_reference(device, dtype, lengths, heads, scaled):
    case = fp8_case(lengths, heads, dtype, device, scaled, num_padding=3)
    assert_accurate(case.attend(), *truth_and_plain_of(case))


def test_the_reference_reads_what_the_cache_stands_for():
    case = fp8_case(CASES["mixed"], Heads(), torch.float32, "cpu")
    scales = {"k_scale": case.k_scale, "v_scale": case.v_scale}
    out = reference.paged_attention(case.q, case.k_cache, case.v_cache, case.meta, case.scale, **scales)
    assert_accurate(out[: case.num_queries], *truth_and_plain_of(case))


@pytest.mark.parametrize("heads", [Heads(4, 2, 64), Heads(8, 2, 128)], ids=str)
def test_many_decodes_and_a_long_one(device, dtype, heads):
    """More work than a GPU has pairs of warps, and a sequence that several of them share."""
    case = fp8_case([(1, 3000), *((1, 1 + 37 * i % 400) for i in range(300))], heads, dtype, device, num_padding=3)
    whole = case.attend()
    assert_accurate(whole, *truth_and_plain_of(case))
    for s in (0, 1, 100, 300):
        assert same_bits(alone(case, s, 0, 1, device).attend(), whole[s : s + 1]), f"sequence {s}"


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("window", [1, 16, 100, 300])
def test_sliding_window(device, dtype, window, head_dim):
    case = fp8_case(CASES["mixed"], Heads(4, 2, head_dim), dtype, device)
    assert_accurate(case.attend(window), *truth_and_plain_of(case, window))


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("block_size", [32, 64, 256])
def test_block_sizes(device, dtype, block_size, head_dim):
    case = fp8_case(CASES["mixed"], Heads(8, 2, head_dim), dtype, device, block_size=block_size)
    assert_accurate(case.attend(), *truth_and_plain_of(case))


def test_stored_elements_are_exact(device, dtype):
    """Without scales an fp8 cache gives the very bits of a cache of ``dtype`` with the same values, where both run the
    same arithmetic: on a CPU.
    """
    if device != "cpu":
        pytest.skip("on CUDA the order of the products inside a step of 16 differs between the two")
    case = fp8_case(CASES["mixed"], Heads(8, 2, 128), dtype, device, scaled=False)
    assert same_bits(case.attend(), widened(case, dtype).attend())


@pytest.mark.parametrize("heads", [Heads(9, 3, 64), Heads(8, 2, 128)], ids=str)
@pytest.mark.parametrize("window", [0, 40])
def test_sequence_does_not_depend_on_its_neighbours(device, dtype, window, heads):
    lengths = CASES["mixed"]
    case = fp8_case(lengths, heads, dtype, device, num_padding=5)
    whole = case.attend(window)
    for s, (num_queries, _) in enumerate(lengths):
        begin = int(case.meta.query_start[s])
        part = alone(case, s, 0, num_queries, device).attend(window)
        assert same_bits(part, whole[begin : begin + num_queries]), f"sequence {s}"


@pytest.mark.parametrize("window", [0, 90])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("group", [1, 3, 4])
@pytest.mark.parametrize("size", [1, 8, 33])
def test_prompt_has_the_bits_of_short_steps(device, dtype, group, head_dim, window, size):
    """A prompt whole (on CUDA: by CTAs) and cut (by single warps, or by CTAs that begin elsewhere)."""
    case = fp8_case(RAGGED_PROMPTS, Heads(2 * group, 2, head_dim), dtype, device)
    whole = case.attend(window)
    for s, (num_queries, seq_len) in enumerate(RAGGED_PROMPTS):
        begin = int(case.meta.query_start[s])
        for first in range(0, num_queries, size * (7 if size == 1 else 1)):
            last = min(first + size, num_queries)
            part = alone(case, s, first, last, device).attend(window)
            assert same_bits(part, whole[begin + first : begin + last]), f"rows {first}..{last} of {seq_len} keys"


@pytest.mark.parametrize("heads", [Heads(8, 2, 128), Heads(9, 3, 64)], ids=str)
def test_sequences_that_share_blocks(device, dtype, heads):
    case = fp8_case([(1 + i % 2, 1300 + 37 * i) for i in range(24)], heads, dtype, device)
    case.share_blocks(list(range(24)), 1280 // 16)
    whole, starts = case.attend(), case.meta.query_start.tolist()
    assert_accurate(whole, *truth_and_plain_of(case))
    for s in (0, 1, 23):
        part = alone(case, s, 0, starts[s + 1] - starts[s], device).attend()
        assert same_bits(part, whole[starts[s] : starts[s + 1]]), f"sequence {s}"


@pytest.mark.parametrize("isa", ["generic", "avx2", "avx512bf16", "amx"])
def test_instruction_sets(isa, dtype=torch.bfloat16):
    before = ops.isa()
    try:
        ops.set_isa(isa)
    except RuntimeError:
        pytest.skip(f"this machine has no {isa}")
    try:
        test_values_beyond_the_range_saturate("cpu", dtype)
        test_attention_against_reference("cpu", dtype, CASES["mixed"], Heads(9, 3, 64), True)
        test_attention_against_reference("cpu", torch.float32, CASES["mixed"], Heads(3, 1, 80), True)
        test_prompt_has_the_bits_of_short_steps("cpu", dtype, 3, 64, 90, 33)
    finally:
        ops.set_isa(before)


# ---- what is refused ------------------------------------------------------------------------------------------------


def test_scales_need_an_fp8_cache(device, dtype):
    case = replace(paged_case([(1, 5)], Heads(), dtype, device), k_scale=torch.ones(2, device=device))
    with pytest.raises(RuntimeError, match="k_scale and v_scale are of caches in float8_e4m3fn"):
        case.attend()


def test_both_caches_are_fp8_or_none(device, dtype):
    case = fp8_case([(1, 5)], Heads(), dtype, device)
    with pytest.raises(RuntimeError, match="v_cache must be float8_e4m3fn, got"):
        replace(case, v_cache=case.v_cache.to(dtype)).attend()


def test_scales_are_one_for_each_head(device, dtype):
    case = fp8_case([(1, 5)], Heads(), dtype, device)
    with pytest.raises(RuntimeError, match="v_scale must have the shape"):
        replace(case, v_scale=torch.ones(3, device=device)).attend()
