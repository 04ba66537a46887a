"""The engine beyond equal tokens: failures stay alone, aborts return blocks, the plan refuses what cannot fit."""

from __future__ import annotations

import pytest
import torch
from engine_helpers import generate

from pyengine.errors import ConfigError, RequestError
from pyengine.protocol import FinishReason, Request
from pyengine.sampling_params import SamplingParams

GREEDY = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)


def test_a_row_of_nan_fails_alone(make_engine):
    engine = make_engine()
    prompt, poison = list(range(16, 40)), 7
    expected = generate(engine, {"good": (prompt, GREEDY)})["good", 0]
    _poison_embedding(engine._runner._model.embed, poison)
    engine.add(Request("bad", [poison, 8, 9], GREEDY))
    engine.add(Request("good", prompt, GREEDY))
    tokens, ends = {"bad": [], "good": []}, {}
    while engine.has_work:
        for delta in engine.step():
            tokens[delta.request_id] += delta.token_ids
            if delta.finish_reason is not None:
                ends[delta.request_id] = (delta.finish_reason, delta.error)
    assert ends["bad"][0] is FinishReason.ERROR and "finite" in ends["bad"][1]
    assert ends["good"] == (FinishReason.LENGTH, None) and tokens == {"bad": [], "good": expected}


def _poison_embedding(packed, row: int) -> None:
    """Infinity in one row of the token table, in the layout of the backend."""
    from pyengine import ops

    rows = ops.embedding(torch.arange(16, dtype=torch.int32, device=packed.device), packed)
    rows[row] = float("inf")
    ops.pack_rows(packed, 0, rows)


def test_an_abort_returns_all_blocks(make_engine):
    engine = make_engine()
    engine.add(Request("a", list(range(100)), SamplingParams(temperature=0.0, max_tokens=500, ignore_eos=True, n=3)))
    for _ in range(6):
        engine.step()
    assert engine.stats().num_free_blocks < engine.stats().num_blocks
    engine.abort(["a", "unknown"])
    while engine.has_work:
        assert engine.step() == []
    assert engine.stats().num_free_blocks == engine.stats().num_blocks
    engine.scheduler.check_integrity()


def test_stop_tokens_end_a_sequence(make_engine):
    engine = make_engine()
    free = generate(engine, {"a": ([5, 6, 7], GREEDY)})["a", 0]
    stop = free[4]
    params = SamplingParams(temperature=0.0, max_tokens=8, stop_token_ids=(stop,))
    assert generate(engine, {"b": ([5, 6, 7], params)})["b", 0] == free[: free.index(stop) + 1]


@pytest.mark.parametrize(
    "options, text",
    [
        ({"kv_cache_memory": "10KiB"}, "--kv-cache-memory"),
        ({"kv_cache_memory": "200KiB", "max_model_len": 2048}, "--max-model-len"),
        ({"max_model_len": 4096}, "2048 positions"),
        ({"max_num_seqs": 64, "max_num_batched_tokens": 32}, "--max-num-batched-tokens"),
        ({"kv_cache_memory": "900GiB"}, "does not fit"),
        ({"cpu_cache_gb": 1e6}, "--cpu-cache-gb 1e.06 does not fit"),
        ({"cpu_cache_gb": 1, "prefix_caching": False}, "--no-prefix-caching"),
        ({"dtype": "float16", "device": "cpu"}, "float16"),
    ],
)
def test_what_cannot_fit_is_refused_with_the_flag(options, text, make_engine):
    with pytest.raises(ConfigError, match=text):
        make_engine(**options)


def test_the_context_shrinks_to_the_cache_with_a_warning(make_engine):
    engine = make_engine(kv_cache_memory="500KiB")
    assert engine.facts.plan.max_model_len < 2048 and "holds" in engine.facts.plan.warnings[0]
    with pytest.raises(RequestError, match="--max-model-len"):
        engine.add(Request("long", [1] * 1500, GREEDY))
