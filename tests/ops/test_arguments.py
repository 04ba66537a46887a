"""Bad arguments are refused before any pointer is followed, by messages that name op, argument and value."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch
from paged import Heads, paged_case

from pyengine import ops

BF16, F32 = torch.bfloat16, torch.float32


def refused(text: str):
    return pytest.raises(RuntimeError, match=re.escape(text))


def test_wrong_shape():
    with refused("rms_norm: weight must have the shape [cols=64], got [72]"):
        ops.rms_norm(torch.zeros(2, 64), torch.zeros(72), 1e-5)
    with refused("rms_norm: x must have the shape [rows, cols], got [64]"):
        ops.rms_norm(torch.zeros(64), torch.zeros(64), 1e-5)
    with refused("rms_norm: residual must have the shape [rows=2, cols=64], got [3, 64]"):
        ops.rms_norm(torch.zeros(2, 64), torch.zeros(64), 1e-5, torch.zeros(3, 64))
    with refused("silu_mul: gate_up must have the shape [rows=2, 2 * cols=64], got [2, 65]"):
        ops.silu_mul(torch.zeros(2, 65))


def test_wrong_dtype():
    with refused("rms_norm: weight must be f32 like the arguments before it, got bf16"):
        ops.rms_norm(torch.zeros(2, 64), torch.zeros(64, dtype=BF16), 1e-5)
    with refused("silu_mul: out must be float32, float16 or bfloat16, got int32"):
        ops.silu_mul(torch.zeros(2, 64, dtype=torch.int32))
    with refused("embedding: ids must be int32, got int64"):
        ops.embedding(torch.zeros(3, dtype=torch.int64), ops.pack_weight(torch.zeros(32, 64)))
    with refused("sample: logits must be float32, got bfloat16"):
        ops.sample(torch.zeros(1, 8, dtype=BF16), *[torch.zeros(1)] * 6)
    with pytest.raises(ValueError, match=r"dtype must be float32, float16 or bfloat16, got torch\.float64"):
        ops.empty_packed_weight(32, 64, torch.float64, "cpu")


def test_wrong_stride():
    with refused("rms_norm: x must have a contiguous last dimension, got stride 2"):
        ops.rms_norm(torch.zeros(64, 2).t(), torch.zeros(64), 1e-5)


def test_sizes_that_the_kernels_lack():
    with refused("rms_norm: cols"):
        ops.rms_norm(torch.zeros(2, 63), torch.zeros(63), 1e-5)
    with refused("k"):
        ops.pack_weight(torch.zeros(16, 40, dtype=BF16))


def test_linear():
    packed = ops.pack_weight(torch.zeros(32, 64))
    with refused("linear: weight must have the shape [packed elements=3072], got [2048]"):
        ops.linear(torch.zeros(2, 96), packed)
    with refused("linear: bias must have the shape [n=32], got [31]"):
        ops.linear(torch.zeros(2, 64), packed, torch.zeros(31))
    with refused("linear: weight must be bf16 like the arguments before it, got f32"):
        ops.linear(torch.zeros(2, 64, dtype=BF16), packed)
    with refused("linear: out must be f32 like x, or f32, got bf16"):
        ops.linear(torch.zeros(2, 64), packed, out_dtype=BF16)


def test_linear_silu_mul():
    packed = ops.pack_weight(torch.zeros(64, 64))
    with refused("linear_silu_mul: weight must have the shape [packed elements=6144], got [4096]"):
        ops.linear_silu_mul(torch.zeros(2, 96), packed)
    with refused("linear_silu_mul: weight must be bf16 like the arguments before it, got f32"):
        ops.linear_silu_mul(torch.zeros(2, 64, dtype=BF16), packed)
    with refused("linear_silu_mul: cols must be a positive multiple of 8, got 12"):
        ops.linear_silu_mul(torch.zeros(2, 64), ops.pack_weight(torch.zeros(24, 64)))
    with refused("linear_silu_mul: gate_up must have the shape [m=2, 2 * cols=64], got [2, 32]"):
        ops._linear_silu_mul(torch.zeros(2, 32), torch.zeros(2, 64), packed.data, torch.zeros(2, 32))


def test_rope_write_kv():
    caches = torch.zeros(2, 4, 2, 16, 64)
    good = {
        "qkv": torch.zeros(3, 8 * 64),
        "positions": torch.zeros(3, dtype=torch.int32),
        "slot_mapping": torch.zeros(3, dtype=torch.int64),
        "cos_sin": torch.zeros(9, 64),
        "k_cache": caches[0],
        "v_cache": caches[1],
        "num_heads": 4,
    }
    with refused(
        "rope_write_kv: qkv must have the shape [num_tokens=3, (num_heads + 2 * num_kv_heads) * head_dim=640], "
        "got [3, 512]"
    ):
        ops.rope_write_kv(**{**good, "num_heads": 6})
    with refused("rope_write_kv: slot_mapping must be int64, got int32"):
        ops.rope_write_kv(**{**good, "slot_mapping": good["positions"]})
    with refused("rope_write_kv: rotary_dim must be even and at most head_dim=64, got 66"):
        ops.rope_write_kv(**{**good, "cos_sin": torch.zeros(9, 66)})
    with refused("rope_write_kv: block_size must be 16, 32, 64, 128 or 256, got 12"):
        ops.rope_write_kv(**{**good, "k_cache": caches[0, :, :, :12], "v_cache": caches[1, :, :, :12]})
    with refused("rope_write_kv: k_cache and v_cache must have equal strides"):
        ops.rope_write_kv(**{**good, "v_cache": torch.zeros(2, 4, 16, 64).transpose(0, 1)})


def test_paged_attention():
    case = paged_case([(2, 20), (1, 5)], Heads(), F32, "cpu")

    def attend(q=case.q, window=0, **changes):
        return ops.paged_attention(
            q, case.k_cache, case.v_cache, dataclasses.replace(case.meta, **changes), case.scale, window
        )

    with refused("paged_attention: q and the caches must have the same head_dim, got 32 and 64"):
        attend(q=torch.zeros(3, 4, 32))
    with refused("paged_attention: num_heads must be a multiple of num_kv_heads, got 3 and 2"):
        attend(q=torch.zeros(3, 3, 64))
    with refused("paged_attention: query_start must have the shape [num_seqs + 1=3], got [2]"):
        attend(query_start=case.meta.query_start[:2])
    with refused("paged_attention: max_seq_len 4096 does not fit into block tables of 3 blocks of 16"):
        attend(max_seq_len=4096)
    with refused("paged_attention: block_tables must have a row per sequence when there are no table_rows"):
        attend(table_rows=None, block_tables=case.meta.block_tables[:1])
    with refused("paged_attention: window must be 0 (none) or more, got -1"):
        attend(window=-1)


def test_sample():
    i32, i64 = torch.zeros(2, dtype=torch.int32), torch.zeros(2, dtype=torch.int64)
    f32 = torch.ones(2)
    with refused("sample: there must be a parameter row per row of logits when there are no param_rows"):
        ops.sample(torch.zeros(3, 8), f32, i32, f32, f32, i64, torch.zeros(3, dtype=torch.int32))
    with refused("sample: top_k must have the shape [num_param_rows=2], got [3]"):
        ops.sample(torch.zeros(2, 8), f32, torch.zeros(3, dtype=torch.int32), f32, f32, i64, i32)


def test_threads_and_instruction_sets():
    with refused("set_num_threads: n must be in [1, 4096], got 0"):
        ops.set_num_threads(0)
    with refused("pentium"):
        ops.set_isa("pentium")


def test_tuning():
    expected = "unknown name warp" if ops.has_cuda_kernels() else "nothing to set without CUDA kernels, got warp = 1"
    with refused(expected):
        ops.set_tuning("warp", 1)


@pytest.mark.parametrize("device", ["cuda"], indirect=True)
def test_tensors_on_two_devices(device):
    with refused("rms_norm: weight must be on cuda:0 like the arguments before it, got cpu"):
        ops.rms_norm(torch.zeros(2, 64, device=device), torch.zeros(64), 1e-5)
