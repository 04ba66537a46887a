"""Prompts that are read, against a device that checks every read: the same whatever is chunked, cached or preempted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_scheduler import Loop

from pyengine.errors import RequestError
from pyengine.protocol import FinishReason, Pooling, Request
from pyengine.sampling_params import SamplingParams


class ReadingLoop(Loop):
    """Collects the prompt's scores too; after a token there may be none."""

    def __init__(self, **options):
        super().__init__(**options)
        self.scores = {}
        self.vectors = {}
        update = self.scheduler.update

        def watched(step, output):
            deltas = update(step, output)
            for delta in deltas:
                if delta.embedding is not None:
                    assert not delta.token_ids and delta.finish_reason is FinishReason.STOP
                    self.vectors[delta.request_id] = np.frombuffer(delta.embedding, np.float32).tolist()
                if delta.prompt_logprobs is not None:
                    assert delta.index == 0 and not delta.token_ids
                    assert not self.tokens[delta.request_id, 0], "a score behind a token"
                    self.scores.setdefault(delta.request_id, []).extend(delta.prompt_logprobs)
            return deltas

        self.scheduler.update = watched

    def expected(self, prompt):
        return [self.device.score(tuple(prompt[:i]), prompt[i]) for i in range(1, len(prompt))]


    def expected_vector(self, prompt, pooling):
        states = [self.device.state(tuple(prompt[:i])) for i in range(1, len(prompt) + 1)]
        states = states if pooling is Pooling.MEAN else states[-1:]
        return np.float32(self.device.mean(states, len(states))).tolist()


def embedded(name, prompt, pooling=Pooling.MEAN, priority=0):
    params = SamplingParams(max_tokens=0, seed=1)
    return Request(name, list(prompt), params, priority=priority, pooling=pooling)


def scored(name, prompt, max_tokens=4, *, n=1, priority=0, wants=0):
    return Request(
        name, list(prompt), SamplingParams(n=n, max_tokens=max_tokens, seed=1, prompt_logprobs=wants), priority=priority
    )


