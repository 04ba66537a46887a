"""Log-probabilities of prompts: the very numbers that generating the prompt would have had, however it is computed."""

from __future__ import annotations

import numpy as np
import pytest
from engine_helpers import growing_requests, in_any_company

from pyengine.protocol import Request, TokenLogprob
from pyengine.runner import prompt_reader
from pyengine.sampling_params import SamplingParams

LENGTHS = (1, 2, 3, 16, 17, 40, 65, 130, 257, 300, 520)


def _prompts() -> dict[str, list[int]]:
    rng = np.random.default_rng(11)
    shared = rng.integers(0, 500, 600).tolist()
    return {
        f"p{i}": shared[: length // 2] + rng.integers(0, 500, length - length // 2).tolist()
        for i, length in enumerate(LENGTHS)
    }


def _run(engine, jobs: dict[str, tuple[list[int], SamplingParams]]):
    """(scores of the prompts, tokens) by name; the engine is empty afterwards."""
    scores: dict[str, list[TokenLogprob]] = {name: [] for name in jobs}
    tokens = {(name, i): [] for name, (_, params) in jobs.items() for i in range(params.n)}
    for name, (prompt, params) in jobs.items():
        engine.add(Request(name, prompt, params))
    while engine.has_work:
        for delta in engine.step():
            assert delta.error is None, delta.error
            scores[delta.request_id] += delta.prompt_logprobs or []
            tokens[delta.request_id, delta.index] += delta.token_ids
    engine.scheduler.check_integrity()
    return scores, tokens


def _jobs() -> dict[str, tuple[list[int], SamplingParams]]:
    """Some generate afterwards, some more than once, some not at all; between them some that nobody wants scored."""
    jobs = {}
    for i, (name, prompt) in enumerate(_prompts().items()):
        wants = {"prompt_logprobs": i % 5} if i % 4 != 3 else {"prompt_logprobs": None}
        params = SamplingParams(
            temperature=0.7, seed=i, max_tokens=(0, 5, 9)[i % 3], n=1 + i % 2, ignore_eos=True, logprobs=i % 2, **wants
        )
        jobs[name] = (prompt, params)
    return jobs


@pytest.fixture(scope="module")
def alone(make_engine):
    """Each by itself, whole, uncached, op by op."""
    engine = make_engine(prefix_caching=False, enforce_eager=True, max_num_batched_tokens=1024)
    scores, tokens = {}, {}
    for name, job in _jobs().items():
        new_scores, new_tokens = _run(engine, {name: job})
        scores |= new_scores
        tokens |= new_tokens
    return scores, tokens


def test_they_are_what_generating_the_prompt_would_have_said(alone, make_engine):
    """The oracle is the sampler: forced to draw each next token, it reports the same bits."""
    engine = make_engine(max_num_batched_tokens=1024)
    for name, prompt in list(_prompts().items())[3:7]:
        expected = {}
        for i in range(1, len(prompt)):
            params = SamplingParams(max_tokens=1, allowed_token_ids=(prompt[i],), logprobs=4, ignore_eos=True)
            engine.add(Request(str(i), prompt[:i], params))
        while engine.has_work:
            for delta in engine.step():
                assert delta.token_ids == [prompt[int(delta.request_id)]]
                (expected[int(delta.request_id)],) = delta.logprobs
        params = SamplingParams(max_tokens=0, prompt_logprobs=4)
        scores, tokens = _run(engine, {name: (prompt, params)})
        assert scores[name] == [expected[i] for i in range(1, len(prompt))]
        assert tokens[name, 0] == []


def test_every_token_but_the_first_is_scored(alone):
    scores, tokens = alone
    for name, (prompt, params) in _jobs().items():
        wanted = params.prompt_logprobs is not None
        assert len(scores[name]) == (len(prompt) - 1) * wanted
        assert all(len(score.top_ids) == params.prompt_logprobs for score in scores[name])
        assert all(len(tokens[name, i]) == params.max_tokens for i in range(params.n))


@pytest.mark.parametrize("overlap", [False, True], ids=["in-order", "overlapped"])
@in_any_company
def test_they_do_not_depend_on(options, overlap, alone, make_engine):
    engine = make_engine(**options)
    engine._overlap = overlap
    busy = growing_requests(options)
    scores, tokens = _run(engine, busy | _jobs())
    assert ({name: scores[name] for name in alone[0]}, {key: tokens[key] for key in alone[1]}) == alone
    if busy:
        assert engine.stats().num_preemptions > 0, "nothing was preempted: the case tests nothing"
    assert _run(engine, _jobs()) == alone  # with all of it in the cache


def test_logits_are_never_all_there(make_engine, monkeypatch):
    """No call of the head has more rows than a step of decodes may have."""
    engine = make_engine(max_num_batched_tokens=1024, max_num_seqs=20)
    rows, head = [], engine._runner._model.logits
    reader = engine._runner._prompts
    monkeypatch.setattr(reader, "_logits", lambda hidden: (rows.append(len(hidden)), head(hidden))[1])
    prompt = _prompts()["p10"]
    scores, _ = _run(engine, {"p10": (prompt, SamplingParams(max_tokens=0, prompt_logprobs=1))})
    assert len(scores["p10"]) == len(prompt) - 1 == sum(rows)
    assert max(rows) == 20 <= prompt_reader.MAX_SLICE_ROWS
