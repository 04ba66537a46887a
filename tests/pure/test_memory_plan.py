"""The memory plan is arithmetic: it can be checked without a device."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyengine.config import EngineConfig, format_bytes, parse_bytes
from pyengine.errors import ConfigError
from pyengine.models.config import FP8, load_model_config
from pyengine.runner.kv_memory import plan_memory

SHAPES = Path(__file__).resolve().parents[2] / "bench" / "shapes"
GIB = 1 << 30


@pytest.fixture(scope="module")
def llama():
    return load_model_config(SHAPES / "llama31-8b")


def test_the_published_shape_has_its_published_size(llama):
    assert round(llama.num_parameters / 1e9, 2) == 8.03
    assert llama.kv_bytes_per_token("bfloat16") == 131072


def test_an_80_gib_gpu_holds_what_the_utilization_leaves(llama):
    plan = plan_memory(EngineConfig(), llama, "bfloat16", "cuda", 80 * GIB, 79 * GIB)
    used = sum(plan.ledger.values())
    assert used <= 0.92 * 80 * GIB - GIB and used > 0.92 * 80 * GIB - GIB - plan.block_bytes
    assert plan.max_model_len == 131072 and plan.num_slots > 400_000 and not plan.warnings


def test_an_fp8_cache_holds_twice_the_tokens(llama):
    plain = plan_memory(EngineConfig(), llama, "bfloat16", "cuda", 80 * GIB, 79 * GIB)
    plan = plan_memory(EngineConfig(), llama, "bfloat16", "cuda", 80 * GIB, 79 * GIB, kv_dtype=FP8)
    assert plan.block_bytes * 2 == plain.block_bytes and plan.num_blocks // 2 == plain.num_blocks
    assert {**plan.ledger, "KV cache": 0} == {**plain.ledger, "KV cache": 0}


def test_a_small_gpu_shrinks_the_context_with_a_warning(llama):
    plan = plan_memory(EngineConfig(), llama, "bfloat16", "cuda", 24 * GIB, 24 * GIB)
    assert plan.max_model_len == plan.num_slots < 131072
    assert "--max-model-len" in plan.warnings[0]


def test_what_does_not_fit_is_refused_with_the_numbers(llama):
    with pytest.raises(ConfigError, match=r"weights 15\.0 GiB.*16\.0 GiB"):
        plan_memory(EngineConfig(), llama, "bfloat16", "cuda", 16 * GIB, 16 * GIB)
    with pytest.raises(ConfigError, match="--max-model-len"):
        plan_memory(EngineConfig(max_model_len=131072), llama, "bfloat16", "cuda", 24 * GIB, 24 * GIB)


def test_memory_of_others_is_not_planned_with(llama):
    alone = plan_memory(EngineConfig(), llama, "bfloat16", "cuda", 80 * GIB, 80 * GIB)
    beside = plan_memory(EngineConfig(), llama, "bfloat16", "cuda", 80 * GIB, 70 * GIB)
    assert alone.num_slots - beside.num_slots == pytest.approx(10 * GIB / 131072, rel=0.01)


def test_the_cpu_takes_half_of_what_is_free_at_most(llama):
    plan = plan_memory(EngineConfig(), llama, "bfloat16", "cpu", 64 * GIB, 20 * GIB)
    assert plan.ledger["KV cache"] <= (20 * GIB - plan.ledger["weights"]) // 2


@pytest.mark.parametrize("text, value", [("4GiB", 4 << 30), ("500MB", 500_000_000), ("1.5k", 1500), (" 7 ", 7)])
def test_sizes(text, value):
    assert parse_bytes(text) == value


@pytest.mark.parametrize("text", ["", "GiB", "-3", "0", "4 parsecs", "1e400", "nan", "inf"])
def test_bad_sizes(text):
    with pytest.raises(ConfigError):
        parse_bytes(text)


def test_sizes_for_people():
    assert [format_bytes(n) for n in (5, 1536, 3 << 30, 5 << 40)] == ["5 B", "1.5 KiB", "3.0 GiB", "5.0 TiB"]
