"""Same tokens, always, on the shapes that people serve: 256 mixed requests in one engine after another, every bit of
what they say compared. Small on a CPU; on a GPU llama31-8b (a minute on an H100) and SmolLM2 as well.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import crowd
import pytest
import torch

from pyengine.config import EngineConfig
from pyengine.engine import Engine
from pyengine.models.resolve import default_model_path

SHAPES = Path(__file__).parents[2] / "bench" / "shapes"
MAX_LEN = 2048
GIB = 1 << 30


@dataclass(frozen=True)
class Case:
    """A model, the KV cache in which all run at once, one so small that some are preempted, and a host tier in GiB."""

    model: str
    load_format: str
    device: str
    roomy: str
    tight: str
    host_gb: float


def _smollm2() -> tuple[str, str]:
    """The real one where its file lies, else its shape."""
    path = default_model_path()
    return (str(path), "auto") if path.is_file() else (str(SHAPES / "smol-135m"), "dummy")


def _case(name: str, tiny_model: str) -> Case:
    device, _, shape = name.partition("-")
    if device == "cuda":
        needed = (48 if shape == "llama31-8b" else 8) * GIB
        if not torch.cuda.is_available() or torch.cuda.mem_get_info()[0] < needed:
            pytest.skip(f"no GPU with {needed / GIB:g} GiB free")
    if shape == "tiny":
        return Case(tiny_model, "dummy", device, "192MiB", "6MiB", 0.02)
    if shape == "smollm2":
        return Case(*_smollm2(), device, "4GiB", "136MiB", 0.5)
    return Case(str(SHAPES / shape), "dummy", device, "16GiB", "768MiB", 3.0)


@pytest.fixture(scope="module", params=["cpu-tiny", "cuda-tiny", "cuda-smollm2", "cuda-llama31-8b"])
def case(request, tiny_model) -> Case:
    return _case(request.param, tiny_model)


@contextmanager
def engine_of(case: Case, **options) -> Iterator[Engine]:
    """An engine that is gone when the next one starts: two with weights of 16 GB may not fit beside each other."""
    gc.collect()
    if case.device == "cuda":
        torch.cuda.empty_cache()
    settings = {
        "model": case.model,
        "load_format": case.load_format,
        "device": case.device,
        "kv_cache_memory": case.roomy,
        "max_model_len": MAX_LEN,
        "max_num_seqs": 256,
        "itl_target_ms": 0,
        **options,
    }
    yield Engine.start(EngineConfig(**settings))


@dataclass(frozen=True)
class Crowd:
    jobs: dict[str, crowd.Job]
    outcomes: crowd.Outcomes


@pytest.fixture(scope="module")
def together(case) -> Crowd:
    """All of them at once in an engine of the defaults: what every other way to run them must reproduce. The second
    time, the same engine finds their prompts in its prefix cache.
    """
    with engine_of(case) as engine:
        jobs = crowd.make_jobs(engine.facts.model.vocab_size)
        outcomes = crowd.run(engine, jobs)
        hits = engine.stats().prefix_cache_hits
        warm = crowd.run(engine, jobs)
        assert engine.stats().prefix_cache_hits > hits + crowd.NUM_REQUESTS // 2
        assert engine.stats().num_preemptions == 0
    assert not crowd.different(warm, outcomes), "a warm prefix cache changed what was said"
    return Crowd(jobs, outcomes)


def test_the_crowd_is_a_hard_case(together):
    """Sequences differ, and many draws are so close that a rounding would turn them."""
    said = {tuple(outcome.token_ids) for outcome in together.outcomes.values()}
    assert len(said) > 0.9 * len(together.outcomes)
    close, known = crowd.close_calls(together.outcomes)
    assert known > 1000 and close > known / 100, f"{close} of {known} draws were close"


def test_alone_in_another_engine(together, case):
    """Each by itself, whole, uncached, op by op."""
    names = crowd.alone_sample(together.jobs)
    outcomes = {}
    with engine_of(case, prefix_caching=False, enforce_eager=True) as engine:
        for name in names:
            outcomes |= crowd.run(engine, {name: together.jobs[name]})
    assert not crowd.different(outcomes, together.outcomes, names)


@pytest.mark.parametrize(
    "options",
    [
        {"max_num_batched_tokens": 509, "prefix_caching": False},
        {"enforce_eager": True, "async_scheduling": False, "max_num_seqs": 61, "block_size": 32},
    ],
    ids=["reversed-in-chunks", "eager-61-rows"],
)
def test_another_way_to_run_them(options, together, case):
    with engine_of(case, **options) as engine:
        outcomes = crowd.run(engine, dict(reversed(together.jobs.items())))
    assert not crowd.different(outcomes, together.outcomes)


@pytest.mark.parametrize("swapped", [False, True], ids=["recomputed", "swapped"])
def test_preempted(swapped, together, case):
    host = {"cpu_cache_gb": case.host_gb} if swapped else {}
    with engine_of(case, kv_cache_memory=case.tight, **host) as engine:
        _admit_without_reserve(engine)
        outcomes = crowd.run(engine, dict(reversed(together.jobs.items())))
        assert engine.stats().num_preemptions >= 10, "hardly any was preempted: the case tests nothing"
        assert bool(engine.stats().num_swapped_out) == swapped
    assert not crowd.different(outcomes, together.outcomes)


def _admit_without_reserve(engine: Engine) -> None:
    """Otherwise a block is kept in reach for every running sequence, and hardly any is preempted."""
    blocks = engine.scheduler.blocks
    can_admit = blocks.can_admit
    blocks.can_admit = lambda seq, cached, reserve: can_admit(seq, cached, reserve=0)
