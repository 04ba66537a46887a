"""Embeddings: pooled final hidden states, mixed with generations, the same bits however they are computed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from engine_helpers import growing_requests, in_any_company

from pyengine.protocol import FinishReason, Pooling, Request
from pyengine.runner import pooler
from pyengine.sampling_params import SamplingParams

LENGTHS = (1, 2, 15, 16, 17, 40, 65, 130, 257, 300, 520, 33)
NOTHING = SamplingParams(max_tokens=0)


def _prompts() -> list[list[int]]:
    rng = np.random.default_rng(12)
    shared = rng.integers(0, 500, 600).tolist()
    return [
        shared[: length // 2] + rng.integers(0, 500, length - length // 2).tolist() if i % 3 else shared[:length]
        for i, length in enumerate(LENGTHS)
    ]


def _requests() -> list[Request]:
    """Two poolings of each prompt, and generations between them."""
    out = []
    for i, prompt in enumerate(_prompts()):
        out.append(Request(f"mean{i}", prompt, NOTHING, pooling=Pooling.MEAN))
        out.append(Request(f"gen{i}", prompt[::-1], SamplingParams(max_tokens=6, seed=i, ignore_eos=True)))
        out.append(Request(f"last{i}", prompt, NOTHING, pooling=Pooling.LAST))
    return out


def _run(engine, requests: list[Request]) -> dict[str, bytes | list[int]]:
    """Vector or tokens by name."""
    results: dict[str, bytes | list[int]] = {}
    for request in requests:
        engine.add(request)
    while engine.has_work:
        for delta in engine.step():
            assert delta.error is None, delta.error
            if delta.embedding is not None:
                assert delta.finish_reason is FinishReason.STOP and delta.request_id not in results
                results[delta.request_id] = delta.embedding
            else:
                results[delta.request_id] = [*results.get(delta.request_id, ()), *delta.token_ids]
    engine.scheduler.check_integrity()
    return results


def _vector(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.float32)


@pytest.fixture(scope="module")
def alone(make_engine):
    """Each by itself, whole, uncached, op by op."""
    engine = make_engine(prefix_caching=False, enforce_eager=True, max_num_batched_tokens=1024)
    return {name: result for request in _requests() for name, result in _run(engine, [request]).items()}


def test_the_last_state_is_the_one_that_the_next_token_is_drawn_from(alone, make_engine):
    engine = make_engine()
    for i, prompt in enumerate(_prompts()):
        greedy = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)
        (token,) = _run(engine, [Request("t", prompt, greedy)])["t"]
        state = torch.from_numpy(_vector(alone[f"last{i}"]).copy()).to(engine.facts.device.torch_device)
        with torch.inference_mode():
            logits = engine._runner._model.logits(state[None].to(torch.bfloat16))
        assert int(logits.argmax()) == token


def test_the_mean_is_that_of_the_last_states_of_all_beginnings(alone, make_engine):
    engine = make_engine()
    for i in (0, 1, 4, 5, 7):
        prompt = _prompts()[i]
        beginnings = [Request(str(n), prompt[:n], NOTHING, pooling=Pooling.LAST) for n in range(1, len(prompt) + 1)]
        states = np.stack([_vector(each) for each in _run(engine, beginnings).values()]).astype(np.float64)
        np.testing.assert_allclose(_vector(alone[f"mean{i}"]), states.mean(0), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("overlap", [False, True], ids=["in-order", "overlapped"])
@in_any_company
def test_vectors_do_not_depend_on(options, overlap, alone, make_engine):
    engine = make_engine(**options)
    engine._overlap = overlap
    busy = [Request(name, *job) for name, job in growing_requests(options).items()]
    results = _run(engine, busy + _requests())
    assert {name: results[name] for name in alone} == alone
    if busy:
        assert engine.stats().num_preemptions > 0, "nothing was preempted: the case tests nothing"
    assert _run(engine, _requests()) == alone  # with all of it in the cache


def test_a_prompt_may_fill_the_context(make_engine):
    engine = make_engine(max_model_len=64)
    prompt = list(range(64))
    assert len(_vector(_run(engine, [Request("a", prompt, NOTHING, pooling=Pooling.MEAN)])["a"])) == 128


@pytest.mark.parametrize("cuts", [(600,), (1, 599), (256, 344), (7,) * 85 + (5,)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_sums_have_no_order(cuts, dtype, backend):
    """Values of many sizes, for which float sums would differ; and one that is not finite spoils only its own row."""
    from pyengine.sched.step import PoolRead

    generator = torch.Generator().manual_seed(4)
    hidden = torch.randn(600, 64, generator=generator) * torch.logspace(-6, 3, 64)
    hidden = hidden.to(dtype).to(backend)
    broken = hidden.clone()
    broken[300, 5] = float("inf")

    def upload(array):
        return torch.from_numpy(array).to(backend)

    def run(sizes):
        state, start = pooler.Pooler(4, upload), 0
        for size in sizes:
            divisor = 600 if start + size == 600 else 0
            reads = tuple(PoolRead(i, row, 0, size, start == 0, divisor) for i, row in enumerate((3, 1)))
            out = state.pool(torch.cat((hidden[start : start + size], broken[start : start + size])), reads)
            start += size
        return out.cpu()

    good, bad = run(cuts)
    assert torch.isnan(bad).all() and torch.equal(good, run((600,))[0])
    torch.testing.assert_close(good.double(), hidden.double().mean(0).cpu(), rtol=1e-6, atol=2e-8)
