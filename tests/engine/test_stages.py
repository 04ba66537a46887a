"""Sampler stages in the engine: each does what it says, alone and together, and never depends on the company."""

from __future__ import annotations

import math

import numpy as np
import pytest
from engine_helpers import generate

from pyengine.protocol import FinishReason, Request
from pyengine.sampling_params import SamplingParams

PROMPT = list(range(20, 45))


def _greedy(**options) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True, **options)


def _tokens(engine, params: SamplingParams, name: str = "a") -> list[int]:
    return generate(engine, {name: (PROMPT, params)})[name, 0]


def test_allowed_tokens_are_the_only_ones(make_engine):
    allowed = (3, 77, 31, 499)
    assert set(_tokens(make_engine(), _greedy(allowed_token_ids=allowed))) <= set(allowed)


def test_a_bias_makes_and_unmakes_tokens(make_engine):
    engine = make_engine()
    assert _tokens(engine, _greedy(logit_bias={123: 100.0})) == [123] * 12
    free = _tokens(engine, _greedy())
    banned = dict.fromkeys(free, -100.0)
    assert not set(_tokens(engine, _greedy(logit_bias=banned))) & set(free)


def test_penalties_count_what_was_generated(make_engine):
    """Between three tokens, a frequency penalty evens the counts out, because each use costs two logits more."""
    engine = make_engine()
    options = {"temperature": 0.0, "max_tokens": 90, "ignore_eos": True, "allowed_token_ids": (7, 8, 9)}
    free = _tokens(engine, SamplingParams(**options))
    even = _tokens(engine, SamplingParams(frequency_penalty=2.0, **options))
    assert min(free.count(token) for token in (7, 8, 9)) < 20 <= min(even.count(token) for token in (7, 8, 9))
    assert _tokens(engine, SamplingParams(presence_penalty=2.0, **options)) != free


def test_the_repetition_penalty_sees_the_prompt(make_engine):
    engine = make_engine()
    assert _tokens(engine, _greedy(repetition_penalty=1.8)) != _tokens(engine, _greedy())


def test_min_tokens_holds_the_end_back(make_engine):
    engine = make_engine()
    free = _tokens(engine, _greedy())
    stop = free[2]
    options = {"temperature": 0.0, "max_tokens": 12, "stop_token_ids": (stop,)}
    assert len(_tokens(engine, SamplingParams(**options))) == free.index(stop) + 1
    held = _tokens(engine, SamplingParams(min_tokens=6, **options))
    assert len(held) >= 6 and stop not in held[:6]


def _contains(tokens: list[int], word: tuple[int, ...]) -> bool:
    return any(tuple(tokens[i : i + len(word)]) == word for i in range(len(tokens)))


def test_bad_words_end_where_they_would_be_complete(make_engine):
    engine = make_engine()
    free = _tokens(engine, _greedy())
    word = tuple(free[2:5])
    others = ((free[3], free[4] + 1), (499, free[1]), tuple(free[:3])[::-1])
    tokens = _tokens(engine, _greedy(bad_words_token_ids=(word, *others)))
    assert tokens[:4] == free[:4] and tokens[4] != free[4], "all but the last token of a word may be drawn"
    assert not any(_contains(tokens, each) for each in (word, *others))
    assert free[0] not in _tokens(engine, _greedy(bad_words_token_ids=((free[0],),)))
    behind_the_prompt = (PROMPT[-1], free[0])
    assert _tokens(engine, _greedy(bad_words_token_ids=(behind_the_prompt,))) == free, "only the output counts"


def test_several_bad_words_may_end_in_the_same_token(make_engine):
    engine = make_engine()
    free = _tokens(engine, _greedy())
    words = ((7, free[3]), (free[2], free[3]), (8, 9, free[3]), (free[1], free[2], free[3]))
    for order in (words, words[::-1]):
        tokens = _tokens(engine, _greedy(bad_words_token_ids=order))
        assert tokens[:3] == free[:3] and tokens[3] != free[3]


