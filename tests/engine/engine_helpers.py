"""Running jobs through an engine to the end."""

from __future__ import annotations

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
