"""What a GPU's graphs are: passes of fixed sizes, padded, over tensors frozen when they were captured. Here a replay
computes the frozen pass anew, op by op, so that a CPU shows whether padding or a frozen size changes a token.
"""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pytest
from engine_helpers import generate, generate_alone, growing_requests, ragged_jobs

from pyengine.runner import model_runner
from pyengine.runner.graphs import GraphPass


@pytest.fixture(scope="module")
def alone(make_engine):
    return generate_alone(make_engine)


@pytest.fixture
def replayed(monkeypatch) -> Counter:
    """Engines made from here on replay; how often each size was."""
    sizes: Counter = Counter()

    def capture(batch, forward):
        def replay():
            sizes[batch.size] += 1
            forward(batch)  # into the runner's logits, where the first output lies too

        return SimpleNamespace(replay=replay), forward(batch)

    def make(kind, max_num_seqs, max_num_tokens, enforce_eager):
        return GraphPass(max_num_seqs, max_num_tokens, capture)

    monkeypatch.setattr(model_runner, "make_graph_pass", make)
    return sizes


@pytest.mark.parametrize(
    "options",
    [
        {"max_num_batched_tokens": 300},
        {"max_num_batched_tokens": 37},
        {"max_num_batched_tokens": 64, "max_num_seqs": 5},
        {"max_num_batched_tokens": 600, "max_num_seqs": 20},
        {"kv_cache_memory": "700KiB", "max_model_len": 600, "max_num_batched_tokens": 128},
    ],
    ids=["crowd", "chunks-of-37", "five-rows", "twenty-rows", "preempted"],
)
def test_padding_changes_no_token(options, alone, make_engine, backend, replayed):
    if backend == "cuda":
        pytest.skip("has real ones (test_same_tokens.py)")
    engine = make_engine(**options)
    replayed.clear()
    jobs = {**growing_requests(options), **ragged_jobs()}
    tokens = generate(engine, jobs)
    assert {key: value for key, value in tokens.items() if key in alone} == alone
    kinds = {size.decodes for size in replayed}
    assert kinds == {True, False}, "steps with prompts and without: both were replayed"