def test_logprobs_are_of_the_raw_logits(make_engine):
    engine = make_engine()

    def run(params):
        engine.add(Request("a", PROMPT, params))
        out = []
        while engine.has_work:
            for delta in engine.step():
                out += zip(delta.token_ids, delta.logprobs, strict=True)
        return out

    plain = run(_greedy(logprobs=5))
    for token, logprob in plain:
        assert logprob.rank == 1 and logprob.top_ids[0] == token and logprob.top_logprobs[0] == logprob.logprob
        assert len(logprob.top_ids) == 5 and logprob.top_logprobs == sorted(logprob.top_logprobs, reverse=True)
        assert math.exp(logprob.logprob) <= 1 and sum(map(math.exp, logprob.top_logprobs)) <= 1 + 1e-5
    biased = run(_greedy(logprobs=2, logit_bias={123: 100.0}))
    assert biased[0][0] == 123 and biased[0][1].top_ids == plain[0][1].top_ids[:2]
    assert biased[0][1].logprob < biased[0][1].top_logprobs[1]


def _mixed_jobs() -> dict[str, tuple[list[int], SamplingParams]]:
    rng = np.random.default_rng(3)
    options = [
        {"repetition_penalty": 1.3}, {"frequency_penalty": 0.7, "presence_penalty": 0.5},
        {"logit_bias": {5: 3.0, 6: -5.0}},
        {"allowed_token_ids": tuple(range(0, 500, 3))}, {"min_tokens": 9, "stop_token_ids": tuple(range(0, 500, 4))},
        {"repetition_penalty": 1.2, "allowed_token_ids": tuple(range(250)), "logit_bias": {9: 2.0}, "logprobs": 0},
        {"logprobs": 3}, {},
        {"bad_words_token_ids": tuple((i, j) for i in range(8, 24) for j in range(0, 500, 29)), "logprobs": 1},
        {"bad_words_token_ids": tuple((i,) for i in range(0, 500, 2)), "repetition_penalty": 1.1},
        {"bad_words_token_ids": tuple((i, j, k) for i in (0, 1) for j in (0, 1) for k in range(50, 60)),
         "allowed_token_ids": (0, 1, *range(50, 60)), "frequency_penalty": 0.3},
    ]  # fmt: skip
    return {
        f"r{i}": (
            rng.integers(0, 500, int(rng.integers(1, 90))).tolist(),
            SamplingParams(
                temperature=(0.0, 0.9)[i % 2], top_p=0.9, seed=i, max_tokens=16, **options[i % len(options)]
            ),
        )
        for i in range(24)
    }


@pytest.mark.parametrize(
    "options",
    [{}, {"kv_cache_memory": "200KiB", "max_model_len": 120}, {"max_num_batched_tokens": 40}],
    ids=["crowd", "preempted", "chunks"],
)
def test_stages_do_not_depend_on_the_company(options, make_engine):
    alone_engine = make_engine(prefix_caching=False, enforce_eager=True)
    jobs = _mixed_jobs()
    alone = {}
    for name, job in jobs.items():
        alone |= generate(alone_engine, {name: job})
    engine = make_engine(**options)
    assert generate(engine, jobs) == alone
    engine._overlap = not engine._overlap
    assert generate(engine, jobs) == alone
    if "kv_cache_memory" in options:
        assert engine.stats().num_preemptions > 0


def test_a_row_with_nothing_left_to_draw_fails_alone(make_engine):
    engine = make_engine()
    params = SamplingParams(temperature=0.0, max_tokens=4, allowed_token_ids=(5,), min_tokens=3, stop_token_ids=(5,))
    engine.add(Request("bad", PROMPT, params))
    engine.add(Request("good", PROMPT, _greedy()))
    ends = {}
    while engine.has_work:
        for delta in engine.step():
            if delta.finish_reason:
                ends[delta.request_id] = delta.finish_reason
    assert ends == {"bad": FinishReason.ERROR, "good": FinishReason.LENGTH}
