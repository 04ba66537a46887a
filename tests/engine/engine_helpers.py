"""Jobs, and running them through an engine to the end."""

from __future__ import annotations

import numpy as np

from pyengine.engine import Engine
from pyengine.protocol import Request
from pyengine.sampling_params import SamplingParams


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
