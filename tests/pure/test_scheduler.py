"""The scheduler against a device that checks every read: same tokens whatever is chunked, cached, preempted, forked or
in flight.
"""

from __future__ import annotations

from collections import defaultdict, deque

import pytest
from fake_device import FakeDevice
from hypothesis import given, settings
from hypothesis import strategies as st

from pyengine.admission import QueueLoad
from pyengine.errors import RequestError
from pyengine.kv.block_manager import BlockManager
from pyengine.kv.host_tier import HostTier
from pyengine.protocol import FinishReason, Request
from pyengine.sampling_params import SamplingParams
from pyengine.sched.scheduler import Scheduler, SchedulerLimits


class Loop:
    """The engine's loop around a scheduler and a fake device; ``depth`` steps may be in flight."""

    def __init__(
        self,
        *,
        num_blocks=64,
        block_size=4,
        max_num_seqs=8,
        budget=32,
        depth=1,
        prefix_caching=True,
        max_model_len=None,
        num_host_blocks=0,
        is_worth=lambda num_blocks, num_before: True,
    ):
        self.device = FakeDevice(block_size)
        self.blocks = BlockManager(num_blocks, block_size, prefix_caching, HostTier(num_host_blocks, is_worth))
        limits = SchedulerLimits(
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=budget,
            max_model_len=max_model_len or num_blocks * block_size,
        )
        self.scheduler = Scheduler(limits, self.blocks)
        self.depth = depth
        self.inflight = deque()
        self.tokens = defaultdict(list)
        self.finished = {}
        self.steps = []

    def step(self) -> bool:
        step = self.scheduler.schedule()
        if step is not None:
            self.steps.append(step)
            self.inflight.append((step, self.device.execute(step)))
        while self.inflight and (len(self.inflight) >= self.depth or step is None):
            for delta in self.scheduler.update(*self.inflight.popleft()):
                key = (delta.request_id, delta.index)
                assert key not in self.finished, "a delta after the last one"
                self.tokens[key] += delta.token_ids
                if delta.finish_reason:
                    self.finished[key] = delta.finish_reason
        self.scheduler.check_integrity()
        return self.scheduler.has_work or bool(self.inflight)

    def run(self, limit=3000) -> None:
        for _ in range(limit):
            if not self.step():
                break
        else:
            raise AssertionError("the scheduler makes no progress")
        pool = self.blocks.pool
        assert pool.num_free == pool.num_blocks and not any(pool.ref_counts)


def request(name, prompt, max_tokens=8, *, n=1, eos=(), priority=0, salt=""):
    return Request(name, list(prompt), SamplingParams(n=n, max_tokens=max_tokens, seed=1), list(eos), priority, salt)


