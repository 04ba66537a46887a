"""Same tokens, always: a request's tokens are bit-identical whatever else happens. In bf16, with random weights whose
logits are close.
"""

from __future__ import annotations

import pytest
from engine_helpers import generate, generate_alone, ragged_jobs

from pyengine import ops


@pytest.fixture(scope="module")
def alone(make_engine):
    return generate_alone(make_engine)


def test_the_model_is_a_hard_case(alone):
    assert len({tuple(tokens) for tokens in alone.values()}) > len(alone) // 2, (
        "the random model always says the same: nothing is tested"
    )


@pytest.mark.parametrize(
    "options",
    [
        {"prefix_caching": False, "enforce_eager": True, "max_num_batched_tokens": 2048},
        {"prefix_caching": True},
        {"max_num_batched_tokens": 37, "max_num_seqs": 32},
        {"max_num_batched_tokens": 64, "max_num_seqs": 5},
        {"itl_target_ms": 1.0},
        {"block_size": 32},
        {"kv_cache_memory": "700KiB", "max_model_len": 600},
        {"kv_cache_memory": "700KiB", "max_model_len": 600, "cpu_cache_gb": 0.01},
        {"kv_cache_memory": "700KiB", "max_model_len": 600, "cpu_cache_gb": 0.0002},
    ],
    ids=[
        "crowd",
        "cached",
        "chunks-of-37",
        "five-rows",
        "cut-by-time",
        "blocks-of-32",
        "preempted",
        "swapped",
        "swapped-little",
    ],
)
def test_tokens_do_not_depend_on(options, alone, make_engine):
    engine = make_engine(**options)
    jobs = ragged_jobs()
    assert generate(engine, jobs) == alone
    if "kv_cache_memory" in options:
        assert engine.stats().num_preemptions > 0, "nothing was preempted: the case tests nothing"
    if options.get("prefix_caching") or "cpu_cache_gb" in options:
        assert generate(engine, {f"again-{name}": job for name, job in jobs.items()}) == {
            (f"again-{name}", i): t for (name, i), t in alone.items()
        }
        stats = engine.stats()
        assert stats.prefix_cache_hits > 0
        assert bool(stats.num_swapped_in) == (options.get("cpu_cache_gb", 0) > 0.001)
        assert bool(stats.num_swapped_out) == ("cpu_cache_gb" in options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kv_cache_memory": "700KiB", "max_model_len": 600},
        {"kv_cache_memory": "700KiB", "max_model_len": 600, "cpu_cache_gb": 0.01},
    ],
    ids=["roomy", "preempted", "swapped"],
)
def test_tokens_do_not_depend_on_when_the_host_waits(options, alone, make_engine):
    """The other order than the device's own: overlapped on a CPU, one step after the other on a GPU."""
    engine = make_engine(**options)
    engine._overlap = not engine._overlap
    assert generate(engine, ragged_jobs()) == alone
    assert generate(engine, ragged_jobs()) == alone, "the second time, much is found in the cache"
    assert bool(engine.stats().num_swapped_in) == ("cpu_cache_gb" in options)


def test_tokens_do_not_depend_on_the_order_of_arrival(alone, make_engine):
    engine = make_engine()
    jobs = ragged_jobs()
    assert generate(engine, dict(reversed(jobs.items()))) == alone


def test_tokens_do_not_depend_on_the_number_of_threads(alone, make_engine, backend):
    if backend != "cpu":
        pytest.skip("CPU threads")
    before = ops.num_threads()
    engine = make_engine(num_threads=1)
    try:
        assert generate(engine, ragged_jobs()) == alone
    finally:
        ops.set_num_threads(before)


def test_a_prefix_cache_hit_in_the_middle_of_a_running_batch(alone, make_engine):
    """The second wave arrives while the first still runs and finds its blocks."""
    from pyengine.protocol import Request

    engine = make_engine(max_num_batched_tokens=128)
    jobs = ragged_jobs()
    tokens = {
        (f"{wave}-{name}", i): [] for wave in (1, 2) for name, (_, params) in jobs.items() for i in range(params.n)
    }
    for name, (prompt, params) in jobs.items():
        engine.add(Request(f"1-{name}", prompt, params))
    second = [Request(f"2-{name}", prompt, params) for name, (prompt, params) in jobs.items()]
    steps = 0
    while engine.has_work or second:
        if second and steps % 2:
            engine.add(second.pop())
        for delta in engine.step():
            tokens[delta.request_id, delta.index] += delta.token_ids
        steps += 1
    assert tokens == {(f"{wave}-{name}", i): t for wave in (1, 2) for (name, i), t in alone.items()}
    assert engine.stats().prefix_cache_hits > 0


@pytest.fixture
def tuned(backend):
    """Sets choices of the CUDA kernels and takes them back."""
    if backend != "cuda":
        pytest.skip("choices of CUDA kernels")
    usual = {"overlap": 1, "stream_rows": 0, "prefetched_stages": 0, "suggestion": 0}
    yield lambda **values: [ops.set_tuning(name, value) for name, value in values.items()]
    for name, value in usual.items():
        ops.set_tuning(name, value)


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize(
    "values", [{"overlap": 0}, {"stream_rows": 256}, {"stream_rows": 256, "prefetched_stages": 64}]
)
def test_choices_of_speed_change_no_token(make_engine, alone, tuned, values, eager):
    tuned(**values)
    assert generate(make_engine(enforce_eager=eager), ragged_jobs()) == alone
