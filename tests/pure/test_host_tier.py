"""The host tier: what the device's cache gives up is found again, and no copy reads or writes a block at the wrong
time.
"""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from test_scheduler import Loop, request

from pyengine.kv.host_tier import HostTier
from pyengine.kv.prefix_cache import make_key
from pyengine.sched.cost_model import CostModel, StepWork
from pyengine.sched.swap_choice import SwapChoice


def _key(i: int):
    return make_key(b"parent", [i])


@settings(max_examples=300, deadline=None)
@given(num_blocks=st.integers(0, 6), actions=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), max_size=60))
def test_memory_holds_what_the_keys_say(num_blocks, actions):
    """A model of both memories: device block i is about to be overwritten and holds key i whenever it is saved."""
    tier = HostTier(num_blocks)
    host: dict[int, int] = {}
    wanted: list[tuple[int, int]] = []  # (host block, key) loaded in this step
    for action, i in actions:
        if action <= 1:
            tier.save(_key(i), i)
        elif action == 2:
            found = tier.find(_key(i))
            if found is not None:
                tier.hold([found])
                tier.load(found, 100 + i)
                wanted.append((found, i))
        else:
            swaps = tier.take_swaps()
            assert len({to for _, to in swaps.outs}) == len(swaps.outs)
            host.update({to: block for block, to in swaps.outs})
            assert swaps.ins == [(found, 100 + i) for found, i in wanted]
            assert all(host[found] == i for found, i in wanted), "a block was overwritten before it was read"
            wanted = []
        tier.check_integrity()
    for to in [to for block, to in tier.take_swaps().outs if host.update({to: block}) is None]:
        assert to < num_blocks
    for i in range(10):
        found = tier.find(_key(i))
        assert found is None or host[found] == i


def test_what_the_device_forgets_is_copied_back_and_not_computed():
    loop = Loop(num_blocks=16, block_size=4, budget=64, num_host_blocks=64)
    for i in range(6):  # each fills most of the device
        loop.scheduler.add(request(f"first{i}", range(i, i + 40), 2))
        loop.run()
    num_tokens = sum(step.num_tokens for step in loop.steps)
    loop.steps.clear()
    for i in range(6):
        loop.scheduler.add(request(f"again{i}", range(i, i + 40), 2))
        loop.run()
        assert loop.tokens[f"again{i}", 0] == loop.tokens[f"first{i}", 0]
    assert sum(step.num_tokens for step in loop.steps) < num_tokens / 4
    stats = loop.scheduler.stats()
    assert stats.num_swapped_in > 30 and stats.num_swapped_out > 30
    loop.blocks.flush_cache()
    loop.steps.clear()
    loop.scheduler.add(request("after", range(40), 2))
    loop.run()
    assert loop.steps[0].num_tokens == 40 and not len(loop.steps[0].swaps_in)


def test_a_preempted_sequence_computes_almost_nothing_twice():
    def run(num_host_blocks):
        loop = Loop(num_blocks=24, block_size=4, budget=64, num_host_blocks=num_host_blocks)
        for i in range(4):
            loop.scheduler.add(request(f"r{i}", [i, *range(20)], 50))
        loop.run()
        for i in range(4):
            assert loop.tokens[f"r{i}", 0] == loop.device.continuation([i, *range(20)], 50)
        stats = loop.scheduler.stats()
        return sum(step.num_tokens for step in loop.steps) - 4 * (21 + 49), stats.num_preemptions

    with_tier, num_preemptions = run(64)
    without, _ = run(0)
    assert num_preemptions > 2
    assert with_tier <= 4 * num_preemptions < without, "at most a partial block each"


def test_blocks_are_computed_where_that_is_faster():
    loop = Loop(num_blocks=16, block_size=4, budget=64, num_host_blocks=64, is_worth=lambda num, before: False)
    for name in ("a", "b", "again-a"):
        loop.scheduler.add(request(name, range(50) if "a" in name else range(50, 100), 2))
        loop.run()
    assert loop.scheduler.stats().num_swapped_in == 0 and loop.tokens["again-a", 0] == loop.tokens["a", 0]


def test_the_choice_follows_the_measured_costs():
    model = CostModel()
    slow_copy, fast_copy = SwapChoice(1.0, 16, model), SwapChoice(1e-6, 16, model)
    assert slow_copy(4, 0) and fast_copy(4, 0), "copied as long as nothing is known"
    for i in range(60):
        work = StepWork(10 + i, 1000 * i).with_prompt(37 * i % 1000, 0)
        model.observe(work, 0.005 + 1e-5 * (work.num_decodes + work.num_prompt_tokens))
    assert fast_copy(4, 0) and not slow_copy(4, 0)
