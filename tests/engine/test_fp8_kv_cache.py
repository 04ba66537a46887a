"""Same tokens, always, with a KV cache in fp8: what a token attends to is what the cache holds, its own step included,
so neither cuts nor company nor second lives of blocks change a bit.
"""

from __future__ import annotations

import pytest
from engine_helpers import generate, generate_alone, ragged_jobs


@pytest.fixture(scope="module")
def make_fp8_engine(make_engine):
    return lambda **options: make_engine(kv_cache_dtype="fp8", **options)


@pytest.fixture(scope="module")
def alone(make_fp8_engine):
    return generate_alone(make_fp8_engine)


def test_the_cache_is_fp8(alone, make_engine, make_fp8_engine):
    """Half the bytes, twice the blocks, and other tokens than with a cache of the model's dtype."""
    plain, engine = make_engine(), make_fp8_engine()
    assert engine.facts.kv_dtype == "float8_e4m3fn" and plain.facts.kv_dtype == "bfloat16"
    assert engine.facts.plan.num_blocks == 2 * plain.facts.plan.num_blocks
    assert engine.facts.ready().kv_cache_dtype == "float8_e4m3fn"
    assert any("fp8" in note or "float8" in note for note in engine.facts.ready().notes)
    tokens = generate(plain, ragged_jobs())
    assert tokens != alone
    same = sum(tokens[key][0] == alone[key][0] for key in alone)
    assert same > len(alone) // 2, "the first tokens of most requests survive the rounding"


@pytest.mark.parametrize(
    "options",
    [
        {"prefix_caching": False, "enforce_eager": True, "max_num_batched_tokens": 2048},
        {"prefix_caching": True},
        {"max_num_batched_tokens": 37, "max_num_seqs": 32},
        {"max_num_batched_tokens": 64, "max_num_seqs": 5},
        {"block_size": 32},
        {"kv_cache_memory": "350KiB", "max_model_len": 600},
        {"kv_cache_memory": "350KiB", "max_model_len": 600, "cpu_cache_gb": 0.01},
    ],
    ids=["crowd", "cached", "chunks-of-37", "five-rows", "blocks-of-32", "preempted", "swapped"],
)
def test_tokens_do_not_depend_on(options, alone, make_fp8_engine):
    engine, jobs = make_fp8_engine(**options), ragged_jobs()
    assert generate(engine, jobs) == alone
    if "kv_cache_memory" in options:
        assert engine.stats().num_preemptions > 0, "nothing was preempted: the case tests nothing"
    if options.get("prefix_caching") or "cpu_cache_gb" in options:
        assert generate(engine, jobs) == alone
        stats = engine.stats()
        assert stats.prefix_cache_hits > 0
        assert bool(stats.num_swapped_in) == bool(stats.num_swapped_out) == ("cpu_cache_gb" in options)