requests = st.lists(
    st.tuples(
        st.integers(0, 2), st.integers(1, 40), st.integers(0, 20), st.integers(1, 3), st.integers(0, 2), st.booleans()
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=150, deadline=None)
@given(
    spec=requests,
    num_blocks=st.integers(16, 40),
    budget=st.integers(8, 64),
    depth=st.integers(1, 2),
    caching=st.booleans(),
    gap=st.integers(0, 3),
)
def test_scores_never_depend_on_the_company(spec, num_blocks, budget, depth, caching, gap):
    loop = ReadingLoop(num_blocks=num_blocks, budget=budget, depth=depth, prefix_caching=caching)
    scores, tokens = {}, {}
    for i, (family, length, max_tokens, n, priority, wants) in enumerate(spec):
        prompt = [(family * 7 + j // 6) % 50 for j in range(length)]
        loop.scheduler.add(scored(f"r{i}", prompt, max_tokens, n=n, priority=priority, wants=0 if wants else None))
        if wants and length > 1:
            scores[f"r{i}"] = loop.expected(prompt)
        limit = min(max_tokens, loop.scheduler.limits.max_model_len - length)
        for index in range(n):
            tokens[f"r{i}", index] = loop.device.continuation(prompt, limit)
        for _ in range(gap):
            loop.step()
    loop.run()
    assert loop.scores == scores
    assert {key: value for key, value in loop.tokens.items() if value} == {k: v for k, v in tokens.items() if v}
    assert loop.finished == dict.fromkeys(tokens, FinishReason.LENGTH)


def test_what_is_cached_is_computed_again_to_be_read_and_only_then():
    loop = ReadingLoop(num_blocks=64, budget=64)
    prompt = list(range(33))
    loop.scheduler.add(scored("plain", prompt, wants=None))
    loop.run()
    loop.scheduler.add(scored("scored", prompt))
    loop.run()
    assert loop.scheduler.stats().num_cached_tokens == 0
    loop.scheduler.add(scored("plain again", prompt, wants=None))
    loop.run()
    assert loop.scheduler.stats().num_cached_tokens == 32
    assert loop.scores == {"scored": loop.expected(prompt)}


def test_a_preempted_prompt_goes_on_from_what_was_read():
    loop = ReadingLoop(num_blocks=17, budget=4)
    prompt = list(range(40))
    loop.scheduler.add(scored("first", range(20), 40, wants=None))
    while not loop.tokens["first", 0]:
        loop.step()
    loop.scheduler.add(scored("late", prompt, priority=1))  # three tokens a step, until the other has taken its blocks
    loop.run()
    assert loop.scheduler.stats().num_preemptions > 0 and loop.scores == {"late": loop.expected(prompt)}


def test_nothing_to_generate_ends_with_the_prompt():
    loop = ReadingLoop(num_blocks=16, budget=7, max_model_len=20)
    loop.scheduler.add(scored("full", range(20), 0, n=2))
    loop.scheduler.add(scored("plain", range(15), 0, wants=None))
    loop.run()
    assert loop.scores == {"full": loop.expected(list(range(20)))} and not any(loop.tokens.values())
    assert set(loop.finished.values()) == {FinishReason.LENGTH} and len(loop.finished) == 3
    with pytest.raises(RequestError, match="21 tokens"):
        loop.scheduler.add(scored("too long", range(21), 0))
    with pytest.raises(RequestError, match="20 tokens"):
        loop.scheduler.add(scored("no room", range(20), 1))


def test_scores_that_are_not_finite_end_their_sequence_alone():
    loop = ReadingLoop(num_blocks=64, budget=64)
    bad, good = list(range(20)), list(range(20, 40))
    loop.device.nan_prefixes.add(tuple(bad[:7]))
    loop.scheduler.add(scored("bad", bad, 0))
    loop.scheduler.add(scored("good", good))
    loop.run()
    assert loop.finished == {("bad", 0): FinishReason.ERROR, ("good", 0): FinishReason.LENGTH}
    loop.scheduler.add(scored("again", bad[:6], wants=None))
    loop.run()
    assert loop.scheduler.stats().num_cached_tokens == 0


def test_an_abort_while_a_read_is_in_flight():
    loop = ReadingLoop(num_blocks=64, budget=8, depth=2)
    loop.scheduler.add(scored("gone", range(30)))
    loop.step()
    loop.step()
    loop.scheduler.abort(["gone"])
    loop.run()
    assert not loop.finished


kinds = st.sampled_from([Pooling.MEAN, Pooling.LAST, None])


@settings(max_examples=150, deadline=None)
@given(
    spec=st.lists(
        st.tuples(st.integers(0, 2), st.integers(1, 40), kinds, st.integers(0, 2)), min_size=1, max_size=10
    ),
    num_blocks=st.integers(16, 40),
    budget=st.integers(8, 64),
    depth=st.integers(1, 2),
    caching=st.booleans(),
    gap=st.integers(0, 3),
)
def test_vectors_never_depend_on_the_company(spec, num_blocks, budget, depth, caching, gap):
    loop = ReadingLoop(num_blocks=num_blocks, budget=budget, depth=depth, prefix_caching=caching)
    vectors, tokens = {}, {}
    for i, (family, length, pooling, priority) in enumerate(spec):
        prompt = [(family * 7 + j // 6) % 50 for j in range(length)]
        if pooling is None:
            loop.scheduler.add(scored(f"r{i}", prompt, 12, priority=priority, wants=None))
            tokens[f"r{i}", 0] = loop.device.continuation(prompt, 12)
        else:
            loop.scheduler.add(embedded(f"r{i}", prompt, pooling, priority))
            vectors[f"r{i}"] = loop.expected_vector(prompt, pooling)
        for _ in range(gap):
            loop.step()
    loop.run()
    assert loop.vectors == vectors
    assert {key: value for key, value in loop.tokens.items() if value} == tokens
    assert len(loop.finished) == len(spec)


def test_a_mean_is_of_all_tokens_whatever_is_cached():
    loop = ReadingLoop(num_blocks=64, budget=10)
    prompt = list(range(33))
    for name, pooling in (("cold", Pooling.MEAN), ("warm", Pooling.MEAN), ("last", Pooling.LAST)):
        cached = loop.scheduler.stats().num_cached_tokens
        loop.scheduler.add(embedded(name, prompt, pooling))
        loop.run()
        assert loop.vectors[name] == loop.expected_vector(prompt, pooling)
        assert loop.scheduler.stats().num_cached_tokens - cached == (32 if pooling is Pooling.LAST else 0)


def test_states_that_are_not_finite_end_their_sequence_alone():
    loop = ReadingLoop(num_blocks=64, budget=16)
    loop.device.nan_prefixes.add(tuple(range(9)))
    loop.scheduler.add(embedded("bad", range(20)))
    loop.scheduler.add(embedded("good", range(20, 40)))
    loop.run()
    assert loop.finished == {("bad", 0): FinishReason.ERROR, ("good", 0): FinishReason.STOP}
    assert list(loop.vectors) == ["good"]
