"""What is done when there is nothing to do: every size of a captured pass, one at a time, and no token changes."""

from __future__ import annotations

import pytest
from engine_helpers import generate

from pyengine.runner.graphs import CudaGraphPass
from pyengine.sampling_params import SamplingParams


class FakeGraphs(CudaGraphPass):
    """Notes sizes instead of capturing."""

    def __init__(self, max_num_seqs: int):
        self._max_num_seqs = max_num_seqs
        self._graphs = {}
        self.captured: list[int] = []

    def _capture(self, batch, forward):
        self.captured.append(batch)
        return batch, None


@pytest.mark.parametrize("max_num_seqs", [1, 3, 8, 10, 40, 256, 300])
def test_every_size_that_a_step_may_have_is_captured_once(max_num_seqs):
    graphs = FakeGraphs(max_num_seqs)
    graphs.capture_ahead(lambda size: size, None)
    ahead = list(graphs.captured)
    while graphs.capture_next(lambda size: size, None):
        pass
    wanted = {graphs.padded_size(n) for n in range(1, max_num_seqs + 1)}
    assert sorted(graphs.captured) == sorted(wanted | set(ahead))
    assert graphs.captured[len(ahead) :] == sorted(wanted - set(ahead), reverse=True), "the largest first"


def test_preparing_between_requests_changes_nothing(make_engine, backend):
    job = {"a": (list(range(30, 70)), SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True))}
    engine = make_engine(max_num_seqs=20)
    before = generate(engine, job)
    num_prepared = 0
    while engine.prepare():
        num_prepared += 1
        assert generate(engine, job) == before
    assert num_prepared == (1 if backend == "cuda" else 0), "of 1, 2, 4, 8, 16, 20 the last"