requests = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.integers(1, 40),
        st.integers(1, 20),
        st.integers(1, 3),
        st.integers(0, 2),
        st.integers(0, 12),
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
    num_host_blocks=st.sampled_from([0, 1, 3, 10, 100]),
    worth=st.integers(0, 3),
)
def test_tokens_never_depend_on_the_company(spec, num_blocks, budget, depth, caching, num_host_blocks, worth):
    loop = Loop(
        num_blocks=num_blocks,
        budget=budget,
        depth=depth,
        prefix_caching=caching,
        num_host_blocks=num_host_blocks,
        is_worth=lambda num, before: num > worth,
    )
    expected, arrivals = {}, defaultdict(list)
    for i, (family, length, max_tokens, n, priority, arrival) in enumerate(spec):
        prompt = [(family * 7 + j // 6) % 50 for j in range(length)]
        eos = frozenset({3, 4})
        req = request(f"r{i}", prompt, max_tokens, n=n, eos=eos, priority=priority)
        limit = min(max_tokens, loop.scheduler.limits.max_model_len - length)
        for index in range(n):
            expected[f"r{i}", index] = loop.device.continuation(prompt, limit, eos)
        arrivals[arrival].append(req)
    for tick in range(13):
        for req in arrivals[tick]:
            loop.scheduler.add(req)
        loop.step()
    loop.run()
    assert dict(loop.tokens) == expected
    assert set(loop.finished) == set(expected)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_aborts_at_any_moment_return_every_block(data):
    loop = Loop(num_blocks=24, budget=16, depth=data.draw(st.integers(1, 2)))
    for i in range(5):
        loop.scheduler.add(request(f"r{i}", range(data.draw(st.integers(1, 30))), 12, n=data.draw(st.integers(1, 3))))
    for _ in range(data.draw(st.integers(0, 15))):
        loop.step()
        if data.draw(st.booleans()):
            loop.scheduler.abort([f"r{data.draw(st.integers(0, 5))}"])
            loop.scheduler.check_integrity()
    loop.run()


def test_a_long_prompt_is_computed_in_chunks_beside_decodes():
    loop = Loop(num_blocks=128, budget=10)
    loop.scheduler.add(request("short", [1, 2], 30))
    loop.step()
    loop.scheduler.add(request("long", range(40), 2))
    for _ in range(5):
        loop.step()
    sizes = [step.num_new_tokens.tolist() for step in loop.steps[1:]]
    assert sizes == [[1, 9], [1, 9], [1, 9], [1, 9], [1, 4]]
    loop.run()


def test_a_shared_prefix_is_computed_once_even_within_one_step():
    loop = Loop(num_blocks=128, budget=100)
    prefix = list(range(32))
    for i in range(3):
        loop.scheduler.add(request(f"r{i}", [*prefix, i], 2))
    loop.run()
    assert loop.steps[0].num_new_tokens.tolist() == [33, 1, 1]
    assert loop.scheduler.stats().num_cached_tokens == 64


def test_salts_separate_the_cache():
    loop = Loop(num_blocks=128, budget=100)
    loop.scheduler.add(request("a", range(32), 2, salt="tenant-1"))
    loop.scheduler.add(request("b", range(32), 2, salt="tenant-2"))
    loop.run()
    assert loop.scheduler.stats().num_cached_tokens == 0


def test_siblings_share_the_prompt_and_copy_on_write():
    loop = Loop(num_blocks=64, budget=64, prefix_caching=False)
    loop.scheduler.add(request("r", range(10), 6, n=3))
    loop.run()
    assert loop.steps[0].num_new_tokens.tolist() == [10]
    assert sum(step.num_tokens for step in loop.steps) == 10 + 2 + 3 * 5
    assert sum(len(step.copies) for step in loop.steps) == 2


@pytest.mark.parametrize("num_stops", [1, 7, 8, 30])
@pytest.mark.parametrize("depth", [1, 2])
def test_any_number_of_stop_tokens_ends_a_sequence(num_stops, depth):
    loop = Loop(num_blocks=64, depth=depth)
    stops = tuple(range(50 - num_stops, 50))
    for i in range(4):
        params = SamplingParams(max_tokens=30, seed=1, stop_token_ids=stops)
        loop.scheduler.add(Request(f"r{i}", [i, i + 1], params))
    loop.run()
    expected = {(f"r{i}", 0): loop.device.continuation([i, i + 1], 30, frozenset(stops)) for i in range(4)}
    assert dict(loop.tokens) == expected


def test_quiet_steps_send_only_the_decodes():
    """In the steady state nothing but the decodes' arrays is in a step, and every 4th one has new blocks."""
    loop = Loop(num_blocks=64)
    for i in range(4):
        loop.scheduler.add(request(f"r{i}", [i, 1, 2], 20))
    loop.run()
    assert [len(step.block_entries) for step in loop.steps[:10]] == [4, 0, 4, 0, 0, 0, 4, 0, 0, 0]
    assert all(len(step.prompt_ids) == 0 and (step.prompt_offsets == -1).all() for step in loop.steps[1:])


def test_a_sequence_with_infinite_logits_fails_alone_and_leaves_the_cache():
    loop = Loop(num_blocks=64, budget=64)
    bad, good = list(range(20)), list(range(20, 40))
    loop.device.nan_prefixes.add(tuple(bad))
    loop.scheduler.add(request("bad", bad))
    loop.scheduler.add(request("good", good))
    loop.run()
    assert loop.finished == {("bad", 0): FinishReason.ERROR, ("good", 0): FinishReason.LENGTH}
    assert loop.tokens["good", 0] == loop.device.continuation(good, 8)
    loop.scheduler.add(request("again", bad[:19]))
    loop.run()
    assert loop.scheduler.stats().num_cached_tokens == 0


def test_priority_goes_first():
    loop = Loop(max_num_seqs=1)
    loop.scheduler.add(request("later", [1], 2, priority=5))
    loop.scheduler.add(request("sooner", [2], 2, priority=-5))
    loop.run()
    assert list(loop.finished) == [("sooner", 0), ("later", 0)]


@pytest.mark.parametrize("prompt, text", [([], "empty"), (list(range(256)), "256 tokens")])
def test_impossible_requests_are_refused_with_the_numbers(prompt, text):
    with pytest.raises(RequestError, match=text):
        Loop().scheduler.add(request("r", prompt))


def test_output_is_cut_at_the_context():
    loop = Loop(max_model_len=12)
    loop.scheduler.add(request("r", range(10), 100))
    loop.run()
    assert len(loop.tokens["r", 0]) == 2 and loop.finished["r", 0] is FinishReason.LENGTH


def test_many_aborted_waiting_requests_do_not_pile_up():
    loop = Loop(max_num_seqs=1)
    loop.scheduler.add(request("busy", [1], 40))
    loop.step()
    for i in range(500):
        loop.scheduler.add(request(f"w{i}", [1, 2, 3]))
        loop.scheduler.abort([f"w{i}"])
    assert len(loop.scheduler._waiting) < 100
    loop.run()


def test_the_queue_is_what_has_never_run():
    loop = Loop(max_num_seqs=2)
    for i in range(3):
        loop.scheduler.add(request(f"r{i}", [1, 2, 3], 4))
    loop.scheduler.add(request("pair", [4, 5], 4, n=2))
    assert loop.scheduler.queued == QueueLoad(5, 13)
    loop.step()
    assert loop.scheduler.queued == QueueLoad(3, 7) and loop.scheduler.dequeued == QueueLoad(2, 6)
    loop.scheduler.abort(["r2"])
    loop.scheduler.abort_sequence("pair", 1)
    stats = loop.scheduler.stats()
    assert (stats.num_queued, stats.num_queued_tokens) == (1, 2)
    loop.run()
    assert loop.scheduler.queued == QueueLoad() and loop.scheduler.dequeued == QueueLoad(5, 13)


def test_a_preempted_sequence_does_not_queue_again():
    loop = Loop(num_blocks=16, budget=64)
    for i in range(3):
        loop.scheduler.add(request(f"r{i}", range(i, i + 15), 20))
    while loop.scheduler.queued.num_seqs:
        loop.step()
    while not loop.scheduler.stats().num_preemptions:
        assert loop.step()
    assert loop.scheduler.queued == QueueLoad() and loop.scheduler.stats().num_waiting > 0
    loop.run()


class FakeGrammar:
    """Allows even tokens only; becomes ready after some looks, or fails."""

    constrains = True

    def __init__(self, source: str, thinking: object = None):
        self._looks = int(source) if source.isdigit() else 0
        self.error = "" if source.isdigit() else source
        self.complete = False

    @property
    def ready(self) -> bool:
        self._looks -= 1
        return self._looks < 0

    def accept(self, token_id: int) -> bool:
        return token_id % 2 == 0


def constrained(name, prompt, grammar):
    return Request(name, list(prompt), SamplingParams(max_tokens=6, seed=1, grammar=grammar))


def test_a_sequence_waits_for_its_grammar_and_nobody_waits_for_it():
    loop = Loop()
    loop.scheduler._make_grammar = FakeGrammar
    loop.scheduler.add(constrained("bound", range(9), "12"))
    loop.scheduler.add(request("free", range(20, 30), 3))
    loop.run()
    assert list(loop.finished) == [("free", 0), ("bound", 0)]


def test_a_grammar_that_cannot_be_made_fails_its_sequence_alone():
    loop = Loop()
    loop.scheduler._make_grammar = FakeGrammar
    loop.scheduler.add(constrained("bad", range(9), "no such rule"))
    loop.scheduler.add(request("good", range(20, 30), 3))
    loop.step()
    failures = loop.scheduler.take_failures()
    assert [(f.request_id, f.finish_reason) for f in failures] == [("bad", FinishReason.ERROR)]
    assert "no such rule" in failures[0].error and loop.scheduler.take_failures() == []
    loop.run()
    assert loop.finished == {("good", 0): FinishReason.LENGTH}


def test_a_token_that_the_grammar_refuses_ends_the_sequence_with_an_error():
    loop = Loop()
    loop.scheduler._make_grammar = FakeGrammar
    prompt = next(list(range(n, n + 9)) for n in range(50) if loop.device.continuation(list(range(n, n + 9)), 1)[0] % 2)
    loop.scheduler.add(constrained("odd", prompt, "0"))
    loop.run()
    assert loop.finished == {("odd", 0): FinishReason.ERROR}
