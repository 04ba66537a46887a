"""Requests that begin with the same long prompt give the tokens that they give alone. Decoding them, CUDA's attention
reads the prompt's keys once for all of them.
"""

from __future__ import annotations

import numpy as np
import pytest
from engine_helpers import generate

from pyengine.sampling_params import SamplingParams

NUM_SHARED = 1100  # four whole chunks of attention and a part of one


@pytest.fixture(scope="module")
def jobs(backend):
    """Own parts of 1 to 60 tokens behind the shared ones; a greedy request and a seeded one by turns."""
    rng = np.random.default_rng(11)
    shared = rng.integers(0, 500, NUM_SHARED).tolist()
    jobs = {}
    for i in range(200 if backend == "cuda" else 10):
        params = SamplingParams(temperature=i % 2 * 0.9, seed=i, max_tokens=12, ignore_eos=True)
        jobs[f"r{i}"] = (shared + rng.integers(0, 500, 1 + i * 7 % 60).tolist(), params)
    return jobs


@pytest.mark.parametrize("enforce_eager", [False, True])
def test_the_tokens_of_requests_alone(make_engine, jobs, enforce_eager):
    plain = make_engine(prefix_caching=False, enforce_eager=True, max_num_batched_tokens=2048)
    picked = [name for i, name in enumerate(jobs) if i % (len(jobs) // 10) == 0]
    expected = {}
    for name in picked:
        expected |= generate(plain, {name: jobs[name]})
    assert len({tuple(tokens) for tokens in expected.values()}) > len(picked) // 2, "the model always says the same"

    engine = make_engine(kv_cache_memory="64MiB", max_num_seqs=256, enforce_eager=enforce_eager)
    first = next(iter(jobs))
    tokens = generate(engine, {first: jobs[first]})  # its blocks are cached now
    tokens |= generate(engine, {name: job for name, job in jobs.items() if name != first})
    for key in expected:
        assert tokens[key] == expected[key], key
