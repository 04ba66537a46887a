"""When a captured pass is made and which one a batch runs in; the capture itself is a stand-in that counts."""

from types import SimpleNamespace

import pytest
import torch

from pyengine.runner.graphs import GraphPass


class Device:
    """Runs and captures nothing; remembers the sizes, and how many passes were replayed."""

    def __init__(self, max_num_seqs: int):
        self.captured, self.replayed, self.eager = [], [], []
        self.passes = GraphPass(max_num_seqs, self._capture)

    def batch(self, size: int) -> SimpleNamespace:
        return SimpleNamespace(num_seqs=size)

    def forward(self, batch: SimpleNamespace) -> torch.Tensor:
        self.eager.append(batch.num_seqs)
        return torch.full((1,), batch.num_seqs)

    def start(self) -> int:
        return self.passes.capture_ahead(self.batch, self.forward)

    def step(self, num_seqs: int) -> int:
        size = self.passes.padded_size(num_seqs)
        assert size >= num_seqs
        assert self.passes.run(self.batch(size), self.forward).item() == size
        return size

    def _capture(self, batch, forward):
        self.captured.append(batch.num_seqs)
        graph = SimpleNamespace(replay=lambda: self.replayed.append(batch.num_seqs))
        return graph, torch.full((1,), batch.num_seqs)


ALL_100 = [1, 2, 4, 8, 16, 32, 48, 64, 80, 96, 100]


FIRST_100 = [1, 2, 4, 8, 16, 32, 64, 100]


def test_some_sizes_are_captured_before_the_start_the_others_when_there_is_nothing_to_do():
    device = Device(100)
    assert device.start() == len(FIRST_100)
    assert sorted(device.captured) == FIRST_100 and device.captured[0] == 100
    while device.passes.capture_next(device.batch, device.forward):
        pass
    assert sorted(device.captured) == ALL_100
    expected = [next(size for size in ALL_100 if size >= n) for n in range(1, 101)]
    assert [device.step(n) for n in range(1, 101)] == expected
    assert device.replayed == expected and sorted(device.captured) == ALL_100


@pytest.fixture
def started() -> Device:
    device = Device(100)
    device.start()
    device.captured.clear()
    device.eager.clear()
    return device


def test_a_size_that_is_not_ready_runs_padded_until_it_is_wanted_often(started):
    assert {started.step(40) for _ in range(GraphPass.OFTEN - 1)} == {64}
    assert started.step(70) == 100  # counted for itself
    assert not started.captured and not started.eager
    assert started.step(40) == 48
    assert started.captured == started.eager == [48]  # computed once, while it is captured
    assert started.step(40) == 48 and started.eager == [48]


def test_without_a_larger_graph_a_size_is_captured_at_once():
    device = Device(32)
    assert device.step(3) == 4 and device.captured == [4]
    assert device.step(9) == 16 and device.captured == [4, 16]


@pytest.mark.parametrize("most", [1, 3, 16, 17])
def test_the_largest_size_is_the_limit(most):
    device = Device(most)
    device.start()
    assert max(device.captured) == most and device.step(most) == most
