"""Jobs, and running them through an engine to the end."""

from __future__ import annotations

import numpy as np
import pytest

from pyengine.engine import Engine
from pyengine.protocol import Request
from pyengine.sampling_params import SamplingParams

# Engines in which the same requests must give the same results; the last one preempts when `growing_requests` run too.
in_any_company = pytest.mark.parametrize(
    "options",
    [
        {"prefix_caching": False, "max_num_batched_tokens": 2048},
        {},
        {"max_num_batched_tokens": 37},
        {"max_num_batched_tokens": 64, "max_num_seqs": 5},
        {"kv_cache_memory": "700KiB", "max_model_len": 600, "max_num_batched_tokens": 128},
    ],
    ids=["crowd", "cached", "chunks-of-37", "five-rows", "preempted"],
)


def growing_requests(options: dict) -> dict[str, tuple[list[int], SamplingParams]]:
    """Where there is little memory: jobs that grow, first in order, until blocks run out."""
    if "kv_cache_memory" not in options:
        return {}
    growing = SamplingParams(temperature=0.9, seed=1, max_tokens=150, ignore_eos=True)
    return {f"busy{i}": ([i] * 20, growing) for i in range(4)}


def generate(engine: Engine, jobs: dict[str, tuple[list[int], SamplingParams]]) -> dict[tuple[str, int], list[int]]:
    """Run all jobs together; tokens by (name, index). Afterwards the engine must hold nothing."""
    tokens: dict[tuple[str, int], list[int]] = {
        (name, i): [] for name, (_, params) in jobs.items() for i in range(params.n)
    }
    for name, (prompt, params) in jobs.items():
        engine.add(Request(name, prompt, params))
    while engine.has_work:
        for delta in engine.step():
            assert delta.error is None, delta.error
            tokens[delta.request_id, delta.index] += delta.token_ids
    engine.scheduler.check_integrity()
    pool = engine.scheduler.blocks.pool
    assert pool.num_free == pool.num_blocks
    return tokens


def ragged_jobs() -> dict[str, tuple[list[int], SamplingParams]]:
    """Greedy and seeded requests of ragged lengths; some share prefixes, some ask for several sequences."""
    rng = np.random.default_rng(5)
    shared = rng.integers(0, 500, 200).tolist()
    jobs = {}
    for i, length in enumerate([1, 2, 15, 16, 17, 31, 33, 63, 64, 100, 255, 256, 257, 300, 520]):
        prompt = (
            rng.integers(0, 500, length).tolist()
            if i % 3
            else (shared[: length // 2] + rng.integers(0, 500, length - length // 2).tolist())
        )
        greedy = i % 2 == 0
        params = SamplingParams(
            temperature=0.0 if greedy else 0.9,
            top_p=1.0 if greedy else 0.9,
            top_k=0 if i % 4 else 40,
            seed=i,
            max_tokens=20,
            n=3 if i % 5 == 4 and not greedy else 1,
            ignore_eos=True,
        )
        jobs[f"r{i}"] = (prompt, params)
    return jobs


def generate_alone(make_engine) -> dict[tuple[str, int], list[int]]:
    """Every ragged job by itself, whole, uncached, op by op: the truth the other runs must reproduce."""
    engine = make_engine(prefix_caching=False, enforce_eager=True, max_num_batched_tokens=1024)
    tokens = {}
    for name, job in ragged_jobs().items():
        tokens |= generate(engine, {name: job})
    return tokens
